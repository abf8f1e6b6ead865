"""Bytes to and from one port: a serial port or pty, or TCP. What goes wrong is a LinkError that says what to check."""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import serial

from .errors import LinkError, LinkTimeoutError, OutOfRangeError

log = logging.getLogger(__name__)

WRITE_TIMEOUT_S = 1.0
CONNECT_TIMEOUT_S = 3.0
# Where udev names serial devices by maker, product and serial number.
BY_ID = Path("/dev/serial/by-id")

Trace = Callable[[str, bytes], None]


class Transport(Protocol):
    """Bytes to and from one port. Errors are LinkErrors; close is idempotent."""

    def write(self, data: bytes) -> None:
        """Send all of it, or raise."""

    def read(self, timeout_s: float) -> bytes:
        """What has arrived, at the latest after `timeout_s`; empty if nothing has."""

    def close(self) -> None:
        """Give the port back."""


class PortTransport:
    """A port by its file descriptor: whatever is waiting is read in one call, without asking how much it is.

    pyserial opens and configures serial ports; its own read and write take twice as long as the system's.

    Parameters
    ----------
    port : serial.Serial or socket.socket
        Open and not blocking. Owned from now on.
    name : str
        What error messages call it.
    ended : str
        What an end of file means here, and what to look at.
    """

    def __init__(self, port: serial.Serial | socket.socket, name: str, *, ended: str) -> None:
        self._port, self._name, self._ended = port, name, ended
        self._fd = port.fileno()
        # One each: a poll object serves one thread, and a stop is written while another thread waits for a reply.
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(self._fd, select.POLLIN)
        self._writable.register(self._fd, select.POLLOUT)

    def write(self, data: bytes) -> None:
        """Send all of it, or raise."""
        deadline_s = time.monotonic() + WRITE_TIMEOUT_S
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError as exc:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not self._writable.poll(left_s * 1e3):
                    raise LinkTimeoutError(f"{self._name} takes no data: is the controller on?") from exc
            except OSError as exc:
                raise self._gone(str(exc)) from exc

    def read(self, timeout_s: float) -> bytes:
        """What has arrived, at the latest after `timeout_s`; empty if nothing has."""
        try:
            if not self._readable.poll(timeout_s * 1e3):
                return b""
            data = os.read(self._fd, 65536)
        except OSError as exc:
            raise self._gone(str(exc)) from exc
        if not data:  # readable and nothing to read: the other end has gone
            raise self._gone(self._ended)
        return data

    def close(self) -> None:
        """Give the port back."""
        self._fd = -1  # its number may soon be another file's
        self._port.close()

    def _gone(self, why: str) -> LinkError:
        return LinkError(f"{self._name} is gone ({why}); the position is unknown. Check cable and power")


class TracedTransport:
    """Shows what goes over another transport.

    Parameters
    ----------
    inner : Transport
        Owned from now on.
    trace : callable
        ``trace("<", sent)`` and ``trace(">", received)``, in the thread that sends or receives.
    """

    def __init__(self, inner: Transport, trace: Trace) -> None:
        self._inner, self._trace = inner, trace

    def write(self, data: bytes) -> None:
        """Send all of it, or raise."""
        self._trace("<", data)
        self._inner.write(data)

    def read(self, timeout_s: float) -> bytes:
        """What has arrived, at the latest after `timeout_s`; empty if nothing has."""
        data = self._inner.read(timeout_s)
        if data:
            self._trace(">", data)
        return data

    def close(self) -> None:
        """Give the port back."""
        self._inner.close()


def open_transport(port: str, *, baud: int = 115200, trace: Trace | None = None) -> Transport:
    """Open a port by its name in the config.

    Parameters
    ----------
    port : str
        A device such as ``/dev/ttyUSB0``, or ``tcp://host:50000`` (``socket://`` is the same).
    baud : int
        Of a serial port, Bd.
    trace : callable, optional
        Is shown all bytes, see `TracedTransport`.

    Raises
    ------
    LinkError
        Nobody is there, or the port is in use, or not ours to open.
    OutOfRangeError
        `port` is neither.
    """
    scheme, separator, rest = port.partition("://")
    transport: Transport
    if not separator and port:
        transport = _open_serial(port, baud)
    else:
        host, _, number = rest.rpartition(":")
        if scheme not in ("tcp", "socket") or not host or not number.isdecimal() or not 0 < int(number) < 65536:
            raise OutOfRangeError(f"{port!r} is not a port: write /dev/ttyUSB0, tcp://192.168.0.10:50000 or sim:")
        transport = _open_tcp(host.strip("[]"), int(number))
    return TracedTransport(transport, trace) if trace else transport


def stable_name(port: str) -> str:
    """The name by which a port is found again after its cable was pulled, when it may have become ttyUSB1.

    A link, such as a udev rule makes, and a TCP address stay as they are.
    """
    if os.path.islink(port) or not os.path.exists(port):
        return port
    try:
        names = sorted(BY_ID.iterdir())
    except FileNotFoundError:
        return port
    return next((str(name) for name in names if name.exists() and name.samefile(port)), port)


def _open_serial(path: str, baud: int) -> PortTransport:
    try:
        port = serial.Serial(path, baud, timeout=0, write_timeout=WRITE_TIMEOUT_S, exclusive=True)
    except ValueError as exc:
        raise OutOfRangeError(f"{path} cannot be opened at {baud} Bd: {exc}") from exc
    except OSError as exc:  # SerialException is one
        raise LinkError(_why_not(path, exc)) from exc
    try:
        port.set_low_latency_mode(True)
    except (ValueError, NotImplementedError, OSError):
        log.debug("%s has no low-latency mode (a pty has none)", path)
    return PortTransport(port, path, ended="it hung up")


def _why_not(path: str, exc: OSError) -> str:
    # pyserial drops the error number where its exclusive lock is refused; the context of its exception has it.
    number = exc.errno or getattr(exc.__context__, "errno", None)
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return (
            f"No serial device at {path}. Check the cable and the [stage] port in the config; "
            "`superlens-pzt simulate --pty` makes one without hardware, and the port sim: needs none"
        )
    if number == errno.EACCES:
        return f"No permission to open {path}: add this user to the group that owns it (dialout)"
    if number in (errno.EBUSY, errno.EAGAIN):
        return f"{path} is in use by another program: close it"
    return f"{path} cannot be opened as a serial port ({exc}): check the [stage] port in the config"


def _open_tcp(host: str, number: int) -> PortTransport:
    name = f"tcp://{host}:{number}"
    try:
        connection = socket.create_connection((host, number), timeout=CONNECT_TIMEOUT_S)
    except OSError as exc:
        raise LinkError(
            f"No controller at {name} ({exc}). Check the network and the [stage] port in the config; "
            f"`superlens-pzt simulate --tcp {number}` runs without hardware"
        ) from exc
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setblocking(False)
    return PortTransport(
        connection, name, ended="it closed the connection; it may serve one client at a time: close other programs"
    )
