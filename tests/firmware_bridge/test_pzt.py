"""The stage: one contract on both controllers over pty and TCP."""

from __future__ import annotations

import contextlib
import math
import threading

import pytest

from firmware_bridge import gcs
from firmware_bridge.errors import (
    FirmwareError,
    LinkError,
    LinkTimeoutError,
    OutOfRangeError,
    RefusedError,
    ServoLostError,
    StoppedError,
)
from firmware_bridge.pzt import Box, PositionUm, open_stage
from firmware_bridge.simulator import Simulator, serve_pty, serve_tcp
from tests.sphere import SETTLED_WITHIN_UM
from tests.waiting import until


def test_a_stage_is_at_rest_on_its_target_when_a_move_returns(stage):
    target = PositionUm(61.5, 40.25, 7.125)
    measured = stage.move_to(target)
    assert measured == pytest.approx(target, abs=SETTLED_WITHIN_UM)
    assert stage.behind.pose_um() == pytest.approx(target, abs=SETTLED_WITHIN_UM)
    assert stage.position_um() == pytest.approx(target, abs=SETTLED_WITHIN_UM)
    assert stage.target_um() == pytest.approx(target, abs=1e-4)
    assert stage.on_target()


def test_a_stage_knows_its_travel_and_what_it_is(stage):
    assert stage.limits_um == Box(PositionUm(0, 0, 0), PositionUm(100, 100, 10))
    assert stage.profile.model in stage.identity
    assert stage.simulated


def test_a_stop_from_another_thread_ends_the_move_and_nothing_is_out_of_step(stage):
    stage.set_velocity(velocity_um_s=5)
    ends = []

    def scan():
        try:
            stage.move_to(PositionUm(100, 100, 5), timeout_s=30)
        except StoppedError as exc:
            ends.append(exc)

    thread = threading.Thread(target=scan)
    thread.start()
    until(lambda: stage.behind.pose_um().x > 50.01)
    stage.stop()
    thread.join(10)
    assert [type(end) for end in ends] == [StoppedError]
    held = stage.behind.pose_um()
    assert held.x < 99
    assert stage.position_um() == pytest.approx(held, abs=SETTLED_WITHIN_UM)
    stage.set_velocity(velocity_um_s=2000)
    assert stage.move_to(PositionUm(50, 50, 5)) == pytest.approx((50, 50, 5), abs=SETTLED_WITHIN_UM)


def test_no_move_of_a_series_begins_after_the_series_was_stopped(stage):
    series_ended = threading.Event()
    series_ended.set()
    stage.stop()
    before = stage.behind.pose_um()
    with pytest.raises(StoppedError, match="before this one"):
        stage.move_to(PositionUm(60, 60, 5), unless=series_ended)
    assert stage.behind.pose_um() == before


def test_a_stop_at_rest_changes_nothing_and_leaves_no_error(stage):
    stage.move_to(PositionUm(20, 30, 4))
    stage.stop()
    assert stage.behind.pose_um() == pytest.approx((20, 30, 4), abs=SETTLED_WITHIN_UM)
    assert stage.move_to(PositionUm(21, 30, 4)).x == pytest.approx(21, abs=SETTLED_WITHIN_UM)


def test_parking_retracts_z_and_moves_nothing_else(stage):
    stage.move_to(PositionUm(20, 30, 4))
    stage.park()
    assert stage.behind.pose_um() == pytest.approx((20, 30, 0), abs=SETTLED_WITHIN_UM)


