"""Ports: what cannot be opened says why, what is lost says so, and what goes over the wire can be watched."""

from __future__ import annotations

import os
import pty
import socket

import pytest

from firmware_bridge import transport
from firmware_bridge.errors import LinkError, LinkTimeoutError, OutOfRangeError
from firmware_bridge.transport import open_transport, stable_name


@pytest.fixture
def wire():
    """A pty: our end's descriptor, and the other's path."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    yield ours, os.ttyname(theirs)
    os.close(ours)
    os.close(theirs)


def test_a_serial_device_that_is_absent_is_one_clear_error():
    with pytest.raises(LinkError, match="No serial device at /dev/ttyUSB99") as absent:
        open_transport("/dev/ttyUSB99")
    assert "superlens-pzt simulate" in str(absent.value)


def test_a_serial_port_is_opened_once(tmp_path):
    ours, theirs = pty.openpty()
    try:
        path = os.ttyname(theirs)
        first = open_transport(path)
        with pytest.raises(LinkError, match="in use by another program"):
            open_transport(path)
        first.close()
        open_transport(path).close()
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_file_is_no_serial_port(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(LinkError, match="cannot be opened as a serial port"):
        open_transport(str(path))


def test_a_pty_that_hangs_up_is_a_link_error():
    ours, theirs = pty.openpty()
    transport = open_transport(os.ttyname(theirs))
    os.close(theirs)
    os.close(ours)
    with pytest.raises(LinkError, match="is gone"):
        transport.read(1.0)
    with pytest.raises(LinkError, match="is gone"):
        transport.write(b"*IDN?\n")
    transport.close()


def test_a_tcp_port_where_nobody_listens_is_one_clear_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(LinkError, match=r"No controller at tcp://127\.0\.0\.1"):
        open_transport(f"tcp://127.0.0.1:{port}")


def test_a_tcp_peer_that_closes_is_a_link_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        transport = open_transport(f"socket://127.0.0.1:{listener.getsockname()[1]}")
        listener.accept()[0].close()
    with pytest.raises(LinkError, match="closed the connection; it may serve one client at a time"):
        transport.read(5.0)
    transport.close()


@pytest.mark.parametrize("port", ["", "tcp://", "tcp://host", "tcp://host:0", "tcp://host:99999", "usb://x:1"])
def test_what_is_not_a_port_is_refused_with_examples(port):
    with pytest.raises(OutOfRangeError, match="/dev/ttyUSB0"):
        open_transport(port)


def test_a_device_that_takes_no_data_is_a_time_out(wire, monkeypatch):
    monkeypatch.setattr(transport, "WRITE_TIMEOUT_S", 0.05)
    port = open_transport(wire[1])
    with pytest.raises(LinkTimeoutError, match="takes no data"):
        port.write(bytes(1 << 20))
    port.close()


def test_a_closed_port_never_touches_the_file_that_got_its_number(wire, tmp_path):
    port = open_transport(wire[1])
    port.close()
    taken = [os.open(tmp_path / str(n), os.O_CREAT | os.O_RDWR) for n in range(16)]
    for descriptor in taken:
        os.write(descriptor, b"not a reply")
        os.lseek(descriptor, 0, os.SEEK_SET)
    with pytest.raises(LinkError, match="is gone"):
        port.write(b"*IDN?\n")
    with pytest.raises(LinkError, match="is gone"):
        port.read(0.0)
    assert {os.read(descriptor, 99) for descriptor in taken} == {b"not a reply"}
    for descriptor in taken:
        os.close(descriptor)


def test_a_trace_sees_every_byte_of_both_directions(wire):
    seen = []
    port = open_transport(wire[1], trace=lambda way, data: seen.append((way, data)))
    port.write(b"ERR?\n")
    assert os.read(wire[0], 99) == b"ERR?\n"
    os.write(wire[0], b"0\n")
    assert port.read(5.0) == b"0\n"
    assert port.read(0.0) == b""
    port.close()
    assert seen == [("<", b"ERR?\n"), (">", b"0\n")]


def test_a_renumbered_device_is_found_by_the_name_that_its_serial_number_gives_it(tmp_path, monkeypatch):
    (tmp_path / "ttyUSB0").touch()
    by_id = tmp_path / "by-id"
    monkeypatch.setattr(transport, "BY_ID", by_id)
    assert stable_name(str(tmp_path / "ttyUSB0")) == str(tmp_path / "ttyUSB0")
    by_id.mkdir()
    (by_id / "usb-gone").symlink_to(tmp_path / "ttyUSB7")
    (by_id / "usb-PI_E-727_116012345").symlink_to(tmp_path / "ttyUSB0")
    named = stable_name(str(tmp_path / "ttyUSB0"))
    assert named == str(by_id / "usb-PI_E-727_116012345")
    assert stable_name(named) == named
    assert stable_name("tcp://host:50000") == "tcp://host:50000"
