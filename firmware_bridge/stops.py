"""The stops of one device: a move ends where there was one since it was decided on. No I/O, and no lock to wait for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import StoppedError


class Stops:
    """Tells a move of a stop that came since. Any thread; nobody waits for anybody.

    Parameters
    ----------
    message : str
        What a StoppedError says.
    code : int, optional
        The controller's error number for it.
    """

    def __init__(self, message: str, *, code: int | None = None) -> None:
        self._message, self._code = message, code
        self._last = object()  # a new one with each stop
        self._series = threading.local()  # of this thread: `since`, the last stop before it began

    def new(self) -> object:
        """Begin a stop: whoever asks from here on knows of it. It names itself, for what comes after it."""
        self._last = stop = object()
        return stop

    @property
    def last(self) -> object:
        """The last stop."""
        return self._last

    @property
    def since(self) -> object:
        """To be taken before a move is decided on, and given to `check`. In a series, the one before its beginning."""
        return getattr(self._series, "since", None) or self._last

    @contextmanager
    def series(self, since: object = None) -> Iterator[object]:
        """Moves of this thread that one stop ends, also between two; inside another one it is part of that.

        Parameters
        ----------
        since : object, optional
            What the ``with`` of an earlier part of the same series gave, to go on with it.
        """
        outer = getattr(self._series, "since", None)
        self._series.since = since or self.since
        try:
            yield self._series.since
        finally:
            self._series.since = outer

    def came(self, since: object) -> bool:
        """Whether there was a stop since."""
        return self._last is not since

    def check(self, since: object) -> None:
        """Raise StoppedError if there was a stop since."""
        if self.came(since):
            raise StoppedError(self._message, code=self._code)
