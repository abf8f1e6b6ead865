"""AFM feedback: the contact signal, sampled by a thread of its own, and judged against a set point and an overload.

The signal is a voltage between 0 and 3.3 V that rises with the force of the contact. Many AFM outputs are +-10 V: they
need a divider and an offset before they are wired to an ADC (docs/bring-up.md).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from .errors import FirmwareError, LinkError, LinkTimeoutError, OutOfRangeError, RefusedError
from .finite import check_positive

log = logging.getLogger(__name__)

LOWEST_V, HIGHEST_V = 0.0, 3.3


class ContactReader(Protocol):
    """An ADC's input. `adc` has the drivers, `simulator.cantilever` a simulated one."""

    def read_v(self) -> float:
        """The voltage now, V, freshly converted.

        Raises
        ------
        OutOfRangeError
            The input lies outside what the ADC can measure, so the voltage is unknown.
        LinkError
            The ADC does not answer, or not as it should.
        """

    def close(self) -> None:
        """Give the ADC back. Idempotent."""


class ContactGuard(Protocol):
    """Whom the monitor tells: the interlock."""

    def sampled(self, asked_s: float, *, touches: bool) -> None:
        """A sample came, below the overload: when it was asked for, and whether it is at the set point."""

    def overload(self, why: str) -> None:
        """Stop and retract."""

    def tick(self) -> None:
        """Look at the clock."""


@dataclass(frozen=True)
class Thresholds:
    """What a contact signal means.

    Attributes
    ----------
    set_point_v : float
        Contact as wanted.
    overload_v : float
        Too much of it: stop and retract. Above the set point.
    broken_v : float, optional
        Below it, the sensor or its cable is broken, which counts as an overload: an amplifier that is alive has an
        offset, a cut wire reads 0 V.
    debounce : int
        So many samples in a row have to say the same.
    """

    set_point_v: float
    overload_v: float
    broken_v: float | None = None
    debounce: int = 2

    def __post_init__(self) -> None:
        lowest_v = LOWEST_V if self.broken_v is None else self.broken_v
        if not LOWEST_V <= lowest_v < self.set_point_v < self.overload_v < HIGHEST_V:
            raise OutOfRangeError(
                f"contact thresholds {self}: expected {LOWEST_V} V <= broken < set point < overload < {HIGHEST_V} V"
            )
        if self.debounce < 1:
            raise OutOfRangeError(f"a debounce of {self.debounce} samples: expected at least 1")


@dataclass(frozen=True)
class Sample:
    """One reading of the contact signal.

    Attributes
    ----------
    value_v : float
        V.
    t_s : float
        When it was asked for, on the monitor's clock.
    index : int
        How many came before it.
    """

    value_v: float
    t_s: float
    index: int


