"""How a simulated piezo axis moves: a set point made of ramps, and a critically damped stage after it. Closed form."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

OMEGA_RAD_S = 1500.0  # a step of 1 um settles to 1 nm in 6 ms
# After this many 1/w a transient of 100 um is 4e-16 of itself: gone.
TRANSIENT = 40.0
_BISECTIONS = 60


class Ramp(NamedTuple):
    """A set point that moves at one velocity, from begin_s on until end_s (infinity: for good)."""

    begin_s: float
    end_s: float
    from_um: float
    velocity_um_s: float = 0.0

    def at(self, t_s: float) -> float:
        """The set point, um."""
        return self.from_um + (self.velocity_um_s * (t_s - self.begin_s) if self.velocity_um_s else 0.0)


class Stretch:
    """The stage's way while its set point is on one ramp.

    Behind a ramp of velocity v the stage lags by 2 v / w, and its distance x from that obeys
    x'' + 2 w x' + w^2 x = 0, so x = (a + b t) exp(-w t).

    Parameters
    ----------
    ramp : Ramp
        Of the set point.
    at_um, speed_um_s : float
        The stage as the ramp begins.
    omega_rad_s : float
        w, the closed-loop bandwidth.
    """

    __slots__ = ("_a", "_b", "_base_um", "_settles", "omega_rad_s", "ramp")

    def __init__(self, ramp: Ramp, at_um: float, speed_um_s: float, omega_rad_s: float) -> None:
        self.ramp, self.omega_rad_s = ramp, omega_rad_s
        self._base_um = ramp.from_um - 2.0 * ramp.velocity_um_s / omega_rad_s
        self._a = at_um - self._base_um
        self._b = speed_um_s - ramp.velocity_um_s + omega_rad_s * self._a
        self._settles: tuple[float, float, float] | None = None  # the last answer, and to what

    def state(self, t_s: float) -> tuple[float, float]:
        """Position (um) and speed (um/s) of the stage."""
        t_s = max(0.0, t_s - self.ramp.begin_s)
        decay = math.exp(-self.omega_rad_s * t_s)
        transient = self._a + self._b * t_s
        velocity = self.ramp.velocity_um_s
        return (
            self._base_um + velocity * t_s + transient * decay,
            velocity + (self._b - self.omega_rad_s * transient) * decay,
        )

    def positions_um(self, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions of the stage at many times, um."""
        t_s = times_s - self.ramp.begin_s
        transient = (self._a + self._b * t_s) * np.exp(-self.omega_rad_s * t_s)
        return np.asarray(self._base_um + self.ramp.velocity_um_s * t_s + transient)

    def pieces(self, begin_s: float, until_s: float) -> Iterator[Piece]:
        """The way between two times, cut where the stage turns round."""
        w, a, b = self.omega_rad_s, self._a, self._b
        begin_s = max(begin_s, self.ramp.begin_s)
        until_s = min(until_s, self.ramp.end_s)
        if math.isinf(until_s) or not self.ramp.velocity_um_s:  # at rest after the transient
            until_s = min(until_s, self.ramp.begin_s + TRANSIENT / w)
        if until_s <= begin_s:
            return
        cuts = [begin_s, until_s]
        # The speed v + (b - w a - w b t) exp(-w t) has one extremum, so at most one zero on each side of it.
        if b and begin_s < (extremum_s := self.ramp.begin_s + 2.0 / w - a / b) < until_s:
            cuts.insert(1, extremum_s)
        turns = [
            _bisect(lambda t_s: self.state(t_s)[1], early, late)
            for early, late in pairwise(cuts)
            if self.state(early)[1] * self.state(late)[1] < 0
        ]
        ends = [begin_s, *turns, until_s]
        for early, late in pairwise(ends):
            yield Piece(self, early, late)

    def settles_s(self, tolerance_um: float, settling_s: float) -> float:
        """From when on the stage has been within its tolerance for all of the settling time; infinity: never."""
        if self.ramp.velocity_um_s:
            return math.inf
        if self._settles is None or self._settles[:2] != (tolerance_um, settling_s):
            self._settles = (tolerance_um, settling_s, self._settling_s(tolerance_um) + settling_s)
        return self._settles[2]

    def _settling_s(self, tolerance_um: float) -> float:
        inside_s = self.ramp.begin_s
        for piece in self.pieces(self.ramp.begin_s, math.inf):
            for edge_um in (self.ramp.from_um - tolerance_um, self.ramp.from_um + tolerance_um):
                inside_s = max(inside_s, piece.when(edge_um) or inside_s)
        rest_s = min(self.ramp.end_s, self.ramp.begin_s + TRANSIENT / self.omega_rad_s)
        if abs(self.state(rest_s)[0] - self.ramp.from_um) > tolerance_um:
            return math.inf
        return inside_s


class Piece(NamedTuple):
    """A part of a stretch on which the stage moves one way only."""

    stretch: Stretch
    begin_s: float
    end_s: float

    def ends_um(self) -> tuple[float, float]:
        """Where it begins and ends."""
        return self.stretch.state(self.begin_s)[0], self.stretch.state(self.end_s)[0]

    def when(self, level_um: float) -> float | None:
        """When the stage crosses a level, or arrives on it; None: not on this piece."""
        begin_um, end_um = self.ends_um()
        if begin_um == level_um or not min(begin_um, end_um) <= level_um <= max(begin_um, end_um):
            return None
        return _bisect(lambda t_s: self.stretch.state(t_s)[0] - level_um, self.begin_s, self.end_s)


