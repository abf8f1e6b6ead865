"""What is wrong with the instrument now: one entry a subject, put and taken back by whoever knows, from any thread."""

from __future__ import annotations

import threading
from typing import NamedTuple

from edge.status import Problem, Severity
from edge.utc import utc_now


class Notice(NamedTuple):
    """What is wrong and what to do about it, in words."""

    title: str
    what_to_do: str
    severity: Severity = "fault"


HANDS_OFF = ("stage", "interlock")
"""Keys of what a person has to look at before anything moves again."""


class Problems:
    """The Health list.

    Examples
    --------
    >>> problems = Problems()
    >>> problems.put("disk", Notice("The disk is full", "Free some space."))
    >>> "disk" in problems, problems.hands_off, [problem.title for problem in problems.all()]
    (True, False, ['The disk is full'])
    >>> problems.put("disk", None)
    >>> problems.all()
    ()
    """

    def __init__(self) -> None:
        self._by_key: dict[str, Problem] = {}
        self._lock = threading.Lock()

    def put(self, key: str, notice: Notice | None) -> None:
        """What is wrong with ``key`` now; None: nothing. Since when stays what it was while there is something."""
        with self._lock:
            if notice is None:
                self._by_key.pop(key, None)
                return
            before = self._by_key.get(key)
            since_utc = utc_now() if before is None else before.since_utc
            self._by_key[key] = Problem(key=key, since_utc=since_utc, **notice._asdict())

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return key in self._by_key

    @property
    def hands_off(self) -> bool:
        """Whether a person has to look at stage and sphere before anything moves again."""
        with self._lock:
            return any(key in self._by_key for key in HANDS_OFF)

    def all(self) -> tuple[Problem, ...]:
        """In the order in which they came."""
        with self._lock:
            return tuple(self._by_key.values())
