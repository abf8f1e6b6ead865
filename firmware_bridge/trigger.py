"""The trigger line to the camera: one pulse a call, counted, and answered by the camera where it is wired to answer."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from . import gpio
from .boards import find_chip, line_of
from .errors import FirmwareError, LinkError, LinkTimeoutError, OutOfRangeError, RefusedError
from .exposure import ExposureLine as ExposureLine

if TYPE_CHECKING:
    from .simulator import Simulator

log = logging.getLogger(__name__)

# So many pulses are remembered: a day of scans.
LEDGER = 1_000_000


@dataclass(frozen=True)
class Pulse:
    """One pulse of the ledger.

    Attributes
    ----------
    index : int
        How many came before it.
    t_ns : int
        When the line was raised, monotonic, ns. Of a train: when it was due.
    exposed_ns : int or None
        When the camera said that it exposes; None where it is not wired to, or did not.
    certain : bool
        False where the line failed, or somebody interrupted, while it was made: the camera may have seen it or not.
    """

    index: int
    t_ns: int
    exposed_ns: int | None = None
    certain: bool = True


class Output(Protocol):
    """A digital output, such as gpiozero's OutputDevice."""

    def on(self) -> None:
        """Make it active."""

    def off(self) -> None:
        """Make it inactive."""

    def close(self) -> None:
        """Give it back, inactive."""


@runtime_checkable
class PulseMaker(Protocol):
    """An output that times its pulses by itself: `gpio.TimedOutput`."""

    def train(self, count: int, *, period_s: float, width_s: float) -> None:
        """Make `count` pulses; they are over when this returns."""

    def close(self) -> None:
        """Give it back, inactive."""


