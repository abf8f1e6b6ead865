"""What the interlock allows, decided by a person for one instrument, and what it acts on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from .errors import OutOfRangeError
from .position import Box


@dataclass(frozen=True)
class Rules:
    """What the interlock allows. Lengths in um, times in seconds; the figures are a person's decision.

    Attributes
    ----------
    mount : "cantilever" or "objective"
        What carries the sphere.
    limits_um : Box
        The controller's travel, intersected with the configured box.
    contact : bool
        Whether a contact guard is fitted.
    z_sign : 1 or -1
        1 where PZT +z brings the sample towards the sphere.
    max_step_um, max_velocity_um_s : float
        Of any axis, the sphere being away; the velocity is what the stage is set to then.
    engaged_step_um, engaged_z_step_um, engaged_velocity_um_s : float
        The same from the beginning of an approach until it is retracted: sideways, along z, and how fast.
    approach_step_um, approach_travel_um, approach_s : float
        One step of an approach, and how far and how long it may go.
    clear_um : float
        How far from the contact the sample has to be before the sphere counts as retracted.
    hold_um : float
        What counts as standing still: how far a measured position may be from the target that was sent. Steps, which
        are counted from there, may be larger by it.
    poll_timeout_s, contact_timeout_s : float
        Without a successful exchange, and without a contact sample, for so long, the interlock stops and retracts.
    """

    mount: Literal["cantilever", "objective"]
    limits_um: Box
    contact: bool = True
    z_sign: Literal[1, -1] = 1
    max_step_um: float = 100.0
    max_velocity_um_s: float = 1000.0
    engaged_step_um: float = 15.0
    engaged_z_step_um: float = 0.1
    engaged_velocity_um_s: float = 100.0
    approach_step_um: float = 0.05
    approach_travel_um: float = 10.0
    approach_s: float = 120.0
    clear_um: float = 1.0
    hold_um: float = 0.02
    poll_timeout_s: float = 2.0
    contact_timeout_s: float = 0.1

    def __post_init__(self) -> None:
        if self.mount not in ("cantilever", "objective") or self.z_sign not in (1, -1):
            raise OutOfRangeError(
                f"mount {self.mount!r}, z_sign {self.z_sign!r}: expected cantilever or objective, and 1 or -1"
            )
        for name, value in vars(self).items():
            if name.endswith(("_um", "_s")) and name != "limits_um" and not (math.isfinite(value) and value > 0):
                raise OutOfRangeError(f"{name} = {value}: expected a positive number")


class Retractable(Protocol):
    """What the interlock does to the PZT. Both may raise FirmwareErrors, and are called from any thread."""

    def retract_z(self) -> None:
        """Stop all axes and send z, and z alone, to its end away from the sphere: in one write, past any request that
        waits, and without waiting for an answer.
        """

    def from_away_um(self) -> float:
        """How far z is from that end, measured."""


class Liftable(Protocol):
    """What the interlock does to the focus stage. May raise FirmwareErrors, and is called from any thread."""

    def focus_up(self, *, wait: bool = False) -> None:
        """Move away from the sample, whatever it was doing; return when it has begun, or, to `wait`, when it is up."""
