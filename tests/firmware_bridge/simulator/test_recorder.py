"""The data recorder: what triggers it, what it holds, how it is read."""

from __future__ import annotations

import pytest

from firmware_bridge.position import PositionUm
from firmware_bridge.simulator import Simulator

QUIET = PositionUm(0.0, 0.0, 0.0)


@pytest.fixture
def simulator(clock):
    simulator = Simulator("e727", clock=clock, noise_um=QUIET)
    simulator.feed(b"SVO 1 1 2 1 3 1\n")
    clock.advance(0.1)
    return simulator


def read(simulator, request):
    """The header and the rows of a GCS array."""
    head, _, rows = simulator.feed(request).decode().partition("# END_HEADER \n")
    header = dict(line.lstrip("# ").rstrip().split(" = ") for line in head.split("\n") if line)
    return header, [[float(word) for word in row.split()] for row in rows.rstrip("\n").split(" \n") if row]


def test_a_step_is_recorded_as_the_stage_moves(simulator, clock):
    simulator.feed(b"RTR 20\nDRC 1 1 2 2 1 1 3 1 3\nSTE 1 5\n")
    clock.advance(0.01)
    assert simulator.feed(b"ERR?\nDRL? 1\n") == b"0\n1=11\n"
    header, rows = read(simulator, b"DRR? 1 11 1 2 3\n")
    assert (header["NDATA"], header["DIM"], header["SAMPLE_TIME"]) == ("11", "3", "0.0010000")
    assert header["NAME0"] == "Current Position of Axis 1"
    assert len(rows) == 11
    assert rows[0] == pytest.approx([50, 50, 0])
    assert [row[1] for row in rows] == pytest.approx([50 + min(n, 5) for n in range(11)], abs=1e-4)
    assert all(error == pytest.approx(target - position, abs=2e-5) for position, target, error in rows)
    assert rows[-1][0] == pytest.approx(simulator.pose_um().x, abs=1e-5)


def test_what_was_recorded_before_a_new_command_stays_as_it_was(simulator, clock):
    simulator.feed(b"RTR 20\nSTE 1 5\n")
    clock.advance(0.003)
    simulator.feed(b"MOV 1 50\n")
    clock.advance(1.0)
    _, rows = read(simulator, b"DRR? 1 20 1\n")
    assert rows[3][0] > 51
    assert rows[19][0] == pytest.approx(50, abs=0.001)


def test_the_recorder_is_full_after_its_share_of_the_points(simulator, clock):
    simulator.feed(b"STE 1 1\n")
    clock.advance(1.0)
    assert simulator.feed(b"DRL? 1\n") == b"1=20001\n"
    clock.advance(1.0)
    assert simulator.feed(b"DRL? 1 8\nTNR?\n") == b"1=32768 \n8=32768\n8\n"


@pytest.mark.parametrize(("trigger", "recorded"), [(0, [0, 0]), (1, [1, 1]), (6, [1, 101])])
def test_moves_trigger_as_drt_says(simulator, clock, trigger, recorded):
    simulator.feed(f"RTR 20\nDRT 1 {trigger} 0\n".encode())
    lengths = []
    for _ in range(2):
        simulator.feed(b"MVR 1 1\n")
        lengths.append(int(simulator.feed(b"DRL? 1\n").split(b"=")[1]))
        clock.advance(0.1)
    assert lengths == recorded


def test_the_next_command_of_any_kind_triggers(simulator, clock):
    assert simulator.feed(b"DRT 0 2 0\nDRL? 1\nDRT? 1\n") == b"1=0\n1=0 0\n"
    clock.advance(0.0001)
    assert simulator.feed(b"DRL? 1\n") == b"1=3\n"


def test_a_wave_generator_starts_the_recorder(simulator, clock):
    simulator.feed(b"RTR 10\nWAV 1 X LIN 100 10 50 100 0 10\nWSL 1 1\nWGC 1 1\nWTR 1 10 1\nWGO 1 1\n")
    clock.advance(0.06)
    _, rows = read(simulator, b"DRR? 1 100 1\n")
    assert len(rows) == 100
    assert rows[0] == [50]
    assert rows[-1][0] > 58


def test_readings_of_the_recorder_are_noisy(clock):
    simulator = Simulator("e727", clock=clock, noise_um=PositionUm(0.001, 0.001, 0.001))
    simulator.feed(b"DRT 0 4 0\n")
    clock.advance(0.1)
    _, rows = read(simulator, b"DRR? 1 1000 1 2\n")
    spread = sum((x - 50) ** 2 for x, _ in rows) / len(rows)
    assert spread**0.5 == pytest.approx(0.001, rel=0.1)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"DRC 9 1 2\n", 57),
        (b"DRC 1 4 2\n", 59),
        (b"DRC 1 1 77\n", 58),
        (b"DRT 1 3 0\n", 17),
        (b"RTR 0\n", 17),
        (b"RTR\n", 24),
        (b"DRR? 1 1000 1\n", 77),
        (b"DRL? 9\n", 57),
    ],
)
def test_what_makes_no_sense_is_refused(simulator, sent, code):
    assert simulator.feed(sent + b"ERR?\n") == f"{code}\n".encode()


def test_settings_are_told(simulator):
    simulator.feed(b"DRC 2 3 1\nRTR 7\nDRT 0 6 0\n")
    assert simulator.feed(b"DRC? 1 2\nRTR?\nDRT? 1\n") == b"1=1 2 \n2=3 1\n7\n1=6 0\n"


def test_an_empty_recorder_is_an_empty_array(simulator):
    assert simulator.feed(b"DRR?\n").endswith(b"# END_HEADER\n")
