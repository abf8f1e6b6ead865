"""The camera's answer to a trigger: its exposure-active output."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from .errors import LinkError, RefusedError


class Input(Protocol):
    """A digital input, such as gpiozero's DigitalInputDevice."""

    is_active: bool
    when_activated: Callable[[], None] | None

    def close(self) -> None:
        """Give it back."""


class ExposureLine:
    """The camera's exposure-active output: its rising edges are remembered, so that a short one is not missed.

    Parameters
    ----------
    line : Input
        Owned from now on.
    clock_ns : callable
        Monotonic, ns.
    """

    def __init__(self, line: Input, *, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._line, self._clock_ns = line, clock_ns
        self._came = threading.Condition()
        self._rose_ns: list[int] = []  # since `expect`
        self.edges = 0
        line.when_activated = self._rise

    def _rise(self) -> None:
        rose_ns = self._clock_ns()
        with self._came:
            self._rose_ns.append(rose_ns)
            self.edges += 1
            self._came.notify_all()

    def expect(self) -> None:
        """From now on edges count (RefusedError: it still exposes, and would not take a trigger)."""
        if self._line.is_active:
            raise RefusedError(
                "the camera still exposes, and would miss this trigger: wait for its frame, or shorten its exposure"
            )
        with self._came:
            self._rose_ns.clear()

    def wait(self, timeout_s: float, *, since_ns: int) -> int | None:
        """When the exposure began that a pulse at `since_ns` asked for, monotonic ns; None if it did not in time.

        Raises
        ------
        LinkError
            The camera exposed more than once since `expect`: its frames are not one a pulse.
        """
        with self._came:
            self._came.wait_for(lambda: self._rose_ns and self._rose_ns[-1] >= since_ns, timeout_s)
            rose_ns = tuple(self._rose_ns)
        if len(rose_ns) > 1:
            raise LinkError(
                f"the camera began {len(rose_ns)} exposures for one trigger, expected one: is it set to one frame a "
                "trigger, does anything else trigger it, does its line bounce?"
            )
        return rose_ns[0] if rose_ns and rose_ns[0] >= since_ns else None  # an edge before the pulse is not its answer

    def close(self) -> None:
        """Give the line back."""
        self._line.when_activated = None
        self._line.close()
