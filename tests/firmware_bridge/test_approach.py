"""Approach, overload, retract, hold the distance: a simulated cantilever, in the test's own time and in real time."""

from __future__ import annotations

import math
import statistics
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.approach import DistanceControl, PztRetraction, approach, hold_distance, retract
from firmware_bridge.contact import ContactMonitor, Sample, Thresholds
from firmware_bridge.errors import LinkError, LinkTimeoutError, OutOfRangeError, RefusedError, StoppedError
from firmware_bridge.position import Box, PositionUm
from firmware_bridge.pzt import open_stage
from firmware_bridge.safety import Interlock, Rules, State
from firmware_bridge.simulator import Simulator
from firmware_bridge.simulator.cantilever import SimulatedCantilever

TRAVEL = Box(PositionUm(0, 0, 0), PositionUm(100, 100, 10))
START = PositionUm(50, 50, 6)
V_PER_NM = 0.004
LIMITS = Thresholds(set_point_v=1.2, overload_v=2.0, broken_v=0.2)  # the set point is 50 nm of force
PERIOD_S = 0.005


class Bench:
    """Stage, cantilever, monitor and interlock on one clock. A move takes 8 ms, in which the monitor samples on."""

    def __init__(self, start_um: PositionUm = START, *, rules: dict | None = None, **sensor) -> None:
        self.now_s = 0.0
        self.at_um, self.limits_um = start_um, TRAVEL
        self.done: list[tuple[str, float]] = []
        self.stopped = self.busy = False
        self.on_move = lambda: None
        self.away_um = TRAVEL.high.z if (rules or {}).get("z_sign", 1) < 0 else TRAVEL.low.z
        retraction = PztRetraction()
        retraction.bind(self)
        self.interlock = Interlock(
            Rules("cantilever", TRAVEL, **(rules or {})), stage=retraction, focus=self, clock=lambda: self.now_s
        )
        self.sensor = SimulatedCantilever(
            lambda: self.at_um, v_per_nm=V_PER_NM, clock=lambda: self.now_s, **{"tilt": (0.0, 0.0), **sensor}
        )
        self.monitor = SteppedMonitor(self)
        self.pass_time(0.05)
        self.interlock.arm(by="a tester")

    def pass_time(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.monitor.due_s <= end_s:
            self.now_s = self.monitor.due_s
            self.monitor.due_s += PERIOD_S
            self.interlock.polled()
            self.monitor.step()
        self.now_s = end_s

    # a GuardedStage

    def position_um(self) -> PositionUm:
        return self.at_um

    def move_to(self, target_um: PositionUm, *, timeout_s: float = 5.0) -> PositionUm:
        self.interlock.check_move(self.at_um, target_um)
        self.stopped = False
        self.on_move()
        self.at_um = target_um
        self.pass_time(0.008)
        if self.stopped:
            raise StoppedError("stopped")
        return self.at_um

    def set_velocity(self, *, velocity_um_s: float) -> None:
        self.interlock.check_velocity(velocity_um_s)
        self.velocity_um_s = velocity_um_s

    def stop(self) -> None:
        self.done.append(("stop", self.now_s))
        self.stopped = True

    def park(self) -> None:
        self.done.append(("park", self.now_s))
        self.at_um = self.at_um._replace(z=self.away_um)

    def focus_up(self) -> None:
        self.done.append(("focus", self.now_s))


class SteppedMonitor(ContactMonitor):
    """Samples when the bench lets time pass."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.sensor, LIMITS, guard=bench.interlock, period_s=PERIOD_S, clock=lambda: bench.now_s)
        self.bench, self.due_s = bench, 0.0

    def wait(self, count: int = 1, *, timeout_s: float = 1.0) -> list[Sample]:
        samples, after_s = [], self.bench.now_s
        while len(samples) < count:
            self.bench.pass_time(PERIOD_S)
            if self._sample is not None and self._sample.t_s > after_s and self._sample not in samples:
                samples.append(self._sample)
            if self.bench.now_s > after_s + timeout_s:
                raise LinkTimeoutError("no samples")
        return samples


def error_nm(bench: Bench) -> float:
    """How far the sphere is from where its force would be the set point's."""
    return bench.sensor.indentation_nm() - (LIMITS.set_point_v - 1.0) / V_PER_NM


# -- approach ---------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    start_um=st.floats(5.0, 6.9),
    touch_um=st.floats(7.0, 7.5),
    snap_nm=st.floats(0.0, 40.0),
    noise_v=st.floats(0.0, 0.006),
    drift_nm_per_s=st.floats(-3.0, 3.0),
    tilt=st.tuples(st.floats(-0.005, 0.005), st.floats(-0.005, 0.005)),
    seed=st.integers(0, 1000),
)
def test_an_approach_stops_at_the_set_point_within_20_nm(
    start_um, touch_um, snap_nm, noise_v, drift_nm_per_s, tilt, seed
):
    bench = Bench(
        PositionUm(60, 45, start_um), touch_z_um=touch_um, snap_in_nm=snap_nm, pull_off_nm=snap_nm + 50,
        noise_v=noise_v, drift_nm_per_s=drift_nm_per_s, tilt=tilt, seed=seed,
    )  # fmt: skip
    contact = approach(bench, bench.monitor, bench.interlock)
    assert abs(error_nm(bench)) <= 20
    assert contact.value_v >= LIMITS.set_point_v
    assert contact.position_um == bench.at_um
    assert bench.interlock.state is State.ENGAGED
    assert bench.done == []


