"""The focus and contact commands as a person meets them: what they print, their exit codes, what they refuse."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import types
from functools import partial

import pytest
from click.testing import CliRunner

from firmware_bridge import focus_commands, guarded
from firmware_bridge.__main__ import Commands
from firmware_bridge.approach import approach
from firmware_bridge.errors import LinkError, RefusedError
from firmware_bridge.focus_commands import contact, focus
from firmware_bridge.position import PositionUm
from firmware_bridge.safety import Rules, State
from firmware_bridge.simulator import Simulator, serve_tcp
from firmware_bridge.simulator.cantilever import SimulatedCantilever
from firmware_bridge.simulator.esp301 import Esp301Server, SimulatedEsp301
from firmware_bridge.simulator.xps import SimulatedXps, XpsServer


def run(*words):
    result = CliRunner().invoke(Commands(commands={"focus": focus, "contact": contact}), words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A machine that is busy may sample the contact late: what the interlock makes of that is tested elsewhere."""
    monkeypatch.setattr(focus_commands, "Rules", partial(Rules, contact_timeout_s=2.0))


SIMULATED_APPROACH = (
    "contact approach --by me --simulated --set-point-v 1.2 --overload-v 2.0 --period-s 0.02 --step-um 0.05".split()
)


@pytest.mark.parametrize("driver", ["xps", "esp301"])
def test_status_says_where_the_focus_is_and_that_it_is_simulated(driver):
    result = run("focus", "status", "--driver", driver, "--simulated", "--json", "-")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["simulated"] is True
    assert report["position_um"] == pytest.approx(1000.0)
    assert report["limits_um"] == [-50_000.0, 50_000.0]
    assert run("focus", "status", "--driver", driver, "--simulated").stdout.startswith("SIMULATED\n")


def test_move_goes_away_freely_and_nearer_only_when_told():
    xps = SimulatedXps()
    with XpsServer(xps) as server:
        where = ("--driver", "xps", "--port", server.address, "--axis", "FOCUS.Pos")
        assert run("focus", "move", "1050", *where, "--json", "-").exit_code == 0
        refused = run("focus", "move", "1000", *where)
        assert refused.exit_code == 1
        assert "--nearer" in refused.stderr
        assert xps.position_mm == pytest.approx(1.05)
        assert run("focus", "move", "1000", *where, "--nearer").exit_code == 0
    assert xps.position_mm == pytest.approx(1.0)


def test_an_esp301_is_moved_by_its_axis_number():
    esp301 = SimulatedEsp301()
    with Esp301Server(esp301) as server:
        result = run("focus", "move", "1020", "--driver", "esp301", "--port", server.address, "--axis", "1")
    assert result.exit_code == 0, result.stderr
    assert esp301.position_mm == pytest.approx(1.02)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("focus status --driver xps", 2, "either --port or --simulated"),
        ("focus status --driver xps --port tcp://x:1", 2, "--axis"),
        ("focus status --driver esp301 --port /dev/ttyUSB99 --axis 1", 1, "No serial device"),
        ("focus status --driver esp301 --port /dev/ttyUSB99 --axis 9", 2, "1, 2 or 3"),
        ("focus status --driver smc100 --simulated", 2, "smc100"),
        ("focus move nan --driver xps --simulated", 2, "not a finite number"),
        ("focus move 1e9 --driver xps --simulated", 2, "outside the limits"),
        ("contact read", 2, "either --adc or --simulated"),
        ("contact read --adc ads1115 --address seven", 2, "no I2C address"),
        ("contact approach --by me --set-point-v 2 --overload-v 1 --simulated", 2, "set point < overload"),
        ("contact approach --by me --set-point-v nan --overload-v 1 --simulated", 2, "not a finite number"),
        ("contact approach --by me --set-point-v 1 --overload-v 2", 2, "either --port and --adc, or --simulated"),
        ("contact approach --by me --set-point-v 1 --overload-v 2 --port x --simulated", 2, "or --simulated"),
        ("contact approach --set-point-v 1 --overload-v 2 --simulated", 2, "--by"),
        ("contact approach --by me --set-point-v 1 --overload-v 2 --simulated --focus-port x", 2, "--focus-driver"),
        (
            "contact approach --by me --set-point-v 1 --overload-v 2 --simulated --focus-driver xps --focus-port x",
            2,
            "either",
        ),
        (
            "contact approach --by me --set-point-v 1.2 --overload-v 2 --travel-um nan --simulated",
            2,
            "not a finite number",
        ),
        ("contact approach --by me --set-point-v 1.2 --overload-v 2 --step-um 1 --simulated", 2, "approach step"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_an_exit_code(words, code, says):
    result = run(*words.split())
    assert result.exit_code == code, result.output
    assert says in result.stderr


def test_a_missing_library_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "smbus2", None)
    result = run("contact", "read", "--adc", "ads1115")
    assert result.exit_code == 1
    assert "'.[jetson]' in the checkout" in result.stderr


def test_read_says_mean_and_noise():
    report = json.loads(run("contact", "read", "--simulated", "--samples", "200", "--json", "-").stdout)
    assert report["mean_v"] == pytest.approx(1.0, abs=0.01)
    assert 0.001 < report["std_v"] < 0.004


