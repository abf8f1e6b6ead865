"""What an axis does that a set point alone does not: hysteresis, drift, autozero, names, parameters, power-up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.errors import OutOfRangeError
from firmware_bridge.position import PositionUm
from firmware_bridge.simulator import Simulator
from firmware_bridge.simulator.hysteresis import Hysteresis

QUIET = PositionUm(0.0, 0.0, 0.0)


@pytest.fixture
def simulator(clock):
    return Simulator("e727", clock=clock, noise_um=QUIET)


def x_at(simulator, clock, volts):
    simulator.feed(f"SVA 1 {volts}\n".encode())
    clock.advance(0.2)
    return simulator.pose_um().x


def test_in_open_loop_up_and_down_are_two_ways(simulator, clock):
    x_at(simulator, clock, -20)
    up = [x_at(simulator, clock, volts) for volts in (15, 50, 85, 120)]
    down = [x_at(simulator, clock, volts) for volts in (85, 50, 15)]
    assert up[3] == pytest.approx(100, abs=1)
    assert down[1] - up[1] == pytest.approx(12, abs=1)  # 12 % of the travel
    assert up == sorted(up)
    assert down == sorted(down, reverse=True)


def test_a_servo_knows_no_hysteresis_and_closing_and_opening_it_makes_no_jump(simulator, clock):
    x_at(simulator, clock, 120)
    before = x_at(simulator, clock, 70)
    simulator.feed(b"SVO 1 1\n")
    clock.advance(0.1)
    assert simulator.pose_um().x == pytest.approx(before, abs=1e-6)
    simulator.feed(b"MOV 1 30\n")
    clock.advance(1.0)
    assert simulator.pose_um().x == pytest.approx(30, abs=1e-6)
    volts = float(simulator.feed(b"VOL? 1\n").split(b"=")[1])
    simulator.feed(b"SVO 1 0\n")
    clock.advance(1.0)
    assert simulator.pose_um().x == pytest.approx(30, abs=1e-6)
    assert x_at(simulator, clock, volts) == pytest.approx(30, abs=0.01)


def test_channels_tell_their_voltages_and_what_their_converters_read(simulator):
    assert simulator.feed(b"VMI? 1\nVMA? 3\nTAD? 2\nTAD? 4\nERR?\n") == (
        b"1=-20.00000\n3=120.00000\n2=32768.00000\n15\n"
    )


def test_a_stage_may_jump_when_its_servo_is_closed_but_not_beyond_its_travel(clock):
    simulator = Simulator("e727", clock=clock, noise_um=QUIET, servo_jump_um=PositionUm(1.5, 0, 20))
    simulator.feed(b"SVO 1 1 2 1 3 1\n")
    clock.advance(0.2)
    assert simulator.pose_um() == pytest.approx((51.5, 50, 10))
    assert simulator.feed(b"SVO 1 1\nMOV? 1\n") == b"1=51.50000\n"


def test_a_firmware_takes_its_time_to_answer(clock):
    simulator = Simulator("e727", clock=clock, answer_s=0.001)
    assert simulator.feed(b"ERR?\n") == b""
    clock.advance(0.001)
    assert simulator.feed(b"") == b"0\n"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_hysteresis_is_monotone_bounded_and_can_be_inverted(voltages):
    loop = Hysteresis(0.15)
    for voltage in voltages:
        before = loop.position(loop.voltage)
        after = loop.move(voltage)
        assert -0.2 <= after <= 1.0 + 1e-9
        corners = loop.corners(0.5)
        assert corners == sorted(corners) or corners == sorted(corners, reverse=True)
        loop.reach(before)
        assert loop.position(loop.voltage) == pytest.approx(before, abs=1e-9)


def test_a_hysteresis_that_is_none_is_refused():
    with pytest.raises(OutOfRangeError, match="hysteresis"):
        Simulator(hysteresis=0.5)


def test_an_open_axis_creeps_and_a_servo_holds_it(clock):
    simulator = Simulator("e727", clock=clock, noise_um=QUIET, drift_um_s=PositionUm(0.01, 0, -0.02))
    clock.advance(10.0)
    assert simulator.feed(b"POS?\n") == b"1=50.10000 \n2=50.00000 \n3=4.80000\n"
    simulator.feed(b"SVO 1 1\n")
    clock.advance(10.0)
    assert simulator.pose_um() == pytest.approx((50.1, 50, 4.6))
    assert simulator.feed(b"ONT? 1\n") == b"1=1\n"


def test_a_sensors_drift_is_seen_by_nobody_but_the_sample_until_autozero(clock):
    simulator = Simulator("e727", clock=clock, noise_um=QUIET, sensor_drift_um_s=PositionUm(0.01, 0, 0))
    simulator.feed(b"SVO 1 1\nMOV 1 40\n")
    clock.advance(10.0)
    assert simulator.feed(b"POS? 1\n") == b"1=40.00000\n"
    assert simulator.pose_um().x == pytest.approx(40.1)
    simulator.feed(b"ATZ 1 0\n")
    assert simulator.feed(b"\x07ERR?\nMOV 1 10\nERR?\nATZ? 1\n") == b"\xb0\n0\n61\n1=0\n"
    clock.advance(0.5)
    assert simulator.feed(b"\x07ATZ? 1\nERR?\n") == b"\xb1\n1=1\n0\n"
    assert simulator.pose_um().x == pytest.approx(0.0, abs=1e-3)


def test_a_controller_that_boots_refuses_moves_and_says_so(clock):
    simulator = Simulator("e727", clock=clock, boot_s=2.0)
    assert simulator.feed(b"\x07SVO 1 1\nERR?\n") == b"\xb0\n63\n"
    clock.advance(2.0)
    assert simulator.feed(b"\x07SVO 1 1\nERR?\n") == b"\xb1\n0\n"


def test_axes_can_be_renamed_and_taken_away(simulator):
    simulator.feed(b"SAI 1 X 3 ZERO\n")
    assert simulator.feed(b"SAI?\nSAI? ALL\nPOS? x\nPOS? 1\nERR?\n") == b"X \n2\nX \n2 \nZERO\nX=50.00000\n15\n"
    assert simulator.feed(b"SAI X 2\nERR?\n") == b"23\n"
    simulator.feed(b"RBT\n")
    assert simulator.feed(b"SAI?\n") == b"1 \n2 \n3\n"


def test_a_protected_parameter_needs_its_command_level(simulator):
    write = b"SPA 1 0x18000401 0.001\nERR?\n"
    assert simulator.feed(write) == b"60\n"
    assert simulator.feed(b"CCL 1\nERR?\nCCL 2 advanced\nERR?\n") == b"56\n56\n"
    assert simulator.feed(b"CCL 1 advanced\nCCL?\n" + write) == b"1\n0\n"
    assert simulator.feed(b"SPA? 1 0x18000401 1 0X0F000100\n") == b"1 0x18000401=0.001 \n1 0XF000100=P-733.3CL\n"
    assert simulator.feed(b"SPA 1 0x0E000200 1\nERR?\nSPA 2 0x18000401 1\nERR?\n") == b"64\n15\n"
    simulator.feed(b"RBT\n")
    assert simulator.feed(b"CCL?\nSPA? 1 0x18000401\n") == b"0\n1 0x18000401=0\n"


def test_the_on_target_parameters_are_those_that_ont_uses(simulator, clock):
    simulator.feed(b"SVO 1 1\nSPA 1 0x7000901 1.5\nMOV 1 51\n")
    clock.advance(1.4)
    assert simulator.feed(b"ONT? 1\n") == b"1=0\n"
    clock.advance(0.2)
    assert simulator.feed(b"ONT? 1\n") == b"1=1\n"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"SVA 1 121\n", 66),
        (b"SVO 1 1\nSVA 1 10\n", 79),
        (b"ATZ 9 0\n", 15),
        (b"STP 1\n", 24),
        (b"SAI 1 a_b\n", 23),
        (b"SAI 1 ZERO 2 ZERO 3 ZERO\n", 23),
        (b"VEL 1 10001\n", 8),
        (b"X" * 5000 + b"\n", 304),
        (b"SPA 1 0x7000900 -1\n", 17),
        (b"SPA? 1\n", 24),
    ],
)
def test_what_makes_no_sense_is_refused(simulator, sent, code):
    assert simulator.feed(sent + b"ERR?\n") == f"{code}\n".encode()


def test_an_amplifier_that_is_asked_for_too_much_says_so(clock):
    simulator = Simulator("e727", clock=clock, noise_um=QUIET, drift_um_s=PositionUm(0.1, 0, 0))
    assert simulator.feed(b"OVF? 1\n") == b"1=0\n"
    simulator.feed(b"SVA 1 120\n")
    clock.advance(100.0)  # it has drifted 10 um beyond what its range reaches
    assert simulator.feed(b"SVO 1 1\nOVF?\n") == b"1=1 \n2=0 \n3=0\n"
