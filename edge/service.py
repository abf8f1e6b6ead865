"""What systemd wants to hear from a service of Type=notify: one datagram a message (sd_notify(3)).

Outside systemd there is no socket, and everything here does nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)


class Service:
    """The line to systemd.

    Parameters
    ----------
    environ : mapping
        Where systemd says its socket (NOTIFY_SOCKET), and how often it wants to hear from which process
        (WATCHDOG_USEC, WATCHDOG_PID).
    clock : callable
        Seconds, monotonic.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, *, clock: Callable[[], float] = time.monotonic) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path  # @ stands for Linux's abstract namespace
        self._clock = clock
        ours = environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
        # Three times in each period, so that one late beat is no reason to restart an instrument.
        self._period_s = int(environ.get("WATCHDOG_USEC", 0)) / 3e6 if ours else 0.0
        self._due_s = clock()

    def ready(self) -> None:
        """The page answers; from now on systemd counts the seconds between calls of :meth:`alive`."""
        self._tell("READY=1")

    def alive(self) -> None:
        """The main thread goes round. Call it as often as you like: systemd is told as often as it wants to know."""
        now_s = self._clock()
        if self._period_s and now_s >= self._due_s:
            self._due_s = now_s + self._period_s
            self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """The program ends because it was asked to."""
        self._tell("STOPPING=1")

    def _tell(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
                line.connect(self._address)
                line.send(message.encode())
        except OSError as exc:
            log.warning("systemd does not hear %s (%s): it may restart this program", message, exc)
