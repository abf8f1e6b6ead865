"""One port, one lock, one exchange in flight, a deadline for each, and always in step with the controller.

GCS has no checksum and no sequence number: a reply that comes after its time-out would be taken for the answer to the
next question. So a link that missed a reply, or that finds bytes it did not ask for, first drains the line, asks
``*IDN?``, throws away what comes before that answer, and only then goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from . import gcs
from .errors import LinkError, LinkTimeoutError, ProtocolError, RefusedError
from .transport import Transport

log = logging.getLogger(__name__)

T = TypeVar("T")

# A line is taken as silent after this; a 16 ms FTDI latency timer and a slow controller fit in well.
SILENCE_S = 0.05
# So many time-outs long may a reply be that arrives bit by bit.
PATIENCE = 10


class Link:
    """Requests and replies over a transport, one exchange at a time; safe to use from several threads.

    Parameters
    ----------
    transport : Transport
        Owned from now on.
    name : str
        What error messages call the port.
    timeout_s : float
        How long a reply may keep us waiting, seconds.
    clock : callable
        Seconds, monotonic.

    Attributes
    ----------
    identity : str
        The last answer to ``*IDN?`` of `identify`.
    lost : str or None
        Why nobody can be spoken to any more: the port is gone, or the device does not answer as itself. None while
        the link works, also where a single exchange failed.
    """

    def __init__(
        self, transport: Transport, *, name: str, timeout_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.identity = ""
        self.lost: str | None = None
        self._transport, self._timeout_s, self._clock = transport, timeout_s, clock
        self._request_lock = threading.Lock()  # held from a request to its last reply
        self._write_lock = threading.Lock()  # held for one write, so that #24 can pass a request that waits
        self._reader = gcs.ReplyReader()
        self._in_step = True
        self._closed = False

    def identify(self) -> str:
        """Ask ``*IDN?``, whatever was on the line before; the first request of a session.

        Raises
        ------
        LinkError
            Nobody answered, or not like a controller.
        """
        with self._request_lock:
            return self._identify()

    def reopen(self, transport: Callable[[], Transport]) -> str:
        """Close the port and open it again.

        Parameters
        ----------
        transport : callable
            Opens the new one. It is called after the old one was closed: a serial device whose old descriptor is
            still open comes back under another name.

        Returns
        -------
        str
            What is there now says to ``*IDN?``; whether it is the same device is for the caller to say.

        Raises
        ------
        LinkError
            The link was closed for good, or nobody is there, or not a controller.
        """
        with self._request_lock:
            with self._write_lock:
                self._check_open()
                self._transport.close()
                self.lost = f"{self.name} was closed to be opened again"
                self._transport = transport()
            return self._identify()

    def ask(self, request: bytes, parse: Callable[[str], T], *, before_sending: Callable[[], None] | None = None) -> T:
        """Send a request and read its one reply; as `ask_each` with one parser."""
        return self.ask_each(request, [parse], before_sending=before_sending)[0]

    def ask_each(
        self,
        request: bytes,
        parsers: Sequence[Callable[[str], T]],
        *,
        before_sending: Callable[[], None] | None = None,
    ) -> list[T]:
        """Send one or several queries in one write and read one reply to each.

        Parameters
        ----------
        request : bytes
            One write; it holds as many queries as there are parsers, and any number of commands.
        parsers : sequence of callable
            Make the replies values, in order, or raise ProtocolError.
        before_sending : callable, optional
            Called at the last moment before sending; what it raises keeps the request back. `interrupt` cannot come
            in between.

        Returns
        -------
        list
            What the parsers made of the replies.

        Raises
        ------
        LinkTimeoutError
            A reply is missing, and the controller reports no error either, or is dead.
        RefusedError
            A reply is missing, because the controller did not accept the query (its `code` says why).
        ProtocolError
            A reply made no sense.
        LinkError
            The port is gone or was closed.
        """
        with self._request_lock:
            if self._in_step:
                stray = self._reader.pending + self._read(0.0)
                if stray:
                    log.warning("%s: %r came unasked; getting in step again", self.name, stray)
                    self._in_step = False
            if not self._in_step:
                self._resync()
            try:
                replies = self._exchange(request, len(parsers), before_sending)
                values = [parse(reply) for parse, reply in zip(parsers, replies, strict=True)]
            except LinkTimeoutError as exc:
                raise self._explain(request, exc) from exc
            self._in_step = True
            return values

    def interrupt(self, then: bytes = b"", *, before_sending: Callable[[], None] | None = None) -> None:
        """Send #24 (stop) at once, from any thread, past any request that waits for its reply. #24 has no reply.

        Parameters
        ----------
        then : bytes
            Commands without replies that follow in the same write: where to go instead.
        before_sending : callable, optional
            As in `ask_each`.

        Raises
        ------
        LinkError
            The port is gone: the stop was NOT sent.
        """
        self._write(gcs.STOP + then, before_sending)

    def close(self) -> None:
        """Close the port, once a request in another thread has had its reply or its time-out. Idempotent."""
        self._closed = True  # what comes after that request is refused
        with self._request_lock, self._write_lock:
            self._transport.close()

    # -- with the request lock held, but for _write and _check_open --------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise LinkError(f"{self.name} is closed: open the stage again")

    def _write(self, data: bytes, before_sending: Callable[[], None] | None = None, *, replies: bool = False) -> None:
        with self._write_lock:
            if before_sending is not None:
                before_sending()
            self._check_open()
            if replies:  # out of step until they all came: a Ctrl-C may end the wait for them anywhere
                self._in_step = False
            log.debug("%s < %r", self.name, data)
            try:
                self._transport.write(data)
            except LinkError as exc:
                self._in_step = False  # half of it may be on its way
                if not isinstance(exc, LinkTimeoutError):
                    self.lost = str(exc)
                raise

    def _read(self, timeout_s: float) -> bytes:
        self._check_open()
        try:
            return self._transport.read(timeout_s)
        except LinkError as exc:
            self.lost = str(exc)
            raise

    def _exchange(self, request: bytes, count: int = 1, before_sending: Callable[[], None] | None = None) -> list[str]:
        self._write(request, before_sending, replies=True)
        # What still arrives, as a long reply over a slow wire does, may take its time: but not for ever.
        last_s = self._clock() + PATIENCE * self._timeout_s
        deadline_s = self._clock() + self._timeout_s
        replies: list[str] = []
        while len(replies) < count:
            left_s = deadline_s - self._clock()
            data = self._read(left_s) if left_s > 0 else b""
            if not data:
                raise LinkTimeoutError(
                    f"{self.name} did not answer {request!r} within {self._timeout_s:g} s "
                    f"(received {[*replies, self._reader.pending]})"
                )
            replies += self._reader.feed(data)
            deadline_s = min(last_s, self._clock() + self._timeout_s)
        log.debug("%s > %r", self.name, replies)
        if len(replies) > count or self._reader.pending:
            raise ProtocolError(
                f"{self.name} answered {request!r} with more than {count} replies: {[*replies, self._reader.pending]}"
            )
        return replies

    def _identify(self) -> str:
        self._drain()
        try:
            (reply,) = self._exchange(gcs.query_line("*IDN?"))
        except LinkTimeoutError as exc:
            raise LinkTimeoutError(
                f"{self.name} does not answer *IDN? within {self._timeout_s:g} s: is the controller on, is this "
                "its port, is the baud rate the controller's?"
            ) from exc
        if reply.count(",") < 2 or not reply.isascii():
            raise ProtocolError(f"{self.name} answered *IDN? with {reply!r}: this is not a PI controller's answer")
        self.identity, self.lost, self._in_step = reply.strip(), None, True
        return self.identity

    def _drain(self) -> None:
        # At most one time-out's worth: a device that never falls silent must not hold the lock for ever.
        deadline_s = self._clock() + self._timeout_s
        while self._read(SILENCE_S) and self._clock() < deadline_s:
            pass
        self._reader.clear()

    def _resync(self) -> None:
        self._drain()
        self._write(gcs.query_line("*IDN?"), replies=True)
        deadline_s = self._clock() + self._timeout_s
        while (left_s := deadline_s - self._clock()) > 0:
            # The controller answers in order: whatever was late comes before this answer.
            if any(reply.strip() == self.identity for reply in self._reader.feed(self._read(left_s))):
                self._drain()
                self._in_step, self.lost = True, None
                log.warning("%s: in step again", self.name)
                return
        self.lost = f"{self.name} does not answer as {self.identity!r} any more: the position is unknown"
        raise LinkTimeoutError(self.lost)

    def _explain(self, request: bytes, exc: LinkTimeoutError) -> LinkTimeoutError | RefusedError:
        # A query with a bad argument is not answered at all; the reason lies in the error register.
        try:
            self._resync()
            code = gcs.parse_integer(self._exchange(gcs.query_line("ERR?"))[0])
            self._in_step = True
        except LinkError as second:
            log.warning("%s: no way to ask for the reason: %s", self.name, second)
            return exc
        if code not in (0, gcs.STOPPED):  # a stop that was sent meanwhile is no reason to refuse a question
            return RefusedError(f"{self.name} refused {request!r}: {gcs.meaning(code)}", code=code)
        return exc
