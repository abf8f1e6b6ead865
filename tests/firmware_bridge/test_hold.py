"""The distance held during a scan: tilt and drift are followed, bounds and rate are kept, an overload ends it."""

from __future__ import annotations

import itertools
import math
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.approach import approach
from firmware_bridge.errors import LinkError, LinkTimeoutError, OutOfRangeError, RefusedError, StoppedError
from firmware_bridge.hold import DistanceControl, HeldStage, hold_distance
from firmware_bridge.position import PositionUm
from firmware_bridge.safety import State
from tests.sphere import LIMITS, V_PER_NM, Bench, error_nm


def held(bench: Bench, **keywords) -> DistanceControl:
    approach(bench, bench.monitor, bench.interlock)
    return DistanceControl(LIMITS.set_point_v, v_per_um=1e3 * V_PER_NM, low_um=4.0, high_um=9.0, **keywords)


@pytest.mark.parametrize("tilt", [(0.02, 0.0), (-0.02, 0.01), (0.0, -0.02)])
def test_the_distance_is_held_over_a_tilted_drifting_sample(tilt):
    bench = Bench(PositionUm(40, 40, 6), tilt=tilt, drift_nm_s=2.0)
    control = held(bench)
    for x_um, y_um in [(50, 40), (60, 40), (60, 50), (50, 50), (40, 50)]:
        at_um = hold_distance(
            bench, bench.monitor, control, PositionUm(x_um, y_um, 0), tolerance_v=0.04, clock=lambda: bench.now_s
        )
        assert at_um[:2] == (x_um, y_um)
        assert abs(error_nm(bench)) <= 20
    assert bench.interlock.state is State.ENGAGED
    assert bench.done == []


def test_a_sample_that_tilts_out_of_the_range_is_refused_and_not_clipped():
    bench = Bench(PositionUm(40, 40, 6.5), tilt=(-0.02, 0.0))
    approach(bench, bench.monitor, bench.interlock)
    control = DistanceControl(LIMITS.set_point_v, 1e3 * V_PER_NM, low_um=4.0, high_um=bench.at_um.z + 0.1)
    with pytest.raises(OutOfRangeError, match="level the sample"):
        hold_distance(bench, bench.monitor, control, PositionUm(60, 40, 0), tolerance_v=0.04)


def test_a_control_that_does_not_converge_is_a_time_out():
    bench = Bench(noise_v=0.02)
    control = held(bench)
    with pytest.raises(LinkTimeoutError, match="v_per_um"):
        hold_distance(
            bench,
            bench.monitor,
            control,
            PositionUm(51, 50, 0),
            tolerance_v=1e-9,
            timeout_s=1.0,
            clock=lambda: bench.now_s,
        )


@given(st.floats(0, 10), st.floats(0, 3.3), st.floats(0, 10))
def test_the_control_never_leaves_its_bounds_nor_exceeds_its_rate(z_um, value_v, elapsed_s):
    control = DistanceControl(1.2, v_per_um=4.0, low_um=2.0, high_um=8.0, rate_um_s=1.0, step_um=0.05)
    try:
        target_um = control.next_z_um(z_um, value_v, elapsed_s)
    except OutOfRangeError:
        return
    assert 2.0 <= target_um <= 8.0
    assert abs(target_um - z_um) <= min(elapsed_s * 1.0, 0.05) + 1e-12
    assert (target_um - z_um) * (1.2 - value_v) >= 0


@pytest.mark.parametrize(
    "bad",
    [{"v_per_um": 0.0}, {"gain": 1.5}, {"gain": 0.0}, {"low_um": 9.0}, {"rate_um_s": math.nan}, {"step_um": -1.0}],
)
def test_a_control_that_makes_no_sense_is_refused(bad):
    with pytest.raises(OutOfRangeError):
        DistanceControl(**{"set_point_v": 1.2, "v_per_um": 4.0, "low_um": 4.0, "high_um": 8.0, **bad})


def test_bad_figures_for_holding_are_refused_before_anything_moves():
    bench = Bench()
    control = held(bench)
    z_um = bench.at_um.z
    with pytest.raises(OutOfRangeError):
        hold_distance(bench, bench.monitor, control, PositionUm(51, 50, 0), tolerance_v=0.0)
    assert bench.at_um == PositionUm(50, 50, z_um)


def test_a_broken_link_during_a_hold_reaches_the_caller():
    bench = Bench()
    control = held(bench)

    def breaks() -> None:
        raise LinkError("gone")

    bench.on_move = breaks
    with pytest.raises(LinkError, match="gone"):
        hold_distance(bench, bench.monitor, control, PositionUm(51, 50, 0), tolerance_v=0.04)


