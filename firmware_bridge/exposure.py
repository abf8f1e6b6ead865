"""The camera's answer to a trigger: its exposure-active output."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from .errors import RefusedError


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
        self._rose = threading.Event()
        self._rose_ns = 0
        self.edges = 0
        line.when_activated = self._rise

    def _rise(self) -> None:
        if not self._rose.is_set():
            self._rose_ns = self._clock_ns()
        self.edges += 1
        self._rose.set()

    def expect(self) -> None:
        """From now on an edge counts (RefusedError: it still exposes, and would not take a trigger)."""
        if self._line.is_active:
            raise RefusedError(
                "the camera still exposes, and would miss this trigger: wait for its frame, or shorten its exposure"
            )
        self._rose.clear()

    def wait(self, timeout_s: float) -> int | None:
        """When the exposure began, monotonic ns; None if it did not in time."""
        return self._rose_ns if self._rose.wait(timeout_s) else None

    def close(self) -> None:
        """Give the line back."""
        self._line.when_activated = None
        self._line.close()
