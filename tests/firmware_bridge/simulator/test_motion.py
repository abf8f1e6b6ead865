"""The closed form of a moving axis, against a numerical integration and against itself."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.simulator.motion import PiezoMotion

TARGETS = st.lists(st.tuples(st.floats(0, 100), st.floats(1e-4, 0.2), st.floats(10, 5000)), min_size=1, max_size=4)


@given(TARGETS)
def test_position_and_set_point_never_jump_when_a_new_target_comes(moves: list[tuple[float, float, float]]) -> None:
    axis = PiezoMotion(50.0)
    now_s = 0.0
    for target_um, after_s, slew_um_s in moves:
        before = axis.state(now_s)
        axis.command(now_s, target_um, slew_um_s)
        assert axis.state(now_s) == pytest.approx(before, abs=1e-9)
        now_s += after_s


def test_the_closed_form_is_the_solution_of_the_equation_of_motion() -> None:
    axis = PiezoMotion(10.0)
    axis.command(0.0, 12.0, 500.0)  # 4 ms of slew
    at_um, speed_um_s, dt_s = 10.0, 0.0, 1e-6
    for n in range(10_000):
        set_point_um = min(12.0, 10.0 + 500.0 * n * dt_s)
        speed_um_s += dt_s * (axis.omega_rad_s**2 * (set_point_um - at_um) - 2 * axis.omega_rad_s * speed_um_s)
        at_um += dt_s * speed_um_s
        if n % 1000 == 999:
            assert axis.state((n + 1) * dt_s)[0] == pytest.approx(at_um, abs=2e-3)


def test_the_stage_slews_at_its_velocity_and_settles_without_overshoot() -> None:
    axis = PiezoMotion(0.0)
    axis.command(0.0, 10.0, 1000.0)
    assert axis.slewing(0.0099)
    assert not axis.slewing(0.0101)
    middle = axis.state(0.005)[1]
    assert middle == pytest.approx(1000.0, rel=0.01)
    times_s = [n * 1e-4 for n in range(400)]
    positions = [axis.state(t_s)[0] for t_s in times_s]
    assert positions == sorted(positions)
    assert positions[-1] == pytest.approx(10.0, abs=1e-6)


def test_on_target_needs_the_whole_settling_time_within_the_tolerance() -> None:
    axis = PiezoMotion(0.0)
    axis.command(0.0, 1.0, 10_000.0)
    inside_s = next(n * 1e-5 for n in range(10_000) if abs(axis.state(n * 1e-5)[0] - 1.0) <= 0.002)
    assert not axis.settled(inside_s + 0.0019, 0.002, 0.002)
    assert axis.settled(inside_s + 0.0021, 0.002, 0.002)


def test_a_stage_that_swings_through_its_target_is_not_settled() -> None:
    axis = PiezoMotion(0.0)
    axis.command(0.0, 10.0, 10_000.0)
    now_s = 0.0012  # fast, close to 10 um
    axis.command(now_s, axis.state(now_s)[0] + 0.6, 10_000.0)
    crossings = [n * 1e-5 for n in range(120, 3000) if axis.state(n * 1e-5)[0] > axis.target_um + 0.01]
    assert crossings, "the case was meant to overshoot"
    assert not axis.settled(crossings[0] + 0.0005, 0.01, 0.002)


def test_hold_makes_the_present_position_the_target_and_the_stage_brakes_and_comes_back() -> None:
    axis = PiezoMotion(0.0)
    axis.command(0.0, 10.0, 1000.0)
    at_um, speed_um_s = axis.state(0.005)
    axis.hold(0.005)
    assert axis.state(0.005) == pytest.approx((at_um, speed_um_s))
    turns_s = 0.005 + 1.0 / axis.omega_rad_s
    assert axis.state(turns_s) == pytest.approx((at_um + speed_um_s / (axis.omega_rad_s * math.e), 0.0), abs=1e-9)
    assert axis.state(1.0) == pytest.approx((at_um, 0.0))
    assert axis.target_um == at_um