# -- a scan on it -----------------------------------------------------------------------------------------------------


def scanned(bench: Bench) -> HeldStage:
    return HeldStage(bench, bench.monitor, bench.interlock, held(bench), tolerance_v=0.04, clock=lambda: bench.now_s)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.floats(-0.02, 0.02), st.floats(-0.02, 0.02)),
    st.lists(st.tuples(st.floats(40, 60), st.floats(40, 60)), min_size=1, max_size=4),
    st.integers(0, 1000),
)
def test_every_tile_of_a_scan_is_in_contact_within_20_nm(tilt, tiles, seed):
    bench = Bench(tilt=tilt, seed=seed)
    stage = scanned(bench)
    for x_um, y_um in tiles:
        at_um = stage.move_to(PositionUm(x_um, y_um, 0.0))
        assert at_um[:2] == pytest.approx((x_um, y_um))
        assert at_um.z == bench.at_um.z
        assert abs(error_nm(bench)) <= 20
    assert bench.done == []


def test_z_follows_no_faster_than_its_rate():
    bench = Bench(PositionUm(40, 40, 6), tilt=(0.03, 0.0))
    control = held(bench, rate_um_s=0.4, step_um=0.1)
    moves: list[tuple[float, float]] = []
    bench.on_move = lambda: moves.append((bench.now_s, bench.at_um.z))
    hold_distance(bench, bench.monitor, control, PositionUm(45, 40, 0), tolerance_v=0.02, clock=lambda: bench.now_s)
    assert len(moves) > 10
    for (before_s, before_um), (after_s, after_um) in itertools.pairwise(moves):
        assert abs(after_um - before_um) <= 0.4 * (after_s - before_s) + 1e-9


def test_a_scan_ends_retracted():
    bench = Bench()
    stage = scanned(bench)
    assert stage.limits_um == bench.limits_um
    stage.park()
    assert bench.at_um.z == 0.0
    assert bench.interlock.state is State.ARMED
    with pytest.raises(RefusedError, match="approach first"):
        stage.move_to(PositionUm(51, 50, 0))
    stage.park()
    stage.close()
    assert [name for name, _ in bench.done] == ["park", "park", "close"]


@pytest.mark.parametrize(
    "target_um", [PositionUm(math.nan, 50, 0), PositionUm(50, math.inf, 0), PositionUm(101, 50, 0)]
)
def test_a_tile_outside_the_limits_is_refused_before_the_first_step(target_um):
    bench = Bench()
    stage = scanned(bench)
    before_um = bench.at_um
    with pytest.raises(OutOfRangeError, match="outside the limits"):
        stage.move_to(target_um)
    assert bench.at_um == before_um


def test_a_scan_that_is_stopped_makes_no_further_step():
    bench = Bench()
    stage = scanned(bench)
    series = threading.Event()
    bench.on_move = series.set
    with pytest.raises(StoppedError):
        stage.move_to(PositionUm(60, 50, 0), unless=series)
    assert bench.at_um.x == pytest.approx(51)


def test_a_scan_ends_after_a_stop_that_falls_between_two_of_its_moves():
    bench = Bench()
    stage = scanned(bench)
    samples, original = [], bench.monitor.wait

    def wait(*arguments, **keywords):
        samples.append(bench.at_um.x)
        if len(samples) == 3:
            bench.stop()
        return original(*arguments, **keywords)

    bench.monitor.wait = wait
    with pytest.raises(StoppedError):
        stage.move_to(PositionUm(60, 50, 0))
    assert bench.at_um.x == samples[2]


def test_a_way_begins_where_the_stage_rests_and_not_at_one_reading():
    bench = Bench()
    stage = scanned(bench)
    bench.position_um = lambda: bench.at_um._replace(y=58.1)  # one digit off
    ways: list[PositionUm] = []
    bench.on_move = lambda: ways.append(bench.at_um)
    stage.move_to(PositionUm(54, 50, 0))
    assert {at_um.y for at_um in ways} == {50}


def test_an_overload_during_a_scan_ends_it_retracted_and_latched():
    bench = Bench()
    stage = scanned(bench)

    def knock() -> None:
        bench.sensor.knock_nm = 400.0 if bench.at_um.x > 53 else 0.0

    bench.on_move = knock
    with pytest.raises(RefusedError):
        stage.move_to(PositionUm(60, 50, 0))
    assert [name for name, _ in bench.done] == ["retreat", "focus"]
    assert bench.interlock.state is State.FAULT
    assert bench.at_um.z == 0.0