class TriggerLine:
    """A digital output that fires the camera. `open_trigger` makes one; safe to use from several threads.

    A pulse made by sleeping is as long as the scheduler likes (some ms at times), so the camera has to be set to start
    on the edge and to time its exposure itself.

    Parameters
    ----------
    output : Output or PulseMaker
        Owned from now on, inactive.
    pulse_s : float
        How long a pulse is at least, seconds.
    exposure : ExposureLine, optional
        Owned from now on. With it, `fire` returns when the camera has begun to expose.
    exposure_timeout_s : float
        How long after the pulse that may take.
    errors : tuple of exception types
        What the output and the exposure's input raise where they fail.
    clock_ns : callable
        Monotonic, ns; the exposure line's too.
    """

    def __init__(
        self,
        output: Output | PulseMaker,
        *,
        pulse_s: float = 1e-3,
        exposure: ExposureLine | None = None,
        exposure_timeout_s: float = 0.1,
        errors: tuple[type[Exception], ...] = (OSError,),
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._output, self._pulse_s, self._errors, self._clock_ns = output, pulse_s, errors, clock_ns
        self._exposure, self._exposure_timeout_s = exposure, exposure_timeout_s
        self._fired = 0
        self._ledger: deque[Pulse] = deque(maxlen=LEDGER)
        self._lock = threading.Lock()
        self._closed = False

    @property
    def fired(self) -> int:
        """Pulses since it was opened, with those that are not certain."""
        return self._fired

    @property
    def pulses(self) -> tuple[Pulse, ...]:
        """The ledger, oldest first."""
        with self._lock:
            return tuple(self._ledger)

    def fire(self) -> None:
        """Make one pulse; it is over, and the camera exposes where it can say so, when this returns.

        Raises
        ------
        RefusedError
            The camera still exposes; no pulse was made.
        LinkTimeoutError
            The camera did not begin to expose: the pulse stands in the ledger without an exposure.
        LinkError
            The line is closed, or failed, or the camera exposed more than once. The pulse stands in the ledger.
        """
        with self._lock:
            self._check_open()
            if self._exposure is not None:
                with self._translated():
                    self._exposure.expect()
            t_ns = self._clock_ns()
            with self._entered([t_ns]), self._translated():
                self._pulse()
            if self._exposure is None:
                return
            exposed_ns = self._exposure.wait(self._exposure_timeout_s, since_ns=t_ns)
            if exposed_ns is None:
                raise LinkTimeoutError(
                    f"the camera did not begin to expose within {self._exposure_timeout_s:g} s of trigger "
                    f"{self._fired - 1}: is it armed, set to this trigger, wired? (pinmux on a Jetson)"
                )
            self._ledger[-1] = replace(self._ledger[-1], exposed_ns=exposed_ns)

    def train(self, count: int, *, period_s: float) -> None:
        """Make `count` pulses, one each `period_s`, timed by the output itself; they are over when this returns.

        Raises
        ------
        RefusedError
            This output makes single pulses only (open it with ``timed=True``).
        OutOfRangeError
            No train.
        LinkError
            The line is closed, or failed: then all of them stand in the ledger, and none is certain.
        """
        if count < 1 or not (math.isfinite(period_s) and period_s >= 2 * self._pulse_s):
            raise OutOfRangeError(
                f"a train of {count} pulses each {period_s} s: expected at least one, and twice the pulse of "
                f"{self._pulse_s:g} s"
            )
        with self._lock:
            self._check_open()
            if not isinstance(self._output, PulseMaker):
                raise RefusedError("this trigger output makes single pulses only: open it with timed=True")
            began_ns = self._clock_ns()
            with self._entered([began_ns + round(number * period_s * 1e9) for number in range(count)]):
                self._output.train(count, period_s=period_s, width_s=self._pulse_s)

    def _pulse(self) -> None:
        if isinstance(self._output, PulseMaker):
            self._output.train(1, period_s=2 * self._pulse_s, width_s=self._pulse_s)
            return
        try:
            self._output.on()
            time.sleep(self._pulse_s)
        finally:
            self._output.off()

    def _check_open(self) -> None:
        if self._closed:
            raise LinkError("the trigger line is closed: open it again")

    @contextlib.contextmanager
    def _entered(self, times_ns: Sequence[int]) -> Iterator[None]:
        # Before the line rises: whatever ends this, a pulse that was on the wire stands in the ledger.
        first = self._fired
        self._fired += len(times_ns)
        self._ledger.extend(Pulse(first + n, t_ns, certain=False) for n, t_ns in enumerate(times_ns))
        try:
            yield
        except RefusedError:  # nothing was sent
            self._fired = first
            self._forget(len(times_ns))
            raise
        made = [replace(pulse, certain=True) for pulse in self._forget(len(times_ns))]
        self._ledger.extend(made)

    def _forget(self, count: int) -> list[Pulse]:
        return [self._ledger.pop() for _ in range(min(count, len(self._ledger)))][::-1]

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except FirmwareError:  # a time-out is an OSError too
            raise
        except self._errors as exc:
            raise LinkError(f"the trigger line failed ({exc}), and may still be high: open it again") from exc

    def close(self) -> None:
        """Give the lines back. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                with self._translated(), contextlib.ExitStack() as both:
                    if self._exposure is not None:
                        both.callback(self._exposure.close)
                    both.callback(self._output.close)


class SimulatedTriggerLine:
    """Asks the simulated controller for the pulse, so that camera and stage agree about the pose."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator: Simulator | None = simulator
        self._ledger: list[Pulse] = []

    @property
    def fired(self) -> int:
        """Pulses since it was made."""
        return len(self._ledger)

    @property
    def pulses(self) -> tuple[Pulse, ...]:
        """The ledger, oldest first."""
        return tuple(self._ledger)

    def fire(self) -> None:
        """Make one pulse; it has reached the camera when this returns.

        Raises
        ------
        LinkError
            The line is closed.
        """
        if self._simulator is None:
            raise LinkError("the trigger line is closed: open it again")
        t_ns = time.monotonic_ns()
        self._simulator.pulse()
        self._ledger.append(Pulse(len(self._ledger), t_ns))

    def close(self) -> None:
        """Give the line back. Idempotent."""
        self._simulator = None


def open_trigger(
    *,
    chip: int | None = None,
    pin: int | None = None,
    board: str | None = None,
    pulse_s: float = 1e-3,
    timed: bool = False,
    exposure_pin: int | None = None,
    exposure_timeout_s: float = 0.1,
) -> TriggerLine:
    """Open a line of a GPIO chip as an output, low.

    Parameters
    ----------
    chip, pin : int
        Without a board, ``/dev/gpiochip<chip>`` and the offset of the line on it (`gpioinfo` lists both).
    board : str, optional
        One of `boards.BOARDS`: then `pin` is a pin of its header, and there is no chip to give.
    pulse_s : float
        How long a pulse is at least, seconds.
    timed : bool
        Let lgpio time the pulses in its own thread, instead of sleeping in this one; it can also make trains.
    exposure_pin : int, optional
        Where the camera's exposure-active output is wired to, counted as `pin` is: `fire` waits for it.
    exposure_timeout_s : float
        For so long.

    Raises
    ------
    OutOfRangeError
        Numbers that make no sense, or a pin that is no GPIO.
    RefusedError
        gpiozero or lgpio is not installed.
    LinkError
        There is no such chip or line, or it is in use.
    """
    if pin is None or (chip is None) == (board is None):
        raise OutOfRangeError("a trigger line needs a pin, and either its chip or its board")
    numbers = [number for number in (chip, pin, exposure_pin) if number is not None]
    if min(numbers) < 0 or not (0 < pulse_s < math.inf and 0 < exposure_timeout_s < math.inf):
        raise OutOfRangeError(
            f"trigger chip {chip}, pins {pin} and {exposure_pin}, pulse {pulse_s} s, time-out {exposure_timeout_s} s: "
            "expected numbers that are not negative"
        )
    if exposure_pin == pin:
        raise OutOfRangeError(f"pin {pin} cannot be the trigger and the exposure at once")

    # What needs no hardware is refused first, then a missing library, then what is not there.
    wired = [_line(board, number) for number in (pin, exposure_pin) if number is not None]
    errors = gpio.check_installed()
    places = [(find_chip(label) if chip is None else chip, line) for label, line in wired]
    output: Output | PulseMaker = gpio.TimedOutput.open(*places[0]) if timed else gpio.open_output(*places[0])
    try:
        exposure = ExposureLine(gpio.open_input(*places[1])) if len(places) > 1 else None
        return TriggerLine(
            output, pulse_s=pulse_s, exposure=exposure, exposure_timeout_s=exposure_timeout_s, errors=errors
        )
    except BaseException:
        output.close()
        raise


def _line(board: str | None, number: int) -> tuple[str, int]:
    return ("", number) if board is None else line_of(board, number)
