"""Sphere and sample: approach until the set point, and retract.

The stage has to be guarded by the interlock (``PztStage(guard=interlock)``): it is the stage that asks whether a step
is allowed, and the contact monitor that ends it.
"""

from __future__ import annotations

import logging
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from .contact import Sample, Thresholds
from .errors import FirmwareError, LinkError, OutOfRangeError, RefusedError, StoppedError
from .position import Box, PositionUm
from .safety import Interlock, State

log = logging.getLogger(__name__)

# After a link error in a retraction it is in step again, or gone.
RETRACTIONS = 3


class GuardedStage(Protocol):
    """What an approach needs of the PZT."""

    limits_um: Box

    def position_um(self) -> PositionUm:
        """Measured."""

    def rest_um(self) -> PositionUm:
        """Measured until two readings agree: GCS has no checksum, and a way begins here."""

    def series(self) -> AbstractContextManager[object]:
        """Moves inside it end with a StoppedError after any stop since it began."""

    def move_to(
        self, target_um: PositionUm, *, timeout_s: float = ..., unless: threading.Event | None = None
    ) -> PositionUm:
        """At rest when it returns; asks the interlock before it sends anything. Refuses when `unless` is set."""

    def set_velocity(self, *, velocity_um_s: float) -> None:
        """Of all axes."""

    def stop(self) -> None:
        """Stop at once."""

    def park(self) -> None:
        """Stop; then move z, and z alone, to its end away from the sphere."""

    def close(self) -> None:
        """Give the controller back."""


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
    steps = 0
    with stage.series():  # a stop may fall between two moves
        at_um = target_um = stage.rest_um()
        interlock.begin_approach(at_um)
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
                raise RefusedError(f"the approach ended in a fault: {interlock.why}") from exc
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
    for left in reversed(range(RETRACTIONS)):
        try:
            stage.park()
            at_um = stage.rest_um()
            break
        except LinkError as exc:
            if not left or interlock.state is State.FAULT:  # which retracts, and is not to be stopped
                raise
            log.warning("z is sent away again: %s", exc)
    if interlock.state is State.FAULT:
        raise RefusedError(f"the retraction ended in a fault: {interlock.why}")
    interlock.retracted(at_um)
    _set_velocity(stage, interlock)
    return at_um


def _set_velocity(stage: GuardedStage, interlock: Interlock) -> None:
    stage.set_velocity(velocity_um_s=interlock.velocity_limit_um_s)
