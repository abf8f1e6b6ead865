"""The stage among its neighbours: the interlock, a power cut, a pulled cable, a bad value; it is armed knowingly."""

from __future__ import annotations

import errno
import math
import threading
import time

import pytest
import serial

from firmware_bridge import gcs
from firmware_bridge.controller import Controller
from firmware_bridge.errors import (
    LinkError,
    LinkTimeoutError,
    OutOfRangeError,
    ProtocolError,
    RefusedError,
    ServoLostError,
    StoppedError,
)
from firmware_bridge.pzt import Box, PositionUm, PztStage, open_stage
from firmware_bridge.simulator import Simulator, serve_pty, serve_tcp

NEAR_UM = 0.005
TARGET = PositionUm(51, 50, 5)


class Guard:
    """An interlock that notes what it is asked."""

    def __init__(self):
        self.forbids = ""
        self.fastest_um_s = math.inf
        self.said = []
        self.polls = 0

    def check_move(self, here_um, target_um):
        self.said.append(("move", here_um, target_um))
        if self.forbids:
            raise RefusedError(self.forbids)

    def check_velocity(self, velocity_um_s):
        if velocity_um_s > self.fastest_um_s:
            raise OutOfRangeError(f"{velocity_um_s} um/s is too fast")

    def check_servo(self):
        self.said.append(("servo",))
        if self.forbids:
            raise RefusedError(self.forbids)

    def polled(self):
        self.polls += 1

    def lost(self, why):
        self.said.append(("lost", why))

    def disarm(self, why):
        self.said.append(("disarm", why))


class Wiretap:
    """Counts the bytes to the controller."""

    def __init__(self):
        self.sent = b""

    def __call__(self, way, data):
        if way == "<":
            self.sent += data


def identifies_as(simulator, identity):
    simulator._handlers["*IDN?"] = lambda args: f"{identity}\n"


@pytest.fixture(params=["e517", "e727"])
def simulator(request):
    return Simulator(request.param)


@pytest.fixture(params=[serve_pty, serve_tcp], ids=["pty", "tcp"])
def server(request, simulator):
    with request.param(simulator) as server:
        yield server


def test_after_a_pulled_cable_the_stage_is_connected_again_and_armed_by_a_person(server):
    guard, tap = Guard(), Wiretap()
    with open_stage(server.address, velocity_um_s=2000, guard=guard, trace=tap) as stage:
        stage.move_to(TARGET)
        server.unplug()
        with pytest.raises(LinkError):
            stage.move_to(PositionUm(60, 50, 5))
        assert guard.said[-1][0] == "lost"
        with pytest.raises(LinkError):
            stage.reconnect()  # nobody has plugged it in again
        server.replug()
        stage.reconnect()
        assert not stage.ready
        assert stage.position_um() == pytest.approx(TARGET, abs=NEAR_UM)
        sent = tap.sent
        with pytest.raises(RefusedError, match="servo_on"):
            stage.move_to(PositionUm(60, 50, 5))
        assert tap.sent == sent
        assert b"MOV" not in sent.partition(b"*IDN?")[2].partition(b"*IDN?")[2]  # no move was sent again
        stage.servo_on()
        assert stage.move_to(PositionUm(60, 50, 5)).x == pytest.approx(60, abs=NEAR_UM)


def test_another_device_at_the_port_is_refused_and_asked_nothing_else(server, simulator):
    tap = Wiretap()
    with open_stage(server.address, trace=tap) as stage:
        server.unplug()
        identifies_as(simulator, simulator.identity.replace("SIMULATED", "SIMULATED 2"))
        server.replug()
        tap.sent = b""
        with pytest.raises(RefusedError, match="connect the same controller"):
            stage.reconnect()
        assert tap.sent == b"*IDN?\n"
        assert not stage.ready


