"""Windows of a measurement in which other programs did next to nothing: what disturbs is measured, and thrown away."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

log = logging.getLogger(__name__)

OTHER_WORK_LIMIT_CORES = 0.05
MOST_WINDOWS = 15


class Disturbed(Protocol):
    """A measurement that knows how many cores others used meanwhile."""

    @property
    def other_cores(self) -> float:
        """Mean over the measurement."""


_WindowT = TypeVar("_WindowT", bound=Disturbed)


def undisturbed(measure: Callable[[], _WindowT], wanted: int) -> tuple[list[_WindowT], int]:
    """``wanted`` windows in which others did next to nothing, and how many were tried.

    After MOST_WINDOWS tries the least disturbed ones stand, and are called contended.
    """
    windows: list[_WindowT] = []
    while sum(map(quiet, windows)) < wanted and len(windows) < max(MOST_WINDOWS, wanted):
        windows.append(measure())
        log.debug("window %d: %.2f cores of other work", len(windows), windows[-1].other_cores)
    return sorted(windows, key=lambda window: window.other_cores)[:wanted], len(windows)


def quiet(window: Disturbed) -> bool:
    """Whether it counts."""
    return window.other_cores <= OTHER_WORK_LIMIT_CORES


class OtherWork:
    """How many cores other programs use, from now until :meth:`cores` (Linux: /proc/stat less our own time)."""

    def __init__(self, children: list[int]) -> None:
        self._children = children
        self._begun_s, self._busy_s, self._ours_s = time.monotonic(), _busy_s(), self._ours()

    def cores(self) -> float:
        """Mean over the time since it was made."""
        elapsed_s = time.monotonic() - self._begun_s
        return max(0.0, (_busy_s() - self._busy_s - (self._ours() - self._ours_s)) / elapsed_s)

    def _ours(self) -> float:
        return _process_s("self") + sum(_process_s(pid) for pid in self._children)


def _busy_s() -> float:
    """CPU seconds all programs have used since boot: user, nice, system, irq, softirq; not idle, iowait or steal."""
    fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return (fields[0] + fields[1] + fields[2] + fields[5] + fields[6]) / os.sysconf("SC_CLK_TCK")


def _process_s(pid: int | str) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