def _bisect(value: Callable[[float], float], early_s: float, late_s: float) -> float:
    rising = value(late_s) > value(early_s)
    for _ in range(_BISECTIONS):
        middle_s = (early_s + late_s) / 2
        if (value(middle_s) < 0) == rising:
            early_s = middle_s
        else:
            late_s = middle_s
    return late_s


class PiezoMotion:
    """One axis: a path of ramps for its set point, and the stage that follows as a second-order system.

    The state at any time is exact and does not depend on who looked when. The past is kept until `forget`.

    Parameters
    ----------
    at_um : float
        Where the stage rests.
    since_s : float
        From when on.
    omega_rad_s : float
        The closed-loop bandwidth.
    """

    def __init__(self, at_um: float, *, since_s: float = 0.0, omega_rad_s: float = OMEGA_RAD_S) -> None:
        self.omega_rad_s = omega_rad_s
        self._path: deque[Ramp] = deque()
        self._more: Iterator[Ramp] | None = None
        self._now = Stretch(Ramp(since_s, math.inf, at_um), at_um, 0.0, omega_rad_s)

    def state(self, now_s: float) -> tuple[float, float]:
        """Position (um) and speed (um/s) of the stage."""
        return self.stretch(now_s).state(now_s)

    def stretch(self, now_s: float) -> Stretch:
        """Where on its path the set point is."""
        for stretch in self.stretches():
            if now_s < stretch.ramp.end_s:
                return stretch
        raise AssertionError("a path ends in a ramp without an end")

    def stretches(self) -> Iterator[Stretch]:
        """The path, from the part that is not forgotten on; without an end while a wave runs."""
        stretch = self._now
        yield stretch
        for number in count():
            if number == len(self._path) and not self._look_ahead():
                return
            stretch = self._after(stretch, self._path[number])
            yield stretch

    def _look_ahead(self) -> bool:
        ramp = next(self._more, None) if self._more is not None else None
        if ramp is not None:
            self._path.append(ramp)
        return ramp is not None

    def _after(self, stretch: Stretch, ramp: Ramp) -> Stretch:
        return Stretch(ramp, *stretch.state(stretch.ramp.end_s), self.omega_rad_s)

    def positions_um(self, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions of the stage at ascending times, um."""
        return np.concatenate([stretch.positions_um(part_s) for stretch, part_s in self._parts(times_s)])

    def set_points_um(self, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """The set point at ascending times, um."""
        ramps = [(stretch.ramp, part_s) for stretch, part_s in self._parts(times_s)]
        return np.concatenate([r.from_um + r.velocity_um_s * (part_s - r.begin_s) for r, part_s in ramps])

    def _parts(self, times_s: NDArray[np.float64]) -> Iterator[tuple[Stretch, NDArray[np.float64]]]:
        for stretch in self.stretches():
            cut = int(np.searchsorted(times_s, stretch.ramp.end_s))
            yield stretch, times_s[:cut]
            times_s = times_s[cut:]
            if not len(times_s):
                return

    def pieces(self, begin_s: float, until_s: float) -> Iterator[Piece]:
        """The way between two times, in pieces on which the stage moves one way."""
        for stretch in self.stretches():
            if stretch.ramp.begin_s >= until_s:
                return
            yield from stretch.pieces(begin_s, until_s)

    def forget(self, before_s: float) -> None:
        """Let go of the path that was over by then."""
        while self._now.ramp.end_s <= before_s and (self._path or self._look_ahead()):
            self._now = self._after(self._now, self._path.popleft())

    @property
    def target_um(self) -> float:
        """Where the set point goes on the ramps that are known."""
        last = self._path[-1] if self._path else self._now.ramp
        return last.from_um if math.isinf(last.end_s) else last.at(last.end_s)

    def set_point_um(self, now_s: float) -> float:
        """Where the set point is."""
        return self.stretch(now_s).ramp.at(now_s)

    def slewing(self, now_s: float) -> bool:
        """Whether the set point still moves."""
        return not math.isinf(self.stretch(now_s).ramp.end_s)

    def command(self, now_s: float, target_um: float, slew_um_s: float) -> None:
        """Send the set point, from where it is, to another target."""
        from_um = self.set_point_um(now_s)
        arrives_s = now_s + abs(target_um - from_um) / slew_um_s
        way = [Ramp(now_s, arrives_s, from_um, math.copysign(slew_um_s, target_um - from_um))] * bool(arrives_s > now_s)
        self.follow(now_s, iter([*way, Ramp(arrives_s, math.inf, target_um)]))

    def follow(self, now_s: float, path: Iterator[Ramp]) -> None:
        """Send the set point along ramps; each begins where the one before ends, the first now, the last never ends."""
        state = self.state(now_s)
        self._path.clear()
        self._more = path
        self._now = Stretch(next(path), *state, self.omega_rad_s)

    def hold(self, now_s: float, *, drift_um_s: float = 0.0) -> None:
        """Make where the stage is its target, or let it drift from there. One that moves brakes as it follows: it goes
        on by v / (w e), 0.25 um from 1000 um/s, and comes back.
        """
        at_um, speed_um_s = self.state(now_s)
        self._path.clear()
        self._more = None
        ramp = Ramp(now_s, math.inf, at_um + 2.0 * drift_um_s / self.omega_rad_s, drift_um_s)
        self._now = Stretch(ramp, at_um, speed_um_s, self.omega_rad_s)

    def settled(self, now_s: float, tolerance_um: float, settling_s: float) -> bool:
        """Whether the stage was within its tolerance for all of the settling time."""
        return now_s >= self.stretch(now_s).settles_s(tolerance_um, settling_s)
