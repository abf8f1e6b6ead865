"""One port, one lock, one request in flight, a deadline for each, and always in step with the controller.

GCS has no checksum and no sequence number: a reply that comes after its time-out would be taken for the answer to the
next question. So a link that missed a reply, or that finds bytes it did not ask for, first drains the line, asks
``*IDN?``, throws away what comes before that answer, and only then goes on.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import serial

from . import gcs
from .errors import LinkError, LinkTimeoutError, OutOfRangeError, ProtocolError, RefusedError

log = logging.getLogger(__name__)

T = TypeVar("T")

WRITE_TIMEOUT_S = 1.0
# A line is taken as silent after this; a 16 ms FTDI latency timer and a slow controller fit in well.
SILENCE_S = 0.05


class Transport(Protocol):
    """Bytes to and from one port. Errors are LinkErrors; close is idempotent."""

    def write(self, data: bytes) -> None:
        """Send all of it, or raise."""

    def read(self, timeout_s: float) -> bytes:
        """What has arrived, at the latest after `timeout_s`; empty if nothing has."""

    def close(self) -> None:
        """Give the port back."""


class SerialTransport:
    """A serial port (or a pty), opened for us alone and with the adapter's low-latency mode where it has one."""

    def __init__(self, port: serial.Serial) -> None:
        self._port = port

    @classmethod
    def open(cls, path: str, *, baud: int) -> SerialTransport:
        """Open `path` at `baud` Bd, 8N1."""
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
        return cls(port)

    def write(self, data: bytes) -> None:
        """Send all of it, or raise."""
        try:
            self._port.write(data)
        except serial.SerialTimeoutException as exc:
            raise LinkTimeoutError(f"{self._port.name} takes no data: is the controller on?") from exc
        except OSError as exc:
            raise self._lost(exc) from exc

    def read(self, timeout_s: float) -> bytes:
        """What has arrived, at the latest after `timeout_s`; empty if nothing has."""
        try:
            if not self._port.in_waiting and not select.select([self._port.fileno()], [], [], timeout_s)[0]:
                return b""
            # Readable with nothing waiting is a hang-up: asking for one byte lets pyserial say so.
            return self._port.read(max(1, self._port.in_waiting))
        except OSError as exc:
            raise self._lost(exc) from exc

    def _lost(self, exc: OSError) -> LinkError:
        return LinkError(f"{self._port.name} is gone ({exc}). The position is unknown: check cable and power")

    def close(self) -> None:
        """Give the port back."""
        self._port.close()


def _why_not(path: str, exc: OSError) -> str:
    # pyserial drops the error number where its exclusive lock is refused; the context of its exception has it.
    number = exc.errno or getattr(exc.__context__, "errno", None)
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return (
            f"No serial device at {path}. Check the cable and the [stage] port in the config; "
            "`superlens-pzt simulate` runs without hardware"
        )
    if number == errno.EACCES:
        return f"No permission to open {path}: add this user to the group that owns it (dialout)"
    if number in (errno.EBUSY, errno.EAGAIN):
        return f"{path} is in use by another program: close it"
    return f"{path} cannot be opened as a serial port ({exc}): check the [stage] port in the config"


