"""What the interlock allows, decided by a person for one instrument, and what that leaves of one approach. No I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .errors import OutOfRangeError, RefusedError
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
        The same from the beginning of an approach until it is retracted: sideways, along z, and how fast. Never faster
        than away from the sphere.
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


class ApproachBounds:
    """One approach, until it is retracted: how far, how long, and a contact sample after each step. No threads.

    Parameters
    ----------
    rules : Rules
        What is allowed.
    z_um, now_s : float
        Where and when it begins.

    Attributes
    ----------
    begin_um : float
        The z of its beginning.
    """

    def __init__(self, rules: Rules, z_um: float, now_s: float) -> None:
        self.begin_um = z_um
        self._rules, self._nearest_um = rules, z_um
        self._began_s = self._stepped_s = now_s
        self._fresh = False  # whether a contact sample was asked for after the last step

    def sampled(self, asked_s: float) -> None:
        """A contact sample came; one that was asked for before the last step says nothing of it."""
        self._fresh = self._fresh or asked_s >= self._stepped_s

    def check_step(self, z_um: float, now_s: float) -> None:
        """Refuse a step to `z_um` beyond the way or the time, or without a sample since the last one."""
        rules = self._rules
        if (z_um - self.begin_um) * rules.z_sign > rules.approach_travel_um:
            raise OutOfRangeError(f"no contact within {rules.approach_travel_um:g} um: retract, and look")
        if now_s - self._began_s > rules.approach_s:
            raise RefusedError(f"no contact within {rules.approach_s:g} s: retract, and look")
        if not self._fresh:
            raise RefusedError("no contact sample came since the last step: wait for one before the next")
        self._fresh, self._stepped_s = False, now_s
        self._nearest_um = rules.z_sign * max(rules.z_sign * self._nearest_um, rules.z_sign * z_um)

    def engaged(self, z_um: float) -> None:
        """The sphere touches here: this is as near as it went."""
        self._nearest_um = z_um

    def check_clear(self, z_um: float) -> None:
        """Refuse to call the sample away from the sphere unless it is, at `z_um`."""
        away_um = (self._nearest_um - z_um) * self._rules.z_sign
        if not away_um >= self._rules.clear_um:  # NaN is not, either
            raise RefusedError(
                f"z is only {away_um:.3f} um away from where the sphere was nearest, expected "
                f"{self._rules.clear_um:g} um: retract further, or lift the sphere"
            )
