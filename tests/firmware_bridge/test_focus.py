"""The focus stage: one contract, two controllers, each simulated behind its real wire."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from random import Random

import pytest

from firmware_bridge.errors import (
    FirmwareError,
    LinkError,
    LinkTimeoutError,
    OutOfRangeError,
    RefusedError,
    StoppedError,
)
from firmware_bridge.esp301 import Esp301Focus
from firmware_bridge.focus import FocusStage, open_focus
from firmware_bridge.simulator.esp301 import Esp301Server, SimulatedEsp301
from firmware_bridge.simulator.xps import SimulatedXps, XpsServer
from firmware_bridge.transport import open_transport
from firmware_bridge.xps import XpsFocus
from tests.waiting import until

TIMEOUT_S = 0.4


def opened(axis, **keywords) -> FocusStage:
    try:
        return FocusStage(axis, **keywords)
    except FirmwareError:
        axis.close()
        raise


class Xps:
    """The XPS under the contract."""

    name, position_query, move = "xps", "GroupPositionCurrentGet", "GroupMoveAbsolute"
    home = "GroupHomeSearch"

    def __init__(self) -> None:
        self.controller = SimulatedXps()
        self.server = XpsServer(self.controller)
        self.received = self.controller.calls

    def open(self, **keywords) -> FocusStage:
        axis = XpsFocus(lambda: open_transport(self.server.address), "FOCUS.Pos", name="the XPS", timeout_s=TIMEOUT_S)
        return opened(axis, **keywords)

    def open_by_name(self, **keywords) -> FocusStage:
        return open_focus("xps", self.server.address, "FOCUS.Pos", **keywords)

    def not_ready(self) -> None:
        self.controller.state = 42

    def hang_up(self) -> None:
        self.server.stop()


class Esp:
    """The ESP301 under the contract."""

    name, position_query, move = "esp301", "1TP", "1PA"
    home = "1OR"

    def __init__(self) -> None:
        self.controller = SimulatedEsp301()
        self.server = Esp301Server(self.controller)
        self.received = self.controller.commands

    def open(self, **keywords) -> FocusStage:
        axis = Esp301Focus(open_transport(self.server.address), 1, name="the ESP301", timeout_s=TIMEOUT_S)
        return opened(axis, **keywords)

    def open_by_name(self, **keywords) -> FocusStage:
        return open_focus("esp301", self.server.address, "1", **keywords)

    def not_ready(self) -> None:
        self.controller.on = False

    def hang_up(self) -> None:
        self.controller.faults.inject("hang_up")


@pytest.fixture(params=[Xps, Esp], ids=["xps", "esp301"])
def bench(request):
    bench = request.param()
    bench.controller.faults.late_s = 2 * TIMEOUT_S
    yield bench
    bench.server.stop()


def moves(bench) -> list[str]:
    return [text for text in bench.received if bench.move in text or bench.home in text]


def stands_still(bench) -> bool:
    # Long before it would have come to rest by itself, 39 mm on. An ESP301 does not answer a stop.
    return until(lambda: not bench.controller.moving, timeout_s=5.0)


# -- what it does -----------------------------------------------------------------------------------------------------


def test_it_says_in_um_where_it_is_and_may_go_and_that_it_is_simulated(bench):
    with bench.open_by_name() as stage:
        assert stage.position_um() == pytest.approx(1000.0)
        assert tuple(stage.limits_um) == (-50_000.0, 50_000.0)
        assert stage.simulated
    assert moves(bench) == [], "opening moves nothing"


def test_a_move_ends_at_rest_where_it_was_told(bench):
    with bench.open() as stage:
        assert stage.move_to(1150.0) == pytest.approx(1150.0, abs=0.01)
        assert bench.controller.position_mm == pytest.approx(1.15)
        assert stage.move_to(1100.5) == pytest.approx(1100.5, abs=0.01)
        assert len(moves(bench)) == 2


def test_a_move_to_where_it_is_ends_too(bench):
    with bench.open() as stage:
        assert stage.move_to(1000.0) == pytest.approx(1000.0)


@pytest.mark.parametrize("target_um", [math.nan, math.inf, -math.inf, 50_000.1, -1e9])
def test_what_is_no_position_or_lies_outside_is_refused_and_not_a_byte_is_sent(bench, target_um):
    with bench.open() as stage:
        before = list(bench.received)
        with pytest.raises(OutOfRangeError):
            stage.move_to(target_um)
        assert bench.received == before


def test_configured_limits_hold_here_and_in_the_controller(bench):
    with bench.open(limits_um=(0.0, 2000.0)) as stage:
        assert tuple(stage.limits_um) == (0.0, 2000.0)
        assert tuple(bench.controller.limits_mm) == (0.0, 2.0)
        with pytest.raises(OutOfRangeError, match="0 to 2000 um"):
            stage.move_to(2000.1)
        with pytest.raises(OutOfRangeError):
            stage._axis.start(2.5)  # whoever asks
    with pytest.raises(OutOfRangeError, match="correct the limits"):
        bench.open(limits_um=(60_000.0, 70_000.0))


def test_a_motor_that_is_off_or_not_referenced_is_refused_and_nothing_moves(bench):
    with bench.open() as stage:
        bench.not_ready()
        with pytest.raises(RefusedError, match=r"is off|not referenced"):
            stage.move_to(1100.0)
    assert moves(bench) == []


def test_the_guard_is_asked_and_its_no_is_final(bench):
    asked = []

    class Guard:
        def check_focus(self, here_um: float, target_um: float) -> None:
            asked.append((round(here_um), target_um))
            if target_um < here_um:
                raise RefusedError("not nearer")

    with bench.open(guard=Guard()) as stage:
        stage.move_to(1050.0)
        with pytest.raises(RefusedError, match="not nearer"):
            stage.move_to(900.0)
    assert asked == [(1000, 1050.0), (1050, 900.0)]
    assert len(moves(bench)) == 1


def test_a_second_move_is_refused_while_one_is_under_way(bench):
    with bench.open() as stage:
        stage.start(40_000.0)
        with pytest.raises(RefusedError, match="under way"):
            stage.move_to(1100.0)
        stage.stop()


def test_a_stop_from_another_thread_ends_the_move_where_it_is(bench):
    with bench.open() as stage:
        errors: list[BaseException] = []

        def move() -> None:
            try:
                stage.move_to(40_000.0)
            except FirmwareError as exc:
                errors.append(exc)

        mover = threading.Thread(target=move)
        mover.start()
        while not bench.controller.moving:
            assert mover.is_alive()
        stage.stop()
        mover.join(5)
        assert isinstance(errors[0], StoppedError)
        at_mm = bench.controller.position_mm
        assert 1.0 <= at_mm < 39.0
        assert stage.move_to(1e3 * at_mm + 10) == pytest.approx(1e3 * at_mm + 10, abs=0.1), "and goes on afterwards"


def test_a_stop_between_two_moves_ends_a_series_and_not_what_comes_after_it(bench):
    with bench.open(lift_um=10.0) as stage:
        with stage.series():
            stage.move_to(1001.0)
            with stage.series():
                stage.stop()
            with pytest.raises(StoppedError):
                stage.move_to(1002.0)
            stage.focus_up(wait=True)  # is no part of it
            with pytest.raises(StoppedError):
                stage.move_to(1012.0)
        assert stage.move_to(1013.0) == pytest.approx(1013.0, abs=0.1)


def test_a_stop_that_falls_just_before_the_start_of_a_move_ends_it(bench):
    with bench.open() as stage:
        start = stage._axis.start

        def stopped_before(target_mm: float) -> None:
            stage.stop()
            start(target_mm)

        stage._axis.start = stopped_before
        with pytest.raises(StoppedError):
            stage.move_to(40_000.0)
        assert stands_still(bench)


def test_a_stop_of_a_stage_that_stands_is_no_error(bench):
    with bench.open() as stage:
        stage.stop()
        assert stage.move_to(1010.0) == pytest.approx(1010.0, abs=0.01)


def test_a_move_that_takes_too_long_is_stopped(bench):
    with bench.open() as stage:
        with pytest.raises(LinkTimeoutError, match=r"within 0\.1 s"):
            stage.move_to(40_000.0, timeout_s=0.1)
        assert stands_still(bench)


def test_lifting_ends_the_move_under_way_and_goes_up_without_waiting(bench):
    motor = bench.controller.motor
    motor.speed_mm_s = 0.1  # it arrives after 2 s
    with bench.open(lift_um=200.0) as stage:
        stage.start(-40_000.0)
        stage.focus_up()
        assert bench.controller.moving
        stopped_um = 1e3 * motor.from_mm
        assert until(lambda: not stage._axis.moving(), timeout_s=20.0)
        assert stopped_um < 1000.0
        assert stage.position_um() == pytest.approx(stopped_um + 200.0, abs=0.01)


def test_a_lift_that_is_waited_for_is_up_when_it_returns(bench):
    with bench.open(lift_um=150.0) as stage:
        stage.focus_up(wait=True)
        assert stage.position_um() == pytest.approx(1150.0, abs=0.01)


def test_a_lift_goes_no_further_than_the_upper_limit(bench):
    with bench.open(lift_um=500.0, limits_um=(0.0, 1100.0)) as stage:
        stage.focus_up()
        while stage._axis.moving():
            pass
        assert stage.position_um() == pytest.approx(1100.0, abs=0.01)
        stage.focus_up()
        assert len(moves(bench)) == 1


def test_a_reference_search_needs_a_persons_word_that_the_sphere_is_removed(bench):
    with bench.open() as stage:
        with pytest.raises(RefusedError, match="remove the sphere"):
            stage.home(sphere_removed=False)
        assert moves(bench) == []


def test_a_stop_ends_a_reference_search_which_tells_that_it_was_stopped(bench):
    bench.controller.motor.from_mm = bench.controller.motor.to_mm = 40.0
    if bench.name == "xps":
        bench.controller.state = 42
    with bench.open() as stage:
        errors: list[BaseException] = []

        def home() -> None:
            try:
                stage.home(sphere_removed=True)
            except FirmwareError as exc:
                errors.append(exc)

        searcher = threading.Thread(target=home)
        searcher.start()
        assert until(lambda: bench.controller.moving, timeout_s=5.0)
        stage.stop()
        assert stands_still(bench)
        searcher.join(5)
        assert isinstance(errors[0], StoppedError)
        if bench.name == "xps":  # killed, so it has to be initialised anew
            with pytest.raises(RefusedError, match="home it"):
                stage.move_to(1000.0)


def test_an_xps_that_stands_is_not_killed():
    bench = Xps()
    with bench.server, bench.open() as stage:
        stage.stop()
        assert not [call for call in bench.received if "GroupKill" in call]


def test_a_reference_search_finds_zero(bench):
    bench.controller.motor.from_mm = bench.controller.motor.to_mm = 0.1
    if bench.name == "xps":
        bench.controller.state = 7  # as after power-up: not initialised
    with bench.open() as stage:
        stage.home(sphere_removed=True, timeout_s=5.0)
        assert stage.position_um() == pytest.approx(0.0, abs=0.01)


# -- what goes wrong on the wire --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["late", "silent", "garbage", "wrong", "partial"])
def test_a_spoilt_reply_is_a_typed_error_and_the_next_answer_is_right(bench, fault):
    with bench.open() as stage:
        bench.controller.faults.inject(fault, only=bench.position_query)
        with pytest.raises(LinkError):
            stage.position_um()
        for _ in range(3):
            assert stage.position_um() == pytest.approx(1000.0)
        assert stage.move_to(1020.0) == pytest.approx(1020.0, abs=0.01)


def test_a_late_position_is_never_taken_for_the_next_one(bench):
    with bench.open() as stage:
        bench.controller.faults.inject("late", only=bench.position_query)
        with pytest.raises(LinkTimeoutError):
            stage.position_um()
        bench.controller.motor.from_mm = bench.controller.motor.to_mm = 2.0
        assert stage.position_um() == pytest.approx(2000.0)
        assert tuple(stage._read_limits()) == (-50_000.0, 50_000.0)


def test_a_hang_up_is_a_link_error_for_whoever_asks_next(bench):
    with bench.open() as stage:
        bench.hang_up()
        for _ in range(2):
            with pytest.raises(LinkError):
                stage.position_um()
        with pytest.raises(LinkError):
            stage.move_to(1100.0)
    assert moves(bench) == []


def test_a_position_that_fails_during_a_move_stops_it(bench):
    with bench.open() as stage:
        stage.start(1000.0)
        query = "GroupStatusGet" if bench.name == "xps" else "1MD?"
        while stage._axis.moving():
            pass
        begun = threading.Event()
        start = stage._axis.start

        def start_and_spoil(target_mm: float) -> None:
            start(target_mm)
            bench.controller.faults.inject("garbage", only=query if bench.name == "esp301" else "GroupMoveAbsolute")
            if bench.name == "xps":
                bench.server.hang_up()
            begun.set()

        stage._axis.start = start_and_spoil
        with pytest.raises(LinkError):
            stage.move_to(40_000.0)
        assert begun.is_set()
        assert stands_still(bench)


@pytest.mark.parametrize("fault", ["silent", "garbage", "late"])
def test_a_move_whose_beginning_is_not_confirmed_is_stopped(bench, fault):
    with bench.open() as stage:
        query = "GroupStatusGet" if bench.name == "xps" else "TE?"
        check_ready = stage._axis.check_ready

        def check_ready_and_spoil() -> None:
            check_ready()
            stage._standing_still = lambda: True
            bench.controller.faults.inject(fault, only=query)

        stage._axis.check_ready = check_ready_and_spoil
        with pytest.raises(LinkError):
            stage.start(40_000.0)
        assert stands_still(bench)


def test_an_xps_whose_stopping_connection_died_unnoticed_is_stopped_through_a_new_one():
    bench = Xps()
    with bench.server, bench.open() as stage:
        stage.start(40_000.0)
        bench.controller.faults.inject("silent", only="GroupMoveAbort")
        stage.stop()
        assert stands_still(bench)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_random_faults_never_make_a_wrong_position_and_never_an_untyped_error(bench, seed):
    random = Random(seed)
    bench.controller.motor.speed_mm_s = 50.0
    positions = 0
    with bench.open() as stage:
        for _ in range(15):
            if random.random() < 0.5:
                bench.controller.faults.inject(random.choice(["late", "silent", "garbage", "wrong", "partial"]))
            try:
                if random.random() < 0.5:
                    target_um = random.uniform(500, 1500)
                    at_um = stage.move_to(target_um, timeout_s=1.0)
                    assert at_um == pytest.approx(target_um, abs=0.01)
                else:
                    stage.stop()
                    while bench.controller.moving:
                        pass
                    at_um = stage.position_um()
                assert at_um == pytest.approx(1e3 * bench.controller.position_mm, abs=0.01)
                positions += 1
            except FirmwareError:
                continue
        bench.controller.faults._next.clear()
        time.sleep(2.5 * TIMEOUT_S)  # what is late has come
        with contextlib.suppress(FirmwareError):
            stage.stop()
        assert stage.move_to(1000.0) == pytest.approx(1000.0, abs=0.01)
    assert positions > 0


def test_a_closed_stage_says_so(bench):
    stage = bench.open()
    stage.close()
    stage.close()
    with pytest.raises(LinkError, match="closed"):
        stage.position_um()


def test_nobody_at_the_port_is_one_clear_error():
    with pytest.raises(LinkError, match="/dev/ttyUSB99"):
        open_focus("esp301", "/dev/ttyUSB99", "1")
    with pytest.raises(LinkError, match="tcp://"):
        open_focus("xps", "tcp://127.0.0.1:9", "FOCUS.Pos")


@pytest.mark.parametrize(
    ("driver", "axis"), [("smc100", "1"), ("esp301", "4"), ("esp301", "one"), ("xps", "FOCUS"), ("xps", "A.B);Kill(")]
)
def test_a_driver_or_an_axis_that_does_not_exist_is_refused(driver, axis):
    with pytest.raises(OutOfRangeError):
        open_focus(driver, "/dev/ttyUSB99", axis)


@pytest.mark.parametrize("timeout_s", [math.nan, math.inf, 0.0, -1.0])
def test_a_time_out_that_is_none_is_refused_and_not_a_byte_is_sent(bench, timeout_s):
    with bench.open() as stage:
        before = list(bench.received)
        with pytest.raises(OutOfRangeError, match="timeout_s"):
            stage.move_to(1100.0, timeout_s=timeout_s)
        with pytest.raises(OutOfRangeError, match="timeout_s"):
            stage.home(sphere_removed=True, timeout_s=timeout_s)
        assert bench.received == before


@pytest.mark.parametrize("bad", [{"lift_um": 0.0}, {"lift_um": math.inf}, {"tolerance_um": math.nan}])
def test_a_lift_and_a_tolerance_are_positive(bench, bad):
    with pytest.raises(OutOfRangeError):
        bench.open(**bad)


# -- each controller's own --------------------------------------------------------------------------------------------


def test_an_xps_in_each_state_says_what_to_do():
    bench = Xps()
    with bench.server, bench.open() as stage:
        for state, says in [(7, "home it"), (42, "home it"), (43, "wait"), (20, "enable"), (63, "home it")]:
            bench.controller.state = state
            with pytest.raises(RefusedError, match=says):
                stage.move_to(1100.0)
        for state in (10, 11, 12, 18):
            bench.controller.state = state
            stage._axis.check_ready()


def test_an_xps_without_that_group_is_refused():
    with XpsServer(SimulatedXps(positioner="OTHER.Pos")) as server, pytest.raises(RefusedError, match="positioner"):
        open_focus("xps", server.address, "FOCUS.Pos")


def test_an_xps_that_is_stopped_by_somebody_else_is_a_stopped_move():
    bench = Xps()
    with bench.server, bench.open() as stage:
        threading.Timer(0.1, bench.controller.call, ["GroupMoveAbort(FOCUS)"]).start()
        with pytest.raises(StoppedError, match="aborted"):
            stage.move_to(40_000.0)


def test_an_esp301_that_counts_in_inches_is_refused():
    bench = Esp()
    bench.controller.unit = 6
    with bench.server, pytest.raises(RefusedError, match="mm"):
        bench.open()


def test_an_esp301s_old_errors_are_cleared_at_opening_and_not_taken_for_ours():
    bench = Esp()
    bench.controller.errors.extend([7, 104])
    with bench.server, bench.open() as stage:
        stage.move_to(1010.0)


def test_an_older_error_of_an_esp301_is_not_taken_for_the_answer_to_a_move():
    bench = Esp()
    with bench.server, bench.open() as stage:
        bench.controller.errors.extend([9, 103])  # of the front panel, or of a reply that was spoilt
        assert stage.move_to(1010.0) == pytest.approx(1010.0, abs=0.01)


def test_a_move_that_is_said_to_be_refused_does_not_go_on(bench):
    with bench.open() as stage:
        start = stage._axis.start

        def refused_and_begun(target_mm: float) -> None:
            start(target_mm)
            raise RefusedError("an error of somebody else, who came just now")

        stage._axis.start = refused_and_begun
        with pytest.raises(RefusedError):
            stage.move_to(40_000.0)
        assert stands_still(bench)


def test_a_lift_does_not_end_with_the_error_of_the_move_that_it_ended():
    bench = Esp()
    with bench.server, bench.open(lift_um=150.0) as stage:
        stage.start(2000.0)
        bench.controller.errors.append(103)
        before_um = 1e3 * bench.controller.position_mm
        stage.focus_up(wait=True)
        assert stage.position_um() > before_um + 149.0


def test_an_esp301s_motor_that_fails_in_motion_is_told():
    bench = Esp()
    with bench.server, bench.open() as stage:
        stage.start(40_000.0)
        bench.controller.fail(103)
        with pytest.raises(LinkError, match="following error"):
            stage._axis.moving()
        with pytest.raises(RefusedError, match="motor of axis 1"):
            stage.move_to(1000.0)


def test_an_esp301_that_is_something_else_is_refused():
    bench = Esp()
    bench.controller._ve = lambda _: "SMC100"
    with bench.server, pytest.raises(RefusedError, match="SMC100"):
        bench.open()


def test_a_query_that_an_esp301_refuses_in_silence_is_explained():
    bench = Esp()
    with bench.server, bench.open() as stage, pytest.raises(RefusedError, match="no such command"):
        stage._axis._ask("1QQ?")


def test_a_reply_without_an_end_is_a_time_out():
    bench = Esp()
    with bench.server, bench.open() as stage:
        sent = bench.server._wire.send
        bench.server._wire.send = lambda reply: sent(reply[:-2])
        with pytest.raises(LinkTimeoutError):
            stage.position_um()
