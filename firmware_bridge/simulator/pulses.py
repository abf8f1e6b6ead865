"""Trigger pulses on their way from a simulated controller's outputs to whoever listens."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from firmware_bridge.position import PositionUm

Listener = Callable[[int, int, PositionUm], None]


class Pulses:
    """A queue of pulses, in order whichever thread delivers them. A listener may do what it likes."""

    def __init__(self) -> None:
        self._listeners: list[tuple[int, Listener]] = []
        self._counts: dict[int, int] = {}
        self._fallen: deque[tuple[int, int, int, PositionUm]] = deque()
        self._delivering = threading.RLock()

    def listen(self, output: int, listener: Listener) -> Callable[[], None]:
        """Tell a listener of an output's pulses; the return value ends it."""
        entry = (output, listener)
        self._listeners.append(entry)
        return lambda: self._listeners.remove(entry)

    def heard(self) -> set[int]:
        """The outputs that somebody listens to."""
        return {output for output, _ in tuple(self._listeners)}

    def waiting(self) -> bool:
        """Whether a pulse is not delivered yet."""
        return bool(self._fallen)

    def fall(self, output: int, t_s: float, pose_um: PositionUm) -> None:
        """An edge has fallen."""
        index = self._counts.get(output, 0)
        self._counts[output] = index + 1
        self._fallen.append((output, index, round(t_s * 1e9), pose_um))

    def deliver(self) -> None:
        """Call the listeners, in this thread; when this returns, what fell before has been heard."""
        with self._delivering:
            while self._fallen:
                output, index, t_ns, pose_um = self._fallen.popleft()
                for wired, listener in tuple(self._listeners):
                    if wired == output:
                        listener(index, t_ns, pose_um)
