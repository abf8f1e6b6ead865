"""What the simulated focus controllers share: a motor that takes its time, and a wire that goes wrong on demand."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from firmware_bridge.errors import OutOfRangeError

FAULTS = {
    "late": "the reply comes `late_s` later",
    "silent": "no reply",
    "garbage": "bytes that are no reply",
    "wrong": "a well-formed reply of another kind",
    "partial": "half a reply",
    "hang_up": "the line hangs up instead of a reply",
}


@dataclass
class SteadyMotor:
    """A motor at a constant speed, in mm and seconds. Its position is a function of time, whoever looks when."""

    from_mm: float = 1.0
    to_mm: float = 1.0
    began_s: float = 0.0
    speed_mm_s: float = 2.5  # an IMS100V's load of some kg; its data sheet allows more

    def at_mm(self, now_s: float) -> float:
        """Where it is."""
        way_mm = self.to_mm - self.from_mm
        gone_mm = min(abs(way_mm), self.speed_mm_s * max(0.0, now_s - self.began_s))
        return self.to_mm if gone_mm == abs(way_mm) else self.from_mm + (gone_mm if way_mm > 0 else -gone_mm)

    def ends_s(self) -> float:
        """When it arrives."""
        return self.began_s + abs(self.to_mm - self.from_mm) / self.speed_mm_s

    def moving(self, now_s: float) -> bool:
        """Whether it moves."""
        return now_s < self.ends_s()

    def go(self, now_s: float, to_mm: float) -> None:
        """Go somewhere else, from where it is."""
        self.from_mm, self.to_mm, self.began_s = self.at_mm(now_s), to_mm, now_s

    def stop(self, now_s: float) -> None:
        """Stand still at once."""
        self.go(now_s, self.at_mm(now_s))


class Disturbances:
    """Faults of the wire, one a reply, in the order in which they were asked for.

    Attributes
    ----------
    late_s : float
        How late a late reply is.
    """

    def __init__(self) -> None:
        self.late_s = 1.5
        self._next: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def inject(self, name: str, *, only: str = "", times: int = 1) -> None:
        """Spoil the next replies to calls that contain `only`."""
        if name not in FAULTS:
            raise OutOfRangeError(f"no fault {name!r}: expected one of {', '.join(FAULTS)}")
        with self._lock:
            self._next += [(name, only)] * times

    def take(self, call: str) -> str | None:
        """The fault of this reply, if it has one."""
        with self._lock:
            for index, (name, only) in enumerate(self._next):
                if only in call:
                    del self._next[index]
                    return name
        return None
