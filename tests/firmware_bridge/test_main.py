"""`superlens-pzt` as a person meets it: what it prints, its exit codes, never a traceback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from firmware_bridge.__main__ import main
from firmware_bridge.simulator import Simulator, serve_tcp


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
        (["move", "--port", "sim:", "--x", "101"], 2, "outside the limits"),
        (["move", "--port", "sim:", "--x", "left"], 2, "not a valid float"),
        (["move", "--port", "sim:"], 2, "nothing to do"),
        (["status", "--port", "tcp://nowhere"], 2, "is not a port"),
        (["status", "--port", "sim:e709"], 2, "no profile"),
        (["status"], 2, "--port"),
        (["fire"], 2, "--chip and --pin"),
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