@pytest.mark.parametrize("fault", ["reboot", "servo_off"])
def test_a_servo_that_is_lost_in_mid_move_ends_it_and_the_stage_is_armed_anew(simulator, fault):
    guard = Guard()
    with open_stage("sim:", simulator=simulator, velocity_um_s=2000, guard=guard) as stage:
        simulator.faults.inject(fault, only="ONT?")
        with pytest.raises(ServoLostError, match="servo of axis"):
            stage.move_to(PositionUm(60, 50, 5))
        assert guard.said[-1][0] == "lost"
        with pytest.raises(RefusedError, match="servo_on"):
            stage.move_to(PositionUm(60, 50, 5))
        guard.said.clear()
        stage.servo_on()
        assert guard.said == [("servo",)]
        assert stage.velocity_um_s() == (2000, 2000, 2000)  # the reboot had forgotten it
        assert stage.move_to(PositionUm(60, 50, 5)).x == pytest.approx(60, abs=NEAR_UM)


def test_a_channel_that_went_off_line_is_found_out():
    simulator = Simulator("e517")
    with open_stage("sim:", simulator=simulator) as stage:
        simulator.feed(b"ONL 2 0\n")
        with pytest.raises(ServoLostError, match="channel 2 is offline"):
            stage.move_to(PositionUm(50, 60, 5))


def test_the_interlock_is_asked_before_each_move_and_what_it_forbids_is_not_sent():
    guard, tap = Guard(), Wiretap()
    with open_stage("sim:", guard=guard, trace=tap) as stage:
        stage.move_to(TARGET)
        here = stage.move_to(PositionUm(52, 50, 5))
        guard.said.clear()
        guard.forbids = "the sphere is in contact"
        sent = tap.sent
        with pytest.raises(RefusedError, match="in contact"):
            stage.move_to(TARGET)
        with pytest.raises(RefusedError, match="in contact"):
            stage.servo_on()
        with pytest.raises(RefusedError, match="in contact"):
            stage.autozero()
        assert tap.sent == sent
        assert guard.said == [("move", here, TARGET), ("servo",), ("servo",)]


def test_each_answer_tells_the_interlock_that_the_link_lives():
    guard = Guard()
    with open_stage("sim:", guard=guard) as stage:
        before = guard.polls
        stage.position_um()
        stage.on_target()
        assert guard.polls == before + 2


def test_a_velocity_that_the_interlock_forbids_costs_no_byte():
    guard, tap = Guard(), Wiretap()
    with open_stage("sim:", guard=guard, trace=tap) as stage:
        sent = tap.sent
        guard.fastest_um_s = 100.0
        with pytest.raises(OutOfRangeError, match="too fast"):
            stage.set_velocity(velocity_um_s=1000)
        assert tap.sent == sent
        stage.set_velocity(velocity_um_s=100)


def test_who_finds_the_servo_open_makes_the_stage_say_so_too():
    guard = Guard()
    with open_stage("sim:", guard=guard) as stage:
        stage.move_to(TARGET)
        stage.invalidate("the servo is off")
        assert not stage.ready
        assert guard.said[-1] == ("lost", "the servo is off")
        with pytest.raises(RefusedError, match="servo_on"):
            stage.move_to(TARGET)


def test_a_stage_wired_the_other_way_parks_at_its_upper_end():
    with open_stage("sim:", z_sign=-1, velocity_um_s=5000) as stage:
        stage.park()
        assert stage.position_um() == pytest.approx((50, 50, 10), abs=NEAR_UM)


def test_a_stage_at_rest_is_said_to_be_so():
    noise = PositionUm(0.001, 0.001, 0.001)
    with open_stage("sim:", simulator=Simulator(noise_um=noise)) as stage:
        stage.move_to(TARGET)
        drift = stage.drift_um(duration_s=0.2, samples=100)
        assert drift.samples == 100
        assert drift.duration_s > 0.1  # a busy machine may read late, the first time too
        assert drift.error_um == pytest.approx((0, 0, 0), abs=0.001)
        assert drift.rate_um_s == pytest.approx((0, 0, 0), abs=0.01)
        assert all(0.003 < pp < 0.009 for pp in drift.noise_pp_um)
        with pytest.raises(OutOfRangeError, match="3 or more"):
            stage.drift_um(samples=2)


