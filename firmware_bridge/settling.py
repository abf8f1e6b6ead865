"""When to look whether a stage has settled: learned from the moves before."""

from __future__ import annotations

# So much later a stage is looked at next time that had not settled when it was looked at.
LATER_S = 0.0003
FIRST_CREEP, LAST_CREEP = 0.3, 0.001
MOST_FAILURES = 10


class Settling:
    """How long moves take beyond their slew.

    A look that comes too early costs a round trip, one that comes too late the time in between. So the wait creeps
    up to the settling time from above: a little earlier after each success, and less and less so; later after a
    failure, and more so where one follows another. One move that is late for another reason changes it little.

    Attributes
    ----------
    wait_s : float
        From the end of the slew to the first look.

    >>> settling = Settling()
    >>> for _ in range(300):
    ...     settling.learn(too_early=settling.wait_s < 0.005)
    >>> 0.0045 < settling.wait_s < 0.0055
    True
    """

    def __init__(self) -> None:
        self.wait_s = 0.0
        self._failures = 0  # in a row
        self._creep = FIRST_CREEP

    def learn(self, *, too_early: bool) -> None:
        """Hear whether the first look of a move came too early."""
        if too_early:
            self.wait_s += LATER_S * 2**self._failures
            self._failures = min(self._failures + 1, MOST_FAILURES)
            self._creep = max(self._creep / 2, LAST_CREEP)
        else:
            self.wait_s *= 1.0 - self._creep
            self._failures = 0
