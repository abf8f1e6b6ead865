"""Newport XPS: the focus motor behind a TCP port, in the controller's own function calls.

``GroupMoveAbsolute(FOCUS.Pos,1.5)`` is answered ``0,,EndOfAPI``; an error is a negative number in front. A call
occupies its connection until it is over, and a move is over when the stage is at rest: so there are three connections,
one that moves, one that asks, and one that only stops. (Newport, XPS programmer's manual; newportxps.)
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable

from .errors import (
    FirmwareError,
    LinkError,
    LinkTimeoutError,
    OutOfRangeError,
    ProtocolError,
    RefusedError,
    StoppedError,
)
from .newport import TextLine, parse_number
from .transport import Transport, open_transport

log = logging.getLogger(__name__)

END = b",EndOfAPI"
REPLY = re.compile(r"(-?\d+),(.*)", re.DOTALL)

# Group states, XPS programmer's manual, "group status list".
READY = {*range(10, 20), 56, 70, 77, 79}
DISABLED = set(range(20, 42))
NOT_REFERENCED, HOMING, MOVING = 42, 43, 44

ABORTED, NOT_ALLOWED = -27, -22
MEANING = {
    -3: "string too long",
    -4: "unknown command",
    -7: "wrong format",
    -9: "wrong number of parameters",
    -17: "parameter out of range",
    -18: "no such positioner",
    -19: "no such group",
    -20: "fatal error at initialisation, see the controller's error log",
    -21: "the controller is initialising",
    NOT_ALLOWED: "not allowed in this state",
    -25: "following error",
    -26: "emergency stop",
    ABORTED: "move aborted",
    -28: "home search time-out",
    -33: "motion done time-out",
    -35: "beyond the travel limits",
    -45: "end of run",
}
BEYOND = {-17, -35}
POSITION_LOST = {-20, -25, -26, -28, -33, -45}


def parse_reply(text: str, call: str) -> list[str]:
    """The values of a reply, without its end mark.

    Raises
    ------
    OutOfRangeError, StoppedError, RefusedError, LinkError
        What the error number means.
    ProtocolError
        This is no reply.

    >>> parse_reply("0,12.5,13", "a call")
    ['12.5', '13']
    """
    match = REPLY.fullmatch(text.strip())
    if match is None:
        raise ProtocolError(f"the XPS answered {call} with {text!r}, expected a number, values, EndOfAPI")
    code, values = int(match[1]), match[2]
    if code == 0:
        return values.split(",")
    message = f"the XPS answered {call} with error {code}: {MEANING.get(code, 'see its manual')}"
    if code in BEYOND:
        raise OutOfRangeError(message, code=code)
    if code == ABORTED:
        raise StoppedError(message, code=code)
    if code in POSITION_LOST:
        raise LinkError(f"{message}; the position is unknown")
    raise RefusedError(message, code=code)


class Connection:
    """One connection: one call at a time. After a call without an answer it is opened anew: late answers die with it.

    Parameters
    ----------
    open_port : callable
        Makes the transport.
    name : str
        What error messages call it.
    """

    def __init__(
        self, open_port: Callable[[], Transport], *, name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._open_port, self._name, self._clock = open_port, name, clock
        self._line: TextLine | None = self._connect()
        self._lock = threading.RLock()
        self._pending: str | None = None  # the call that is not answered yet
        self._closed = False

    def _connect(self) -> TextLine:
        return TextLine(self._open_port(), name=self._name, end=END, clock=self._clock)

    def send(self, call: str) -> None:
        """Begin a call."""
        with self._lock:
            if self._closed:
                raise LinkError(f"{self._name} is closed: open the focus stage again")
            if self._pending is not None:
                raise RefusedError(f"{self._pending} is under way")
            if self._line is not None and self._disturbed(self._line):
                self.drop()
            line = self._line = self._line or self._connect()
            try:
                line.write(call)
            except LinkError:
                self.drop()
                raise
            self._pending = call

    def _disturbed(self, line: TextLine) -> bool:
        # Between two calls nothing comes: what does, or a hang-up, is no beginning for the next one.
        try:
            if line.read(0.0) is None and not line.pending:
                return False
        except LinkError as exc:
            log.warning("%s: %s; connecting anew", self._name, exc)
            return True
        log.warning("%s: bytes came unasked; connecting anew", self._name)
        return True

    def answer(self, timeout_s: float) -> list[str] | None:
        """What the call that was begun returned; None if it is not over in time, nothing if none was begun."""
        with self._lock:
            if self._pending is None or self._line is None:
                return []
            try:
                text = self._line.read(timeout_s)
                if text is None:
                    return None
                call, self._pending = self._pending, None
                return parse_reply(text, call)
            except LinkError:
                self.drop()
                raise

    def call(self, call: str, timeout_s: float) -> list[str]:
        """Call and wait for the answer."""
        with self._lock:
            self.send(call)
            values = self.answer(timeout_s)
            if values is None:
                self.drop()
                raise LinkTimeoutError(f"{self._name} did not answer {call} within {timeout_s:g} s")
            return values

    def drop(self) -> None:
        """Hang up; the next call connects anew."""
        if self._line is not None:
            self._line.close()
        self._line, self._pending = None, None

    def close(self) -> None:
        """Give the connection back. Idempotent."""
        self._closed = True
        line = self._line
        if line is not None:
            line.close()


class XpsFocus:
    """One positioner of an XPS: a `axis.FocusAxis`. `open` makes one.

    Attributes
    ----------
    identity : str
        Its firmware's version.
    """

    def __init__(
        self,
        open_port: Callable[[], Transport],
        positioner: str,
        *,
        name: str = "the XPS",
        timeout_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_]+\.[A-Za-z0-9_]+", positioner):
            raise OutOfRangeError(
                f"{positioner!r} is no positioner of an XPS: write GROUP.Positioner, such as FOCUS.Pos"
            )
        self._positioner, self._group, self._timeout_s = positioner, positioner.partition(".")[0], timeout_s
        self._connections: list[Connection] = []
        try:
            for _ in range(3):
                self._connections.append(Connection(open_port, name=name, clock=clock))
            self._mover, self._asker, self._stopper = self._connections
            self.identity = ",".join(self._ask("FirmwareVersionGet(char *)")).strip()
        except BaseException:
            self.close()
            raise
        if "XPS" not in self.identity.upper():
            self.close()
            raise RefusedError(f"{name} says that it is {self.identity!r}, expected an XPS: correct the [focus] port")

    @classmethod
    def open(cls, port: str, positioner: str) -> XpsFocus:
        """Connect to ``tcp://host:5001``. Nothing moves, and nothing is initialised."""
        return cls(lambda: open_transport(port), positioner, name=port)

    def _ask(self, call: str, by: Connection | None = None) -> list[str]:
        return (by or self._asker).call(call, self._timeout_s)

    def _numbers(self, call: str, count: int, by: Connection | None = None) -> list[float]:
        values = self._ask(call, by)
        if len(values) != count:
            raise ProtocolError(f"the XPS answered {call} with {values}, expected {count} numbers")
        return [parse_number(value, "the XPS") for value in values]

    def limits_mm(self) -> tuple[float, float]:
        """See FocusAxis."""
        low_mm, high_mm = self._numbers(f"PositionerUserTravelLimitsGet({self._positioner},double *,double *)", 2)
        return low_mm, high_mm

    def set_limits_mm(self, low_mm: float, high_mm: float) -> None:
        """See FocusAxis."""
        self._ask(f"PositionerUserTravelLimitsSet({self._positioner},{low_mm:.6f},{high_mm:.6f})")

    def position_mm(self) -> float:
        """See FocusAxis."""
        return self._numbers(f"GroupPositionCurrentGet({self._positioner},double *)", 1)[0]

    def _state(self, by: Connection | None = None) -> int:
        return int(self._numbers(f"GroupStatusGet({self._group},int *)", 1, by)[0])

    def check_ready(self) -> None:
        """See FocusAxis."""
        state = self._state()
        if state in READY or state == MOVING:
            return
        if state in DISABLED:
            what = "disabled: look why, then enable its motion in the controller's web page"
        elif state == HOMING:
            what = "searching its reference: wait"
        else:
            what = "not referenced: remove the sphere, then home it (home, or the controller's web page)"
        raise RefusedError(f"the XPS group {self._group} is in state {state}, {what}")

    def start(self, target_mm: float) -> None:
        """See FocusAxis."""
        self._mover.send(f"GroupMoveAbsolute({self._positioner},{target_mm:.6f})")
        deadline_s = time.monotonic() + self._timeout_s
        while self._mover.answer(0.005) is None:
            if self._state() == MOVING:
                return
            if time.monotonic() > deadline_s:
                self._mover.drop()
                self.stop()
                raise LinkTimeoutError(f"the XPS did not begin to move within {self._timeout_s:g} s: it is stopped")

    def moving(self) -> bool:
        """See FocusAxis."""
        return self._mover.answer(0.0) is None or self._state() == MOVING

    def stop(self) -> None:
        """See FocusAxis."""
        try:
            try:
                self._abort()
            except LinkError as exc:  # a connection that nobody used may have died long ago
                log.warning("%s; stopping once more, on a new connection", exc)
                self._abort()
        except RefusedError as exc:
            raise LinkError(f"the focus stage could not be stopped: {exc}") from exc

    def _abort(self) -> None:
        try:
            self._stopper.call(f"GroupMoveAbort({self._group})", self._timeout_s)
        except RefusedError as exc:
            if exc.code != NOT_ALLOWED:
                raise
            # Nothing moves; or a reference is searched, which only a kill ends (XPS programmer's manual: an abort is
            # for groups that move or jog; from the manual, not tried on a controller).
            if self._state(self._stopper) == HOMING:
                log.warning("the reference search is killed: the group has to be initialised and homed anew")
                self._stopper.call(f"GroupKill({self._group})", self._timeout_s)

    def home(self, timeout_s: float) -> None:
        """See FocusAxis."""
        state = self._state()
        if state not in READY and state != NOT_REFERENCED:
            self._ask(f"GroupInitialize({self._group})")
        try:
            self._mover.call(f"GroupHomeSearch({self._group})", timeout_s)
        except FirmwareError:
            self.stop()
            raise

    def close(self) -> None:
        """See FocusAxis."""
        for connection in self._connections:
            connection.close()