class TcpTransport:
    """A controller's TCP port."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self._socket, self._name = connection, name

    @classmethod
    def open(cls, host: str, port: int, *, timeout_s: float = 3.0) -> TcpTransport:
        """Connect to `host`:`port`."""
        name = f"tcp://{host}:{port}"
        try:
            connection = socket.create_connection((host, port), timeout=timeout_s)
        except OSError as exc:
            raise LinkError(
                f"No controller at {name} ({exc}). Check the network and the [stage] port in the config; "
                f"`superlens-pzt simulate --tcp {port}` runs without hardware"
            ) from exc
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(WRITE_TIMEOUT_S)
        return cls(connection, name)

    def write(self, data: bytes) -> None:
        """Send all of it, or raise."""
        try:
            self._socket.sendall(data)
        except TimeoutError as exc:
            raise LinkTimeoutError(f"{self._name} takes no data: is the controller on?") from exc
        except OSError as exc:
            raise LinkError(f"{self._name} is gone ({exc}). The position is unknown") from exc

    def read(self, timeout_s: float) -> bytes:
        """What has arrived, at the latest after `timeout_s`; empty if nothing has."""
        try:
            if not select.select([self._socket], [], [], timeout_s)[0]:
                return b""
            data = self._socket.recv(65536)
        except (OSError, ValueError) as exc:  # ValueError: closed by us, in another thread
            raise LinkError(f"{self._name} is gone ({exc}). The position is unknown") from exc
        if not data:
            raise LinkError(
                f"{self._name} closed the connection. The position is unknown; a controller serves one client at a time"
            )
        return data

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()


def open_transport(port: str, *, baud: int = 115200) -> Transport:
    """Open a port by its name in the config.

    Parameters
    ----------
    port : str
        A device such as ``/dev/ttyUSB0``, or ``tcp://host:50000`` (``socket://`` is the same).
    baud : int
        Of a serial port, Bd.

    Raises
    ------
    LinkError
        Nobody is there, or the port is in use.
    OutOfRangeError
        `port` is neither.
    """
    scheme, separator, rest = port.partition("://")
    if not separator and port:
        return SerialTransport.open(port, baud=baud)
    host, _, number = rest.rpartition(":")
    if scheme not in ("tcp", "socket") or not host or not number.isdecimal() or not 0 < int(number) < 65536:
        raise OutOfRangeError(f"{port!r} is not a port: write /dev/ttyUSB0, tcp://192.168.0.10:50000 or sim:")
    return TcpTransport.open(host.strip("[]"), int(number))


class Link:
    """Requests and replies over a transport, one at a time; safe to use from several threads.

    Parameters
    ----------
    transport : Transport
        Owned from now on.
    name : str
        What error messages call the port.
    timeout_s : float
        How long a reply may take, seconds.
    clock : callable
        Seconds, monotonic.
    """

    def __init__(
        self, transport: Transport, *, name: str, timeout_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.identity = ""
        self._transport, self._timeout_s, self._clock = transport, timeout_s, clock
        self._request_lock = threading.Lock()  # held from a request to its last reply
        self._write_lock = threading.Lock()  # held for one write, so that #24 can pass a request that waits
        self._reader = gcs.ReplyReader()
        self._in_step = True
        self._closed = False

    def identify(self) -> str:
        """Ask ``*IDN?``, whatever was on the line before; the first request of a session.

        Raises
        ------
        LinkError
            Nobody answered, or not like a controller.
        """
        with self._request_lock:
            self._drain()
            try:
                reply = self._exchange(gcs.query_line("*IDN?"))
            except LinkTimeoutError as exc:
                raise LinkTimeoutError(
                    f"{self.name} does not answer *IDN? within {self._timeout_s:g} s: is the controller on, is this "
                    "its port, is the baud rate the controller's?"
                ) from exc
            if reply.count(",") < 2 or not reply.isascii():
                raise ProtocolError(f"{self.name} answered *IDN? with {reply!r}: this is not a PI controller's answer")
            self.identity = reply.strip()
            return self.identity

    def ask(self, request: bytes, parse: Callable[[str], T], *, before_sending: Callable[[], None] | None = None) -> T:
        """Send a request and read its one reply.

        Parameters
        ----------
        request : bytes
            One write; it may hold several lines, of which one has a reply.
        parse : callable
            Makes the reply a value, or raises ProtocolError.
        before_sending : callable, optional
            Called at the last moment before sending; what it raises keeps the request back. `interrupt` cannot come
            in between.

        Returns
        -------
        T
            What `parse` made of the reply.

        Raises
        ------
        LinkTimeoutError
            No reply, and the controller reports no error either, or is dead.
        RefusedError
            No reply, because the controller did not accept the query (its `code` says why).
        ProtocolError
            The reply made no sense.
        LinkError
            The port is gone or was closed.
        """
        with self._request_lock:
            if self._in_step:
                stray = self._reader.pending + self._transport_read(0.0)
                if stray:
                    log.warning("%s: %r came unasked; getting in step again", self.name, stray)
                    self._in_step = False
            if not self._in_step:
                self._resync()
            try:
                return parse(self._exchange(request, before_sending))
            except LinkTimeoutError as exc:
                raise self._explain(request, exc) from exc
            except ProtocolError:
                self._in_step = False  # the next request gets in step first
                raise

    def interrupt(self) -> None:
        """Send #24 (stop) at once, from any thread, past any request that waits for its reply. #24 has no reply.

        Raises
        ------
        LinkError
            The port is gone: the stop was NOT sent.
        """
        self._write(gcs.STOP)

    def close(self) -> None:
        """Close the port, once a request in another thread has had its reply or its time-out. Idempotent."""
        self._closed = True  # what comes after that request is refused
        with self._request_lock, self._write_lock:
            self._transport.close()

    def _write(self, data: bytes, before_sending: Callable[[], None] | None = None) -> None:
        with self._write_lock:
            if before_sending is not None:
                before_sending()
            if self._closed:
                raise LinkError(f"{self.name} is closed: open the stage again")
            log.debug("%s < %r", self.name, data)
            self._transport.write(data)

    def _transport_read(self, timeout_s: float) -> bytes:
        if self._closed:
            raise LinkError(f"{self.name} is closed: open the stage again")
        return self._transport.read(timeout_s)

    def _exchange(self, request: bytes, before_sending: Callable[[], None] | None = None) -> str:
        self._write(request, before_sending)
        deadline = self._clock() + self._timeout_s
        replies: list[str] = []
        while not replies:
            left_s = deadline - self._clock()
            data = self._transport_read(left_s) if left_s > 0 else b""
            if not data:
                self._in_step = False
                raise LinkTimeoutError(
                    f"{self.name} did not answer {request!r} within {self._timeout_s:g} s "
                    f"(received {self._reader.pending!r})"
                )
            replies = self._reader.feed(data)
        log.debug("%s > %r", self.name, replies)
        if len(replies) > 1:
            raise ProtocolError(f"{self.name} answered {request!r} with more than one reply: {replies}")
        return replies[0]

    def _drain(self) -> None:
        # At most one time-out's worth: a device that never falls silent must not hold the lock for ever.
        deadline = self._clock() + self._timeout_s
        while self._transport_read(SILENCE_S) and self._clock() < deadline:
            pass
        self._reader.clear()

    def _resync(self) -> None:
        self._drain()
        self._write(gcs.query_line("*IDN?"))
        deadline = self._clock() + self._timeout_s
        while (left_s := deadline - self._clock()) > 0:
            # The controller answers in order: whatever was late comes before this answer.
            if any(reply.strip() == self.identity for reply in self._reader.feed(self._transport_read(left_s))):
                self._drain()
                self._in_step = True
                log.warning("%s: in step again", self.name)
                return
        raise LinkTimeoutError(f"{self.name} does not answer as {self.identity!r} any more: the position is unknown")

    def _explain(self, request: bytes, exc: LinkTimeoutError) -> LinkTimeoutError | RefusedError:
        # A query with a bad argument is not answered at all; the reason lies in the error register.
        try:
            self._resync()
            code = gcs.parse_integer(self._exchange(gcs.query_line("ERR?")))
        except LinkError as second:
            log.warning("%s: no way to ask for the reason: %s", self.name, second)
            self._in_step = False
            return exc
        if code:
            return RefusedError(f"{self.name} refused {request!r}: {gcs.meaning(code)}", code=code)
        return exc
