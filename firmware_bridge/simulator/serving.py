"""A simulated controller on a wire: a pseudo terminal, or TCP to one client; at any baud rate, with a plug to pull."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque

from firmware_bridge import gcs
from firmware_bridge.errors import LinkError, OutOfRangeError

from .controller import Simulator
from .wires import PtyWire, TcpWire, Wire

log = logging.getLogger(__name__)

BITS_A_BYTE = 10  # 8N1
PACKET_BYTES = 62  # an FTDI adapter hands over this much at a time
READ_BYTES = 65536
BACKLOG_BYTES = 1 << 16  # of replies that the client does not read; then its requests are not read either


class Line:
    """One direction of a serial line: when the bytes that enter it leave it.

    Parameters
    ----------
    baud : int or None
        Bits per second, ten to a byte; None for a line without delay.
    """

    def __init__(self, baud: int | None) -> None:
        self._byte_ns = 0 if baud is None else round(BITS_A_BYTE * 1e9 / baud)
        self._free_ns = 0
        self._chunks: deque[tuple[int, bytes]] = deque()
        self.waiting_bytes = 0

    def push(self, now_ns: int, data: bytes, *, cut: bytes = b"") -> None:
        """Let bytes enter. They leave in packets, and what ends with a byte of `cut` at once."""
        self.waiting_bytes += len(data)
        if not self._byte_ns and data:
            self._chunks.append((now_ns, data))
            return
        start = 0
        for end, byte in enumerate(data, 1):
            if byte in cut or end - start == PACKET_BYTES or end == len(data):
                self._free_ns = max(now_ns, self._free_ns) + (end - start) * self._byte_ns
                self._chunks.append((self._free_ns, data[start:end]))
                start = end

    def pop(self, now_ns: int) -> bytes:
        """What has left by now."""
        data = bytearray()
        while self._chunks and self._chunks[0][0] <= now_ns:
            data += self._chunks.popleft()[1]
        self.waiting_bytes -= len(data)
        return bytes(data)

    def next_ns(self) -> int | None:
        """When the next bytes leave."""
        return self._chunks[0][0] if self._chunks else None


class Server:
    """A simulator on a wire, served by one thread until `stop`. `serve_pty` and `serve_tcp` make one.

    Attributes
    ----------
    simulator : Simulator
        What answers.
    address : str
        The port to open: the path of a symbolic link to a pty, which stays the same through unplug and replug as a
        udev name does; or ``tcp://host:port``.
    """

    def __init__(self, simulator: Simulator, wire: Wire, *, baud: int | None = None) -> None:
        if baud is not None and baud <= 0:
            wire.close()
            raise OutOfRangeError(f"{baud} Bd: expected a positive number")
        self.simulator, self.address = simulator, wire.address
        self._wire, self._baud = wire, baud
        self._failure: BaseException | None = None
        self._awake, self._wake = os.pipe()
        self._orders: deque[tuple[bool, threading.Event]] = deque()
        self._plugged = True
        self._replug_ns: int | None = None
        self._connect()
        self._thread = threading.Thread(target=self._run, name=f"pzt-simulator {self.address}", daemon=True)
        self._thread.start()

    def unplug(self) -> None:
        """Pull the cable: the line hangs up, and nobody is at the address. Done when this returns.

        Raises
        ------
        LinkError
            The serving thread has died.
        """
        self._order(False)

    def replug(self) -> None:
        """Plug the cable in again, at the same address. The controller has had its power all the time.

        Raises
        ------
        LinkError
            The serving thread has died, or somebody else took the TCP port.
        """
        self._order(True)

    def check(self) -> None:
        """Raise LinkError if the serving thread has died."""
        if self._failure is not None:
            raise LinkError(f"the simulator at {self.address} died: {self._failure!r}") from self._failure

    def stop(self) -> None:
        """Hang up and end the thread within 2 s. Idempotent.

        Raises
        ------
        LinkError
            The thread died, or does not end.
        """
        if self._wake < 0:
            return
        os.close(self._wake)  # an end of file wakes every select
        self._wake = -1
        self._thread.join(timeout=2.0)
        if self._thread.is_alive():
            raise LinkError(f"the simulator at {self.address} does not stop")
        os.close(self._awake)
        self._wire.close()
        self.check()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _order(self, plugged: bool) -> None:
        done = threading.Event()
        self._orders.append((plugged, done))
        if self._wake >= 0:
            os.write(self._wake, b"!")
        if not done.wait(2.0):
            self.check()
            raise LinkError(f"the simulator at {self.address} is stopped")
        self.check()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._round():
                pass
        except BaseException as exc:
            self._failure = exc
            raise
        finally:
            self._wire.unplug()
            for _, done in self._orders:
                done.set()

    def _connect(self) -> None:
        self._in, self._out, self._leaving = Line(self._baud), Line(self._baud), b""
        self.simulator.forget_input()

    def _plug(self, plugged: bool) -> None:
        if plugged != self._plugged:
            (self._wire.plug if plugged else self._wire.unplug)()
            self._plugged = plugged
            self._connect()
            log.info("simulator at %s is %s", self.address, "plugged in" if plugged else "unplugged")

    def _round(self) -> bool:
        full = self._out.waiting_bytes + len(self._leaving) > BACKLOG_BYTES
        readable = [self._awake, *([] if self._deaf() else self._wire.sources(reading=not full))]
        writable = [self._wire.client] if self._leaving and self._wire.client is not None else []
        event_ns = self.simulator.next_event_ns()
        ready, free, _ = select.select(readable, writable, [], self._patience_s(event_ns))
        if self._awake in ready:
            if not os.read(self._awake, 4096):
                return False
            while self._orders:
                plugged, done = self._orders.popleft()
                self._plug(plugged)
                done.set()
            return True
        if self._replug_ns is not None and time.monotonic_ns() >= self._replug_ns:
            self._replug_ns = None
            self._plug(True)
            return True
        data = self._wire.receive([] if self._deaf() else ready, READ_BYTES)
        if data is None:  # another client, or none
            self._connect()
            return True
        now_ns = time.monotonic_ns()
        self._in.push(now_ns, data, cut=b"\n" + gcs.CONTROL_BYTES)
        arrived = self._in.pop(now_ns)
        if arrived or (event_ns is not None and self.simulator.clock() >= event_ns):
            self._out.push(now_ns, self.simulator.feed(arrived))
        self._leaving += self._out.pop(time.monotonic_ns())
        if self._leaving and (free or not writable):
            self._leaving = self._leaving[self._wire.send(self._leaving) :]
        unplugged_s = self.simulator.take_unplug()
        if unplugged_s is not None:
            self._plug(False)
            self._replug_ns = time.monotonic_ns() + int(unplugged_s * 1e9) if unplugged_s else None
        return True

    def _deaf(self) -> bool:
        return not self._plugged or self.simulator.faults.holds("deaf")

    def _patience_s(self, event_ns: int | None) -> float | None:
        """How long nothing happens by itself."""
        now_ns = time.monotonic_ns()
        times_ns = [self._in.next_ns(), self._out.next_ns(), self._replug_ns]
        waits_ns = [t_ns - now_ns for t_ns in times_ns if t_ns is not None]
        if event_ns is not None:
            waits_ns.append(event_ns - self.simulator.clock())
        return max(0.0, min(waits_ns) / 1e9) if waits_ns else None


def serve_pty(simulator: Simulator, *, baud: int | None = None) -> Server:
    """Serve a simulator on a new pseudo terminal.

    Parameters
    ----------
    simulator : Simulator
        What answers.
    baud : int, optional
        Speed of the line, which a pty by itself has not: 10 bits a byte, in both directions.

    Raises
    ------
    OutOfRangeError
        A baud rate that is none.
    """
    return Server(simulator, PtyWire(), baud=baud)


def serve_tcp(simulator: Simulator, host: str = "127.0.0.1", port: int = 0, *, baud: int | None = None) -> Server:
    """Serve a simulator on TCP to one client at a time; a second one is hung up on, as an E-727 does.

    Parameters
    ----------
    simulator : Simulator
        What answers.
    host, port : str, int
        Where to listen; port 0 chooses one.
    baud : int, optional
        Speed of the line behind the socket (a serial device server).

    Raises
    ------
    LinkError
        The port is in use, or not ours to take.
    OutOfRangeError
        A baud rate that is none.
    """
    return Server(simulator, TcpWire(host, port), baud=baud)
