"""The controller's firmware: errors, profiles, dynamics, pulses; time moves only when a test says so."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge import gcs
from firmware_bridge.errors import OutOfRangeError
from firmware_bridge.position import PositionUm
from firmware_bridge.simulator import Simulator
from firmware_bridge.simulator.dialects import COMMANDS

QUIET = PositionUm(0.0, 0.0, 0.0)
ON = {"e727": b"SVO 1 1 2 1 3 1\n", "e517": b"ONL 1 1 2 1 3 1\nVCO A 1 B 1 C 1\nSVO A 1 B 1 C 1\n"}


def ready(profile, clock, **options):
    """A simulator in closed loop, settled in the middle of its travel."""
    simulator = Simulator(profile, clock=clock, noise_um=QUIET, **options)
    assert simulator.feed(ON[profile] + b"ERR?\n") == b"0\n"
    clock.advance(0.1)
    return simulator


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"XYZ?\n", gcs.UNKNOWN_COMMAND),
        (b"FRF?\n", gcs.UNKNOWN_COMMAND),
        (b"SRG?\n", gcs.UNKNOWN_COMMAND),
        (b"TRS?\n", gcs.UNKNOWN_COMMAND),
        (b"VCO 1 1\n", gcs.UNKNOWN_COMMAND),  # an E-517's
        (b"POS? 4\n", gcs.BAD_AXIS),
        (b"POS? A\n", gcs.BAD_AXIS),
        (b"MOV\n", gcs.MISSING_ARGUMENT),
        (b"MOV 1\n", gcs.WRONG_COUNT),
        (b"MOV 1 x\n", gcs.BAD_NUMBER),
        (b"MOV 1 nan\n", gcs.BAD_NUMBER),
        (b"MOV 1 100.001\n", gcs.POSITION_LIMITS),
        (b"MOV 1 50 3 -0.1\n", gcs.POSITION_LIMITS),
        (b"MVR 3 5.1\n", gcs.POSITION_LIMITS),
        (b"VEL 1 0\n", gcs.VELOCITY_LIMITS),
        (b"SVO 1 2\n", gcs.OUT_OF_RANGE),
        (b"PLM 1 101\n", gcs.OUT_OF_RANGE),
        (b"SPA? 1 0x123\n", gcs.UNKNOWN_PARAMETER),
        (b"POS? " + b"1 " * 33 + b"\n", gcs.WRONG_COUNT),
        (b"*IDN? 1\n", gcs.WRONG_COUNT),
    ],
)
def test_what_is_refused_has_no_reply_moves_nothing_and_latches_one_error(clock, sent, code):
    simulator = ready("e727", clock)
    before = simulator.pose_um()
    assert simulator.feed(sent) == b""
    clock.advance(0.1)
    assert simulator.pose_um() == before
    assert simulator.feed(b"ERR?\nERR?\n") == f"{code}\n0\n".encode()


def test_a_move_with_the_servo_off_is_refused(clock):
    simulator = Simulator("e727", clock=clock)
    assert simulator.feed(b"MOV 1 10\nERR?\n") == b"5\n"


@pytest.mark.parametrize("profile", gcs.PROFILES)
def test_a_move_slews_settles_and_is_on_target(clock, profile):
    simulator = ready(profile, clock)
    x, y, _ = gcs.PROFILES[profile].axes
    assert simulator.feed(f"VEL {x} 1000\nMOV {x} 60 {y} 45\nERR?\n\x05".encode()) == b"0\n3\n"
    clock.advance(0.0075)
    assert simulator.feed(b"\x05") == b"1\n"
    assert 56 < simulator.pose_um().x < 57.5
    clock.advance(0.005)
    assert simulator.feed(f"\x05ONT? {x}\n".encode()) == f"0\n{x}=0\n".encode()
    clock.advance(0.02)
    assert simulator.feed(f"ONT? {x} {y}\n".encode()) == f"{x}=1 \n{y}=1\n".encode()
    assert simulator.pose_um() == pytest.approx((60, 45, 5), abs=1e-6)


def test_an_e517_accepts_moves_offline_and_nothing_moves(clock):
    simulator = Simulator("e517", clock=clock, noise_um=QUIET)
    simulator.feed(b"VCO A 1\nSVO A 1\nMOV A 10\n")
    clock.advance(1.0)
    assert simulator.feed(b"ERR?\nMOV? A\nPOS? A\nONT? A\n") == b"0\nA=+0010.0000\nA=+0050.0000\nA=0\n"
    simulator.feed(b"ONL 1 1\nMOV A 10\n")
    clock.advance(1.0)
    assert simulator.feed(b"ERR?\nPOS? A\nONT? A\n") == b"0\nA=+0010.0000\nA=1\n"


def test_an_e517_needs_velocity_control_to_say_that_it_is_on_target(clock):
    simulator = ready("e517", clock)
    assert simulator.feed(b"ONT? A\n") == b"A=1\n"
    simulator.feed(b"VCO A 0\n")
    assert simulator.feed(b"ONT? A\n") == b"A=0\n"


@pytest.mark.parametrize("command", [b"\x18", b"STP\n", b"HLT\n", b"HLT 1 2 3\n"])
def test_a_stop_holds_where_it_is_and_latches_error_10(clock, command):
    simulator = ready("e727", clock)
    simulator.feed(b"MOV 1 90\n")
    clock.advance(0.01)
    at = simulator.pose_um()
    assert simulator.feed(command + b"ERR?\n\x05") == b"10\n0\n"
    clock.advance(1.0)
    assert simulator.pose_um() == at
    assert simulator.feed(b"MOV? 1\n") == f"1={at.x:.5f}\n".encode()


def test_a_stop_byte_in_the_middle_of_a_line_acts_and_leaves_the_line_whole(clock):
    simulator = ready("e727", clock)
    assert simulator.feed(b"POS\x18? 1\nERR?\n") == b"1=50.00000\n10\n"


def test_the_error_after_a_stop_can_be_switched_off_on_an_e727(clock):
    simulator = ready("e727", clock)
    assert simulator.feed(b"SPA 1 0x0E000301 1\n\x18ERR?\n") == b"0\n"


def test_a_reboot_opens_the_servo_and_keeps_the_stage_where_it_is(clock):
    simulator = ready("e727", clock)
    simulator.feed(b"MOV 1 60\n")
    clock.advance(1.0)
    simulator.feed(b"RBT\n")
    assert simulator.feed(b"SVO? 1\nMOV 1 10\nERR?\n") == b"1=0\n5\n"
    assert simulator.pose_um().x == pytest.approx(60)


def test_soft_limits_bind_and_travel_is_still_told(clock):
    simulator = ready("e727", clock)
    assert simulator.feed(b"NLM 1 20\nPLM 1 55\nNLM? 1\nPLM? 1\nTMX? 1\n") == b"1=20.00000\n1=55.00000\n1=100.00000\n"
    assert simulator.feed(b"MOV 1 56\nERR?\nMOV 1 55\nERR?\n") == b"7\n0\n"


def test_parameters_are_compared_as_numbers(clock):
    simulator = ready("e727", clock)
    assert simulator.feed(b"SPA 2 0x7000900 0.05\nSPA? 2 0x07000900 2 117442817\n") == (
        b"2 0x7000900=0.05 \n2 0x7000901=0.002\n"
    )


def test_commands_are_not_case_sensitive_and_blank_lines_are_nothing(clock):
    assert ready("e517", clock).feed(b"\npos? a\n \nERR?\n") == b"A=+0050.0000\n0\n"


def test_what_help_lists_is_what_is_accepted(clock):
    for profile in gcs.PROFILES:
        simulator = Simulator(profile, clock=clock)
        lines = simulator.feed(b"HLP?\n").decode().split(" \n")
        assert "ONL" in lines if profile == "e517" else "ONL" not in lines
        for name in lines[1:-1]:
            if not name.startswith("#"):
                simulator.feed(f"{name}\n".encode())
                assert simulator.feed(b"ERR?\n") != b"2\n", name


def test_readings_are_noisy_and_the_pose_is_not(clock):
    simulator = Simulator("e727", clock=clock, noise_um=PositionUm(0.001, 0.001, 0.001))
    readings = [float(simulator.feed(b"POS? 1\n")[2:]) for _ in range(500)]
    assert statistics.stdev(readings) == pytest.approx(0.001, rel=0.15)
    assert {simulator.pose_um() for _ in range(10)} == {PositionUm(50, 50, 5)}


def test_the_same_seed_gives_the_same_readings(clock):
    first, second = (Simulator(clock=clock, seed=3).feed(b"POS?\n") for _ in range(2))
    assert first == second


def test_a_pulse_reaches_its_listeners_with_index_time_and_true_pose(clock):
    simulator = ready("e727", clock)
    heard = []
    forget = simulator.on_pulse(lambda *pulse: heard.append(pulse))
    simulator.pulse()
    simulator.feed(b"MOV 1 60\n")
    clock.advance(1.0)
    simulator.pulse()
    forget()
    simulator.pulse()
    assert [index for index, _, _ in heard] == [0, 1]
    assert heard[1][1] - heard[0][1] == 1_000_000_000
    assert [pose_um.x for _, _, pose_um in heard] == pytest.approx([50, 60])


@given(st.binary(max_size=60))
def test_no_bytes_break_the_firmware(data):
    simulator = Simulator("e727", clock=lambda: 0)
    simulator.feed(data + b"\n")
    answer = simulator.feed(b"ERR?\nERR?\n")
    assert answer.endswith(b"\n0\n")
    assert all(map(math.isfinite, simulator.pose_um()))


WORDS = ["1", "2", "3", "A", "0", "-1", "0.5", "50", "1e3", "nan", "1e400", "0x7000900", "0x18000300", "X", "&", "ZERO"]
WORDS += ["PNT", "LIN", "RAMP", "SIN_P", "advanced", "ALL", "100", "4", "8", "9", "20"]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(list(gcs.PROFILES)),
    st.lists(
        st.tuples(
            st.sampled_from(COMMANDS["e517"]), st.lists(st.sampled_from(WORDS), max_size=9), st.integers(0, 10**8)
        ),
        max_size=12,
    ),
)
def test_no_command_breaks_the_firmware_whatever_its_arguments_and_when_it_comes(profile, commands):
    now_ns = [0]
    simulator = Simulator(profile, clock=lambda: now_ns[0])
    simulator.on_pulse(lambda *pulse: None)
    simulator.feed(ON[profile] + b"WAV 1 X RAMP 100 5 45 100 0 4 50\nWSL 1 1\nCTO 1 3 2 2 3 3 3 3 4\n")
    for name, words, later_ns in commands:
        simulator.feed(" ".join([name, *words]).encode() + b"\n")
        now_ns[0] += later_ns
        simulator.next_event_ns()
        simulator.advance()
    assert simulator.feed(b"ERR?\nERR?\n").endswith(b"\n0\n")
    assert all(map(math.isfinite, simulator.pose_um()))


def test_an_unknown_profile_is_refused():
    with pytest.raises(OutOfRangeError, match="e727, e517"):
        Simulator("e709")
