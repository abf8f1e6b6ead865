"""Counts, rates and percentiles of a running pipeline, and what the process itself uses."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge.frames import Ledger
from edge.status import FlowStatus, Percentiles

KEPT = 4096
"""Durations kept for percentiles: bounded, so that a night's run does not grow."""

RATE_WINDOW_NS = 1_000_000_000


class Durations:
    """The newest :data:`KEPT` durations, in seconds."""

    def __init__(self) -> None:
        self._ring = np.zeros(KEPT, np.float64)
        self._count = 0

    def add(self, duration_s: float) -> None:
        """Record one."""
        self._ring[self._count % KEPT] = duration_s
        self._count += 1

    def percentiles(self, newest: int = KEPT) -> Percentiles:
        """p50 and p99 over the ``newest`` ones."""
        if not self._count:
            return Percentiles()
        count = min(self._count, KEPT, newest)
        kept = self._ring[np.arange(self._count - count, self._count) % KEPT]
        p50, p99 = np.percentile(kept, (50, 99))
        return Percentiles(p50=float(p50), p99=float(p99))


class Rate:
    """Events per second over the last second."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._times_ns: deque[int] = deque(maxlen=1024)

    def tick(self) -> None:
        """Record one event, now."""
        self._times_ns.append(self._clock_ns())

    def per_second(self) -> float | None:
        """None before the second event; 0 once events have stopped."""
        times = list(self._times_ns)
        if len(times) < 2:
            return None
        now_ns = self._clock_ns()
        recent = [t for t in times if now_ns - t <= RATE_WINDOW_NS]
        if len(recent) < 2:
            # Slower than one a second: the last interval speaks, unless the silence is already longer than it.
            interval_ns = times[-1] - times[-2]
            return 1e9 / interval_ns if 0 < interval_ns and now_ns - times[-1] <= 2 * interval_ns else 0.0
        return (len(recent) - 1) * 1e9 / max(1, recent[-1] - recent[0])


class FlowMeter:
    """What the acquire and infer threads report; each field has one writer, readers take a snapshot."""

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._capture, self._inference, self._preview = Rate(clock_ns), Rate(clock_ns), Rate(clock_ns)
        self._clock_ns = clock_ns
        self._latency, self._engine = Durations(), Durations()
        self._copies = self._passes = 0
        self._first_ns = self._last_ns = 0
        self._next_index: int | None = None
        self._gaps = self._overwritten = 0
        self.frames = 0
        self.first_frame_s: float | None = None

    def captured(self, index: int) -> None:
        """The camera delivered frame ``index``; a jump in the count is a gap."""
        if self._next_index is not None:
            self._gaps += max(0, index - self._next_index)
        self._next_index = index + 1
        self._capture.tick()

    def overwritten(self) -> None:
        """A newer frame took the place of one nobody had read."""
        self._overwritten += 1

    def enhanced(self, engine_s: float, ledger: Ledger) -> None:
        """The engine finished a frame."""
        self._last_ns = self._clock_ns()
        if not self.frames:
            self._first_ns = self._last_ns
            self.first_frame_s = process_age_s()
        self.frames += 1
        self._engine.add(engine_s)
        self._copies += ledger.copies
        self._passes += ledger.passes
        self._inference.tick()

    def previewed(self, latency_s: float) -> None:
        """A picture is ready for the viewers, ``latency_s`` after its exposure ended."""
        self._latency.add(latency_s)
        self._preview.tick()

    @property
    def dropped(self) -> int:
        """Frames lost to the viewer: overwritten unread here, or missing in the camera's own count."""
        return self._overwritten + self._gaps

    @property
    def gaps(self) -> int:
        """The part of :attr:`dropped` that was lost before it reached us."""
        return self._gaps

    def fps(self) -> float | None:
        """(frames - 1) / (last - first) since the start; None below two frames."""
        if self.frames < 2 or self._last_ns == self._first_ns:
            return None
        return (self.frames - 1) * 1e9 / (self._last_ns - self._first_ns)

    def engine_s(self, newest: int = KEPT) -> Percentiles:
        """Time of ``Engine.infer``."""
        return self._engine.percentiles(newest)

    def latency_s(self, newest: int = KEPT) -> Percentiles:
        """End of exposure to JPEG bytes ready."""
        return self._latency.percentiles(newest)

    def flow(self) -> FlowStatus:
        """A snapshot for the page: percentiles over the newest 256."""
        return FlowStatus(
            capture_fps=self._capture.per_second(),
            inference_fps=self._inference.per_second(),
            preview_fps=self._preview.per_second(),
            frames=self.frames,
            dropped=self.dropped,
            gaps=self.gaps,
            latency_s=self.latency_s(256),
            copies_per_frame=self._copies / self.frames if self.frames else None,
            passes_per_frame=self._passes / self.frames if self.frames else None,
        )


def process_age_s() -> float:
    """Seconds since this process was started, interpreter and imports included (Linux: /proc/self/stat field 22)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def peak_rss_mb() -> float:
    """The most memory this process has ever held: VmHWM, in MB of 2**20 bytes."""
    return _status_kb("VmHWM") / 1024


def rss_mb() -> float:
    """The memory this process holds now: VmRSS, in MB of 2**20 bytes."""
    return _status_kb("VmRSS") / 1024


def _status_kb(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {key}")
