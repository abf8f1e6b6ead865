"""Positions of the stage, and boxes of them."""

from __future__ import annotations

import math
from typing import NamedTuple

from .errors import OutOfRangeError


class PositionUm(NamedTuple):
    """A position of the stage in um."""

    x: float
    y: float
    z: float

    def __str__(self) -> str:
        return f"({', '.join(f'{um:.6g}' for um in self)}) um"


class Box(NamedTuple):
    """The positions from `low` to `high`, both included."""

    low: PositionUm
    high: PositionUm

    def __str__(self) -> str:
        return f"{self.low} to {self.high}"

    @property
    def centre(self) -> PositionUm:
        """The middle.

        >>> Box(PositionUm(0, 0, 0), PositionUm(100, 100, 10)).centre
        PositionUm(x=50.0, y=50.0, z=5.0)
        """
        return PositionUm(*((low + high) / 2 for low, high in zip(self.low, self.high, strict=True)))

    def contains(self, position_um: PositionUm) -> bool:
        """Whether a position lies inside; NaN does not."""
        return all(low <= at <= high for low, at, high in zip(self.low, position_um, self.high, strict=True))

    def intersect(self, other: Box) -> Box:
        """The positions that lie in both.

        Raises
        ------
        OutOfRangeError
            No position lies in both, or a bound is NaN.
        """
        low = PositionUm(*(max(pair) for pair in zip(self.low, other.low, strict=True)))
        high = PositionUm(*(min(pair) for pair in zip(self.high, other.high, strict=True)))
        if not all(
            a <= b for a, b in zip((*self.low, *other.low, *low), (*self.high, *other.high, *high), strict=True)
        ):
            raise OutOfRangeError(f"no position lies both in {self} and in {other}: correct the limits")
        return Box(low, high)


ANYWHERE = Box(PositionUm(-math.inf, -math.inf, -math.inf), PositionUm(math.inf, math.inf, math.inf))
"""Limits of rules whose stage keeps its own."""
