"""The distance of sphere and sample during a scan: z follows the contact signal over tilt and drift of the sample."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .approach import ContactSignal, GuardedStage, retract
from .errors import LinkTimeoutError, OutOfRangeError, RefusedError
from .position import PositionUm
from .safety import Interlock, State


@dataclass(frozen=True)
class DistanceControl:
    """An integral controller of z on the contact signal, with a rate limit and bounds. Pure.

    The plant is static, as seen from one reading per settled move: z moves the signal by `v_per_um`. So an integral
    controller of gain g leaves (1 - g) of an error each time, and is stable for 0 < g < 2; g <= 1 does not overshoot.

    Attributes
    ----------
    set_point_v : float
        The signal to hold.
    v_per_um : float
        How much the signal rises when the sample is pushed by 1 um.
    low_um, high_um : float
        z stays inside; what would need more is refused, not clipped.
    gain : float
        Share of the error that one step corrects.
    rate_um_s, step_um : float
        How fast z may go, and how far at once.
    z_sign : 1 or -1
        1 where +z brings the sample towards the sphere.
    """

    set_point_v: float
    v_per_um: float
    low_um: float
    high_um: float
    gain: float = 0.5
    rate_um_s: float = 2.0
    step_um: float = 0.05
    z_sign: Literal[1, -1] = 1

    def __post_init__(self) -> None:
        numbers = (self.set_point_v, self.v_per_um, self.low_um, self.high_um, self.gain, self.rate_um_s, self.step_um)
        if not all(map(math.isfinite, numbers)):
            raise OutOfRangeError(f"{self}: expected finite numbers")
        if not (min(self.v_per_um, self.rate_um_s, self.step_um) > 0 < self.gain <= 1 and self.low_um < self.high_um):
            raise OutOfRangeError(
                f"{self}: expected a rising signal, a rate, a step, a gain up to 1, and low below high"
            )

    def next_z_um(self, z_um: float, value_v: float, elapsed_s: float) -> float:
        """Where z has to go, from a reading at `z_um`.

        Raises
        ------
        OutOfRangeError
            Beyond the bounds: the sample has drifted or tilted out of the PZT's range.

        >>> control = DistanceControl(2.0, v_per_um=4.0, low_um=0.0, high_um=10.0, rate_um_s=1.0)
        >>> control.next_z_um(5.0, 1.9, elapsed_s=1.0), control.next_z_um(5.0, 0.0, elapsed_s=0.01)
        (5.0125, 5.01)
        """
        wanted_um = self.gain * (self.set_point_v - value_v) / self.v_per_um
        most_um = min(self.rate_um_s * elapsed_s, self.step_um)
        target_um = z_um + self.z_sign * max(-most_um, min(most_um, wanted_um))
        if not self.low_um <= target_um <= self.high_um:
            raise OutOfRangeError(
                f"holding the distance needs z = {target_um:.3f} um, expected {self.low_um:g} to {self.high_um:g} um: "
                "level the sample, or approach again"
            )
        return target_um


def hold_distance(
    stage: GuardedStage,
    signal: ContactSignal,
    control: DistanceControl,
    target_um: PositionUm,
    *,
    tolerance_v: float,
    lateral_step_um: float = 1.0,
    timeout_s: float = 5.0,
    unless: threading.Event | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> PositionUm:
    """Go to x and y of `target_um` with the sphere engaged, holding the contact signal: tilt and drift are followed.

    The way is cut into steps so small that the tilt of the sample changes the contact by less than its overload; after
    each, z is corrected until the signal is within `tolerance_v` of the set point. The z of the target is not used.

    Parameters
    ----------
    stage, signal, control
        Engaged, with a contact monitor that runs, and the set point of the approach.
    target_um : PositionUm
        Where to.
    tolerance_v : float
        How far from the set point the signal may be, V.
    lateral_step_um : float
        The longest way at once.
    timeout_s : float
        For the correction after each step, seconds.
    unless : threading.Event, optional
        Ends a series of moves, see PztStage.move_to.
    clock : callable
        Seconds, monotonic.

    Returns
    -------
    PositionUm
        Measured, at the end.

    Raises
    ------
    OutOfRangeError
        The target is no position inside the limits (nothing moved), or z would leave its bounds.
    LinkTimeoutError
        The signal did not come within the tolerance in time.
    FirmwareError
        As from the stage and the signal; a fault of the interlock shows as a StoppedError or RefusedError.
    """
    if not (tolerance_v > 0 and lateral_step_um > 0 and timeout_s > 0):
        raise OutOfRangeError("hold_distance: expected a tolerance, a step and a time above 0")
    with stage.series():  # a stop may fall between two moves
        at_um = stage.rest_um()
        if not stage.limits_um.contains(target_um._replace(z=at_um.z)):  # NaN is not inside, either
            raise OutOfRangeError(f"target {target_um} lies outside the limits {stage.limits_um}")
        way_um = math.hypot(target_um.x - at_um.x, target_um.y - at_um.y)
        count = max(1, math.ceil(way_um / lateral_step_um))
        start_um, z_um = at_um, at_um.z
        for step in range(1, count + 1):
            share = step / count
            x_um = start_um.x + share * (target_um.x - start_um.x)
            y_um = start_um.y + share * (target_um.y - start_um.y)
            at_um = stage.move_to(PositionUm(x_um, y_um, z_um), unless=unless)
            began_s = moved_s = clock()
            while True:
                samples = signal.wait(signal.thresholds.debounce)
                value_v = sum(sample.value_v for sample in samples) / len(samples)
                if abs(value_v - control.set_point_v) <= tolerance_v:
                    break
                now_s = clock()
                if now_s - began_s > timeout_s:
                    raise LinkTimeoutError(
                        f"the contact signal is {value_v:.3f} V after {timeout_s:g} s, expected "
                        f"{control.set_point_v:g} +- {tolerance_v:g} V: check v_per_um and the gain"
                    )
                z_um = control.next_z_um(z_um, value_v, now_s - moved_s)
                moved_s = now_s
                at_um = stage.move_to(PositionUm(x_um, y_um, z_um), unless=unless)
        return at_um


class HeldStage:
    """The stage of a scan with the sphere engaged: x and y are moved, z follows the contact.

    A plan's z is not used; where z was is in the positions that come back.

    Parameters
    ----------
    stage, signal, interlock
        Engaged, with a contact monitor that runs.
    control : DistanceControl
        How z follows.
    tolerance_v, lateral_step_um, clock
        See `hold_distance`.

    Attributes
    ----------
    limits_um : Box
        The stage's.
    """

    def __init__(
        self,
        stage: GuardedStage,
        signal: ContactSignal,
        interlock: Interlock,
        control: DistanceControl,
        *,
        tolerance_v: float,
        lateral_step_um: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits_um = stage.limits_um
        self._stage, self._signal, self._interlock, self._control = stage, signal, interlock, control
        self._tolerance_v, self._lateral_step_um, self._clock = tolerance_v, lateral_step_um, clock

    def position_um(self) -> PositionUm:
        """Measured."""
        return self._stage.position_um()

    def move_to(
        self, target_um: PositionUm, *, timeout_s: float = 5.0, unless: threading.Event | None = None
    ) -> PositionUm:
        """Go there, and hold the distance. Errors as in `hold_distance`; RefusedError when it is not engaged."""
        if self._interlock.state is not State.ENGAGED:
            raise RefusedError(
                f"the distance is held only when engaged, and this is {self._interlock.state.value}: approach first"
            )
        return hold_distance(
            self._stage,
            self._signal,
            self._control,
            target_um,
            tolerance_v=self._tolerance_v,
            lateral_step_um=self._lateral_step_um,
            timeout_s=timeout_s,
            unless=unless,
            clock=self._clock,
        )

    def park(self) -> None:
        """Retract, and be away from the sphere."""
        if self._interlock.state in (State.APPROACHING, State.ENGAGED):
            retract(self._stage, self._interlock)
        else:
            self._stage.park()

    def stop(self) -> None:
        """Stop at once."""
        self._stage.stop()

    def close(self) -> None:
        """Give the controller back."""
        self._stage.close()
