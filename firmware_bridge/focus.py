"""The focus stage: a motor of millimetres under bounds in um. Refuses, never clips; + is away from the sample.

Newport's controllers speak mm; um become mm here, and nowhere else.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator

from .errors import (
    FirmwareError,
    LinkError,
    LinkTimeoutError,
    OutOfRangeError,
    ProtocolError,
    RefusedError,
    StoppedError,
)
from .finite import check_positive
from .focus_axis import FocusAxis, FocusGuard, Range
from .stops import Stops

log = logging.getLogger(__name__)

UM_PER_MM = 1e3
POLL_S = 0.01
# Numbers are sent with six decimals of a mm.
RESOLUTION_UM = 0.01
# A stage that was told to stop stands still after this, or something is wrong.
BRAKING_S = 2.0
# A lift of some 100 um is over after this.
LIFT_S = 20.0


class FocusStage:
    """A motorised focus. `open_focus` makes one.

    `stop` and `focus_up` may be called from any thread at any moment; both end a move that is under way.

    Parameters
    ----------
    axis : FocusAxis
        Owned from now on.
    limits_um : tuple of float, optional
        Where it may go; by default the controller's limits. Given, they are set in the controller too.
    lift_um : float
        How far `focus_up` goes.
    tolerance_um : float
        How far from its target a move may end.
    guard : FocusGuard, optional
        Asked before each move.
    clock, sleep : callable
        Seconds, monotonic.

    Attributes
    ----------
    limits_um : Range
        Where it may go.
    simulated : bool
        Whether the controller says that it is a simulated one.
    """

    def __init__(
        self,
        axis: FocusAxis,
        *,
        limits_um: tuple[float, float] | None = None,
        lift_um: float = 500.0,
        tolerance_um: float = 1.0,
        guard: FocusGuard | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        check_positive(lift_um=lift_um, tolerance_um=tolerance_um)
        self._axis, self._lift_um, self._tolerance_um = axis, lift_um, tolerance_um
        self._guard, self._clock, self._sleep = guard, clock, sleep
        self._begin = threading.Lock()  # from the look whether it moves to the beginning of the move
        # A new one with each move and each stop: a wait ends when it is not the one it began with.
        self._move = object()
        self._stops = Stops("the focus was stopped before this move; the stage holds where it came to rest")
        self.identity = axis.identity
        self.simulated = "SIMULATED" in axis.identity
        self.limits_um = self._read_limits()
        if limits_um is not None:
            low_um, high_um = max(limits_um[0], self.limits_um.low), min(limits_um[1], self.limits_um.high)
            if not low_um < high_um:
                raise OutOfRangeError(
                    f"no focus position lies both in {limits_um} and in the controller's {tuple(self.limits_um)} um: "
                    "correct the limits"
                )
            axis.set_limits_mm(low_um / UM_PER_MM, high_um / UM_PER_MM)
            self.limits_um = self._read_limits()
            if max(abs(self.limits_um.low - low_um), abs(self.limits_um.high - high_um)) > RESOLUTION_UM:
                raise RefusedError(
                    f"the focus controller was told the limits {low_um:g} to {high_um:g} um, and says "
                    f"{self.limits_um.low:g} to {self.limits_um.high:g} um: set them in the controller"
                )

    def _read_limits(self) -> Range:
        low_mm, high_mm = self._axis.limits_mm()
        if self._axis.limits_mm() != (low_mm, high_mm):  # nothing on this wire has a checksum
            raise ProtocolError("the focus controller told two different limits in a row: check its cable")
        if not (math.isfinite(low_mm) and math.isfinite(high_mm) and low_mm < high_mm):
            raise RefusedError(
                f"the focus controller's limits are {low_mm} to {high_mm} mm: set them in the controller"
            )
        return Range(low_mm * UM_PER_MM, high_mm * UM_PER_MM)

    def position_um(self) -> float:
        """The measured position, um; it may be moving.

        Raises
        ------
        LinkError
            No answer, or one that makes no sense.
        """
        return self._axis.position_mm() * UM_PER_MM

    def move_to(self, target_um: float, *, timeout_s: float = 60.0) -> float:
        """Move, wait until at rest, and measure.

        Parameters
        ----------
        target_um : float
            Inside `limits_um`.
        timeout_s : float
            For all of it, seconds.

        Returns
        -------
        float
            um, measured: two readings that agree with each other and with the target.

        Raises
        ------
        OutOfRangeError
            Not finite, or beyond the limits: nothing was sent.
        RefusedError
            The guard refused, the motor is off or not referenced, or it moves already.
        StoppedError
            `stop` or `focus_up` was called meanwhile, or since the `series` began.
        LinkTimeoutError
            Not at rest on its target in time; it was stopped.
        LinkError
            The link failed: the position is unknown.
        """
        check_positive(timeout_s=timeout_s)
        deadline_s = self._clock() + timeout_s
        return self._arrive(self.start(target_um), target_um, deadline_s, f"within {timeout_s:g} s")

    def _arrive(self, move: object, target_um: float, deadline_s: float, within: str) -> float:
        try:
            while self._axis.moving():
                self._check(move)
                if self._clock() > deadline_s:
                    raise LinkTimeoutError(f"the focus stage is not at {target_um:g} um {within}: it is stopped now")
                self._sleep(POLL_S)
            self._check(move)
            first_um, second_um = self.position_um(), self.position_um()
            self._check(move)
        except LinkError:
            if self._move is move:
                self._stop_after_failure()
            raise
        if max(abs(first_um - target_um), abs(second_um - target_um)) > self._tolerance_um:
            raise LinkError(
                f"the focus stage came to rest at {first_um:.2f} and {second_um:.2f} um, expected {target_um:g} +- "
                f"{self._tolerance_um:g} um: check load, servo and wiring"
            )
        return second_um

    def start(self, target_um: float) -> object:
        """Begin a move, and return without waiting for its end. Errors as in `move_to`."""
        if not math.isfinite(target_um):
            raise OutOfRangeError(f"focus target {target_um} um is not a position: expected a finite number")
        if not self.limits_um.low <= target_um <= self.limits_um.high:
            raise OutOfRangeError(
                f"focus target {target_um:g} um lies outside the limits {self.limits_um.low:g} to "
                f"{self.limits_um.high:g} um"
            )
        since = self._stops.since
        with self._begin:
            return self._start(target_um, since)

    def _start(self, target_um: float, since: object) -> object:
        self._axis.check_ready()
        if not self._standing_still():
            raise RefusedError("another move of the focus stage is under way: wait for it, or stop it")
        if self._guard is not None:
            self._guard.check_focus(self.position_um(), target_um)
        self._move = move = object()
        self._stops.check(since)
        try:
            self._axis.start(target_um / UM_PER_MM)
        except FirmwareError:  # it may have begun all the same, also where the controller is said to have refused
            self._stop_after_failure()
            raise
        if self._stops.came(since):  # just before the start, which undid it
            self._axis.stop()
            self._stops.check(since)
        return move

    def series(self) -> contextlib.AbstractContextManager[object]:
        """Moves of this thread inside it end with a StoppedError after any `stop` since it began, also between two."""
        return self._stops.series()

    def stop(self) -> None:
        """Stop at once; a move under way ends with a StoppedError.

        Raises
        ------
        LinkError
            The stop could not be sent: cut the power.
        """
        self._move = self._stops.new()
        self._axis.stop()
        log.info("focus stopped")

    def focus_up(self, *, wait: bool = False) -> None:
        """Lift the focus by `lift_um`, or to its upper limit, whatever it was doing.

        Parameters
        ----------
        wait : bool
            Return when it is there; otherwise when it has begun.
        """
        self.stop()
        since = self._stops.last
        deadline_s = self._clock() + BRAKING_S
        while not self._standing_still():
            if self._clock() > deadline_s:
                raise LinkTimeoutError(f"the focus stage does not stop within {BRAKING_S:g} s: cut its power")
            self._sleep(POLL_S)
        here_um = self.position_um()
        target_um = min(here_um + self._lift_um, self.limits_um.high)
        if target_um - here_um > self._tolerance_um:
            log.info("lifting the focus from %.1f to %.1f um", here_um, target_um)
            with self._begin:
                move = self._start(target_um, since)
            if wait:
                self._arrive(move, target_um, self._clock() + LIFT_S, f"within {LIFT_S:g} s")

    def _standing_still(self) -> bool:
        try:
            return not self._axis.moving()
        except StoppedError:  # the end of the move that was stopped
            return True

    def home(self, *, sphere_removed: bool, timeout_s: float = 120.0) -> None:
        """Search the reference. **It drives through its whole travel**: never call it with a sphere in place.

        Raises
        ------
        RefusedError
            Nobody says that the sphere is removed.
        StoppedError
            `stop` or `focus_up` was called meanwhile: home it again.
        """
        if not sphere_removed:
            raise RefusedError(
                "a reference search drives the focus through its whole travel: remove the sphere and the sample, then "
                "say so (sphere_removed)"
            )
        check_positive(timeout_s=timeout_s)
        with self._begin:
            self._move = move = object()
            try:
                self._axis.home(timeout_s)
            except RefusedError:
                self._check(move)  # a search that was stopped ends so, in whatever words
                raise
            self._check(move)
        log.info("focus referenced, at %.1f um", self.position_um())

    def close(self) -> None:
        """Give the controller back. Does not move. Idempotent."""
        self._axis.close()

    def __enter__(self) -> FocusStage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, move: object) -> None:
        if self._move is not move:
            raise StoppedError("the focus move was stopped; the stage holds where it came to rest")

    def _stop_after_failure(self) -> None:
        try:
            self._axis.stop()
        except LinkError as exc:
            log.error("the focus stage could not be stopped, and may be moving: %s", exc)


def open_focus(
    driver: str,
    port: str,
    axis: str,
    *,
    baud: int = 921600,
    limits_um: tuple[float, float] | None = None,
    lift_um: float = 500.0,
    guard: FocusGuard | None = None,
) -> FocusStage:
    """Open a focus stage. Nothing moves.

    Parameters
    ----------
    driver : "xps" or "esp301"
        Which controller it is.
    port : str
        ``tcp://host:5001`` of an XPS, ``/dev/ttyUSB0`` of an ESP301 (any port of `transport.open_transport`).
    axis : str
        The positioner of an XPS, such as ``FOCUS.Pos``; the number of an ESP301's axis.
    baud : int
        Of an ESP301: 921600 on its USB port, 19200 on its RS-232 port.
    limits_um, lift_um, guard
        See FocusStage.

    Raises
    ------
    OutOfRangeError
        No such driver or axis, or limits that make no sense.
    RefusedError
        It is another device.
    LinkError
        Nobody is there.
    """
    from .esp301 import Esp301Focus
    from .xps import XpsFocus

    if driver not in ("xps", "esp301"):
        raise OutOfRangeError(f"no focus driver {driver!r}: expected xps or esp301")
    motor: FocusAxis = XpsFocus.open(port, axis) if driver == "xps" else Esp301Focus.open(port, axis, baud=baud)
    try:
        return FocusStage(motor, limits_um=limits_um, lift_um=lift_um, guard=guard)
    except BaseException:
        motor.close()
        raise


@contextlib.contextmanager
def open_simulated(
    driver: str,
    axis: str | None = None,
    *,
    limits_um: tuple[float, float] | None = None,
    lift_um: float = 500.0,
    guard: FocusGuard | None = None,
) -> Iterator[FocusStage]:
    """Open a focus stage on a simulated controller, which ends with it; parameters and errors as in `open_focus`."""
    from .simulator.esp301 import Esp301Server, SimulatedEsp301  # a real controller needs none
    from .simulator.xps import SimulatedXps, XpsServer

    server = XpsServer(SimulatedXps()) if driver == "xps" else Esp301Server(SimulatedEsp301())
    axis = axis or ("FOCUS.Pos" if driver == "xps" else "1")
    with server, open_focus(driver, server.address, axis, limits_um=limits_um, lift_um=lift_um, guard=guard) as stage:
        yield stage