class ContactMonitor:
    """Samples a reader in a thread of its own and tells the guard. A context manager: the thread lives inside.

    An overload that is confirmed by `debounce` samples reaches the guard within that many sampling periods. A reader
    that fails, or is out of range, gives no sample; without a sample for `stale_s` the guard is told the same, also
    when the next one comes after all. A reader that hangs stops this thread too: then the guard's own `tick`, called
    by others, notices, and so does `latest`.

    Parameters
    ----------
    reader : ContactReader
        Not closed by the monitor.
    thresholds : Thresholds
        What is contact, and what too much.
    guard : ContactGuard, optional
        Whom to tell; None to watch only.
    period_s : float
        Between two samples, seconds.
    stale_s : float, optional
        A sample older than this is none; by default two and a half periods.
    clock : callable
        Seconds, monotonic; the guard's.
    """

    def __init__(
        self,
        reader: ContactReader,
        thresholds: Thresholds,
        *,
        guard: ContactGuard | None = None,
        period_s: float = 0.005,
        stale_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_positive(period_s=period_s, stale_s=stale_s)
        self.thresholds, self.period_s = thresholds, period_s
        self.stale_s = 2.5 * period_s if stale_s is None else stale_s
        self._reader, self._guard, self._clock = reader, guard, clock
        self._came = threading.Condition()
        self._sample: Sample | None = None
        self._since_s = clock()
        self._over = 0  # samples in a row beyond the overload
        self._trouble = "no sample yet"
        self._silent = 0  # times in a row that the reader did not answer
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ContactMonitor:
        if self._thread is not None:
            raise RefusedError("a contact monitor runs once: make a new one")
        self._since_s = self._clock()
        self._thread = threading.Thread(target=self._run, name="contact", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2.0)
            if self._thread.is_alive():
                raise LinkTimeoutError("the contact sampling thread does not end: does the ADC's bus hang?")
        self.check()

    def check(self) -> None:
        """Raise LinkError if the sampling thread has died."""
        if self._failure is not None:
            raise LinkError(f"the contact sampling thread died: {self._failure!r}") from self._failure

    def _run(self) -> None:
        try:
            due_s = time.monotonic()
            while not self._stop.is_set():
                self.step()
                due_s = max(due_s + self.period_s, time.monotonic())  # a late sample does not make the next ones hurry
                self._stop.wait(due_s - time.monotonic())
        except BaseException as exc:
            self._failure = exc
            if self._guard is not None:
                self._guard.overload(f"the contact sampling thread died: {exc!r}")
            raise

    def step(self) -> None:
        """Take one sample, judge it, tell the guard. The thread calls it; a test may, without the thread."""
        asked_s, value_v = self._clock(), None
        try:
            value_v = self._reader.read_v()
        except OutOfRangeError as exc:
            self._trouble = str(exc)
            self._judge(asked_s, over=True, what=self._trouble)
        except FirmwareError as exc:
            self._trouble = str(exc)
            if not self._silent:  # it may go on for hours, 200 times a second
                log.warning("no contact sample: %s", exc)
            self._silent += 1
        else:
            if self._silent:
                log.info("contact samples again, after %d without one", self._silent)
            self._silent = 0
        # Before the new one makes up for it: sphere and sample were on their own for so long.
        if self._guard is not None and self._age_s() > self.stale_s:
            self._guard.overload(f"contact signal stale for {self._age_s():.3f} s: {self._trouble}")
        if value_v is not None:
            limits = self.thresholds
            over = not value_v < limits.overload_v  # NaN is
            broken = limits.broken_v is not None and value_v < limits.broken_v
            what = f"sensor broken: {value_v:.3f} V" if broken else f"overload: {value_v:.3f} V"
            self._judge(asked_s, over=over or broken, what=what, touches=value_v >= limits.set_point_v)
            with self._came:  # last: whoever waits for the sample may rely on the guard's knowing of it
                self._sample = Sample(value_v, asked_s, 0 if self._sample is None else self._sample.index + 1)
                self._trouble = "the ADC or the machine is held up"
                self._came.notify_all()
        if self._guard is not None:
            self._guard.tick()

    def _judge(self, asked_s: float, *, over: bool, what: str, touches: bool = False) -> None:
        self._over = self._over + 1 if over else 0
        if self._guard is None:
            return
        if self._over >= self.thresholds.debounce:
            self._guard.overload(f"contact {what}, {self._over} samples in a row")
        elif not over:
            self._guard.sampled(asked_s, touches=touches)

    def _age_s(self) -> float:
        return self._clock() - (self._since_s if self._sample is None else self._sample.t_s)

    def latest(self) -> Sample:
        """The newest sample.

        Raises
        ------
        LinkError
            There is none that is fresh, or the thread has died.
        """
        self.check()
        sample = self._sample
        if sample is None or self._age_s() > self.stale_s:
            raise LinkError(
                f"no contact sample for {self._age_s():.3f} s ({self._trouble}): check the ADC and its cable"
            )
        return sample

    def wait(self, count: int = 1, *, timeout_s: float = 1.0) -> list[Sample]:
        """The next `count` samples, all of them asked for after this call.

        Raises
        ------
        LinkTimeoutError
            They did not come in time.
        LinkError
            The thread has died.
        """
        after_s, deadline_s = self._clock(), time.monotonic() + timeout_s
        samples: list[Sample] = []
        seen = -1
        with self._came:
            while len(samples) < count:
                sample = self._sample
                if sample is not None and sample.t_s >= after_s and sample.index != seen:
                    samples.append(sample)
                    seen = sample.index
                    continue
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or self._failure is not None:
                    self.check()
                    raise LinkTimeoutError(
                        f"{len(samples)} contact samples in {timeout_s:g} s, expected {count} ({self._trouble})"
                    )
                self._came.wait(left_s)
        return samples
