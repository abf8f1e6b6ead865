"""Each fault does what its line in FAULTS says, once or for good, at the command that was named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.errors import OutOfRangeError
from firmware_bridge.position import PositionUm
from firmware_bridge.simulator import Simulator
from firmware_bridge.simulator.faults import FAULTS, Fault

QUIET = PositionUm(0.0, 0.0, 0.0)
GOOD = b"1=50.00000 \n2=50.00000\n"
ASK = b"POS? 1 2\n"


@pytest.fixture
def simulator(clock):
    simulator = Simulator("e727", clock=clock, noise_um=QUIET)
    simulator.feed(b"SVO 1 1 2 1 3 1\n")
    clock.advance(0.1)
    return simulator


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("silent", b""),
        ("partial", GOOD[: len(GOOD) // 2]),
        ("echo", ASK + GOOD),
        ("twice", GOOD + GOOD),
        ("wrong_axis", b"2=50.00000 \n3=50.00000\n"),
        ("wrong_mnemonic", b"1=100.00000 \n2=100.00000\n"),
        ("junk_before", b"\xfe~" + GOOD),
        ("nul", b"\0" + GOOD),
        ("crlf", GOOD.replace(b"\n", b"\r\n")),
    ],
)
def test_a_fault_of_replies_strikes_as_often_as_it_was_told(simulator, name, reply):
    simulator.faults.inject(name, times=2, only="pos?")
    assert simulator.feed(b"ERR?\n") == b"0\n"
    assert [simulator.feed(ASK) for _ in range(3)] == [reply, reply, GOOD]


def test_garbage_is_never_a_reply(simulator):
    simulator.faults.inject("garbage", times=None)
    for _ in range(50):
        answer = simulator.feed(ASK)
        assert answer.endswith(b"\n")
        assert min(answer[:-1]) >= 0xC0


def test_one_digit_of_a_value_flips_and_never_one_of_an_axis_name(simulator):
    simulator.faults.inject("digit", times=None)
    for _ in range(100):
        answer = simulator.feed(ASK)
        assert len(answer) == len(GOOD)
        changed = [at for at, (new, old) in enumerate(zip(answer, GOOD, strict=True)) if new != old]
        assert len(changed) == 1
        assert changed[0] not in (0, GOOD.index(b"2="))


def test_a_late_reply_holds_those_behind_it_up_and_their_order_stays(simulator, clock):
    simulator.faults.inject("late", delay_s=0.5, only="POS?")
    assert simulator.feed(ASK + b"ERR?\n") == b""
    assert simulator.next_event_ns() == clock() + 500_000_000
    clock.advance(0.499)
    assert simulator.feed(b"") == b""
    clock.advance(0.001)
    assert simulator.feed(b"*IDN?\n").startswith(GOOD + b"0\nPhysik")
    assert simulator.next_event_ns() is None


def test_a_stale_reply_is_the_one_of_last_time(simulator, clock):
    before = simulator.feed(ASK)
    simulator.feed(b"MOV 1 60\n")
    clock.advance(1.0)
    simulator.faults.inject("stale")
    assert simulator.feed(ASK) == before
    assert simulator.feed(ASK) == b"1=60.00000 \n2=50.00000\n"


def test_a_fault_lets_replies_pass_first(simulator):
    simulator.faults.inject("silent", after=2)
    assert simulator.feed(b"VEL 1 1000\nERR?\nERR?\nERR?\nERR?\n") == b"0\n0\n0\n"
    assert simulator.faults.struck == 1


def test_an_error_appears_by_itself(simulator):
    simulator.faults.inject("latched", only="MOV")
    assert simulator.feed(b"ERR?\nMOV 1 51\nERR?\nERR?\n") == b"0\n307\n0\n"


def test_the_servo_is_opened_at_the_front_panel_in_the_middle_of_a_scan(simulator):
    simulator.faults.inject("servo_off", only="MOV", after=1)
    assert simulator.feed(b"MOV 1 51\nERR?\nMOV 1 52\nERR?\n") == b"0\n5\n"


def test_a_reboot_is_deaf_for_a_while_and_then_the_servo_is_open(simulator, clock):
    simulator.faults.inject("reboot", delay_s=2.0, after=1)
    assert simulator.feed(b"SVO? 1\nSVO? 1\n") == b"1=1\n"
    clock.advance(1.9)
    assert simulator.feed(b"SVO? 1\n") == b""
    clock.advance(0.2)
    assert simulator.feed(b"SVO? 1\n") == b"1=0\n"


def test_a_dead_controller_executes_nothing_until_it_is_revived(simulator, clock):
    simulator.faults.inject("dead")
    assert simulator.feed(b"MOV 1 60\nERR?\n\x05") == b""
    clock.advance(100.0)
    assert simulator.feed(b"*IDN?\n") == b""
    simulator.faults.clear()
    assert simulator.feed(b"MOV? 1\n") == b"1=50.00000\n"


def test_a_condition_may_end_by_itself(simulator, clock):
    simulator.faults.inject("never_on_target", delay_s=1.0)
    assert simulator.feed(b"ONT? 1\n") == b"1=0\n"
    assert simulator.next_event_ns() == clock() + 1_000_000_000
    clock.advance(1.0)
    assert simulator.feed(b"ONT? 1\n") == b"1=1\n"


def test_a_pulled_plug_is_told_to_the_wire(simulator):
    simulator.faults.inject("unplug", only="POS?", delay_s=0.5)
    assert simulator.feed(b"ERR?\n") == b"0\n"
    assert simulator.take_unplug() is None
    assert simulator.feed(ASK) == b""
    assert simulator.take_unplug() == 0.5
    assert simulator.feed(ASK) == GOOD


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_read_from_its_text(name):
    fault = Fault.parse(f"{name}:times=none,only=pos?,delay_s=0.25,after=3")
    assert fault == Fault(name, times=None, only="POS?", delay_s=0.25, after=3)
    assert Fault.parse(str(fault).replace("None", "none")) == fault
    assert Fault.parse(name) == Fault(name)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "gremlin",
        "late:times=0",
        "late:times=x",
        "late:when=now",
        "late:delay_s=-1",
        "dead:delay_s=nan",
        "late:delay_s=inf",
    ],
)
def test_what_is_no_fault_is_refused(spec):
    with pytest.raises(OutOfRangeError):
        Fault.parse(spec)


@given(st.lists(st.tuples(st.sampled_from(list(FAULTS)), st.binary(max_size=12)), max_size=8))
def test_no_mixture_of_faults_breaks_the_firmware(mixture):
    simulator = Simulator("e517", clock=lambda: 0)
    for name, data in mixture:
        simulator.faults.inject(name, times=None)
        simulator.feed(data + b"\nPOS?\nERR?\n\x05")
    simulator.faults.clear()
    assert simulator.pose_um() == PositionUm(50, 50, 5)
