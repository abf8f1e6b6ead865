"""The retraction of a fault: bytes first, z sent again until it has arrived, whatever came in between."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from firmware_bridge import retraction as module
from firmware_bridge.errors import (
    FirmwareError,
    LinkError,
    LinkTimeoutError,
    ProtocolError,
    RefusedError,
    StoppedError,
)
from firmware_bridge.position import PositionUm
from firmware_bridge.pzt import open_stage
from firmware_bridge.retraction import FocusRetraction, PztRetraction, Retraction, Way
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
    retraction.begin(failed, retraction.due())
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
    retraction.begin(pytest.fail)
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


def test_whoever_sees_a_fault_waits_for_its_retraction_however_late_that_begins():
    looks, goes_on = threading.Event(), threading.Event()

    class Slow(Away):
        def retract_z(self) -> None:
            looks.set()
            assert goes_on.wait(5)
            super().retract_z()

    interlock = Interlock(Rules("cantilever", TRAVEL, contact=False), stage=Slow())
    contact = threading.Thread(target=lambda: interlock.overload("3 V"))
    contact.start()
    assert looks.wait(5)
    assert interlock.state is State.FAULT
    assert not interlock.wait_retracted(timeout_s=0.0), "nothing has been sent yet"
    goes_on.set()
    assert interlock.wait_retracted(timeout_s=5.0)
    contact.join(5)


def test_a_thread_that_is_known_but_has_not_begun_is_waited_for(monkeypatch):
    known, goes_on = threading.Event(), threading.Event()
    start = threading.Thread.start

    def late(thread: threading.Thread) -> None:
        if thread.name == "retraction":
            known.set()
            assert goes_on.wait(5)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", late)
    retraction = Retraction(Away(), None, "cantilever")
    way = retraction.due()
    begins = threading.Thread(target=lambda: retraction.begin(pytest.fail, way))
    begins.start()
    assert known.wait(5)
    assert not retraction.wait(0.01)
    goes_on.set()
    assert retraction.wait(5)
    begins.join(5)


def test_one_that_is_given_up_before_it_begins_is_not_waited_for():
    away = Away()
    away.left_um = [7.0]
    retraction = Retraction(away, None, "cantilever")
    way = retraction.due()
    retraction.give_up()
    assert retraction.wait(0.0)
    retraction.begin(pytest.fail, way)
    assert retraction.wait(5)
    assert away.sent == 1


def test_a_reset_gives_up_the_retraction_of_its_own_fault_and_not_that_of_the_next(at_once, monkeypatch):
    away = Away()
    away.left_um = [7.0]
    interlock = Interlock(Rules("cantilever", TRAVEL, contact=False), stage=away)
    interlock.overload("the first")
    interlock.sampled(0.0, touches=False)
    give_up = Way.give_up

    def late(way: Way) -> None:
        monkeypatch.undo()
        interlock.overload("the next")
        give_up(way)

    monkeypatch.setattr(Way, "give_up", late)
    interlock.reset(by=ME)
    assert interlock.why == "the next"
    sent = away.sent
    until(lambda: away.sent > sent + 1)
    away.left_um = [0.0]
    assert interlock.wait_retracted(timeout_s=5.0)


class Focus:
    """A focus stage that lifts at once, unless it has an error."""

    def __init__(self, error: FirmwareError) -> None:
        self.error: FirmwareError | None = error
        self.asked = 0

    def focus_up(self, *, wait: bool = False) -> None:
        assert wait, "to know whether it is up"
        self.asked += 1
        error = self.error
        if error is not None:
            raise error


def test_a_lift_in_a_fault_does_not_keep_the_next_action_waiting_and_its_failure_is_not_lost():
    retraction, given_up = FocusRetraction(), threading.Event()
    with pytest.raises(LinkError, match="no focus stage is open"):
        retraction.focus_up()
    with pytest.raises(LinkError, match="no focus stage is open"):
        retraction.lift(pytest.fail, given_up)
    goes_on = threading.Event()

    class Stage:
        def focus_up(self, *, wait: bool = False) -> None:
            assert goes_on.wait(5)
            raise LinkError("unplugged")

    retraction.bind(Stage())
    retraction.lift(pytest.fail, given_up)  # returns although the stage has not
    with pytest.raises(LinkTimeoutError, match="cut its power"):
        retraction.check(timeout_s=0.01)
    given_up.set()
    goes_on.set()
    with pytest.raises(LinkError, match="unplugged"):
        retraction.check(timeout_s=5)
    with pytest.raises(LinkError, match="unplugged"):
        retraction.focus_up()


@pytest.mark.parametrize("mount", ["cantilever", "objective"])
@pytest.mark.parametrize("error", [ProtocolError("garbled"), LinkTimeoutError("no answer"), StoppedError("STOP")])
def test_a_focus_that_does_not_lift_is_sent_again_until_it_is_up(at_once, mount, error):
    focus, lift = Focus(error), FocusRetraction()
    lift.bind(focus)
    interlock = Interlock(Rules(mount, TRAVEL, contact=False), stage=Away(), focus=lift)
    interlock.overload("3 V")
    until(lambda: focus.asked > 3)
    assert interlock.why == "3 V", "not yet a failure"
    focus.error = None
    lift.check(timeout_s=5)
    interlock.close()


def test_a_focus_that_does_not_lift_for_long_is_told_once_and_tried_until_a_person_resets(at_once, monkeypatch):
    monkeypatch.setattr(module, "RETRACTION_S", 0.01)
    focus, lift = Focus(LinkError("unplugged")), FocusRetraction()
    lift.bind(focus)
    interlock = Interlock(Rules("objective", TRAVEL, contact=False), stage=Away(), focus=lift)
    interlock.overload("3 V")
    until(lambda: interlock.why != "3 V")
    asked = focus.asked
    until(lambda: focus.asked > asked + 2)
    assert interlock.why == "3 V; could not lift the focus: unplugged"
    interlock.sampled(0.0, touches=False)
    interlock.reset(by=ME)
    with pytest.raises(LinkError, match="unplugged"):
        lift.check(timeout_s=5)


def test_a_lift_that_is_not_followed_is_tried_once_and_told():
    focus, lift, said = Focus(LinkError("unplugged")), FocusRetraction(), []
    lift.bind(focus)
    lift.lift(said.append, None)
    with pytest.raises(LinkError, match="unplugged"):
        lift.check(timeout_s=5)
    assert (focus.asked, said) == (1, ["could not lift the focus: unplugged"])


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
    with engaged() as (simulator, stage, interlock):
        stage.controller.link._timeout_s = 0.1
        simulator.faults.inject("dead", times=None)
        with pytest.raises(LinkError):
            stage.position_um()
        assert not stage.ready, "but its servo never opened"
        interlock.overload("no answer")
        assert simulator.pose_um().z == pytest.approx(6.9, abs=0.02)
        stage.controller.link._timeout_s = 1.0
        simulator.faults.clear()
        assert interlock.wait_retracted(timeout_s=20.0)
        until(lambda: simulator.pose_um().z == pytest.approx(0.0, abs=0.01))
        assert interlock.why.startswith("no answer")


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

    with engaged(reply_timeout_s=3.0, trace=trace) as (simulator, stage, interlock):
        asked.clear()
        simulator.faults.inject("silent", only="POS?")
        asks = threading.Thread(target=lambda: _ignore(stage.position_um))
        asks.start()
        assert asked.wait(5)
        interlock.overload("3 V")
        told_s = time.monotonic()
        until(lambda: simulator.pose_um().z < 6.8)
        assert time.monotonic() - told_s < 1.5, "less than the answer is waited for"
        asks.join(20)
        assert interlock.wait_retracted(timeout_s=20.0)


def _ignore(question) -> None:
    with contextlib.suppress(LinkError, RefusedError):
        question()


def test_a_dead_pzt_does_not_keep_the_focus_from_being_lifted():
    with engaged(reply_timeout_s=3.0) as (simulator, stage, interlock):
        simulator.faults.inject("dead", times=None)
        lifted = threading.Event()

        class Lift:
            def focus_up(self) -> None:
                pytest.fail("nobody closes a servo")

            def lift(self, failed, given_up) -> None:
                lifted.set()

        retraction = PztRetraction()
        retraction.bind(stage)
        for mount in ("cantilever", "objective"):
            lifted.clear()
            other = Interlock(Rules(mount, TRAVEL), stage=retraction, focus=Lift())
            began_s = time.monotonic()
            other.overload("3 V")
            assert lifted.is_set()
            assert time.monotonic() - began_s < 1.5, "less than an answer is waited for"
            other.close()
        assert interlock.state is State.ARMED
