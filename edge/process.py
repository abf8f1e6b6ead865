"""What a process of the appliance sets up once, before anything else: its log, its heaps, its signals."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Callable

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s  %(message)s"
_TIME = "%H:%M:%S"
_M_ARENA_MAX = -8  # malloc.h


class LogTail(logging.Handler):
    """The newest lines of the log, for the page that says why the instrument did not start."""

    def __init__(self, length: int = 40) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(_FORMAT, _TIME))
        self._lines: deque[str] = deque(maxlen=length)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self._lines.append(self.format(record))

    def lines(self) -> list[str]:
        """Oldest first."""
        return list(self._lines)


log_tail = LogTail()
"""Of this process; filled once :func:`set_up_log` was called."""


def set_up_log(*, verbose: bool) -> None:
    """Log to standard error, where journald picks it up."""
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(level=level, stream=sys.stderr, format=_FORMAT, datefmt=_TIME)
    logging.getLogger().addHandler(log_tail)
    # waitress reports every client that closed a stream, the readers every tag they do not know.
    for noisy in ("waitress", "waitress.queue", "PIL", "tifffile"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def share_heaps() -> None:
    """Let the threads share two heaps (glibc's M_ARENA_MAX).

    By default each thread gets a heap of its own, which keeps what it frees: after some jobs that was 80 MB of nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent outside glibc, and not needed there
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


def quit_on_signals(quit_: Callable[[], None]) -> None:
    """Ctrl-C and systemd's SIGTERM end the program the clean way: the instrument is retracted and closed.

    A second one only says that this is under way, since impatient fingers are quick; a third ends the program at once.

    Parameters
    ----------
    quit_ : callable
        May only set a flag: it runs anywhere.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)

    def ask(*_: object) -> None:
        for number in numbers:
            signal.signal(number, warn)
        quit_()

    def warn(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        os.write(
            2, b"superlens: The instrument is being closed. Once more ends the program at once, retracting nothing.\n"
        )

    for number in numbers:
        signal.signal(number, ask)
