"""Newport ESP301: the focus motor behind a serial port. Lines end in CR, replies in CR LF.

``1PA0.5`` moves axis 1 to 0.5 mm, ``1TP`` tells where it is, ``1MD?`` whether it has arrived; errors wait in a queue of
ten for ``TE?``. A query with an error is not answered, and nothing ties a reply to its question: after a time-out the
line is drained and ``VE?`` asked until its answer comes. (Newport, ESP301 user's manual, section 3 and appendix A.)

It does not tell whether it is referenced: its zero is where it stood when it was switched on, until it is homed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from .errors import LinkError, LinkTimeoutError, OutOfRangeError, ProtocolError, RefusedError
from .newport import TextLine, parse_number
from .transport import Transport, open_transport

log = logging.getLogger(__name__)

END = b"\r\n"
MILLIMETRES = 2  # what SN? says
QUEUE = 10
POLL_S = 0.02

MEANING = {
    4: "emergency stop activated",
    6: "no such command",
    7: "parameter out of range",
    8: "cable interlock",
    9: "axis number out of range",
    37: "axis number missing",
    38: "parameter missing",
}
AXIS_MEANING = {  # of a number such as 106, without the axis
    0: "motor type not defined",
    1: "parameter out of range",
    2: "amplifier fault",
    3: "following error",
    4: "positive hardware limit",
    5: "negative hardware limit",
    6: "positive software limit",
    7: "negative software limit",
    8: "motor not connected",
    9: "feedback signal fault",
    10: "velocity out of range",
    11: "acceleration out of range",
    13: "motor not enabled",
    20: "homing aborted",
}
BEYOND = {1, 4, 5, 6, 7}


def meaning(code: int) -> str:
    """What an error number says.

    >>> meaning(106), meaning(7)
    ('error 106: axis 1, positive software limit', 'error 7: parameter out of range')
    """
    if code < 100:
        return f"error {code}: {MEANING.get(code, 'see the manual')}"
    return f"error {code}: axis {code // 100}, {AXIS_MEANING.get(code % 100, 'see the manual')}"


class Esp301Focus:
    """One axis of an ESP301: a `axis.FocusAxis`. `open` makes one.

    Parameters
    ----------
    transport : Transport
        Owned from now on.
    axis : int
        1 to 3.

    Attributes
    ----------
    identity : str
        What ``VE?`` says.
    """

    def __init__(
        self,
        transport: Transport,
        axis: int,
        *,
        name: str = "the ESP301",
        timeout_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._line = TextLine(transport, name=name, end=END, clock=clock)
        self._name, self._axis, self._timeout_s, self._clock, self._sleep = name, axis, timeout_s, clock, sleep
        self._lock = threading.Lock()  # from a question to its answer; a stop passes it
        self._in_step = True
        self._started = False
        self.identity = ""
        try:
            if axis not in (1, 2, 3):
                raise OutOfRangeError(f"axis {axis} of an ESP301: expected 1 to 3")
            self._line.drain(timeout_s)
            self.identity = self._ask("VE?")
            if "ESP30" not in self.identity.upper():
                raise RefusedError(f"{name} says that it is {self.identity!r}, expected an ESP301: correct the port")
            self._forget_errors()
            if self._number("SN?") != MILLIMETRES:
                raise RefusedError(f"axis {axis} of {name} does not count in mm: set its unit ({axis}SN2)")
        except BaseException:
            self.close()
            raise
        log.warning("%s does not tell whether it is referenced: its zero may be where it was switched on", name)

    @classmethod
    def open(cls, port: str, axis: str, *, baud: int = 921600) -> Esp301Focus:
        """Open a serial port: 921600 Bd on its USB, 19200 on RS-232. Nothing moves.

        Raises
        ------
        OutOfRangeError
            No such axis.
        RefusedError
            It is another device, or it does not count in mm.
        LinkError
            Nobody is there.
        """
        if axis not in ("1", "2", "3"):
            raise OutOfRangeError(f"axis {axis!r} of an ESP301: expected 1, 2 or 3")
        return cls(open_transport(port, baud=baud), int(axis), name=port)

    # -- FocusAxis ------------------------------------------------------------------------------------------------

    def limits_mm(self) -> tuple[float, float]:
        """See FocusAxis."""
        return self._number("SL?"), self._number("SR?")

    def set_limits_mm(self, low_mm: float, high_mm: float) -> None:
        """See FocusAxis."""
        self._do(f"{self._axis}SL{low_mm:.6f};{self._axis}SR{high_mm:.6f}")

    def position_mm(self) -> float:
        """See FocusAxis."""
        return self._number("TP")

    def check_ready(self) -> None:
        """See FocusAxis."""
        if not self._number("MO?"):
            raise RefusedError(
                f"the motor of axis {self._axis} of {self._name} is off: look why, then switch it on at the controller"
            )

    def start(self, target_mm: float) -> None:
        """See FocusAxis."""
        self._do(f"{self._axis}PA{target_mm:.6f}")
        self._started = True

    def moving(self) -> bool:
        """See FocusAxis."""
        if not self._number("MD?"):
            return True
        if self._started:
            self._started = False
            if code := self._error():
                raise LinkError(f"the focus move ended with {meaning(code)}; the position is unknown")
        return False

    def stop(self) -> None:
        """See FocusAxis."""
        self._started = False  # how the move would have ended is nobody's question any more
        self._line.write(f"{self._axis}ST\r")

    def home(self, timeout_s: float) -> None:
        """See FocusAxis."""
        self._do(f"{self._axis}MO;{self._axis}OR")
        self._started = True
        deadline_s = self._clock() + timeout_s
        while self.moving():
            if self._clock() > deadline_s:
                self.stop()
                raise LinkTimeoutError(f"no reference found within {timeout_s:g} s; stopped")
            self._sleep(POLL_S)

    def close(self) -> None:
        """See FocusAxis."""
        self._line.close()

    # -- the wire -------------------------------------------------------------------------------------------------

    def _do(self, commands: str) -> None:
        # One write for the commands and for the question whether they were accepted; an older error is no answer to it.
        self._forget_errors()
        code = self._error(commands + ";")
        if code:
            beyond = code == 7 or (code >= 100 and code % 100 in BEYOND)
            error = OutOfRangeError if beyond else RefusedError
            raise error(f"{self._name} refused {commands!r}: {meaning(code)}", code=code)

    def _forget_errors(self) -> None:
        for _ in range(QUEUE + 1):
            if not (code := self._error()):
                return
            log.warning("%s had an error of before, now cleared: %s", self._name, meaning(code))

    def _error(self, before: str = "") -> int:
        text = self._ask(f"{before}TE?")
        if not text.strip().isdecimal():
            raise self._senseless(f"{before}TE?", text)
        return int(text)

    def _number(self, query: str) -> float:
        text = self._ask(f"{self._axis}{query}")
        try:
            return parse_number(text, self._name)
        except ProtocolError as exc:
            raise self._senseless(query, text) from exc

    def _senseless(self, query: str, text: str) -> ProtocolError:
        self._in_step = False
        return ProtocolError(f"{self._name} answered {query!r} with {text!r}, expected a number")

    def _ask(self, query: str) -> str:
        with self._lock:
            if self._in_step and (self._line.read(0.0) is not None or self._line.pending):
                log.warning("%s: bytes came unasked; getting in step again", self._name)
                self._in_step = False
            if not self._in_step:
                self._resync()
            reply = self._exchange(query)
            if reply is not None:
                return reply.strip()
            self._in_step = False
            code = self._why(query)
        if code:
            raise RefusedError(f"{self._name} refused {query!r}: {meaning(code)}", code=code)
        raise LinkTimeoutError(
            f"{self._name} did not answer {query!r} within {self._timeout_s:g} s: is it on, is the baud rate right?"
        )

    def _exchange(self, query: str) -> str | None:
        try:
            self._line.write(f"{query}\r")
            return self._line.read(self._timeout_s)
        except ProtocolError:
            self._in_step = False
            raise

    def _why(self, query: str) -> int:
        # A query with an error is not answered; the reason lies in the queue.
        if not self.identity:
            return 0
        try:
            self._resync()
        except LinkError as exc:
            log.warning("%s: no way to ask why %r was not answered: %s", self._name, query, exc)
            return 0
        text = self._exchange("TE?") or ""
        return int(text) if text.strip().isdecimal() else 0

    def _resync(self) -> None:
        self._line.drain(self._timeout_s)
        self._line.write("VE?\r")
        deadline_s = self._clock() + self._timeout_s
        while (left_s := deadline_s - self._clock()) > 0:
            # It answers in order: whatever was late comes before this answer.
            if (self._line.read(left_s) or "").strip() == self.identity:
                self._line.drain(self._timeout_s)
                self._in_step = True
                return
        raise LinkTimeoutError(f"{self._name} does not answer as {self.identity!r} any more: the position is unknown")
