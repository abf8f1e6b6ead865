"""The bounds of one approach: how far, how long, and a contact sample after each step. No threads, no I/O."""

from __future__ import annotations

from .errors import OutOfRangeError, RefusedError
from .rules import Rules


class ApproachBounds:
    """One approach, until it is retracted.

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
