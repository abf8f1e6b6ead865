"""`superlens-pzt simulate` with faults: from its options, and from its standard input while it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from firmware_bridge.errors import LinkError
from firmware_bridge.transport import open_transport
from tests.waiting import until


@pytest.fixture
def run():
    processes = []

    def start(*words):
        process = subprocess.Popen(
            [sys.executable, "-m", "firmware_bridge", "simulate", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONWARNINGS": "error"},
        )
        processes.append(process)
        address = process.stdout.readline().split()[3].rstrip(";")
        return process, address

    yield start
    for process in processes:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 0, err


def ask(transport, line):
    transport.write(line)
    return transport.read(1.0)


@pytest.mark.parametrize("wire", [("--tcp", "0"), ("--pty", "--baud", "115200")])
def test_faults_come_from_options_and_from_standard_input(run, wire):
    process, address = run("--profile", "e517", *wire, "--fault", "crlf:only=ERR?", "--fault", "silent:only=SAI?")
    transport = open_transport(address)
    assert ask(transport, b"ERR?\n") == b"0\r\n"
    assert ask(transport, b"SAI?\nERR?\n") == b"0\n"
    process.stdin.write("gremlin\necho:only=ERR?,times=none\n")
    assert "no fault 'gremlin'" in process.stderr.readline()
    until(lambda: ask(transport, b"ERR?\n") == b"ERR?\n0\n")
    process.stdin.write("clear\nunplug\n")
    with pytest.raises(LinkError):
        until(lambda: not ask(transport, b"ERR?\n"))
    transport.close()
    process.stdin.write("replug\n")
    reopened = []

    def opens():
        try:
            reopened.append(open_transport(address))
        except LinkError:
            return False
        return True

    until(opens)
    assert ask(reopened[0], b"ERR?\n") == b"0\n"
    reopened[0].close()


def test_it_runs_without_a_standard_input_too():
    command = f"exec {sys.executable} -m firmware_bridge simulate --pty <&-"
    process = subprocess.Popen(["/bin/sh", "-c", command], stdout=subprocess.PIPE, text=True)
    transport = open_transport(process.stdout.readline().split()[3].rstrip(";"))
    assert ask(transport, b"ERR?\n") == b"0\n"
    transport.close()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.mark.parametrize("spec", ["gremlin", "late:times=0"])
def test_a_fault_that_is_none_is_one_clear_error(spec):
    words = [sys.executable, "-m", "firmware_bridge", "simulate", "--pty", "--fault", spec]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
