"""The trigger line to the camera: one pulse a call, counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from .errors import LinkError, OutOfRangeError, RefusedError

if TYPE_CHECKING:
    from .simulator import Simulator


class Output(Protocol):
    """A digital output, such as gpiozero's OutputDevice."""

    def on(self) -> None:
        """Make it active."""

    def off(self) -> None:
        """Make it inactive."""

    def close(self) -> None:
        """Give it back."""


class TriggerLine:
    """A digital output that fires the camera. `open_trigger` makes one; `fire` from one thread at a time.

    A pulse made by sleeping is as long as the scheduler likes (some ms at times), so the camera has to be set to start
    on the edge and to time its exposure itself.

    Parameters
    ----------
    output : Output
        Owned from now on, inactive.
    pulse_s : float
        How long a pulse is at least, seconds.

    Attributes
    ----------
    fired : int
        Pulses since it was opened.
    """

    def __init__(self, output: Output, *, pulse_s: float = 1e-3) -> None:
        self.fired = 0
        self._output, self._pulse_s = output, pulse_s
        self._lock = threading.Lock()
        self._closed = False

    def fire(self) -> None:
        """Make one pulse; it is over when this returns.

        Raises
        ------
        LinkError
            The line is closed.
        """
        with self._lock:
            if self._closed:
                raise LinkError("the trigger line is closed: open it again")
            try:
                self._output.on()
                self.fired += 1
                time.sleep(self._pulse_s)
            finally:
                self._output.off()

    def close(self) -> None:
        """Give the line back. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._output.close()


class SimulatedTriggerLine:
    """Asks the simulated controller for the pulse, so that camera and stage agree about the pose.

    Attributes
    ----------
    fired : int
        Pulses since it was made.
    """

    def __init__(self, simulator: Simulator) -> None:
        self.fired = 0
        self._simulator: Simulator | None = simulator

    def fire(self) -> None:
        """Make one pulse; it has reached the camera when this returns.

        Raises
        ------
        LinkError
            The line is closed.
        """
        if self._simulator is None:
            raise LinkError("the trigger line is closed: open it again")
        self._simulator.pulse()
        self.fired += 1

    def close(self) -> None:
        """Give the line back. Idempotent."""
        self._simulator = None


def open_trigger(*, chip: int, pin: int, pulse_s: float = 1e-3) -> TriggerLine:
    """Open a line of a GPIO chip as an output, low.

    Parameters
    ----------
    chip, pin : int
        ``/dev/gpiochip<chip>`` and the offset of the line on it (`gpioinfo` lists both), not a pin of the header.
    pulse_s : float
        How long a pulse is at least, seconds.

    Raises
    ------
    OutOfRangeError
        A negative number.
    RefusedError
        gpiozero or lgpio is not installed.
    LinkError
        There is no such chip or line, or it is in use.
    """
    if chip < 0 or pin < 0 or not pulse_s > 0:
        raise OutOfRangeError(
            f"trigger chip {chip}, pin {pin}, pulse {pulse_s} s: expected numbers that are not negative"
        )
    try:
        import lgpio
        from gpiozero import OutputDevice
        from gpiozero.exc import GPIOZeroError
        from gpiozero.pins import PinInfo
        from gpiozero.pins.lgpio import LGPIOFactory
    except ImportError as exc:
        raise RefusedError(
            f"the trigger line needs gpiozero and lgpio ({exc}): run pip install 'superlens[jetson]'"
        ) from exc

    class Lines:
        """All lines of a chip by their offsets: gpiozero knows no board but the Raspberry Pi, and its pins."""

        def find_pin(self, name: int | str) -> Iterator[tuple[None, Any]]:
            number = int(str(name).removeprefix("GPIO"))
            label = f"GPIO{number}"
            yield None, PinInfo(number, label, frozenset({label}), "", 0, 0, frozenset({"gpio"}))

    class ChipFactory(LGPIOFactory):  # type: ignore[misc]
        def _get_board_info(self) -> Lines:
            return Lines()

    class Line(OutputDevice):  # type: ignore[misc]
        def close(self) -> None:
            super().close()
            factory.close()  # the chip, and gpiozero's memory of its pins

    try:
        factory = ChipFactory(chip=chip)
        try:
            return TriggerLine(Line(pin, pin_factory=factory), pulse_s=pulse_s)
        except BaseException:
            factory.close()
            raise
    except (GPIOZeroError, lgpio.error, OSError) as exc:
        raise LinkError(
            f"no line {pin} on /dev/gpiochip{chip} ({exc}): check the numbers, the group gpio, the pinmux"
        ) from exc
