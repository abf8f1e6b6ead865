"""A simulated Newport ESP301 on a pseudo terminal: two-letter commands, an error queue, motion, software limits."""

from __future__ import annotations

import logging
import os
import re
import select
import threading
import time
from collections import deque
from collections.abc import Callable

from firmware_bridge.errors import LinkError

from .motor import Disturbances, SteadyMotor
from .wires import PtyWire

log = logging.getLogger(__name__)

COMMAND = re.compile(r"(\d*)\s*([A-Za-z]{2})\s*(.*)")
GLOBAL = {"VE", "TE", "TB"}


class SimulatedEsp301:
    """The controller: bytes in, bytes out. One axis, its motor on.

    Parameters
    ----------
    clock : callable
        Seconds.
    start_mm : float
        Where axis 1 is.
    limits_mm : tuple of float
        Its software limits.

    Attributes
    ----------
    on : bool
        Whether the motor is.
    unit : int
        What SN? says; 2 is mm.
    motor : SteadyMotor
        What moves the stage.
    faults : Disturbances
        Of the wire.
    commands : list of str
        All that was received.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        start_mm: float = 1.0,
        limits_mm: tuple[float, float] = (-50.0, 50.0),
    ) -> None:
        self.on, self.unit = True, 2
        self.faults = Disturbances()
        self.commands: list[str] = []
        self.errors: deque[int] = deque(maxlen=10)
        self.limits_mm = list(limits_mm)
        self._clock = clock
        self.motor = SteadyMotor(start_mm, start_mm)
        self._line = b""

    @property
    def position_mm(self) -> float:
        """Where the stage is."""
        return self.motor.at_mm(self._clock())

    @property
    def moving(self) -> bool:
        """Whether the stage is on its way."""
        return self.motor.moving(self._clock())

    def fail(self, code: int) -> None:
        """Something breaks in motion: the motor goes off."""
        self.motor.stop(self._clock())
        self.on = False
        self.errors.append(code)

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """Take bytes, return the commands that they complete and their replies."""
        *lines, self._line = (self._line + data).split(b"\r")
        replies = []
        for line in lines:
            for text in line.decode("ascii", "replace").split(";"):
                command = text.strip()
                if command:
                    self.commands.append(command)
                    reply = self._command(command)
                    if reply is not None:
                        replies.append((command, f"{reply}\r\n".encode("ascii")))
        return replies

    def _command(self, text: str) -> str | None:
        match = COMMAND.fullmatch(text)
        if match is None:
            return self._error(6)
        axis, name, argument = match[1], match[2].upper(), match[3]
        if name not in GLOBAL and not axis:
            return self._error(37)
        if name not in GLOBAL and axis != "1":
            return self._error(9)
        method = getattr(self, f"_{name.lower()}", None)
        if method is None:
            return self._error(6)
        try:
            answer: str | None = method(argument)
        except ValueError:
            return self._error(38)
        return answer

    def _error(self, code: int) -> str | None:
        self.errors.append(code)
        return None  # what is refused is not answered

    def _ve(self, _: str) -> str:
        return "SIMULATED ESP301 Version 3.0.1"

    def _te(self, _: str) -> str:
        return str(self.errors.popleft() if self.errors else 0)

    def _sn(self, _: str) -> str:
        return str(self.unit)

    def _tp(self, _: str) -> str:
        return f"{self.position_mm:.6f}"

    def _md(self, _: str) -> str:
        return str(int(not self.moving))

    def _mo(self, argument: str) -> str | None:
        if argument == "?":
            return str(int(self.on))
        self.on = True
        return None

    def _mf(self, _: str) -> None:
        self.motor.stop(self._clock())
        self.on = False

    def _st(self, _: str) -> None:
        self.motor.stop(self._clock())

    def _limit(self, side: int, argument: str) -> str | None:
        if argument == "?":
            return f"{self.limits_mm[side]:.6f}"
        self.limits_mm[side] = float(argument)
        return None

    def _sl(self, argument: str) -> str | None:
        return self._limit(0, argument)

    def _sr(self, argument: str) -> str | None:
        return self._limit(1, argument)

    def _pa(self, argument: str) -> None:
        target_mm = float(argument)
        if not self.on:
            self._error(113)
        elif target_mm > self.limits_mm[1]:
            self._error(106)
        elif target_mm < self.limits_mm[0]:
            self._error(107)
        else:
            self.motor.go(self._clock(), target_mm)

    def _or(self, _: str) -> None:
        self.motor.go(self._clock(), 0.0)


class Esp301Server:
    """A simulated ESP301 on a pseudo terminal, served by one thread. A context manager.

    Attributes
    ----------
    address : str
        The path to open.
    """

    def __init__(self, esp301: SimulatedEsp301) -> None:
        self.esp301 = esp301
        self._wire = PtyWire()
        self.address = self._wire.address
        self._awake, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._serve, name="simulated ESP301", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        waiting: list[tuple[float, bytes]] = []
        while True:
            left_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
            ready = select.select([self._awake, *self._wire.sources(reading=True)], [], [], left_s)[0]
            if self._awake in ready:
                return
            for command, reply in self.esp301.feed(self._wire.receive(ready, 4096) or b"") if ready else []:
                fault = self.esp301.faults.take(command)
                if fault == "hang_up":
                    self._wire.unplug()
                    waiting.clear()
                    break
                spoilt = {"garbage": b"\xff\xfe\r\n", "wrong": b"hello\r\n", "silent": b"", "partial": reply[:1]}
                late_s = self.esp301.faults.late_s if fault == "late" else 0.0
                waiting.append((time.monotonic() + late_s, spoilt.get(fault or "", reply)))
            while waiting and waiting[0][0] <= time.monotonic():
                self._wire.send(waiting.pop(0)[1])

    def stop(self) -> None:
        """Hang up and end the thread."""
        if self._wake < 0:
            return
        os.close(self._wake)
        self._wake = -1
        self._thread.join(timeout=2.0)
        if self._thread.is_alive():
            raise LinkError(f"the simulated ESP301 at {self.address} does not stop")
        os.close(self._awake)
        self._wire.close()

    def __enter__(self) -> Esp301Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
