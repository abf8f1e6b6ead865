"""The wave generator: shapes, timing, what may not be done while it runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.position import PositionUm
from firmware_bridge.simulator import Simulator
from firmware_bridge.simulator.motion import PiezoMotion
from firmware_bridge.simulator.waves import CYCLE_S, Run, segment

QUIET = PositionUm(0.0, 0.0, 0.0)


@pytest.fixture
def simulator(clock):
    simulator = Simulator("e727", clock=clock, noise_um=QUIET)
    simulator.feed(b"SVO 1 1 2 1 3 1\n")
    clock.advance(0.1)
    return simulator


def table(simulator, number=1):
    reply = simulator.feed(f"GWD? 1 100000 {number}\n".encode()).decode()
    return [float(row) for row in reply.partition("# END_HEADER \n")[2].split()]


def test_a_line_is_a_ramp_between_two_parabolas(simulator):
    assert simulator.feed(b"WAV 1 X LIN 100 40 10 100 0 20\nERR?\nWAV? 1 1\n") == b"0\n1 1=100.00000\n"
    points = np.array(table(simulator))
    steps = np.diff(points)
    assert (points[0], points[-1]) == pytest.approx((10, 50))
    assert steps[20:78] == pytest.approx([40 / 79] * 58, abs=1e-4)
    assert np.all(np.diff(steps[:20]) > 0)
    assert np.all(np.diff(steps[-20:]) < 0)


def test_a_sine_rises_to_its_centre_and_comes_back(simulator):
    simulator.feed(b"WAV 2 X SIN_P 2000 20 10 2000 0 1000\n")
    points = table(simulator, 2)
    assert (points[0], points[500], points[1000], points[1500]) == pytest.approx((10, 20, 30, 20), abs=1e-4)


def test_a_ramp_goes_up_and_comes_back_with_a_rest_before_and_after(simulator):
    simulator.feed(b"WAV 1 X RAMP 300 8 1 200 50 10 120\n")
    points = table(simulator)
    assert len(points) == 300
    assert set(points[:51]) == {1.0}
    assert set(points[250:]) == {1.0}
    assert max(points) == points[170] == pytest.approx(9)


def test_points_are_appended_segment_by_segment(simulator):
    simulator.feed(b"WAV 1 X PNT 1 2 50 51\nWAV 1 & PNT 3 2 52 53\nWAV 1 & LIN 2 1 53 2 0 0\n")
    assert table(simulator) == [50, 51, 52, 53, 53, 54]
    simulator.feed(b"WCL 1\nWAV? 1 1\n")
    assert simulator.feed(b"WAV? 1 1\n") == b"1 1=0.00000\n"


def test_the_stage_follows_its_wave_and_rests_on_its_last_point(simulator, clock):
    simulator.feed(b"WAV 1 X LIN 1000 20 50 1000 0 100\nWSL 1 1\nWGC 1 1\nWTR 0 4 1\nWGO 1 1\n")
    assert simulator.feed(b"ERR?\n\x09\x05WGO?\n") == b"0\n0x1\n1\n1=1 \n2=0 \n3=0\n"
    clock.advance(0.1)  # half of 1000 x 4 x 50 us
    assert simulator.pose_um().x == pytest.approx(60, abs=0.2)
    clock.advance(0.09995)
    assert simulator.feed(b"\x09") == b"0x1\n"
    clock.advance(0.0002)
    assert simulator.feed(b"\x09MOV? 1\n") == b"0x0\n1=70.00000\n"
    clock.advance(0.1)
    assert simulator.feed(b"ONT? 1\n") == b"1=1\n"
    assert simulator.pose_um() == pytest.approx((70, 50, 5))


def test_an_endless_wave_runs_until_it_is_stopped_and_holds_there(simulator, clock):
    simulator.feed(b"WAV 1 X SIN_P 200 4 50 200 0 100\nWSL 2 1\nWTR 2 10 0\nWGO 2 1\n")
    seen = []
    for _ in range(20):
        clock.advance(0.037)
        seen.append(simulator.pose_um().y)
    assert max(seen) - min(seen) > 2
    simulator.feed(b"WGO 2 0\n")
    at = simulator.pose_um()
    clock.advance(1.0)
    assert simulator.feed(b"\x09ERR?\n") == b"0x0\n0\n"
    assert simulator.pose_um() == at


def test_a_stop_ends_a_wave(simulator, clock):
    simulator.feed(b"WAV 1 X SIN_P 200 4 50 200 0 100\nWSL 1 1\nWTR 1 100 1\nWGO 1 1\n")
    clock.advance(0.3)
    at = simulator.pose_um()
    assert simulator.feed(b"\x18\x09ERR?\n") == b"0x0\n10\n"
    clock.advance(1.0)
    assert simulator.pose_um() == at


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"MOV 1 51\n", 73),
        (b"MVR 1 1\n", 73),
        (b"ATZ 1 0\n", 73),
        (b"WGO 1 1\n", 73),
        (b"WSL 1 2\n", 73),
        (b"MOV 2 51\n", 0),
        (b"WGO 2 1\n", 75),
        (b"WGO 4 1\n", 17),
        (b"WGO 1 2\n", 17),
        (b"WAV 9 X PNT 1 1 5\n", 17),
        (b"WAV 1 + PNT 1 1 5\n", 1),
        (b"WAV 1 X TRI 1 1 5\n", 1),
        (b"WAV 1 X PNT 1 2 5\n", 24),
        (b"WAV 1 X LIN 100 40 10 100 0\n", 24),
        (b"WAV 1 X LIN 300000 40 10 100 0 1\n", 67),
        (b"WAV 1 X\n", 26),
        (b"WTR 1 0 1\n", 17),
        (b"TWS 4 1 1\n", 17),
        (b"WAV? 1 2\n", 54),
    ],
)
def test_what_may_not_be_done_while_a_wave_runs_or_makes_no_sense(simulator, sent, code):
    simulator.feed(b"WAV 1 X SIN_P 200 4 50 200 0 100\nWSL 1 1\nWGO 1 1\n")
    assert simulator.feed(sent + b"ERR?\n") == f"{code}\n".encode()


def test_a_wave_beyond_the_limits_or_without_servo_does_not_start(simulator, clock):
    simulator.feed(b"WAV 1 X SIN_P 200 60 50 200 0 100\nWSL 1 1\nWGO 1 1\n")
    assert simulator.feed(b"ERR?\nWAV 1 X SIN_P 200 6 50 200 0 100\nSVO 1 0\nWGO 1 1\nERR?\n") == b"7\n5\n"
    assert simulator.feed(b"\x09") == b"0x0\n"


def test_the_memory_of_all_tables_is_one(simulator):
    simulator.feed(b"WAV 1 X LIN 200000 1 50 200000 0 1\n")
    assert simulator.feed(b"ERR?\nWAV 2 X LIN 100000 1 50 100000 0 1\nERR?\n") == b"0\n67\n"


def test_an_offset_shifts_a_wave(simulator, clock):
    simulator.feed(b"WAV 1 X PNT 1 2 0 1\nWOS 1 30\nWSL 1 1\nWGC 1 1\nWGO 1 1\n")
    clock.advance(1.0)
    assert simulator.feed(b"ERR?\nMOV? 1\nWOS? 1\n") == b"0\n1=31.00000\n1=30.00000\n"


@given(
    points=st.lists(st.sampled_from([0.0, 1.0, 2.0, 2.5]), min_size=1, max_size=12),
    cycles=st.integers(1, 3),
    smooth=st.booleans(),
)
def test_ramps_are_without_gaps_and_pass_through_every_point(points, cycles, smooth):
    run = Run(1.0, CYCLE_S, np.array(points), cycles, smooth)
    ramps = list(run.ramps())
    assert all(a.end_s == b.begin_s for a, b in itertools.pairwise(ramps))
    assert ramps[0].begin_s == 1.0
    assert ramps[-1].end_s == float("inf")
    for cycle, point in itertools.product(range(cycles), range(len(points))):
        t_s = run.at_s(cycle, point)
        (ramp,) = (ramp for ramp in ramps if ramp.begin_s <= t_s + CYCLE_S / 9 < ramp.end_s)
        assert ramp.at(t_s) == pytest.approx(points[point], abs=1e-9)


def test_a_wave_of_many_points_is_the_same_motion_as_its_ramps_one_by_one():
    points = segment("SIN_P", ["50", "3", "1", "50", "0", "25"])
    motion = PiezoMotion(1.0, since_s=0.0)
    motion.follow(0.0, Run(0.0, CYCLE_S, points, 3, True).ramps())
    times_s = np.arange(0, 0.02, 1e-4)
    at_once = motion.positions_um(times_s)
    one_by_one = []
    for t_s in times_s.tolist():
        one_by_one.append(motion.state(t_s)[0])
        motion.forget(t_s)
    assert at_once == pytest.approx(one_by_one, abs=1e-9)
