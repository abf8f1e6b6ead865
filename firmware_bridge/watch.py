"""The watch: one thread asks the PZT where it is, moving or not; another lets the interlock look at its clock."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import Protocol

from .errors import FirmwareError, LinkError, OutOfRangeError
from .position import PositionUm
from .safety import Interlock

log = logging.getLogger(__name__)

TICKS = 4  # in the shorter of the interlock's time-outs: it is noticed at most a quarter of it later


class Polled(Protocol):
    """What is asked: a PztStage guarded by the interlock, which hears of each answer."""

    @property
    def ready(self) -> bool:
        """Whether its servo counts as closed."""

    def position_um(self) -> PositionUm:
        """Measured."""

    def open_loops(self) -> str:
        """Which axes are not under our control, in words; empty when all are."""

    def invalidate(self, why: str) -> None:
        """Position and contact are unknown; nothing moves until the servo is closed knowingly."""


class Watch:
    """Polls the PZT each `period_s`, and ticks the interlock. A context manager: the threads live inside.

    Without it an instrument that nobody moves would be taken for dead; and a controller that dies, or loses its servo,
    while nobody moves it would not be noticed. A poll takes 6 ms of a 115 200-baud line. The ticks come from a thread
    of their own, which asks nobody: an ADC that hangs and a PZT that does not answer cannot keep them.

    Parameters
    ----------
    stage : Polled
        Its guard is `interlock`.
    interlock : Interlock
        Hears of each answer, and is ticked whether one comes or not.
    period_s : float
        Less than half of the interlock's patience.
    """

    def __init__(self, stage: Polled, interlock: Interlock, *, period_s: float = 0.5) -> None:
        if not (math.isfinite(period_s) and 0 < period_s <= interlock.rules.poll_timeout_s / 2):
            raise OutOfRangeError(
                f"a watch each {period_s} s: expected at most half of poll_timeout_s "
                f"({interlock.rules.poll_timeout_s:g} s)"
            )
        self._stage, self._interlock, self._period_s = stage, interlock, period_s
        self._stop = threading.Event()
        self._threads = (
            threading.Thread(target=self._run, args=(self._poll,), name="watch", daemon=True),
            threading.Thread(target=self._run, args=(self._tick,), name="interlock clock", daemon=True),
        )
        self._failure: BaseException | None = None

    def _run(self, task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as exc:
            self._failure = exc
            raise

    def _poll(self) -> None:
        silent = False
        while not self._stop.wait(self._period_s):
            try:
                self._stage.position_um()
                if self._stage.ready:  # also in a fault: who resets it has to know
                    open_loops = self._stage.open_loops()
                    if open_loops:
                        self._stage.invalidate(f"{open_loops}: a reboot, a power cut, or the front panel")
                silent = False
            except FirmwareError as exc:
                if not silent:
                    log.warning("the PZT does not answer: %s", exc)
                silent = True

    def _tick(self) -> None:
        rules = self._interlock.rules
        while not self._stop.wait(min(rules.poll_timeout_s, rules.contact_timeout_s) / TICKS):
            self._interlock.tick()

    def check(self) -> None:
        """Raise LinkError if a thread has died."""
        if self._failure is not None:
            raise LinkError(f"the watch died: {self._failure!r}") from self._failure

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=5.0)  # a poll may wait for its time-out
        if any(thread.is_alive() for thread in self._threads):
            raise LinkError("the watch does not end")
        self.check()