def test_a_stage_that_is_wired_the_other_way_round_approaches_from_above():
    bench = Bench(PositionUm(50, 50, 4), rules={"z_sign": -1}, z_sign=-1, touch_z_um=3.0)
    approach(bench, bench.monitor, bench.interlock)
    assert abs(error_nm(bench)) <= 20
    assert bench.at_um.z < 3.0
    assert retract(bench, bench.interlock).z == 10.0


def test_the_stage_is_slower_from_the_beginning_of_an_approach_until_it_is_retracted():
    bench = Bench(rules={"max_velocity_um_s": 800.0, "engaged_velocity_um_s": 50.0})
    bench.on_move = lambda: velocities.append(bench.velocity_um_s)
    velocities: list[float] = []
    approach(bench, bench.monitor, bench.interlock)
    assert set(velocities) == {50.0}
    retract(bench, bench.interlock)
    assert bench.velocity_um_s == 800.0


def test_an_approach_that_finds_nothing_retracts_and_says_how_far_it_went():
    bench = Bench(touch_z_um=9.0, rules={"approach_travel_um": 0.5})
    with pytest.raises(OutOfRangeError, match=r"no contact within 0\.5 um"):
        approach(bench, bench.monitor, bench.interlock)
    assert bench.at_um.z == 0.0
    assert bench.interlock.state is State.ARMED


def test_an_approach_that_takes_too_long_retracts():
    bench = Bench(touch_z_um=9.0, rules={"approach_s": 2.0})
    with pytest.raises(RefusedError, match="no contact within 2 s"):
        approach(bench, bench.monitor, bench.interlock)
    assert bench.interlock.state is State.ARMED


def test_an_adc_that_falls_silent_ends_the_approach_in_a_fault_and_retracted():
    bench = Bench()
    bench.on_move = lambda: setattr(bench.sensor, "silent", bench.at_um.z > 6.5)
    with pytest.raises(RefusedError, match="stale"):
        approach(bench, bench.monitor, bench.interlock)
    assert [name for name, _ in bench.done] == ["stop", "park", "focus"]
    assert bench.interlock.state is State.FAULT
    with pytest.raises(RefusedError):
        approach(bench, bench.monitor, bench.interlock)


def test_an_approach_that_a_person_stops_holds_where_it_is_and_can_be_retracted():
    bench = Bench()
    bench.on_move = lambda: bench.stop() if bench.at_um.z > 6.2 else None
    with pytest.raises(StoppedError):
        approach(bench, bench.monitor, bench.interlock)
    assert bench.interlock.state is State.APPROACHING
    assert 6.2 < bench.at_um.z < 6.3
    bench.on_move = lambda: None
    assert retract(bench, bench.interlock).z == 0.0
    assert bench.interlock.state is State.ARMED


@pytest.mark.parametrize("step_um", [0.0, -0.01, 0.06, math.nan])
def test_a_step_that_is_too_large_is_refused_before_anything_moves(step_um):
    bench = Bench()
    with pytest.raises(OutOfRangeError):
        approach(bench, bench.monitor, bench.interlock, step_um=step_um)
    assert bench.interlock.state is State.ARMED


def test_nothing_approaches_before_it_is_armed():
    bench = Bench()
    bench.interlock.lost("a test")
    before_um = bench.at_um
    with pytest.raises(RefusedError, match="armed"):
        approach(bench, bench.monitor, bench.interlock)
    assert bench.at_um == before_um


