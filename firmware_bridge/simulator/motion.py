"""How a simulated piezo axis moves: a slewing set point and a critically damped stage after it, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class PiezoMotion:
    """One axis in closed loop: its set point slews at a constant velocity, the stage follows as a second-order system.

    The state at any time is exact and does not depend on who looked when: behind a ramp of velocity v the stage lags
    by 2 v / w, and its distance x from that obeys x'' + 2 w x' + w^2 x = 0, so x = (a + b t) exp(-w t).

    Attributes
    ----------
    at_um, speed_um_s, since_s : float
        The stage at the last command.
    omega_rad_s : float
        w, the closed-loop bandwidth. The default settles a step of 1 um to 1 nm in 6 ms.
    from_um, target_um, slew_um_s : float
        The set point at the last command, where it goes, and how fast.
    """

    at_um: float
    omega_rad_s: float = 1500.0
    since_s: float = 0.0
    speed_um_s: float = 0.0
    from_um: float = field(init=False)
    target_um: float = field(init=False)
    slew_um_s: float = 1.0

    def __post_init__(self) -> None:
        self.from_um = self.target_um = self.at_um

    def slew_s(self) -> float:
        """How long the set point takes."""
        return abs(self.target_um - self.from_um) / self.slew_um_s

    def state(self, now_s: float) -> tuple[float, float]:
        """Position (um) and speed (um/s) of the stage."""
        elapsed_s = max(0.0, now_s - self.since_s)
        slew_s = self.slew_s()
        velocity_um_s = math.copysign(self.slew_um_s, self.target_um - self.from_um)
        at_um, speed_um_s = self.at_um, self.speed_um_s
        if slew_s:
            at_um, speed_um_s = self._follow(min(elapsed_s, slew_s), at_um, speed_um_s, self.from_um, velocity_um_s)
        if elapsed_s >= slew_s:
            at_um, speed_um_s = self._follow(elapsed_s - slew_s, at_um, speed_um_s, self.target_um, 0.0)
        return at_um, speed_um_s

    def _follow(
        self, t_s: float, at_um: float, speed_um_s: float, start_um: float, velocity_um_s: float
    ) -> tuple[float, float]:
        w = self.omega_rad_s
        lag_um = 2.0 * velocity_um_s / w
        a = at_um - (start_um - lag_um)
        b = speed_um_s - velocity_um_s + w * a
        decay = math.exp(-w * t_s)
        return (
            start_um + velocity_um_s * t_s - lag_um + (a + b * t_s) * decay,
            velocity_um_s + (b - w * (a + b * t_s)) * decay,
        )

    def slewing(self, now_s: float) -> bool:
        """Whether the set point still moves."""
        return now_s - self.since_s < self.slew_s()

    def command(self, now_s: float, target_um: float, slew_um_s: float) -> None:
        """Send the set point, from where it is, to another target."""
        reached = min(1.0, (now_s - self.since_s) / self.slew_s()) if self.slew_s() else 1.0
        from_um = self.from_um + reached * (self.target_um - self.from_um)
        self.at_um, self.speed_um_s = self.state(now_s)
        self.from_um, self.target_um, self.slew_um_s, self.since_s = from_um, target_um, slew_um_s, now_s

    def hold(self, now_s: float) -> None:
        """Make where the stage is its target."""
        self.at_um, self.speed_um_s = self.state(now_s)[0], 0.0
        self.from_um = self.target_um = self.at_um
        self.since_s = now_s

    def settled(self, now_s: float, tolerance_um: float, settling_s: float) -> bool:
        """Whether the stage was within its tolerance for all of the settling time."""
        begin_s = now_s - settling_s
        if begin_s < self.since_s + self.slew_s():
            return False
        times_s = [begin_s, now_s]
        # After the slew the error (a + b t) exp(-w t) has one extremum; it counts if it lies in the window.
        error_um = self.state(begin_s)[0] - self.target_um
        b = self.state(begin_s)[1] + self.omega_rad_s * error_um
        if b:
            times_s.append(begin_s + min(max(0.0, 1.0 / self.omega_rad_s - error_um / b), settling_s))
        return all(abs(self.state(t_s)[0] - self.target_um) <= tolerance_um for t_s in times_s)
