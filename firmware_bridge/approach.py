"""Sphere and sample: approach until the set point, retract, and hold the distance during a scan.

The stage has to be guarded by the interlock (``PztStage(guard=interlock)``): it is the stage that asks whether a step
is allowed, and the contact monitor that ends it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from .contact import Sample, Thresholds
from .errors import FirmwareError, LinkError, LinkTimeoutError, OutOfRangeError, RefusedError, StoppedError
from .position import PositionUm
from .safety import Interlock, State

log = logging.getLogger(__name__)


class GuardedStage(Protocol):
    """What an approach needs of the PZT."""

    def position_um(self) -> PositionUm:
        """Measured."""

    def move_to(self, target_um: PositionUm, *, timeout_s: float = ...) -> PositionUm:
        """At rest when it returns; asks the interlock before it sends anything."""

    def set_velocity(self, *, velocity_um_s: float) -> None:
        """Of all axes."""

    def stop(self) -> None:
        """Stop at once."""

    def park(self) -> None:
        """Stop; then move z, and z alone, to its end away from the sphere."""


class ContactSignal(Protocol):
    """What an approach needs of the contact monitor."""

    thresholds: Thresholds

    def wait(self, count: int = 1, *, timeout_s: float = ...) -> list[Sample]:
        """The next samples, all asked for after this call."""


@dataclass(frozen=True)
class Contact:
    """How an approach ended.

    Attributes
    ----------
    position_um : PositionUm
        Measured.
    value_v : float
        The contact signal there, mean of the samples that ended the approach.
    steps : int
        How many it took.
    """

    position_um: PositionUm
    value_v: float
    steps: int


class PztRetraction:
    """What the interlock does to a PztStage: a `safety.Retractable`.

    It is made first, then the interlock with it, then the stage with the interlock as its guard; then it is bound.
    """

    def __init__(self) -> None:
        self._stage: GuardedStage | None = None

    def bind(self, stage: GuardedStage) -> None:
        """Name the stage."""
        self._stage = stage

    def stop(self) -> None:
        """Stop all axes."""
        self._bound().stop()

    def retract_z(self) -> None:
        """Move z to its end away from the sphere, as soon as the stopped move has let go of the stage."""
        self._bound().park()

    def _bound(self) -> GuardedStage:
        if self._stage is None:
            raise LinkError("no PZT stage is open, so it can neither be stopped nor retracted")
        return self._stage


def approach(stage: GuardedStage, signal: ContactSignal, interlock: Interlock, *, step_um: float = 0.01) -> Contact:
    """Bring the sample to the sphere in small steps of z, with fresh samples after each, until the set point.

    It ends at the first step at which all of `debounce` samples are at the set point, so it overshoots by one step at
    most. The interlock bounds steps, way, time and velocity; beyond them, or when a sample fails to come, it retracts.

    Parameters
    ----------
    stage, signal, interlock
        Armed, with a contact monitor that runs.
    step_um : float
        um; half of the accuracy that is wanted, or less.

    Returns
    -------
    Contact
        Where and how it ended; the interlock is ENGAGED.

    Raises
    ------
    RefusedError
        Not armed, no contact within the bounds (retracted), stopped by a person (holds), or ended by a fault
        (retracted, and latched).
    LinkError
        The stage's or the ADC's link failed.
    """
    rules = interlock.rules
    if not 0 < step_um <= rules.approach_step_um:
        raise OutOfRangeError(f"an approach step of {step_um} um: expected at most {rules.approach_step_um:g} um")
    at_um = stage.position_um()
    interlock.begin_approach(at_um)
    target_um = at_um
    steps = 0
    try:
        _set_velocity(stage, interlock)
        while True:
            values_v = [sample.value_v for sample in signal.wait(signal.thresholds.debounce)]
            if all(value_v >= signal.thresholds.set_point_v for value_v in values_v):
                break
            target_um = target_um._replace(z=target_um.z + rules.z_sign * step_um)
            at_um = stage.move_to(target_um)
            steps += 1
        interlock.engage(at_um)
    except FirmwareError as exc:
        if interlock.state is State.FAULT:
            raise RefusedError(f"the approach ended in a fault, and was retracted: {interlock.why}") from exc
        if interlock.state is State.APPROACHING and not isinstance(exc, StoppedError):
            log.warning("the approach ended after %d steps: %s; retracting", steps, exc)
            retract(stage, interlock)
        raise
    value_v = sum(values_v) / len(values_v)
    log.info("contact at %s: %.3f V after %d steps", at_um, value_v, steps)
    return Contact(at_um, value_v, steps)


def retract(stage: GuardedStage, interlock: Interlock) -> PositionUm:
    """Move z, and z alone, to its end away from the sphere; the interlock is ARMED again.

    Raises
    ------
    RefusedError
        z has not enough way to get clear: lift the sphere.
    LinkError
        The stage's link failed.
    """
    stage.park()
    at_um = stage.position_um()
    interlock.retracted(at_um)
    _set_velocity(stage, interlock)
    return at_um


def _set_velocity(stage: GuardedStage, interlock: Interlock) -> None:
    stage.set_velocity(velocity_um_s=interlock.velocity_limit_um_s)


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
    clock: Callable[[], float] = time.monotonic,
) -> PositionUm:
    """Go to x and y of `target_um` with the sphere engaged, holding the contact signal: tilt and drift are followed.

    The way is cut into steps so small that the tilt of the sample changes the contact by less than its overload; after
    each, z is corrected until the signal is within `tolerance_v` of the set point. The z of the target is not used.

    Returns
    -------
    PositionUm
        Measured, at the end.

    Raises
    ------
    OutOfRangeError
        z would leave its bounds.
    LinkTimeoutError
        The signal did not come within the tolerance in time.
    FirmwareError
        As from the stage and the signal; a fault of the interlock shows as a StoppedError or RefusedError.
    """
    if not (tolerance_v > 0 and lateral_step_um > 0 and timeout_s > 0):
        raise OutOfRangeError("hold_distance: expected a tolerance, a step and a time above 0")
    at_um = stage.position_um()
    way_um = math.hypot(target_um.x - at_um.x, target_um.y - at_um.y)
    count = max(1, math.ceil(way_um / lateral_step_um))
    start_um, z_um = at_um, at_um.z
    for step in range(1, count + 1):
        share = step / count
        x_um = start_um.x + share * (target_um.x - start_um.x)
        y_um = start_um.y + share * (target_um.y - start_um.y)
        at_um = stage.move_to(PositionUm(x_um, y_um, z_um))
        began_s = moved_s = clock()
        while True:
            samples = signal.wait(signal.thresholds.debounce)
            value_v = sum(sample.value_v for sample in samples) / len(samples)
            if abs(value_v - control.set_point_v) <= tolerance_v:
                break
            now_s = clock()
            if now_s - began_s > timeout_s:
                raise LinkTimeoutError(
                    f"the contact signal is {value_v:.3f} V after {timeout_s:g} s, expected {control.set_point_v:g} +- "
                    f"{tolerance_v:g} V: check v_per_um and the gain"
                )
            z_um = control.next_z_um(z_um, value_v, now_s - moved_s)
            moved_s = now_s
            at_um = stage.move_to(PositionUm(x_um, y_um, z_um))
    return at_um