def test_who_watches_a_stage_at_rest_does_not_keep_it_from_parking():
    with open_stage("sim:", velocity_um_s=5000) as stage:
        ends = []

        def watch():
            try:
                stage.drift_um(duration_s=60, samples=3)
            except StoppedError as exc:
                ends.append(exc)

        watching = threading.Thread(target=watch, name="watches")
        watching.start()
        while not stage._mover._lock.locked():
            time.sleep(0.001)
        stage.park()
        watching.join(5)
        assert len(ends) == 1
        assert stage.position_um().z == pytest.approx(0, abs=NEAR_UM)


# -- bad input: refused with what to do, and not a byte sent ---------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [(math.nan, 50, 5), (50, math.inf, 5), (50, 50, -math.inf), (100.001, 50, 5), (50, -0.001, 5), (50, 50, 10.5)],
)
def test_a_bad_target_costs_no_byte(target):
    tap = Wiretap()
    with open_stage("sim:", trace=tap) as stage:
        sent = tap.sent
        with pytest.raises(OutOfRangeError, match="target"):
            stage.move_to(PositionUm(*target))
        with pytest.raises(OutOfRangeError, match="target"):
            stage.run(
                b"WGO 1 1\n",
                bool,
                through=[PositionUm(*target)],
                ends_um=TARGET,
                velocity_um_s=9,
                timeout_s=1,
                what="a wave",
            )
        assert tap.sent == sent


@pytest.mark.parametrize("velocity", [math.nan, math.inf, 0.0, -1.0])
def test_a_bad_velocity_costs_no_byte(velocity):
    tap = Wiretap()
    with open_stage("sim:", trace=tap) as stage:
        sent = tap.sent
        with pytest.raises(OutOfRangeError, match="velocity"):
            stage.set_velocity(velocity_um_s=velocity)
        assert tap.sent == sent


def test_a_move_while_not_armed_costs_no_byte(simulator):
    tap = Wiretap()
    with open_stage("sim:", simulator=simulator, enable_servo=False, trace=tap) as stage:
        sent = tap.sent
        with pytest.raises(RefusedError, match="lift the sphere"):
            stage.move_to(TARGET)
        assert tap.sent == sent


def test_a_controller_that_does_not_tell_its_limits_is_not_moved():
    simulator, tap = Simulator(), Wiretap()
    del simulator._handlers["TMX?"]
    with pytest.raises(RefusedError, match="without which nothing may move: check"):
        open_stage("sim:", simulator=simulator, trace=tap)
    assert not any(word in tap.sent for word in (b"MOV", b"SVO", b"VEL"))


def test_limits_that_are_no_travel_are_refused():
    simulator = Simulator()
    simulator._handlers["TMX?"] = simulator._handlers["TMN?"]
    with pytest.raises(RefusedError, match="no travel"):
        open_stage("sim:", simulator=simulator)


def test_limits_with_a_digit_gone_wrong_are_read_again():
    simulator = Simulator()
    simulator.faults.inject("digit", only="TMX?")
    with open_stage("sim:", simulator=simulator) as stage:
        assert stage.limits_um == Box(PositionUm(0, 0, 0), PositionUm(100, 100, 10))


def test_limits_that_never_agree_are_not_believed():
    simulator = Simulator()
    simulator.faults.inject("digit", only="TMX?", times=None)
    with pytest.raises(ProtocolError, match="TMX"):
        open_stage("sim:", simulator=simulator)


def test_a_target_with_a_digit_gone_wrong_is_read_again():
    simulator = Simulator()
    with open_stage("sim:", simulator=simulator) as stage:
        simulator.faults.inject("digit", only="MOV?")
        assert stage.target_um() == (50, 50, 5)


def test_a_wrong_device_on_the_port_is_asked_for_its_name_alone():
    tap = Wiretap()
    simulator = Simulator()
    identifies_as(simulator, "Stanford_Research_Systems,SR830,s/n12345,ver1.07")
    with serve_tcp(simulator) as server, pytest.raises(RefusedError, match=r"expected an E-727 or E-517: correct"):
        open_stage(server.address, trace=tap)
    assert tap.sent == b"*IDN?\n"


def test_a_port_that_is_taken_costs_no_byte():
    tap = Wiretap()
    with serve_pty(Simulator()) as server, open_stage(server.address):
        with pytest.raises(LinkError, match="in use by another program: close it"):
            open_stage(server.address, trace=tap)
        assert tap.sent == b""


