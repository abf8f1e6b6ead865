"""What is wrong with the instrument now: one entry a subject, put and taken back by whoever knows, from any thread."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import NamedTuple

from edge.status import Problem, Severity


def utc_now() -> str:
    """Wall clock, for people and files; never for arithmetic."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Notice(NamedTuple):
    """What is wrong and what to do about it, in words."""

    title: str
    what_to_do: str
    severity: Severity = "fault"


class Problems:
    """The Health list.

    Examples
    --------
    >>> problems = Problems()
    >>> problems.put("disk", Notice("The disk is full", "Free some space."))
    >>> "disk" in problems, [problem.title for problem in problems.all()]
    (True, ['The disk is full'])
    >>> problems.put("disk", None)
    >>> problems.all()
    ()
    """

    def __init__(self) -> None:
        self._by_key: dict[str, Problem] = {}

    def put(self, key: str, notice: Notice | None) -> None:
        """What is wrong with ``key`` now; None: nothing. Since when stays what it was while there is something."""
        if notice is None:
            self._by_key.pop(key, None)
            return
        before = self._by_key.get(key)
        since_utc = utc_now() if before is None else before.since_utc
        self._by_key[key] = Problem(key=key, since_utc=since_utc, **notice._asdict())

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def all(self) -> tuple[Problem, ...]:
        """In the order in which they came."""
        return tuple(self._by_key.values())
