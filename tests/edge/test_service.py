"""What systemd hears, on a real socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.service import Service


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


def heard(systemd: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(systemd.recv(4096).decode())
        except BlockingIOError:
            return messages


def environ(systemd: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": systemd.getsockname(), **more}


def test_it_hears_that_the_program_is_ready_and_that_it_ends(systemd: socket.socket) -> None:
    service = Service(environ(systemd))
    service.ready()
    service.alive()  # nobody asked for a watchdog
    service.stopping()
    assert heard(systemd) == ["READY=1", "STOPPING=1"]


def test_the_watchdog_hears_three_times_in_each_period_however_often_it_is_told(systemd: socket.socket) -> None:
    now_s = 0.0
    wanted = {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}
    service = Service(environ(systemd, **wanted), clock=lambda: now_s)
    for beat in range(600):  # two minutes of beats
        now_s = beat / 5
        service.alive()
    assert heard(systemd) == ["WATCHDOG=1"] * 6


def test_the_watchdog_of_another_process_is_not_ours(systemd: socket.socket) -> None:
    Service(environ(systemd, WATCHDOG_USEC="1000000", WATCHDOG_PID="1")).alive()
    assert heard(systemd) == []


def test_a_name_in_the_abstract_namespace_is_found(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0superlens-test-" + tmp_path.name)
        Service({"NOTIFY_SOCKET": "@superlens-test-" + tmp_path.name}).ready()
        assert listener.recv(100) == b"READY=1"


def test_outside_systemd_nothing_happens() -> None:
    service = Service({})
    service.ready()
    service.alive()


def test_a_socket_that_is_gone_is_a_warning_and_not_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Service({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
    assert "systemd does not hear READY=1" in caplog.text
