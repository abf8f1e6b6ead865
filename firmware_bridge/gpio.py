"""Lines of a GPIO chip: gpiozero's pins on any board, and lgpio's timed pulses.

gpiozero knows no board but the Raspberry Pi (its LGPIOFactory raises PinUnknownPi elsewhere); so it is given a factory
that has an explicit chip and calls lines by their offsets.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from .errors import LinkError, LinkTimeoutError, OutOfRangeError, RefusedError

# The shortest pulse that lgpio's thread makes, and how late it may be with it.
SHORTEST_S, LATE_S = 10e-6, 0.5
POLL_S = 0.0005


def check_installed() -> tuple[type[Exception], ...]:
    """What gpiozero's devices raise where they fail; refused (RefusedError) if gpiozero or lgpio is not installed."""
    # lgpio makes a named pipe where it is imported, and does not start where it cannot: not in the working directory.
    os.environ.setdefault("LG_WD", tempfile.gettempdir())
    try:
        import lgpio
        from gpiozero.exc import GPIOZeroError
        from gpiozero.pins.lgpio import LGPIOFactory  # noqa: F401
    except ImportError as exc:
        raise RefusedError(
            f"the trigger line needs gpiozero and lgpio ({exc}): .venv/bin/pip install -e '.[jetson]' in the checkout"
        ) from exc
    return OSError, GPIOZeroError, lgpio.error


def open_output(chip: int, line: int) -> Any:
    """Open a line as an output, low (gpiozero's OutputDevice)."""
    from gpiozero import OutputDevice

    return _open(OutputDevice, chip, line)


def open_input(chip: int, line: int) -> Any:
    """Open a line as an input, pulled down (gpiozero's DigitalInputDevice)."""
    from gpiozero import DigitalInputDevice

    return _open(DigitalInputDevice, chip, line)


def _open(kind: Any, chip: int, line: int) -> Any:
    import lgpio
    from gpiozero.exc import GPIOZeroError
    from gpiozero.pins import PinInfo
    from gpiozero.pins.lgpio import LGPIOFactory

    class Lines:
        """All lines of a chip by their offsets."""

        def find_pin(self, name: int | str) -> Iterator[tuple[None, Any]]:
            number = int(str(name).removeprefix("GPIO"))
            label = f"GPIO{number}"
            yield None, PinInfo(number, label, frozenset({label}), "", 0, 0, frozenset({"gpio"}))

    class ChipFactory(LGPIOFactory):  # type: ignore[misc]
        def _get_board_info(self) -> Lines:
            return Lines()

    class Line(kind):  # type: ignore[misc]
        def close(self) -> None:
            super().close()
            factory.close()  # the chip, and gpiozero's memory of its pins

    try:
        factory = ChipFactory(chip=chip)
        try:
            return Line(line, pin_factory=factory)
        except BaseException:
            factory.close()
            raise
    except (GPIOZeroError, lgpio.error, OSError) as exc:
        raise _no_line(chip, line, exc) from exc


def _no_line(chip: int, line: int, exc: Exception) -> LinkError:
    return LinkError(f"no line {line} on /dev/gpiochip{chip} ({exc}): check the numbers, the group gpio, the pinmux")


class TimedOutput:
    """An output whose pulses lgpio times in a thread of its own, in C: some us of jitter instead of some ms.

    Parameters
    ----------
    library : module
        lgpio.
    chip, line : int
        ``/dev/gpiochip<chip>``, and the offset of the line. `open` makes one.
    """

    def __init__(
        self,
        library: Any,
        chip: int,
        line: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._lgpio, self._line, self._clock, self._sleep = library, line, clock, sleep
        self._handle: int | None = None
        try:
            self._handle = library.gpiochip_open(chip)
            library.gpio_claim_output(self._handle, line, 0)
        except library.error as exc:
            if self._handle is not None:
                library.gpiochip_close(self._handle)
            raise _no_line(chip, line, exc) from exc

    @classmethod
    def open(cls, chip: int, line: int) -> TimedOutput:
        """Open a line as an output, low."""
        import lgpio

        return cls(lgpio, chip, line)

    def train(self, count: int, *, period_s: float, width_s: float) -> None:
        """See trigger.PulseMaker."""
        if not SHORTEST_S <= width_s <= period_s - SHORTEST_S:
            raise OutOfRangeError(
                f"pulses of {width_s} s each {period_s} s: expected at least {SHORTEST_S:g} s high and low"
            )
        if self._handle is None:
            raise LinkError("the trigger line is closed: open it again")
        high_us, period_us = round(width_s * 1e6), round(period_s * 1e6)
        try:
            try:
                self._lgpio.tx_pulse(self._handle, self._line, high_us, period_us - high_us, 0, count)
                deadline_s = self._clock() + count * period_s + LATE_S
                while self._lgpio.tx_busy(self._handle, self._line, self._lgpio.TX_PWM):
                    if self._clock() > deadline_s:
                        raise LinkTimeoutError(
                            f"{count} pulses each {period_s:g} s are not over {LATE_S:g} s after their time"
                        )
                    self._sleep(POLL_S)
            except BaseException:  # Ctrl-C too: lgpio's own thread would go on
                self._lgpio.tx_pulse(self._handle, self._line, 0, 0)
                raise
            self._lgpio.gpio_write(self._handle, self._line, 0)
        except self._lgpio.error as exc:
            raise LinkError(f"the trigger line failed ({exc}): open it again") from exc

    def close(self) -> None:
        """See trigger.PulseMaker. Idempotent."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        try:
            try:
                self._lgpio.gpio_write(handle, self._line, 0)
            finally:
                self._lgpio.gpiochip_close(handle)
        except self._lgpio.error as exc:
            raise LinkError(f"the trigger line could not be given back low ({exc}): check its wiring") from exc
