"""An instrument that is opened in the safe order, and left retracted."""

from __future__ import annotations

import contextlib
import threading

import pytest

from firmware_bridge import guarded
from firmware_bridge.approach import approach
from firmware_bridge.contact import Thresholds
from firmware_bridge.errors import LinkError, LinkTimeoutError, OutOfRangeError, RefusedError
from firmware_bridge.focus import open_focus
from firmware_bridge.guarded import open_guarded
from firmware_bridge.position import Box, PositionUm
from firmware_bridge.pzt import open_stage
from firmware_bridge.retraction import ARRIVED_UM
from firmware_bridge.safety import Rules, State
from firmware_bridge.simulator import Simulator
from firmware_bridge.simulator.cantilever import SimulatedCantilever
from firmware_bridge.simulator.esp301 import Esp301Server, SimulatedEsp301
from tests.sphere import LIMITS, ME, TRAVEL
from tests.waiting import until

PARTS = {"contact", "watch", "interlock clock", "focus lift", "retraction"}


class Instrument:
    """Simulated parts, and how to open them."""

    def __init__(self, address: str, esp301: SimulatedEsp301) -> None:
        self.address, self.esp301 = address, esp301
        self.simulator = Simulator("e727", start_um=PositionUm(50, 50, 6.9))
        self.closed: list[str] = []

    def stage(self, interlock):
        return open_stage("sim:", simulator=self.simulator, guard=interlock)

    def focus(self, interlock):
        return open_focus("esp301", self.address, "1", lift_um=100.0, guard=interlock)

    def reader(self, stage):
        reader = SimulatedCantilever(stage.simulator.pose_um, tilt=(0.0, 0.0))
        reader.close = lambda: self.closed.append("reader")
        return reader

    def open(self, mount: str = "objective", **keywords):
        keywords = {"open_focus": self.focus, "open_reader": self.reader, "thresholds": LIMITS, **keywords}
        rules = Rules(mount, Box(TRAVEL.low, PositionUm(90, 90, 10)), max_velocity_um_s=500.0, contact_timeout_s=5.0)
        return open_guarded(rules, self.stage, period_s=0.01, **keywords)


def arm(instrument) -> None:
    """Near the sphere, which needs a person's word."""
    instrument.interlock.sphere_lifted(by=ME)
    instrument.interlock.arm(by=ME)


@pytest.fixture
def parts():
    esp301 = SimulatedEsp301()
    with Esp301Server(esp301) as server:
        yield Instrument(server.address, esp301)
    assert not PARTS & {thread.name for thread in threading.enumerate()}


def test_the_focus_is_up_before_the_servo_closes_and_nothing_moves_before_it_is_armed(parts):
    with parts.open() as instrument:
        assert parts.esp301.position_mm == pytest.approx(1.1)
        assert instrument.interlock.state is State.DISARMED
        assert instrument.interlock.rules.limits_um.high == (90, 90, 10)
        assert instrument.interlock.velocity_limit_um_s == 500.0
        with pytest.raises(RefusedError, match="not armed"):
            instrument.stage.move_to(PositionUm(51, 50, 6.9))
        with pytest.raises(RefusedError, match="not armed"):
            instrument.focus.move_to(1000.0)
        arm(instrument)
        instrument.stage.move_to(PositionUm(51, 50, 6.9))
    assert parts.closed == ["reader"]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, LinkError("gone")])
def test_it_is_retracted_when_it_is_left_in_contact_whatever_ended_it(parts, error):
    with contextlib.suppress(KeyboardInterrupt, LinkError), parts.open() as instrument:
        arm(instrument)
        approach(instrument.stage, instrument.monitor, instrument.interlock, step_um=0.02)
        assert instrument.interlock.state is State.ENGAGED
        if error is not None:
            raise error
    assert parts.simulator.pose_um().z == pytest.approx(0.0, abs=0.01)


def test_an_overload_lifts_the_focus_and_retracts_the_stage(parts):
    with parts.open() as instrument:
        arm(instrument)
        before_um = instrument.focus.position_um()
        instrument.interlock.overload("3 V")
        assert instrument.interlock.wait_retracted(timeout_s=5.0)
        until(lambda: parts.simulator.pose_um().z == pytest.approx(0.0, abs=0.01))
        until(lambda: instrument.focus.position_um() == pytest.approx(before_um + 100.0, abs=0.1))


def test_leaving_right_after_a_fault_waits_for_the_retraction_and_the_lift(parts):
    with parts.open() as instrument:
        arm(instrument)
        before_um = instrument.focus.position_um()
        instrument.interlock.overload("3 V")
    assert parts.simulator.pose_um().z == pytest.approx(0.0, abs=ARRIVED_UM + 0.005), "it was waited for"
    until(lambda: 1e3 * parts.esp301.position_mm == pytest.approx(before_um + 100.0, abs=0.1))


def test_a_focus_that_could_not_be_lifted_is_said_when_it_is_left(parts, monkeypatch):
    def focus_up(*, wait: bool = False) -> None:
        raise LinkError("unplugged")

    def overloaded() -> None:
        with parts.open() as instrument:
            arm(instrument)
            monkeypatch.setattr(instrument.focus, "focus_up", focus_up)
            instrument.interlock.overload("3 V")

    monkeypatch.setattr(guarded, "LEAVE_S", 0.2)
    with pytest.raises(LinkError, match="unplugged"):
        overloaded()
    assert parts.closed == ["reader"]