def test_a_port_without_permission_says_which_group(monkeypatch):
    def refuse(*_, **__):
        raise serial.SerialException(errno.EACCES, "could not open port")

    monkeypatch.setattr(serial, "Serial", refuse)
    with pytest.raises(LinkError, match="dialout"):
        open_stage("/dev/ttyUSB0")


def test_a_bad_direction_of_z_is_refused():
    with pytest.raises(OutOfRangeError, match="z_sign"):
        open_stage("sim:", z_sign=0)


# -- autozero: transcripts --------------------------------------------------------------------------------------------

READING = [
    (b"SAI?\n", b"1 \n2 \n3\n"),
    (b"TMN? 1 2 3\n" * 2, b"1=0 \n2=0 \n3=0\n" * 2),
    (b"TMX? 1 2 3\n" * 2, b"1=100 \n2=100 \n3=10\n" * 2),
    (b"VEL? 1 2 3\n" * 2, b"1=1 \n2=1 \n3=1\n" * 2),
]
OPENING = [(b"*IDN?\n", b"PI, E-727, 1, 2\n"), *READING, (b"SVO? 1 2 3\n", b"1=1 \n2=1 \n3=1\n")]
HERE = (b"POS? 1 2 3\n" * 2, b"1=50 \n2=50 \n3=5\n" * 2)


def help_of(*commands):
    return (b"HLP?\n", " \n".join(["The following are valid:", *commands, "end of help"]).encode() + b"\n")


def opened(scripted, script, **options):
    link, _ = scripted([*OPENING, *script])
    link.identify()
    return PztStage(Controller(link, gcs.PROFILES["e727"]), **options)


def test_an_autozero_is_waited_for_and_leaves_the_stage_to_be_armed(scripted):
    guard = Guard()
    done = [(b"ATZ? 1 2 3\n", b"1=1 \n2=1 \n3=1\n"), *READING]
    busy = [(b"ATZ\nERR?\n", b"0\n"), (b"\x07", b"\xb0\n"), (b"\x07", b"\xb1\n")]
    stage = opened(scripted, [HERE, help_of("ATZ", "ATZ?"), *busy, *done], guard=guard)
    stage.autozero()
    assert guard.said[:3] == [
        ("servo",),
        ("move", (50, 50, 5), (0, 0, 0)),
        ("move", (50, 50, 5), (100, 100, 10)),
    ]
    assert [what for what, *_ in guard.said[3:]] == ["disarm"], "nothing was lost, and nothing is retracted for it"
    with pytest.raises(RefusedError, match="servo_on"):
        stage.move_to(TARGET)


def test_an_autozero_that_does_not_succeed_is_said_to_have_failed(scripted):
    begun = [(b"ATZ\nERR?\n", b"0\n"), (b"\x07", b"\xb1\n"), (b"ATZ? 1 2 3\n", b"1=1 \n2=0 \n3=1\n")]
    stage = opened(scripted, [HERE, help_of("ATZ", "ATZ?"), *begun])
    with pytest.raises(RefusedError, match="did not succeed"):
        stage.autozero()


def test_an_autozero_that_never_ends_is_stopped(scripted):
    begun = [(b"ATZ\nERR?\n", b"0\n"), (b"\x07", b"\xb0\n"), (b"\x18", None), (b"ERR?\n", b"10\n")]
    stage = opened(scripted, [HERE, help_of("ATZ"), *begun])
    with pytest.raises(LinkTimeoutError, match="not over within"):
        stage.autozero(timeout_s=1e-9)


def test_a_controller_without_autozero_is_not_told_to(scripted):
    stage = opened(scripted, [HERE, help_of("POS?")])
    with pytest.raises(RefusedError, match="no autozero"):
        stage.autozero()


def test_both_controllers_are_zeroed_and_armed_again(simulator):
    with open_stage("sim:", simulator=simulator, velocity_um_s=2000) as stage:
        stage.autozero()
        assert set(stage.controller.flags("ATZ?")) == {True}
        assert not stage.ready
        stage.servo_on()
        assert stage.move_to(TARGET) == pytest.approx(TARGET, abs=NEAR_UM)
