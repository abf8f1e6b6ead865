"""A simulated Newport XPS on TCP: one group with one positioner, function calls, group states, several connections."""

from __future__ import annotations

import logging
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from typing import Any

from firmware_bridge.errors import LinkError

from .motor import Disturbances, SteadyMotor

log = logging.getLogger(__name__)

CALL = re.compile(r"\s*(\w+)\s*\(([^()]*)\)")


class SimulatedXps:
    """The controller behind all its connections. Starts referenced and ready.

    Parameters
    ----------
    clock : callable
        Seconds.
    positioner : str
        GROUP.Positioner.
    travel_mm : tuple of float
        Between the end switches.

    Attributes
    ----------
    state : int
        The group's state, while it does not move.
    motor : SteadyMotor
        What moves the stage.
    faults : Disturbances
        Of the wire.
    calls : list of str
        All that was received.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        positioner: str = "FOCUS.Pos",
        travel_mm: tuple[float, float] = (-50.0, 50.0),
        start_mm: float = 1.0,
    ) -> None:
        self.state = 11
        self.faults = Disturbances()
        self.calls: list[str] = []
        self.travel_mm, self.limits_mm = travel_mm, travel_mm
        self._clock, self._positioner, self._group = clock, positioner, positioner.partition(".")[0]
        self.motor = SteadyMotor(start_mm, start_mm)
        self._changed = threading.Condition()
        self._closing = False
        self._aborted = False

    @property
    def position_mm(self) -> float:
        """Where the stage is."""
        return self.motor.at_mm(self._clock())

    @property
    def moving(self) -> bool:
        """Whether the stage is on its way."""
        return self.motor.moving(self._clock())

    def call(self, text: str) -> str:
        """Carry out one call; it takes as long as the motion does."""
        self.calls.append(text)
        match = CALL.fullmatch(text)
        if match is None:
            return f"-7,{text}"
        name, arguments = match[1], [argument.strip() for argument in match[2].split(",")]
        method = getattr(self, f"_{name}", None)
        if method is None:
            return f"-4,{text}"
        if name != "FirmwareVersionGet" and arguments[0] not in (self._group, self._positioner):
            return f"{-18 if name.startswith('Positioner') else -19},{text}"
        with self._changed:
            result = method(*arguments[1:]) if name != "FirmwareVersionGet" else method()
        return f"0,{result}" if isinstance(result, str) else f"{result},{text}"

    # ruff: noqa: N802 - the methods are named as the controller's functions are
    def _FirmwareVersionGet(self) -> str:
        return "SIMULATED XPS-Q8 Firmware"

    def _GroupStatusGet(self, *_: str) -> str:
        return "44" if self.moving and self.state != 43 else str(self.state)

    def _GroupPositionCurrentGet(self, *_: str) -> str:
        return f"{self.position_mm:.9g}"

    def _PositionerUserTravelLimitsGet(self, *_: str) -> str:
        return "{:.9g},{:.9g}".format(*self.limits_mm)

    def _PositionerUserTravelLimitsSet(self, low: str, high: str) -> str | int:
        if not self.travel_mm[0] <= float(low) <= self.position_mm <= float(high) <= self.travel_mm[1]:
            return -17
        self.limits_mm = (float(low), float(high))
        return ""

    def _GroupMoveAbsolute(self, target: str) -> str | int:
        now_s = self._clock()
        if not 10 <= self.state < 20 or self.motor.moving(now_s):
            return -22
        if not self.limits_mm[0] <= float(target) <= self.limits_mm[1]:
            return -17
        self.motor.go(now_s, float(target))
        return self._wait(12)

    def _GroupMoveAbort(self, *_: str) -> str | int:
        # Newport, XPS programmer's manual: for a group that moves or jogs, not for one that searches its reference.
        # As the kill below, it is from the manual and was not tried on a controller.
        if not self.moving or self.state == 43:
            return -22
        return self._end(10)

    def _GroupKill(self, *_: str) -> str:
        return self._end(7)

    def _end(self, then: int) -> str:
        self.motor.stop(self._clock())
        self._aborted, self.state = True, then
        self._changed.notify_all()
        return ""

    def _GroupInitialize(self, *_: str) -> str | int:
        if self.state >= 10:
            return -22
        self.state = 42
        return ""

    def _GroupHomeSearch(self, *_: str) -> str | int:
        if self.state != 42:
            return -22
        self.state = 43
        self.motor.go(self._clock(), 0.0)
        return self._wait(11)

    def _wait(self, then: int) -> str | int:
        self._aborted = False
        while (left_s := self.motor.ends_s() - self._clock()) > 0 and not self._closing:
            self._changed.wait(left_s)
            if self._aborted:
                return -27
        self.state = then
        return ""

    def close(self) -> None:
        """Let no call wait any longer."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()


class XpsServer:
    """A simulated XPS on a TCP port of this machine, for as many connections as come. A context manager.

    Attributes
    ----------
    address : str
        ``tcp://host:port``.
    """

    def __init__(self, xps: SimulatedXps, host: str = "127.0.0.1", port: int = 0) -> None:
        self.xps = xps
        self._clients: set[socket.socket] = set()
        clients = self._clients

        class Session(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                clients.add(self.request)
                try:
                    _serve(xps, self.request)
                except OSError as exc:
                    log.info("a client of the simulated XPS is gone: %s", exc)
                finally:
                    clients.discard(self.request)

        class Listener(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        try:
            self._listener = Listener((host, port), Session)
        except OSError as exc:
            raise LinkError(f"cannot listen on {host}:{port} ({exc}): choose another port") from exc
        self.address = f"tcp://{host}:{self._listener.server_address[1]}"
        self._thread = threading.Thread(
            target=self._listener.serve_forever, args=(0.05,), name="simulated XPS", daemon=True
        )
        self._thread.start()

    def hang_up(self) -> None:
        """Cut all connections, as a pulled cable or a restart does."""
        for client in list(self._clients):
            _cut(client)

    def stop(self) -> None:
        """Hang up and end the threads."""
        self.xps.close()
        self._listener.shutdown()
        self._listener.server_close()
        self.hang_up()
        self._thread.join(timeout=2.0)

    def __enter__(self) -> XpsServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _cut(client: Any) -> None:
    try:
        client.shutdown(socket.SHUT_RDWR)
    except OSError as exc:
        log.info("already gone: %s", exc)


def _serve(xps: SimulatedXps, client: Any) -> None:
    text = ""
    while data := client.recv(4096):
        text += data.decode("ascii", "replace")
        while (end := text.find(")")) >= 0:  # a call has no other end
            call, text = text[: end + 1], text[end + 1 :]
            fault = xps.faults.take(call)
            reply = f"{xps.call(call)},EndOfAPI".encode("ascii")
            if fault == "hang_up":
                _cut(client)
                return
            if fault == "late":
                time.sleep(xps.faults.late_s)
            reply = {"garbage": b"\xff\x00,EndOfAPI", "wrong": b"0,hello,EndOfAPI", "silent": b""}.get(
                fault or "", reply[: len(reply) // 2] if fault == "partial" else reply
            )
            client.sendall(reply)
