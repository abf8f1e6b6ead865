"""What Newport's controllers have in common on the wire: text in, text out, an end mark, replies all alike."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from .errors import LinkError, ProtocolError
from .transport import Transport

log = logging.getLogger(__name__)

# A line is taken as silent after this.
SILENCE_S = 0.05
LONGEST_REPLY_BYTES = 4096


class TextLine:
    """Text over a transport. `write` may be called from any thread; the rest by one at a time.

    Parameters
    ----------
    transport : Transport
        Owned from now on.
    name : str
        What error messages call it.
    end : bytes
        What ends a reply.
    clock : callable
        Seconds, monotonic.
    """

    def __init__(
        self, transport: Transport, *, name: str, end: bytes, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self._transport, self._end, self._clock = transport, end, clock
        self._buffer = b""
        self._write_lock = threading.Lock()
        self._closed = False

    def write(self, text: str) -> None:
        """Send all of it."""
        with self._write_lock:
            if self._closed:
                raise LinkError(f"{self.name} is closed: open the focus stage again")
            log.debug("%s < %r", self.name, text)
            self._transport.write(text.encode("ascii"))

    def read(self, timeout_s: float) -> str | None:
        """The next reply without its end mark, or None if none is complete in time."""
        deadline_s = self._clock() + timeout_s
        while self._end not in self._buffer:
            if self._closed:
                raise LinkError(f"{self.name} is closed: open the focus stage again")
            left_s = deadline_s - self._clock()
            data = self._transport.read(max(0.0, left_s))
            if not data and left_s <= 0:
                return None
            self._buffer += data
            if len(self._buffer) > LONGEST_REPLY_BYTES:
                raise ProtocolError(f"{self.name} sent {len(self._buffer)} bytes without ending a reply")
        reply, _, self._buffer = self._buffer.partition(self._end)
        log.debug("%s > %r", self.name, reply)
        if not reply.isascii():
            raise ProtocolError(f"{self.name} sent {reply!r}, expected ASCII: check the baud rate")
        return reply.decode("ascii")

    @property
    def pending(self) -> bytes:
        """What has come of a reply that has not ended, or has come unasked."""
        return self._buffer

    def drain(self, most_s: float) -> None:
        """Throw away what comes, until the line is silent, at most for so long."""
        deadline_s = self._clock() + most_s
        while self._transport.read(SILENCE_S) and self._clock() < deadline_s:
            pass
        self._buffer = b""

    def close(self) -> None:
        """Give the port back. Idempotent."""
        with self._write_lock:
            self._closed = True
            self._transport.close()


def parse_number(text: str, name: str) -> float:
    """A finite number (ProtocolError otherwise).

    >>> parse_number(" 1.500000", "a test")
    1.5
    """
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ProtocolError(f"{name} sent {text!r}, expected a number")
    return value
