"""The retraction of a fault: bytes first, z sent again until it has arrived, whatever came in between."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from firmware_bridge import retraction as module
from firmware_bridge.errors import LinkError, LinkTimeoutError, ProtocolError, RefusedError
from firmware_bridge.position import PositionUm
from firmware_bridge.pzt import open_stage
from firmware_bridge.retraction import FocusRetraction, PztRetraction, Retraction
from firmware_bridge.safety import Interlock, Rules, State
from firmware_bridge.simulator import Simulator, serve_pty
from tests.sphere import ME, TRAVEL
from tests.waiting import until


class Away:
    """A PZT whose way out the test decides."""

    def __init__(self) -> None:
        self.sent = 0
        self.left_um: list[float | LinkError] = [0.0]
        self.arrived = threading.Event()

    def retract_z(self) -> None:
        self.sent += 1

    def from_away_um(self) -> float:
        left = self.left_um.pop(0) if len(self.left_um) > 1 else self.left_um[0]
        if isinstance(left, LinkError):
            raise left
        return left


@pytest.fixture
def at_once(monkeypatch):
    """z is looked at without a pause, and sent again whenever it came no nearer."""
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    monkeypatch.setattr(module, "AGAIN_S", 0.0)
    monkeypatch.setattr(module, "SELDOM_S", 0.0)


def begun(away: Away, failed=lambda _: None) -> Retraction:
    retraction = Retraction(away, None, "cantilever")
    retraction.begin(failed, follow=True)
    return retraction


def test_z_is_sent_again_while_it_comes_no_nearer_and_not_while_it_does(at_once):
    away = Away()
    away.left_um = [7.0, 6.0, 5.0, 5.0, 4.0, 0.01]
    assert begun(away).wait(5)
    assert away.sent == 2


@pytest.mark.parametrize("error", [LinkTimeoutError("no answer"), ProtocolError("garbled"), LinkError("gone")])
def test_an_answer_that_fails_neither_ends_a_retraction_nor_is_called_a_failure(at_once, error):
    away, said = Away(), []
    away.left_um = [7.0, error, error, 3.0, 0.0]
    assert begun(away, said.append).wait(5)
    assert said == []
    assert away.sent == 3


def test_a_retraction_that_does_not_arrive_is_said_once_and_tried_until_it_is_given_up(at_once, monkeypatch):
    monkeypatch.setattr(module, "RETRACTION_S", 0.01)
    away, said = Away(), []
    away.left_um = [7.0]
    retraction = begun(away, said.append)
    assert not retraction.wait(0.1)
    assert away.sent > 3
    retraction.give_up()
    assert retraction.wait(5)
    assert said == ["could not retract z within 0.01 s: z is 7.000 um from its end"]


def test_nothing_is_sent_after_it_was_given_up_however_long_a_look_took(at_once):
    looks, goes_on = threading.Event(), threading.Event()

    class Slow(Away):
        def from_away_um(self) -> float:
            looks.set()
            assert goes_on.wait(5)
            raise LinkTimeoutError("no answer")

    away = Slow()
    retraction = begun(away)
    assert looks.wait(5)
    retraction.give_up()
    goes_on.set()
    assert retraction.wait(5)
    assert away.sent == 1


def test_a_retraction_that_is_not_followed_is_sent_once():
    away = Away()
    away.left_um = [7.0]
    retraction = Retraction(away, None, "objective")
    retraction.begin(pytest.fail, follow=False)
    assert retraction.wait(0.0)
    assert away.sent == 1


def test_a_reset_gives_up_what_has_not_arrived():
    away = Away()
    away.left_um = [7.0]
    interlock = Interlock(Rules("cantilever", TRAVEL, contact=False), stage=away)
    interlock.overload("a test")
    assert not interlock.wait_retracted(timeout_s=0.0)
    interlock.sampled(0.0, touches=False)
    interlock.reset(by=ME)
    assert interlock.wait_retracted(timeout_s=5.0)


def test_a_lift_in_a_fault_does_not_keep_the_next_action_waiting_and_its_failure_is_not_lost():
    retraction = FocusRetraction()
    with pytest.raises(LinkError, match="no focus stage is open"):
        retraction.focus_up()
    goes_on = threading.Event()

    class Stage:
        def focus_up(self, *, wait: bool = False) -> None:
            assert goes_on.wait(5)
            raise LinkError("unplugged")

    retraction.bind(Stage())
    retraction.focus_up()  # returns although the stage has not
    with pytest.raises(LinkTimeoutError, match="cut its power"):
        retraction.check(timeout_s=0.01)
    goes_on.set()
    with pytest.raises(LinkError, match="unplugged"):
        retraction.check()
    with pytest.raises(LinkError, match="unplugged"):
        retraction.focus_up(wait=True)


# -- on the simulated controller --------------------------------------------------------------------------------------


@contextlib.contextmanager
def engaged(*, velocity_um_s: float = 1000.0, baud: int | None = None, **keywords):
    """A stage at z = 6.9 um whose interlock is armed."""
    simulator, retraction = Simulator("e727", start_um=PositionUm(50, 50, 6.9)), PztRetraction()
    interlock = Interlock(Rules("cantilever", TRAVEL, contact=False), stage=retraction)
    interlock.sphere_lifted(by=ME)
    with (
        serve_pty(simulator, baud=baud) as server,
        open_stage(server.address, guard=interlock, enable_servo=True, **keywords) as stage,
    ):
        retraction.bind(stage)
        stage.set_velocity(velocity_um_s=velocity_um_s)
        interlock.arm(by=ME)
        try:
            yield simulator, stage, interlock
        finally:
            simulator.faults.clear()
            interlock.close()


def test_a_controller_that_was_silent_for_a_while_is_retracted_as_soon_as_it_listens_again():
    with engaged(reply_timeout_s=0.1) as (simulator, stage, interlock):
        simulator.faults.inject("dead", times=None)
        with pytest.raises(LinkError):
            stage.position_um()
        assert not stage.ready, "but its servo never opened"
        interlock.overload("no answer")
        assert simulator.pose_um().z == pytest.approx(6.9, abs=0.02)
        simulator.faults.clear()
        assert interlock.wait_retracted(timeout_s=5.0)
        until(lambda: simulator.pose_um().z == pytest.approx(0.0, abs=0.01))
        assert interlock.why == "no answer"


def test_a_stop_during_a_retraction_does_not_halt_it():
    with engaged(velocity_um_s=20.0) as (simulator, stage, interlock):
        interlock.overload("3 V")
        until(lambda: simulator.pose_um().z < 6.8)
        stage.stop()
        assert interlock.wait_retracted(timeout_s=5.0)
        until(lambda: simulator.pose_um().z == pytest.approx(0.0, abs=0.01))
        assert interlock.why == "3 V"


def test_an_overload_does_not_wait_for_whoever_waits_for_an_answer():
    asked = threading.Event()

    def trace(way: str, data: bytes) -> None:
        if data.startswith(b"POS?"):
            asked.set()

    with engaged(reply_timeout_s=1.0, trace=trace) as (simulator, stage, interlock):
        asked.clear()
        simulator.faults.inject("silent", only="POS?")
        asks = threading.Thread(target=lambda: _ignore(stage.position_um))
        asks.start()
        assert asked.wait(5)
        interlock.overload("3 V")
        told_s = time.monotonic()
        until(lambda: simulator.pose_um().z < 6.8)
        assert time.monotonic() - told_s < 0.5, "less than the answer is waited for"
        asks.join(5)
        assert interlock.wait_retracted(timeout_s=5.0)


def _ignore(question) -> None:
    with contextlib.suppress(LinkError, RefusedError):
        question()


def test_a_dead_pzt_does_not_keep_the_focus_from_being_lifted():
    with engaged(reply_timeout_s=1.0) as (simulator, stage, interlock):
        simulator.faults.inject("dead", times=None)
        lifted = threading.Event()

        class Focus:
            def focus_up(self, *, wait: bool = False) -> None:
                lifted.set()

        retraction = PztRetraction()
        retraction.bind(stage)
        for mount in ("cantilever", "objective"):
            lifted.clear()
            other = Interlock(Rules(mount, TRAVEL), stage=retraction, focus=Focus())
            began_s = time.monotonic()
            other.overload("3 V")
            assert lifted.is_set()
            assert time.monotonic() - began_s < 0.5
            other.close()
        assert interlock.state is State.ARMED