def test_read_reads_the_adc_that_was_named(monkeypatch):
    class SpiDev:
        def open(self, bus, device) -> None:
            assert (bus, device) == (1, 0)

        def xfer2(self, data):
            assert list(data) == [1, 0xB0, 0]
            return [0, 2, 0]

        def close(self) -> None:
            pass

    monkeypatch.setitem(sys.modules, "spidev", types.SimpleNamespace(SpiDev=SpiDev))
    result = run("contact", "read", "--adc", "mcp3008", "--bus", "1", "--channel", "3", "--json", "-")
    assert json.loads(result.stdout)["mean_v"] == pytest.approx(1.65)


@pytest.mark.parametrize(("z_sign", "z_um"), [("1", 7.05), ("-1", 2.95)])
def test_approach_finds_the_contact_holds_it_and_ends_retracted(z_sign, z_um):
    result = run(*SIMULATED_APPROACH, "--hold-s", "0.3", "--json", "-", f"--z-sign={z_sign}")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["simulated"] is True
    assert report["retracted"] is True
    assert report["position_um"][2] == pytest.approx(z_um, abs=0.07)  # steps of 50 nm
    assert report["value_v"] >= 1.2


@pytest.mark.parametrize("mount", ["cantilever", "objective"])
def test_a_fault_of_an_approach_lifts_the_focus_that_was_named(monkeypatch, mount):
    def hold(_, interlock, __) -> None:
        interlock.overload("a test presses the sphere")
        raise RefusedError("the contact ended in a fault")

    def opened(driver, port, axis, baud, simulated, guard):
        return original(driver, server.address, "1", baud, False, guard)

    esp301, original = SimulatedEsp301(), focus_commands._focus
    monkeypatch.setattr(focus_commands, "_hold", hold)
    monkeypatch.setattr(focus_commands, "_focus", opened)
    with Esp301Server(esp301) as server:
        assert run(*SIMULATED_APPROACH, "--mount", mount, "--focus-driver", "esp301").exit_code == 1
    assert esp301.position_mm == pytest.approx(2.0), "0.5 mm before the servo is closed, and as much in the fault"


def test_approach_that_finds_nothing_says_so():
    result = run(*SIMULATED_APPROACH, "--travel-um", "0.2")
    assert result.exit_code == 2
    assert "no contact within 0.2 um" in result.stderr


@pytest.mark.parametrize("lifted", [True, False])
def test_without_a_persons_word_an_approach_begins_at_the_end_away_from_the_sphere(monkeypatch, lifted):
    simulator, ways = Simulator(start_um=PositionUm(50, 50, 1.0)), []
    simulator.feed(b"SVO 1 1 2 1 3 1\n")
    monkeypatch.setattr(
        focus_commands, "_reader", lambda *_: SimulatedCantilever(simulator.pose_um, touch_z_um=1.3, tilt=(0.0, 0.0))
    )
    monkeypatch.setattr(focus_commands, "approach", lambda stage, *arguments, **keywords: (
        ways.append(stage.position_um().z), approach(stage, *arguments, **keywords))[1])  # fmt: skip
    words = "contact approach --by me --adc ads1115 --set-point-v 1.2 --overload-v 2.0 --period-s 0.02 --step-um 0.05"
    with serve_tcp(simulator) as server:
        result = run(*words.split(), "--port", server.address, *["--sphere-lifted"] * lifted)
        assert result.exit_code == 0, result.stderr
    assert ways == [pytest.approx(1.0 if lifted else 0.0, abs=0.02)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_held_contact_retracted_and_a_second_one_does_not_keep_it_from_it(monkeypatch, number):
    opened = []

    def stage(*arguments, **keywords):
        opened.append(original_stage(*arguments, **keywords))
        return opened[0]

    def hold(*_) -> None:
        os.kill(os.getpid(), number)
        for _ in range(1000):
            time.sleep(0.005)  # a signal that another thread got is handled in between
        pytest.fail("the signal ended nothing")

    def retract(*arguments):
        os.kill(os.getpid(), number)
        return original_retract(*arguments)

    original_stage, original_retract = focus_commands._stage, guarded.retract
    monkeypatch.setattr(focus_commands, "_stage", stage)
    monkeypatch.setattr(focus_commands, "_hold", hold)
    monkeypatch.setattr(guarded, "retract", retract)
    before = signal.signal(number, signal.default_int_handler)
    try:
        assert run(*SIMULATED_APPROACH, "--hold-s", "60").exit_code == 1
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert opened[0].simulator.pose_um().z == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), LinkError("the ADC is gone")])
def test_whatever_ends_a_held_contact_it_is_retracted_before_the_command_ends(monkeypatch, error):
    opened = []

    def stage(port, z_sign, interlock, **keywords):
        opened.append((original(port, z_sign, interlock, **keywords), interlock))
        return opened[0][0]

    def interrupted(*_) -> None:
        assert opened[0][1].state is State.ENGAGED
        raise error

    original = focus_commands._stage
    monkeypatch.setattr(focus_commands, "_stage", stage)
    monkeypatch.setattr(focus_commands, "_hold", interrupted)
    assert run(*SIMULATED_APPROACH, "--hold-s", "60").exit_code == 1
    simulator, interlock = opened[0][0].simulator, opened[0][1]
    assert simulator.pose_um().z == pytest.approx(0.0, abs=0.01)
    assert interlock.state is State.ARMED
    assert interlock.rules.max_velocity_um_s == 1000.0, "the controller's own velocity, which it has again"