def test_parking_in_the_middle_of_a_fast_move_retracts_z_whatever_x_does_as_it_brakes(stage):
    stage.set_velocity(velocity_um_s=1000)
    stage.move_to(PositionUm(5, 50, 5))
    ends = []

    def move(goal_um):
        try:
            stage.move_to(PositionUm(goal_um, 50, 5))
        except StoppedError as exc:
            ends.append(exc)

    for goal_um in [95, 5] * 10:  # a busy machine may look too late: the move has then arrived
        begins_um = stage.behind.pose_um().x
        thread = threading.Thread(target=move, args=(goal_um,))
        thread.start()
        until(lambda begins_um=begins_um: abs(stage.behind.pose_um().x - begins_um) > 10)
        stage.park()
        thread.join(10)
        assert stage.target_um().z == 0
        assert stage.rest_um() == pytest.approx(stage.target_um(), abs=SETTLED_WITHIN_UM)
        if len(ends) == 3:
            break
    assert len(ends) == 3


@pytest.mark.parametrize(
    "serve", [serve_pty, lambda simulator: serve_tcp(simulator, "127.0.0.1", 0)], ids=["pty", "tcp"]
)
def test_a_stage_that_is_closed_in_a_move_stands_still(serve):
    simulator, ends = Simulator("e727"), []
    with serve(simulator) as server:
        stage = open_stage(server.address, enable_servo=True, velocity_um_s=5)

        def move():
            try:
                stage.move_to(PositionUm(100, 50, 5), timeout_s=30)
            except FirmwareError as exc:
                ends.append(exc)

        thread = threading.Thread(target=move)
        thread.start()
        until(lambda: simulator.pose_um().x > 50.1)
        stage.close()
        thread.join(10)
        assert simulator.feed(b"\x05") == b"0\n", "nothing moves"
        assert simulator.pose_um().x < 99
        assert len(ends) == 1


def test_closing_does_not_keep_a_stage_from_retracting():
    simulator = Simulator("e727")
    with serve_pty(simulator) as server:
        stage = open_stage(server.address, enable_servo=True, velocity_um_s=5)

        def park():
            with contextlib.suppress(FirmwareError):  # the link is closed under it
                stage.park()

        thread = threading.Thread(target=park)
        thread.start()
        until(lambda: simulator.pose_um().z < 4.9)
        stage.close()
        thread.join(10)
        until(lambda: simulator.pose_um().z == pytest.approx(0, abs=SETTLED_WITHIN_UM))


def test_only_one_move_at_a_time(stage):
    stage.set_velocity(velocity_um_s=5)

    def move():
        with pytest.raises(StoppedError):
            stage.move_to(PositionUm(100, 100, 5))

    other = threading.Thread(target=move)
    other.start()
    until(lambda: stage.behind.pose_um().x > 50.01)
    with pytest.raises(RefusedError, match="another move"):
        stage.move_to(PositionUm(1, 1, 1))
    stage.stop()
    other.join(10)


def test_a_stage_too_slow_for_its_deadline_is_stopped_and_says_where_it_was(stage):
    stage.set_velocity(velocity_um_s=5)
    with pytest.raises(LinkTimeoutError, match="it was at"):
        stage.move_to(PositionUm(100, 100, 5), timeout_s=0.05)
    held = stage.rest_um()
    assert held == pytest.approx(stage.target_um(), abs=SETTLED_WITHIN_UM)
    assert stage.behind.pose_um() == pytest.approx(held, abs=SETTLED_WITHIN_UM)


def test_after_a_reboot_a_move_is_refused_until_the_servo_is_closed_again(stage):
    stage.behind.feed(b"RBT\n")
    with pytest.raises(ServoLostError, match="started anew"):
        stage.move_to(PositionUm(51, 50, 5))
    with pytest.raises(RefusedError, match="servo_on"):
        stage.move_to(PositionUm(51, 50, 5))
    stage.servo_on()
    assert stage.move_to(PositionUm(51, 50, 5)).x == pytest.approx(51, abs=SETTLED_WITHIN_UM)


def test_closing_twice_is_closing_once(stage):
    stage.close()
    stage.close()
    with pytest.raises(LinkError, match="closed"):
        stage.position_um()
    with pytest.raises(LinkError, match="closed"):
        stage.stop()