def test_a_link_that_fails_as_it_is_left_in_contact_does_not_leave_it_there(parts):
    with parts.open() as instrument:
        arm(instrument)
        approach(instrument.stage, instrument.monitor, instrument.interlock, step_um=0.02)
        parts.simulator.faults.inject("garbage", times=3)
    until(lambda: parts.simulator.pose_um().z == pytest.approx(0.0, abs=0.01))


def test_a_ctrl_c_that_comes_as_it_is_left_in_contact_does_not_leave_it_there(parts, monkeypatch):
    def left() -> None:
        with parts.open() as instrument:
            arm(instrument)
            approach(instrument.stage, instrument.monitor, instrument.interlock, step_um=0.02)
            park, interrupts = instrument.stage.park, [KeyboardInterrupt()]

            def interrupted() -> None:
                if interrupts:
                    raise interrupts.pop()
                park()

            monkeypatch.setattr(instrument.stage, "park", interrupted)

    with pytest.raises(KeyboardInterrupt):
        left()
    until(lambda: parts.simulator.pose_um().z == pytest.approx(0.0, abs=0.01))


def test_after_a_crash_in_contact_it_is_not_armed(parts):
    with parts.open() as instrument:
        with pytest.raises(RefusedError, match="from its end away from the sphere"):
            instrument.interlock.arm(by=ME)
        instrument.stage.park()  # which is always allowed
        instrument.interlock.arm(by=ME)


def test_with_a_cantilever_the_servo_is_closed_by_a_persons_word_only(parts):
    with pytest.raises(RefusedError, match="--sphere-lifted"), parts.open("cantilever"):
        pass
    with parts.open("cantilever", lifted_by=ME) as instrument:
        arm(instrument)


def test_without_focus_and_contact_there_is_still_an_interlock(parts):
    with parts.open(open_focus=None, open_reader=None, thresholds=None, lifted_by=ME) as instrument:
        assert instrument.focus is instrument.monitor is None
        assert instrument.interlock.rules.contact is False
        arm(instrument)
        instrument.stage.move_to(PositionUm(51, 50, 6.5))


def test_a_reader_that_does_not_answer_closes_what_was_open(parts):
    def silent(stage):
        reader = parts.reader(stage)
        reader.silent = True
        return reader

    with pytest.raises(LinkTimeoutError, match="ADC does not answer"), parts.open(open_reader=silent):
        pass
    assert parts.closed == ["reader"]
    with parts.open():  # the ports are free again
        pass


@pytest.mark.parametrize("z_sign", [1, -1])
def test_a_stage_and_rules_that_name_different_ends_of_z_are_refused(parts, z_sign):
    def stage(interlock):
        return open_stage("sim:", simulator=parts.simulator, z_sign=z_sign, guard=interlock, enable_servo=False)

    with (
        pytest.raises(OutOfRangeError, match="which end of z is away"),
        open_guarded(Rules("objective", TRAVEL, z_sign=-z_sign), stage),
    ):
        pass


def test_a_fault_retracts_to_the_end_that_parking_goes_to(parts):
    def stage(interlock):
        return open_stage("sim:", simulator=parts.simulator, z_sign=-1, guard=interlock, enable_servo=True)

    with open_guarded(Rules("cantilever", TRAVEL, z_sign=-1), stage, lifted_by=ME) as instrument:
        instrument.interlock.arm(by=ME)
        instrument.interlock.overload("3 V")
        assert instrument.interlock.wait_retracted(timeout_s=5.0)
        at_um = instrument.stage.position_um().z
        instrument.stage.park()
        assert at_um == pytest.approx(instrument.stage.away_z_um, abs=ARRIVED_UM + 0.01)
        assert instrument.stage.position_um().z == pytest.approx(instrument.stage.away_z_um, abs=0.01)


@pytest.mark.parametrize("mount", ["objective", "cantilever"])
def test_an_armed_instrument_is_zeroed_and_armed_again(parts, mount):
    with open_guarded(Rules(mount, TRAVEL), parts.stage, open_focus=parts.focus, lifted_by=ME) as instrument:
        instrument.interlock.arm(by=ME)
        instrument.interlock.sphere_lifted(by=ME)
        instrument.stage.autozero()
        assert set(instrument.stage.controller.flags("ATZ?")) == {True}
        assert instrument.interlock.state is State.DISARMED
        with pytest.raises(RefusedError, match="servo"):
            instrument.stage.move_to(PositionUm(51, 50, 5))
        instrument.stage.servo_on()
        instrument.interlock.arm(by=ME)
        instrument.stage.move_to(PositionUm(51, 50, 5))


def test_a_reader_needs_thresholds(parts):
    with pytest.raises(OutOfRangeError), parts.open(thresholds=None):
        pass
    with pytest.raises(OutOfRangeError), parts.open(open_reader=None, thresholds=Thresholds(1.2, 2.0)):
        pass
