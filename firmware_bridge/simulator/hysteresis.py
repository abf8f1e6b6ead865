"""A piezo's hysteresis between voltage and position: play operators, after Prandtl and Ishlinskii.

A play of width r is a piston with that much slack behind the voltage v: p = max(v - r, min(v + r, p)). A weighted sum
of plays and of v itself is rate-independent, remembers its turning points and closes its inner loops, as a piezo stack
does (K. Kuhnen and H. Janocha, "Adaptive inverse control of piezoelectric actuators with hysteresis operators",
European Control Conference 1999).
"""

from __future__ import annotations

from firmware_bridge.errors import OutOfRangeError

_WIDTHS = (0.05, 0.10, 0.15, 0.20)
_BISECTIONS = 50


class Hysteresis:
    """Position (0 to 1 of the travel) as a function of the voltage (0 to 1 of its range) and of its history.

    Parameters
    ----------
    width : float
        The largest distance between the branches of the full loop, of the travel: 0 to 0.25. PI states 10 to 15 % for
        its piezo stacks in open loop.

    Raises
    ------
    OutOfRangeError
        Another width.

    >>> loop = Hysteresis(0.12)
    >>> up = loop.move(0.5)
    >>> top = loop.move(1.0)
    >>> round(loop.move(0.5) - up, 3), round(top, 3)
    (0.12, 1.0)
    """

    def __init__(self, width: float) -> None:
        if not 0.0 <= width <= 0.25:
            raise OutOfRangeError(f"a hysteresis of {width}: expected 0 to 0.25 of the travel")
        weight = width / (1.0 + width * sum(_WIDTHS)) / (2.0 * sum(_WIDTHS))
        stroke = 1.0 - weight * sum(_WIDTHS)
        self._weight, self._direct = weight / stroke, (1.0 - weight * len(_WIDTHS)) / stroke
        self._plays = [0.0] * len(_WIDTHS)
        self.voltage = 0.0

    def _after(self, voltage: float) -> list[float]:
        return [
            max(voltage - width, min(voltage + width, play)) for width, play in zip(_WIDTHS, self._plays, strict=True)
        ]

    def position(self, voltage: float) -> float:
        """Where another voltage would take the axis."""
        return self._direct * voltage + self._weight * sum(self._after(voltage))

    def move(self, voltage: float) -> float:
        """Apply a voltage; says where it takes the axis."""
        self._plays, self.voltage = self._after(voltage), voltage
        return self.position(voltage)

    def corners(self, voltage: float) -> list[float]:
        """The voltages on the way to another one at which a play takes up its slack, and that one."""
        first, last = sorted((self.voltage, voltage))
        edges = [
            play + (width if voltage > self.voltage else -width)
            for width, play in zip(_WIDTHS, self._plays, strict=True)
        ]
        return [*sorted((v for v in edges if first < v < last), reverse=voltage < self.voltage), voltage]

    def reach(self, position: float) -> float:
        """Apply the voltage that takes the axis to a position, as a servo does; says which."""
        low, high = -1.0, 2.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if self.position(middle) < position:
                low = middle
            else:
                high = middle
        self.move(high)
        return high