@pytest.mark.parametrize("profile", gcs.PROFILES)
def test_with_the_servo_off_a_move_is_refused_with_what_to_do(profile):
    simulator = Simulator(profile)
    with open_stage(f"sim:{profile}", simulator=simulator, enable_servo=False) as stage:
        with pytest.raises(RefusedError, match="servo_on"):
            stage.move_to(PositionUm(51, 50, 5))
        stage.park()  # cannot retract, and does not pretend to
        assert simulator.pose_um() == PositionUm(50, 50, 5)


def test_the_configured_box_narrows_the_travel():
    box = Box(PositionUm(10, 10, -5), PositionUm(90, 90, 6))
    with open_stage("sim:", limits_um=box) as stage:
        assert stage.limits_um == Box(PositionUm(10, 10, 0), PositionUm(90, 90, 6))
        with pytest.raises(OutOfRangeError, match="outside the limits"):
            stage.move_to(PositionUm(9, 50, 5))


def test_a_step_too_large_is_refused():
    with open_stage("sim:", max_step_um=5.0, velocity_um_s=2000) as stage:
        with pytest.raises(OutOfRangeError, match=r"a step of 1\d\.\d+ um"):
            stage.move_to(PositionUm(65, 50, 5))
        assert stage.move_to(PositionUm(54, 50, 5)).x == pytest.approx(54, abs=SETTLED_WITHIN_UM)


def test_a_simulator_that_is_gone_is_a_link_error():
    with serve_tcp(Simulator()) as server:
        stage = open_stage(server.address)
    with pytest.raises(LinkError):
        stage.move_to(PositionUm(51, 50, 5))
    stage.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"port": "sim:e709"}, "no profile"),
        ({"port": "sim:", "profile": "e709"}, "no profile"),
        ({"port": "sim:e727", "profile": "e517"}, "^sim:e727 is one controller and the profile e517 another"),
        ({"port": "sim:", "velocity_um_s": math.nan}, "velocity"),
        *[
            ({"port": "sim:", name: value}, name)
            for name in ("reply_timeout_s", "settle_timeout_s", "max_step_um", "noise_um", "tolerance_um")
            for value in (math.nan, math.inf, -1.0)
        ],
        ({"port": "sim:", "velocity_um_s": 1e9}, "velocity beyond"),
        ({"port": "sim:", "limits_um": Box(PositionUm(200, 0, 0), PositionUm(300, 1, 1))}, "no position lies both"),
        ({"port": "/dev/ttyUSB0", "simulator": Simulator()}, "sim:"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_and_nothing_stays_open(options, says):
    with pytest.raises(OutOfRangeError, match=says):
        open_stage(**options)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pzt-simulator")]


@pytest.mark.parametrize("timeout_s", [math.nan, math.inf, 0.0, -1.0])
def test_a_time_out_that_is_none_is_refused_and_nothing_moves(timeout_s):
    with open_stage("sim:") as stage:
        before = stage.simulator.pose_um()
        with pytest.raises(OutOfRangeError, match="timeout_s"):
            stage.move_to(PositionUm(60, 50, 5), timeout_s=timeout_s)
        with pytest.raises(OutOfRangeError, match="timeout_s"):
            stage.autozero(timeout_s=timeout_s)
        assert stage.ready
        assert stage.target_um() == pytest.approx(before, abs=0.01)


def test_another_controller_than_the_profile_says_is_refused():
    with serve_tcp(Simulator("e517")) as server, pytest.raises(RefusedError, match="expected an E-727"):
        open_stage(server.address, profile="e727")


def test_an_error_that_another_client_left_is_cleared_and_reported(caplog):
    simulator = Simulator()
    simulator.feed(b"POS? 9\n")
    with open_stage("sim:", simulator=simulator) as stage:
        assert stage.move_to(PositionUm(51, 50, 5)).x == pytest.approx(51, abs=SETTLED_WITHIN_UM)
    assert "before we came" in caplog.text
