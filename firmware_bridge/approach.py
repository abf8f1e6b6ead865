"""Sphere and sample: approach until the set point, and retract.

The stage has to be guarded by the interlock (``PztStage(guard=interlock)``): it is the stage that asks whether a step
is allowed, and the contact monitor that ends it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from .contact import Sample, Thresholds
from .errors import FirmwareError, LinkError, LinkTimeoutError, OutOfRangeError, RefusedError, StoppedError
from .position import Box, PositionUm
from .safety import Interlock, State

log = logging.getLogger(__name__)

# The whole travel of a piezo is over after this; it has arrived where its noise says so.
RETRACTION_S, ARRIVED_UM, POLL_S = 5.0, 0.05, 0.01


class GuardedStage(Protocol):
    """What an approach needs of the PZT."""

    limits_um: Box

    def position_um(self) -> PositionUm:
        """Measured."""

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


class Commanded(Protocol):
    """What a retraction needs of the PZT controller."""

    @property
    def axes(self) -> Sequence[str]:
        """The names of x, y and z."""

    def set(self, mnemonic: str, values: Mapping[str, float | bool]) -> None:
        """Send a command, and verify that it was accepted."""


class RetractableStage(Protocol):
    """What the interlock needs of the PZT: a `pzt.PztStage`."""

    limits_um: Box

    @property
    def ready(self) -> bool:
        """Whether a move would move."""

    @property
    def controller(self) -> Commanded:
        """What it speaks to."""

    def position_um(self) -> PositionUm:
        """Measured."""

    def stop(self) -> None:
        """Stop at once."""


class PztRetraction:
    """What the interlock does to a PztStage: a `safety.Retractable`.

    It is made first, then the interlock with it, then the stage with the interlock as its guard; then it is bound.

    Parameters
    ----------
    z_sign : 1 or -1
        1 where +z brings the sample towards the sphere.
    """

    def __init__(self, *, z_sign: Literal[1, -1] = 1) -> None:
        self._stage: RetractableStage | None = None
        self._z_sign = z_sign

    def bind(self, stage: RetractableStage) -> None:
        """Name the stage."""
        self._stage = stage

    def stop(self) -> None:
        """Stop all axes."""
        self._bound().stop()

    def retract_z(self) -> None:
        """Send z, and z alone, to its end away from the sphere at once, and wait until it is there.

        A move of the stage would first take its turn and measure where it is, which is 9 ms of a 115 200-baud line.
        Here everything is stopped, no move begins in a fault, and away is right from wherever it is.
        """
        stage = self._bound()
        if not stage.ready:
            raise RefusedError("the servo is off, so z cannot be moved")
        away_um = stage.limits_um.low.z if self._z_sign > 0 else stage.limits_um.high.z
        stage.controller.set("MOV", {stage.controller.axes[2]: away_um})
        deadline_s = time.monotonic() + RETRACTION_S
        while abs(stage.position_um().z - away_um) > ARRIVED_UM:
            if time.monotonic() > deadline_s:
                raise LinkTimeoutError(f"z is not at {away_um:g} um within {RETRACTION_S:g} s")
            time.sleep(POLL_S)

    def _bound(self) -> RetractableStage:
        if self._stage is None:
            raise LinkError("no PZT stage is open, so it can neither be stopped nor retracted")
        return self._stage


class LiftedStage(Protocol):
    """What the interlock needs of the focus stage: a `focus.FocusStage`."""

    def focus_up(self, *, wait: bool = False) -> None:
        """Move away from the sample."""


class FocusRetraction:
    """What the interlock does to a FocusStage: a `safety.Liftable`. Bound as a PztRetraction is.

    In a fault it lifts in a thread of its own: a focus controller on a slow line takes 50 ms to begin, and the PZT,
    whose turn comes after it when the objective carries the sphere, must not wait for that.
    """

    def __init__(self) -> None:
        self._stage: LiftedStage | None = None
        self._thread: threading.Thread | None = None
        self._failure: FirmwareError | None = None

    def bind(self, stage: LiftedStage) -> None:
        """Name the stage."""
        self._stage = stage

    def focus_up(self, *, wait: bool = False) -> None:
        """See safety.Liftable."""
        stage = self._stage
        if stage is None:
            raise LinkError("no focus stage is open, so it cannot be lifted")
        if wait:
            stage.focus_up(wait=True)
            return
        self._failure = None
        self._thread = threading.Thread(target=self._lift, args=(stage,), name="focus lift", daemon=True)
        self._thread.start()

    def _lift(self, stage: LiftedStage) -> None:
        try:
            stage.focus_up()
        except FirmwareError as exc:
            self._failure = exc
            log.critical("could not lift the focus, cut its power: %s", exc)

    def check(self, *, timeout_s: float = 5.0) -> None:
        """Wait until the last lift has begun, and raise what kept it from doing so."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                raise LinkTimeoutError(f"the focus has not begun to lift within {timeout_s:g} s: cut its power")
        if self._failure is not None:
            raise self._failure


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
