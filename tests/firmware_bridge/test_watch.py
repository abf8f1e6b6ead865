"""The interlock at work: over a real stage on the simulated controller, which dies, reboots, or loses its servo."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from firmware_bridge.approach import approach
from firmware_bridge.contact import ContactMonitor, Thresholds
from firmware_bridge.errors import FirmwareError, LinkError, OutOfRangeError, RefusedError
from firmware_bridge.position import PositionUm
from firmware_bridge.pzt import open_stage
from firmware_bridge.retraction import PztRetraction
from firmware_bridge.safety import Interlock, Rules, State
from firmware_bridge.simulator import Simulator
from firmware_bridge.simulator.cantilever import SimulatedCantilever
from firmware_bridge.watch import Watch
from tests.sphere import ME, TRAVEL
from tests.waiting import until


class Focus:
    """Counts how often it was lifted."""

    def __init__(self) -> None:
        self.lifted = 0

    def focus_up(self) -> None:
        self.lifted += 1

    def lift(self, failed, given_up) -> None:
        self.focus_up()


class Bench:
    """A stage, its simulator, and the interlock between them."""

    def __init__(self, stage, simulator, interlock, retraction, focus, sent) -> None:
        self.stage, self.simulator, self.interlock, self.focus, self.sent = stage, simulator, interlock, focus, sent


@contextlib.contextmanager
def bench(*, contact: bool = False, z_um: float = 5.0, profile: str = "e727", **keywords):
    simulator = Simulator(profile, start_um=PositionUm(50, 50, z_um))
    retraction, focus = PztRetraction(), Focus()
    # a loaded machine keeps no short time-outs
    rules = Rules(
        "cantilever",
        TRAVEL,
        contact=contact,
        poll_timeout_s=keywords.pop("poll_timeout_s", 5.0),
        contact_timeout_s=5.0,
    )
    interlock = Interlock(rules, stage=retraction, focus=focus)
    interlock.sphere_lifted(by=ME)
    sent: list[bytes] = []
    with open_stage(
        "sim:",
        simulator=simulator,
        guard=interlock,
        trace=lambda way, data: sent.append(data) if way == "<" else None,
        **keywords,
    ) as stage:
        retraction.bind(stage)
        assert focus.lifted == 1, "before the servo was closed"
        focus.lifted = 0
        try:
            yield Bench(stage, simulator, interlock, retraction, focus, sent)
        finally:
            interlock.close()


def test_nothing_is_sent_for_a_move_that_the_interlock_refuses():
    with bench() as b:
        before = len(b.sent)
        with pytest.raises(RefusedError, match="not armed"):
            b.stage.move_to(PositionUm(51, 50, 5))
        assert not [data for data in b.sent[before:] if b"MOV" in data]
        b.interlock.arm(by=ME)
        b.stage.move_to(PositionUm(51, 50, 5))


def test_the_servo_of_a_real_stage_stays_open_until_a_person_says_that_the_sphere_is_lifted():
    simulator = Simulator("e727")
    interlock = Interlock(Rules("cantilever", TRAVEL), stage=PztRetraction())
    sent: list[bytes] = []
    with pytest.raises(RefusedError, match="--sphere-lifted"):
        open_stage("sim:", simulator=simulator, guard=interlock, trace=lambda way, data: sent.append(data))
    assert not [data for data in sent if b"SVO " in data]


@pytest.mark.parametrize("profile", ["e727", "e517"])
def test_an_idle_instrument_is_not_taken_for_dead(profile):
    with bench(poll_timeout_s=1.0, profile=profile) as b, Watch(b.stage, b.interlock, period_s=0.05):
        b.stage.position_um()
        b.interlock.arm(by=ME)
        armed_s = time.monotonic()
        until(lambda: time.monotonic() - armed_s > 1.5)  # more than its patience
        assert b.interlock.state is State.ARMED


@pytest.mark.parametrize(
    ("reply_timeout_s", "poll_timeout_s", "state"),
    [(0.05, 4.0, State.DISARMED), (2.0, 1.0, State.FAULT)],
    ids=["the link loses its patience first", "the interlock does"],
)
def test_a_controller_that_falls_silent_is_stopped_and_what_can_be_is_retracted(reply_timeout_s, poll_timeout_s, state):
    with bench(poll_timeout_s=poll_timeout_s) as b, Watch(b.stage, b.interlock, period_s=0.1):
        b.stage.position_um()
        b.interlock.arm(by=ME)
        b.stage.controller.link._timeout_s = reply_timeout_s
        b.simulator.faults.inject("dead", times=None)
        until(lambda: b.focus.lifted == 1)
        assert b.interlock.state is state
        assert any(data.startswith(b"\x18") for data in b.sent), "the stop was sent all the same"
        b.simulator.faults.clear()


@pytest.mark.parametrize("fault", ["servo_off", "reboot"])
def test_a_servo_that_opens_while_nothing_moves_is_noticed(fault):
    with bench() as b, Watch(b.stage, b.interlock, period_s=0.05):
        b.stage.position_um()
        b.interlock.arm(by=ME)
        b.simulator.faults.inject(fault)
        until(lambda: b.interlock.state is not State.ARMED)
        assert "servo" in b.interlock.why
        assert not b.stage.ready, "it is to be closed knowingly"
        b.stage.position_um()
        b.interlock.arm(by=ME)
        with pytest.raises(RefusedError, match="servo is off"):
            b.stage.move_to(PositionUm(51, 50, 5))


def test_a_servo_that_opens_in_a_fault_is_noticed_too():
    with bench() as b, Watch(b.stage, b.interlock, period_s=0.05):
        b.interlock.overload("3 V")
        assert b.stage.ready
        b.simulator.faults.inject("servo_off")
        until(lambda: not b.stage.ready)
        assert b.interlock.state is State.FAULT
        assert b.interlock.why == "3 V"


def test_a_channel_that_goes_offline_at_the_front_panel_is_noticed():
    with bench(profile="e517") as b, Watch(b.stage, b.interlock, period_s=0.05):
        b.stage.position_um()
        b.interlock.arm(by=ME)
        b.stage.controller.set("ONL", {"1": False})
        until(lambda: b.interlock.state is not State.ARMED)
        assert "channel 1 is offline" in b.interlock.why
        assert not b.stage.ready


def test_a_front_switch_that_opens_the_servo_disarms():
    with bench() as b:
        b.stage.position_um()
        b.interlock.arm(by=ME)
        b.simulator.faults.inject("servo_off")
        with pytest.raises(FirmwareError):
            b.stage.move_to(PositionUm(55, 50, 5))
        assert b.interlock.state is State.DISARMED
        with pytest.raises(FirmwareError):
            b.stage.move_to(PositionUm(51, 50, 5))


def test_a_reboot_near_the_sphere_is_a_latched_fault_and_lifts_the_focus():
    with bench(contact=True, z_um=6.9) as b:
        sensor = SimulatedCantilever(b.simulator.pose_um, tilt=(0.0, 0.0))
        with ContactMonitor(sensor, Thresholds(1.2, 2.0), guard=b.interlock, period_s=0.01, stale_s=5.0) as monitor:
            monitor.wait()
            b.interlock.sphere_lifted(by=ME)
            b.interlock.arm(by=ME)
            approach(b.stage, monitor, b.interlock, step_um=0.02)
            b.simulator.faults.inject("reboot")
            with pytest.raises(FirmwareError):
                b.stage.move_to(b.stage.position_um()._replace(x=51.0))
            until(lambda: b.interlock.state is State.FAULT)
            until(lambda: b.focus.lifted == 1)
            with pytest.raises(RefusedError, match="latched"):
                b.interlock.arm(by=ME)


def test_after_a_reconnection_nothing_moves_until_the_servo_is_closed_and_it_is_armed_knowingly():
    with bench() as b:
        b.stage.position_um()
        b.interlock.arm(by=ME)
        b.stage.controller.server.unplug()
        with pytest.raises(LinkError):
            b.stage.move_to(PositionUm(55, 50, 5))
        assert b.interlock.state is State.DISARMED
        b.stage.controller.server.replug()
        b.stage.reconnect()
        with pytest.raises(RefusedError):
            b.stage.move_to(PositionUm(51, 50, 5))
        with pytest.raises(RefusedError, match="--sphere-lifted"):
            b.stage.servo_on()
        b.interlock.sphere_lifted(by=ME)
        b.stage.servo_on()
        with pytest.raises(RefusedError, match="not armed"):
            b.stage.move_to(PositionUm(51, 50, 5))
        b.interlock.arm(by=ME)
        assert b.stage.move_to(PositionUm(51, 50, 5)).x == pytest.approx(51, abs=0.02)


def test_an_overload_stops_a_move_that_is_under_way_and_retracts():
    with bench(contact=True, velocity_um_s=20.0) as b:
        b.interlock.sampled(time.monotonic(), touches=False)
        b.stage.position_um()
        b.interlock.sphere_lifted(by=ME)
        b.interlock.arm(by=ME)
        errors: list[BaseException] = []

        def move() -> None:
            try:
                b.stage.move_to(PositionUm(80, 50, 5))
            except FirmwareError as exc:
                errors.append(exc)

        mover = threading.Thread(target=move)
        mover.start()
        until(lambda: b.simulator.pose_um().x > 50.5)
        b.interlock.overload("3 V")
        mover.join(5)
        assert b.interlock.wait_retracted(timeout_s=5.0)
        until(lambda: b.simulator.pose_um().z == pytest.approx(0.0, abs=0.01))
        assert b.simulator.pose_um().x < 60
        assert "stopped" in str(errors[0])
        assert b.interlock.why == "3 V"


# -- the threads themselves --------------------------------------------------------------------------------------------


class Dumb:
    def position_um(self) -> PositionUm:
        raise ZeroDivisionError("a bug")


def test_a_watch_that_dies_says_so():
    interlock = Interlock(Rules("objective", TRAVEL), stage=PztRetraction())
    watch = Watch(Dumb(), interlock, period_s=0.001)
    threading.excepthook, hook = lambda _: None, threading.excepthook
    try:
        watch.__enter__()
        watch._threads[0].join(5)
    finally:
        threading.excepthook = hook
    with pytest.raises(LinkError, match="a bug"):
        watch.__exit__(None, None, None)


def test_neither_a_poll_nor_an_adc_that_hangs_keeps_the_interlock_from_its_clock():
    answers = threading.Event()

    class Silent:
        def position_um(self) -> PositionUm:
            assert answers.wait(10)
            raise LinkError("no answer")

    interlock = Interlock(Rules("objective", TRAVEL, contact=False, poll_timeout_s=1.0), stage=PztRetraction())
    interlock.polled()
    interlock.arm(by=ME)
    with Watch(Silent(), interlock, period_s=0.01):
        until(lambda: interlock.state is State.FAULT)
        assert not answers.is_set()
        answers.set()
    interlock.close()
    assert "no answer from the PZT controller for 1 s" in interlock.why


@pytest.mark.parametrize("period_s", [0.0, 1.5, float("nan")])
def test_a_watch_looks_more_often_than_the_interlock_loses_its_patience(period_s):
    with pytest.raises(OutOfRangeError):
        Watch(Dumb(), Interlock(Rules("objective", TRAVEL), stage=PztRetraction()), period_s=period_s)


def test_after_an_overload_no_thread_gets_leave_to_move_however_they_fall():
    interlock = Interlock(Rules("objective", TRAVEL, contact=False), stage=PztRetraction())
    interlock.polled()
    interlock.arm(by=ME)
    here_um, there_um = PositionUm(50, 50, 5), PositionUm(60, 50, 5)
    allowed = [0.0] * 4
    ready = threading.Barrier(5)

    def ask(number: int) -> None:
        ready.wait(5)
        with contextlib.suppress(RefusedError):
            while True:
                asked_s = time.perf_counter()
                interlock.check_move(here_um, there_um)
                allowed[number] = asked_s

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    ready.wait(5)
    time.sleep(0.05)
    interlock.overload("3 V")
    latched_s = time.perf_counter()
    interlock.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert 0 < max(allowed) < latched_s