# -- overload ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [0.01, 0.25, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("knock_nm", [300.0, 5000.0])
def test_an_overload_is_stopped_and_retracted_within_two_sampling_periods(phase, knock_nm):
    bench = Bench()
    approach(bench, bench.monitor, bench.interlock)
    bench.now_s += phase * PERIOD_S - (bench.now_s - bench.monitor.due_s + PERIOD_S)  # a phase of the sampling
    knocked_s, bench.sensor.knock_nm = bench.now_s, knock_nm
    bench.pass_time(3 * PERIOD_S)
    assert [name for name, _ in bench.done] == ["stop", "park", "focus"]
    assert all(at_s - knocked_s <= 2 * PERIOD_S for _, at_s in bench.done)
    assert bench.interlock.state is State.FAULT


def test_a_contact_below_the_overload_is_left_alone():
    bench = Bench(noise_v=0.0)
    approach(bench, bench.monitor, bench.interlock)
    bench.sensor.knock_nm = 180.0
    bench.pass_time(1.0)
    assert bench.done == []


def test_without_a_stage_a_retraction_says_that_it_could_not():
    interlock = Interlock(Rules("cantilever", TRAVEL), stage=PztRetraction())
    interlock.overload("a test")
    assert "could not stop: no PZT stage is open" in interlock.why


def test_a_retraction_that_is_not_far_enough_leaves_the_sphere_engaged():
    bench = Bench(PositionUm(50, 50, 0.2), touch_z_um=0.3)
    approach(bench, bench.monitor, bench.interlock)
    with pytest.raises(RefusedError, match="lift the sphere"):
        retract(bench, bench.interlock)
    assert bench.interlock.state is State.ENGAGED


# -- the held distance ------------------------------------------------------------------------------------------------


def held(bench: Bench, **keywords) -> DistanceControl:
    approach(bench, bench.monitor, bench.interlock)
    return DistanceControl(LIMITS.set_point_v, v_per_um=1e3 * V_PER_NM, low_um=4.0, high_um=9.0, **keywords)


@pytest.mark.parametrize("tilt", [(0.02, 0.0), (-0.02, 0.01), (0.0, -0.02)])
def test_the_distance_is_held_over_a_tilted_drifting_sample(tilt):
    bench = Bench(PositionUm(40, 40, 6), tilt=tilt, drift_nm_per_s=2.0)
    control = held(bench)
    for x_um, y_um in [(50, 40), (60, 40), (60, 50), (50, 50), (40, 50)]:
        at_um = hold_distance(bench, bench.monitor, control, PositionUm(x_um, y_um, 0), tolerance_v=0.04)
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


# -- the same in real time, on the simulated controller ---------------------------------------------------------------


@pytest.mark.slow
def test_an_overload_retracts_the_simulated_stage_within_two_sampling_periods_and_5_ms():
    period_s, samples_late = 0.01, []
    for seed in range(5):
        simulator = Simulator("e727", start_um=PositionUm(50, 50, 6.8))
        sensor = SimulatedCantilever(simulator.pose_um, tilt=(0.0, 0.0), v_per_nm=V_PER_NM, seed=seed)
        retraction = PztRetraction()
        interlock = Interlock(Rules("cantilever", TRAVEL), stage=retraction)
        interlock.sphere_lifted(by="a tester")
        with (
            open_stage("sim:", simulator=simulator, guard=interlock) as stage,
            ContactMonitor(sensor, LIMITS, guard=interlock, period_s=period_s, stale_s=0.1) as monitor,
        ):
            retraction.bind(stage)
            monitor.wait()
            interlock.arm(by="a tester")
            contact = approach(stage, monitor, interlock)
            assert abs(sensor.indentation_nm() - 50) <= 20
            monitor.wait()
            sensor.knock_nm = 400.0
            knocked_s = time.perf_counter()
            while simulator.pose_um().z > contact.position_um.z - 0.02:
                assert time.perf_counter() - knocked_s < 5
                time.sleep(0.0002)
            samples_late.append(time.perf_counter() - knocked_s)
            assert interlock.state is State.FAULT
    print(f"retracted after {[f'{1e3 * late_s:.1f}' for late_s in samples_late]} ms, sampling every 10 ms")  # noqa: T201
    assert statistics.median(samples_late) <= 2 * period_s + 0.005
