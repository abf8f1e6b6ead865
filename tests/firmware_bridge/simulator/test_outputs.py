"""Trigger outputs: each edge falls where and when the manual says, however time is cut, and is heard once."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.position import PositionUm
from firmware_bridge.simulator import Simulator, serve_pty

QUIET = PositionUm(0.0, 0.0, 0.0)
ON = {"e727": b"SVO 1 1 2 1 3 1\n", "e517": b"ONL 1 1 2 1 3 1\nVCO A 1 B 1 C 1\nSVO A 1 B 1 C 1\n"}


class Bench:
    """A quiet simulator in closed loop, and the pulses that were heard."""

    def __init__(self, clock, profile="e727", *, output=1):
        self.clock, self.heard = clock, []
        self.simulator = Simulator(profile, clock=clock, noise_um=QUIET)
        self.simulator.on_pulse(lambda *pulse: self.heard.append(pulse), output=output)
        self.send(ON[profile])
        clock.advance(0.1)

    def send(self, data):
        assert self.simulator.feed(data + b"ERR?\n").endswith(b"0\n")

    def move(self, x, seconds=0.2, name="1"):
        self.send(f"MOV {name} {x}\n".encode())
        self.run(seconds)

    def run(self, seconds):
        self.clock.advance(seconds)
        self.simulator.advance()

    def places(self):
        places = [pose_um.x for _, _, pose_um in self.heard]
        self.heard.clear()
        return places


@pytest.fixture
def bench(clock):
    return Bench(clock)


def test_a_fly_line_has_its_pulses_at_the_exact_places_and_the_flyback_has_none(bench):
    bench.move(8)
    bench.send(b"CTO 1 2 1 1 3 0 1 1 0.5 1 8 10 1 9 12\n")
    for _ in range(3):
        bench.move(14)
        assert bench.places() == pytest.approx([10, 10.5, 11, 11.5, 12], abs=1e-9)
        bench.move(8)
        assert bench.places() == []


def test_pulses_of_a_line_are_evenly_spaced_in_time_at_constant_velocity(bench):
    bench.move(5)
    bench.send(b"VEL 1 500\nCTO 1 2 1 1 3 0 1 1 1 1 8 10 1 9 20\n")
    bench.move(25)
    times_ns = [t_ns for _, t_ns, _ in bench.heard]
    gaps_s = [(b - a) / 1e9 for a, b in itertools.pairwise(times_ns)]
    assert len(gaps_s) == 10
    assert gaps_s == pytest.approx([0.002] * 10, rel=1e-3)
    assert [index for index, _, _ in bench.heard] == list(range(11))


def test_a_line_may_run_downwards(bench):
    bench.move(14)
    bench.send(b"CTO 1 2 1 1 3 0 1 1 1 1 8 12 1 9 10\n")
    bench.move(8)
    assert bench.places() == pytest.approx([12, 11, 10], abs=1e-9)
    bench.move(14)
    assert bench.places() == []


def test_without_thresholds_pulses_come_both_ways(bench):
    bench.send(b"CTO 1 2 1 1 3 0 1 1 2\n")
    bench.move(55)
    assert bench.places() == pytest.approx([52, 54], abs=1e-9)
    bench.move(49)
    assert bench.places() == pytest.approx([52, 50], abs=1e-9)


def test_a_stage_that_turns_round_inside_the_line_goes_on_giving_pulses_unless_told_not_to(bench):
    bench.move(8)
    bench.send(b"CTO 1 2 1 1 3 0 1 1 1 1 8 10 1 9 20\n")
    bench.move(13.5)
    bench.move(11.5)
    assert bench.places() == pytest.approx([10, 11, 12, 13, 12], abs=1e-9)
    bench.send(b"CCL 1 advanced\nSPA 1 0x18000300 1\n")
    bench.move(8)
    bench.move(13.5)
    bench.move(11.5)
    bench.move(14.5)
    assert bench.places() == pytest.approx([10, 11, 12, 13, 14], abs=1e-9)


def test_on_target_is_a_level_that_falls_with_each_move_and_rises_when_settled(bench):
    bench.send(b"CTO 1 2 1 1 3 2\n")
    bench.run(0)
    assert bench.places() == pytest.approx([50])  # armed while on target: an edge at once
    for x in (51, 60):
        bench.move(x)
        assert bench.places() == pytest.approx([x], abs=0.002)


def test_the_edge_falls_when_ont_begins_to_say_one(bench):
    bench.send(b"CTO 1 2 1 1 3 2\nMOV 1 51\n")
    bench.heard.clear()
    while bench.simulator.feed(b"ONT? 1\n") == b"1=0\n":
        assert not bench.heard
        bench.clock.ns += 20_000
    ((_, t_ns, _),) = bench.heard
    assert 0 <= bench.clock.ns - t_ns <= 20_000


def test_a_move_to_where_the_stage_stands_does_not_fall(bench):
    bench.send(b"CTO 1 2 1 1 3 2\n")
    bench.move(60)
    bench.places()
    bench.move(60)
    assert bench.places() == []


def test_the_other_polarity_is_heard_when_the_stage_leaves(bench):
    bench.send(b"CTO 1 2 1 1 3 2 1 7 0\n")
    bench.move(60)
    bench.places()
    bench.move(65)
    assert bench.places() == pytest.approx([60])


def test_between_two_positions_the_line_is_high(bench):
    bench.send(b"CTO 1 2 1 1 3 3 1 5 52 1 6 53\n")
    bench.move(55)
    assert bench.places() == pytest.approx([52], abs=1e-9)
    bench.move(50)
    assert bench.places() == pytest.approx([53], abs=1e-9)
    bench.move(52.5)
    assert bench.places() == pytest.approx([52], abs=1e-9)


@pytest.mark.parametrize("profile", ["e727", "e517"])
def test_the_wave_generators_points_make_pulses_each_cycle(clock, profile):
    bench = Bench(clock, profile, output=2)
    axis = bench.simulator.profile.axes[0]
    bench.send(b"WAV 1 X LIN 100 10 50 100 0 10\nWSL 1 1\nWGC 1 2\nWTR 0 20 1\nTWC\nTWS 2 1 1 2 50 1 2 51 1\n")
    bench.send(f"CTO 2 2 {axis} 2 3 4\n".encode())
    if profile == "e517":
        bench.send(b"TRO 2 1\n")
    begin_ns = clock.ns
    bench.send(b"WGO 1 1\n")
    bench.run(1.0)
    times_s = [(t_ns - begin_ns) / 1e9 for _, t_ns, _ in bench.heard]
    assert times_s == pytest.approx([50e-6 + 1e-3 * n for n in (0, 49, 100, 149)], abs=1e-7)


def test_an_e517_switches_its_outputs_with_tro_and_answers_24_lines(clock):
    bench = Bench(clock, "e517")
    lines = bench.simulator.feed(b"CTO?\n").decode().split(" \n")
    assert len(lines) == 24
    assert lines[1] == "1 2=A"
    bench.send(b"CTO 1 2 A 1 3 0 1 1 1\n")
    bench.move(55, name="A")
    assert bench.places() == []
    bench.send(b"TRO 1 1\n")
    assert bench.simulator.feed(b"TRO?\n") == b"1=1 \n2=0 \n3=0\n"
    bench.move(50.5, name="A")
    assert bench.places() == pytest.approx([54, 53, 52, 51], abs=1e-9)


def test_an_e727_has_its_own_parameters_and_no_tro(bench):
    assert bench.simulator.feed(b"CTO? 1 8\nTRO 1 1\nERR?\nCTO? 1 12\nERR?\n") == b"1 8=0\n2\n54\n"
    assert len(bench.simulator.feed(b"CTO?\n").split(b"\n")) == 3 * 8 + 1


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"CTO 4 1 1\n", 17),
        (b"CTO 1 3 1\n", 17),
        (b"CTO 1 3 5\n", 17),
        (b"CTO 1 1 -1\n", 17),
        (b"CTO 1 7 2\n", 17),
        (b"CTO 1 2 4\n", 15),
        (b"CTO 1 99 4\n", 54),
        (b"CTO 1 2\n", 24),
        (b"CTO\n", 26),
        (b"CTO? 1\n", 24),
    ],
)
def test_what_makes_no_sense_is_refused(bench, sent, code):
    assert bench.simulator.feed(sent + b"ERR?\n") == f"{code}\n".encode()


def test_a_pulse_from_outside_is_heard_too(bench):
    bench.simulator.pulse()
    assert bench.places() == [50]


def test_who_listens_to_another_output_hears_nothing(clock):
    bench = Bench(clock, output=3)
    bench.send(b"CTO 1 2 1 1 3 0 1 1 1\n")
    bench.move(60)
    assert bench.places() == []
    assert bench.simulator.next_event_ns() is None


def test_the_next_event_is_the_next_edge_and_nothing_comes_before_it(bench):
    bench.send(b"CTO 1 2 1 1 3 0 1 1 1\nMOV 1 53.5\n")
    for place in (51, 52, 53):
        event_ns = bench.simulator.next_event_ns()
        bench.clock.ns = event_ns - 1000
        bench.simulator.advance()
        assert bench.places() == []
        bench.clock.ns = event_ns
        bench.simulator.advance()
        assert bench.places() == pytest.approx([place], abs=1e-9)
    assert bench.simulator.next_event_ns() is None


@settings(max_examples=30, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 40_000_000), max_size=12),
    setup=st.sampled_from(
        [
            b"CTO 1 2 1 1 3 0 1 1 0.7\n",
            b"CTO 1 2 1 1 3 0 1 1 0.7 1 8 51 1 9 58\n",
            b"CTO 1 2 1 1 3 2\n",
            b"CTO 1 2 1 1 3 3 1 5 51 1 6 57\n",
        ]
    ),
)
def test_edges_do_not_depend_on_who_looked_when(cuts, setup):
    runs = []
    for looks in ([], cuts):
        now_ns = [1_000_000_000]
        simulator = Simulator("e727", clock=lambda now_ns=now_ns: now_ns[0], noise_um=QUIET)
        heard = []
        simulator.on_pulse(lambda *pulse, heard=heard: heard.append(pulse))
        simulator.feed(ON["e727"])
        now_ns[0] += 100_000_000
        simulator.feed(setup + b"MOV 1 60\n")
        for end_ns, command in ((1_150_000_000, b"MOV 1 52\n"), (1_153_000_000, b"MOV 1 59\n"), (2_000_000_000, b"")):
            for look_ns in looks:
                now_ns[0] = min(end_ns, now_ns[0] + look_ns)
                simulator.next_event_ns()
                simulator.pose_um()
            now_ns[0] = end_ns
            simulator.feed(command)
        runs.append([(index, round(t_ns, -2), tuple(round(um, 6) for um in pose)) for index, t_ns, pose in heard])
    assert len(runs[0]) == len(runs[1])
    for one, other in zip(*runs, strict=True):
        assert one[0] == other[0]
        assert abs(one[1] - other[1]) <= 100
        assert one[2] == pytest.approx(other[2], abs=1e-5)


def test_a_served_controller_delivers_its_pulses_in_time_while_nobody_talks():
    simulator = Simulator(noise_um=QUIET)
    late_ns = []
    with serve_pty(simulator) as server:
        simulator.on_pulse(lambda index, t_ns, pose_um: late_ns.append(simulator.clock() - t_ns))
        with open(server.address, "r+b", buffering=0) as port:
            port.write(b"SVO 1 1\nVEL 1 100\nCTO 1 2 1 1 3 0 1 1 1\nMOV 1 60\n")
            port.write(b"ERR?\n")
            port.read(1)
            deadline_ns = simulator.clock() + 60_000_000_000
            while len(late_ns) < 10 and simulator.clock() < deadline_ns:
                server._thread.join(timeout=0.01)
    assert len(late_ns) == 10
    assert sorted(late_ns)[5] < 500_000_000  # and not when somebody talks again, which nobody does here
