"""`superlens-pzt` as a person meets it: what it prints, its exit codes, never a traceback."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from firmware_bridge.__main__ import main
from firmware_bridge.position import PositionUm
from firmware_bridge.pzt import open_stage
from firmware_bridge.simulator import Simulator, serve_tcp
from tests.waiting import until


def run(*words):
    result = CliRunner().invoke(main, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_status_says_what_the_controller_says():
    result = run("status", "--port", "sim:e517", "--json", "-")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["profile"] == "e517"
    assert report["simulated"] is True
    assert report["servo_on"] is False
    assert report["position_um"] == pytest.approx([50, 50, 5], abs=0.005)


def test_a_simulated_stage_is_labelled_for_people_too():
    assert run("status", "--port", "sim:").stdout.startswith("SIMULATED\n")


def test_move_moves_the_axes_it_is_told_and_leaves_the_others():
    simulator = Simulator()
    with serve_tcp(simulator) as server:
        result = run("move", "--port", server.address, "--x", "10", "--z", "2.5", "--json", "-")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["position_um"] == pytest.approx([10, 50, 2.5], abs=0.005)
    assert simulator.pose_um() == pytest.approx((10, 50, 2.5), abs=0.005)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["status", "--port", "/dev/ttyUSB99"], 1, "No serial device at /dev/ttyUSB99"),
        (["move", "--port", "/dev/ttyUSB99", "--x", "nan"], 2, "not a finite number"),
        (["move", "--port", "sim:", "--x", "nan"], 2, "not a finite number"),
        (["move", "--port", "sim:", "--x", "51", "--timeout-s", "nan"], 2, "not a finite number"),
        (["move", "--port", "sim:", "--x", "51", "--timeout-s", "inf"], 2, "not a finite number"),
        (["monitor", "--port", "sim:", "--interval-s", "nan"], 2, "not a finite number"),
        (["focus", "move", "1000", "--driver", "xps", "--simulated", "--timeout-s", "nan"], 2, "not a finite number"),
        (["focus", "move", "nan", "--driver", "xps", "--simulated"], 2, "not a finite number"),
        (["move", "--port", "sim:", "--x", "101"], 2, "outside the limits"),
        (["move", "--port", "sim:", "--x", "left"], 2, "not a valid float"),
        (["move", "--port", "sim:"], 2, "nothing to do"),
        (["status", "--port", "tcp://nowhere"], 2, "is not a port"),
        (["status", "--port", "sim:e709"], 2, "no profile"),
        (["status"], 2, "--port"),
        (["fire"], 2, "--chip and --pin"),
        (["fire", "--pin", "1", "--chip", "0", "--board", "raspberry-pi"], 2, "--board"),
        (["trace", "--port", "sim:"], 2, "ACTION"),
        (["monitor", "--port", "sim:", "--count", "0"], 2, "--count"),
        (["fire", "--port", "/dev/ttyUSB0"], 2, "only sim:"),
        (["fire", "--chip", "-1", "--pin", "0"], 2, "--chip"),
        (["simulate"], 2, "--tcp PORT or --pty"),
        (["simulate", "--tcp", "50000", "--pty"], 2, "--tcp PORT or --pty"),
        (["simulate", "--tcp", "70000"], 2, "--tcp"),
        (["simulate", "--profile", "e709", "--pty"], 2, "e709"),
    ],
)
def test_bad_input_is_one_clear_error(words, code, says):
    result = run(*words)
    assert result.exit_code == code
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_a_refused_move_leaves_the_stage_where_it_is():
    simulator = Simulator()
    with serve_tcp(simulator) as server:
        before = simulator.pose_um()
        assert run("move", "--port", server.address, "--y", "100.5").exit_code == 2
        assert simulator.pose_um() == before


@pytest.fixture
def real(monkeypatch):
    """A stage that does not say that it is simulated, its servo closed."""
    simulator = Simulator(start_um=PositionUm(50, 50, 5))
    simulator.feed(b"SVO 1 1 2 1 3 1\n")
    original = open_stage

    def opened(*arguments, **keywords):
        stage = original(*arguments, **keywords)
        stage.simulated = False
        return stage

    monkeypatch.setattr("firmware_bridge.__main__.open_stage", opened)
    with serve_tcp(simulator) as server:
        yield simulator, server.address


@pytest.mark.parametrize(("sign", "nearer", "away"), [("1", "6", "4"), ("-1", "4", "6")])
def test_z_goes_nearer_to_the_sphere_only_when_told(real, sign, nearer, away):
    simulator, address = real
    refused = run("move", "--port", address, "--z-sign", sign, "--x", "51", "--z", nearer)
    assert (refused.exit_code, simulator.pose_um().x) == (1, pytest.approx(50, abs=0.005))
    assert "say --nearer" in refused.stderr
    assert run("move", "--port", address, "--z-sign", sign, "--z", away).exit_code == 0
    assert run("move", "--port", address, "--z-sign", sign, "--z", nearer, "--nearer").exit_code == 0
    assert run("move", "--port", address, "--z-sign", sign, "--x", "51").exit_code == 0
    assert simulator.pose_um() == pytest.approx((51, 50, float(nearer)), abs=0.005)


def test_the_servo_is_closed_only_when_told_that_the_sphere_is_lifted(real):
    simulator, address = real
    simulator.feed(b"SVO 1 0 2 0 3 0\n")
    refused = run("move", "--port", address, "--enable-servo", "--x", "51")
    assert refused.exit_code == 1
    assert "say --sphere-lifted" in refused.stderr
    assert json.loads(run("status", "--port", address, "--json", "-").stdout)["servo_on"] is False
    assert run("move", "--port", address, "--enable-servo", "--sphere-lifted", "--x", "51").exit_code == 0
    assert simulator.pose_um().x == pytest.approx(51, abs=0.005)


def test_autozero_moves_only_when_told_that_the_sphere_is_lifted(real):
    simulator, address = real
    refused = run("autozero", "--port", address)
    assert refused.exit_code == 1
    assert "whole travel: lift the sphere, then say --sphere-lifted" in refused.stderr
    assert b"1" not in re.findall(rb"=(\d)", simulator.feed(b"ATZ?\n"))
    assert simulator.pose_um() == pytest.approx((50, 50, 5), abs=0.005)
    done = run("autozero", "--port", address, "--sphere-lifted", "--json", "-")
    assert done.exit_code == 0, done.stderr
    assert len(json.loads(done.stdout)["position_um"]) == 3
    assert re.findall(rb"=(\d)", simulator.feed(b"ATZ?\n")) == [b"1"] * 3


def test_a_simulated_stage_is_zeroed_without_a_word():
    assert run("autozero", "--port", "sim:").stdout.startswith("SIMULATED")


def test_drift_says_noise_and_drift_of_a_stage_at_rest_and_moves_nothing():
    simulator = Simulator(noise_um=PositionUm(0.001, 0.001, 0.001))
    simulator.feed(b"SVO 1 1 2 1 3 1\n")
    with serve_tcp(simulator) as server:
        before = simulator.pose_um()
        words = ("drift", "--port", server.address, "--duration-s", "0.2", "--samples", "50", "--json", "-")
        report = json.loads(run(*words).stdout)
        assert simulator.pose_um() == pytest.approx(before, abs=0.01)
    assert report["simulated"] is True
    assert report["samples"] == 50
    assert all(0.002 < um < 0.01 for um in report["noise_pp_um"])
    assert run("drift", "--port", "sim:", "--samples", "2").exit_code == 2


def test_monitor_shows_one_line_a_look():
    simulator = Simulator()
    simulator.feed(b"POS? 9\n")
    with serve_tcp(simulator) as server:
        result = run("monitor", "--port", server.address, "--count", "3", "--interval-s", "0")
    assert result.exit_code == 0
    first, *looks = result.stdout.splitlines()
    assert first == "SIMULATED"
    assert len(looks) == 3
    assert all("servo OFF  not on target" in look for look in looks)


def test_monitor_shows_an_error_as_it_comes():
    simulator = Simulator()
    with serve_tcp(simulator) as server:
        simulator.faults.inject("latched", only="POS?")
        result = run("monitor", "--port", server.address, "--count", "2", "--interval-s", "0")
    first, second = result.stdout.splitlines()[1:]
    assert "error 307: receive time-out" in first
    assert "error" not in second


def test_monitor_writes_json_lines():
    result = run("monitor", "--port", "sim:e517", "--count", "2", "--interval-s", "0", "--json", "-")
    looks = [json.loads(line) for line in result.stdout.splitlines()]
    assert [look["error"] for look in looks] == [0, 0]
    assert looks[0]["simulated"] is True
    assert looks[0]["position_um"] == pytest.approx([50, 50, 5], abs=0.005)
    assert looks[1]["t_ns"] > looks[0]["t_ns"]


def test_monitor_writes_each_look_to_a_file_as_it_comes(tmp_path):
    path = tmp_path / "looks.json"
    path.write_text("older\n")
    with serve_tcp(Simulator()) as server:
        words = ["monitor", "--port", server.address, "--interval-s", "60", "--json", str(path)]
        process = subprocess.Popen([sys.executable, "-m", "firmware_bridge", *words])
        try:
            until(lambda: re.fullmatch(r"\{.*\}\n", path.read_text()), timeout_s=60.0)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
            process.wait(timeout=60)
    result = run("monitor", "--port", "sim:", "--count", "3", "--interval-s", "0", "--json", str(path))
    assert result.exit_code == 0
    assert [json.loads(line)["error"] for line in path.read_text().splitlines()] == [0, 0, 0]
    refused = run("monitor", "--port", "sim:", "--json", str(tmp_path / "nowhere" / "looks.json"))
    assert refused.exit_code == 2


def test_monitor_ends_cleanly_with_ctrl_c():
    with serve_tcp(Simulator()) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "firmware_bridge", "monitor", "--port", server.address, "--interval-s", "0.01"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        process.stdout.readline()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")


def test_trace_prints_the_wire_with_time_stamps():
    result = run("trace", "--port", "sim:e517", "move", "--x", "51", "--json", os.devnull)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    stamps = [float(line.split()[0]) for line in lines]
    assert stamps == sorted(stamps)
    said = [line.split("  ", 2)[-1].strip() for line in lines]
    assert re.fullmatch(r"sent +b'\*IDN\?\\n'", said[0])
    assert any(re.fullmatch(r"sent +b'MOV A 51 B 50 C 5\\nERR\?\\n'", line) for line in said)
    assert any(re.fullmatch(r"received +b'0\\n'", line) for line in said)


def test_trace_traces_only_what_speaks_to_the_controller():
    result = run("trace", "--port", "sim:", "dance")
    assert result.exit_code == 2
    assert "expected one of status, move, monitor, fire" in result.stderr
    assert run("trace", "--port", "sim:", "fire").exit_code == 0


def test_a_port_in_use_is_one_clear_error():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("simulate", "--tcp", str(taken.getsockname()[1]))
    assert result.exit_code == 1
    assert "is in use" in result.stderr


def test_a_controller_that_somebody_else_uses_is_one_clear_error():
    with (
        serve_tcp(Simulator()) as server,
        socket.create_connection(("127.0.0.1", int(server.address[-5:].split(":")[-1]))),
    ):
        result = run("status", "--port", server.address)
    assert result.exit_code == 1
    assert "one client at a time" in result.stderr


def test_a_simulated_trigger_line_fires_and_counts():
    result = run("fire", "--port", "sim:", "--pulses", "2")
    assert result.exit_code == 0
    assert "SIMULATED pulse 1 at " in result.stdout
    assert result.stdout.endswith("fired 2\n")


@pytest.mark.parametrize("wire", [("--tcp", "0"), ("--pty",)])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_simulate_says_when_it_is_ready_and_ends_cleanly(wire, how):
    process = subprocess.Popen(
        [sys.executable, "-m", "firmware_bridge", "simulate", *wire],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    line = process.stdout.readline()
    assert line.startswith("SIMULATED E-727 at ")
    assert run("status", "--port", line.split()[3].rstrip(";")).exit_code == 0
    process.send_signal(how)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


def test_help_is_there_by_both_of_its_names():
    asked = [run(*words) for words in (("-h",), ("--help",), ("move", "-h"))]
    assert [result.exit_code for result in asked] == [0, 0, 0]
    assert asked[0].output == asked[1].output
