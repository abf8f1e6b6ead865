"""One move at a time, from its command to the proof that the stage is at rest; to the stop, if anything goes wrong."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from . import gcs
from .controller import Controller
from .errors import (
    LinkError,
    LinkTimeoutError,
    OutOfRangeError,
    ProtocolError,
    RefusedError,
    ServoLostError,
    StoppedError,
)
from .finite import check_positive
from .guard import MotionGuard
from .position import PositionUm
from .settling import Settling
from .stops import Stops

log = logging.getLogger(__name__)

T = TypeVar("T")

# Between two looks at a moving stage: less than a settling time, and no busy loop.
POLL_S = 0.001
# A stop ends a wait for a long slew after this at the latest.
LONGEST_PAUSE_S = 0.05
# A stage that is not on target so long after its motion may have lost its servo: it is asked.
SUSPECT_S = 0.05
# So often is what has to be the same twice asked for.
ATTEMPTS = 3


@dataclass(frozen=True)
class Rest:
    """What counts as at rest on a target.

    Attributes
    ----------
    tolerance_um, noise_um : float
        A returned position is at most this far from its target, and its readings from each other.
    readings : int
        How often the position is read. GCS has no checksum: one reading is believed by its nearness to the target
        alone.
    timeout_s : float
        From the end of the motion, seconds.
    """

    tolerance_um: float = 0.02
    noise_um: float = 0.004
    readings: int = 2
    timeout_s: float = 1.0

    def __post_init__(self) -> None:
        check_positive(tolerance_um=self.tolerance_um, noise_um=self.noise_um, settle_timeout_s=self.timeout_s)
        if self.readings not in (1, 2):
            raise OutOfRangeError(f"{self}: expected 1 or 2 readings")


class Mover:
    """Moves of one controller.

    Parameters
    ----------
    controller : Controller
        What is moved.
    rest : Rest
        When a move is over.
    guard : MotionGuard
        Is told of each answer, and when position and contact become invalid.
    clock, sleep : callable
        Seconds, monotonic; and waiting.

    Attributes
    ----------
    ready : bool
        A move will move: the servo was closed knowingly, and nothing has happened since.
    began_s : tuple of float
        The last motion began between these two times on the clock: before its command was sent, and after the
        controller had accepted it.
    stops : Stops
        A move is given the one before it (`Stops.since`), and ends with a StoppedError when another one comes.
    slew_um_s : float
        What the set point moves by, for waiting and not for safety.
    """

    def __init__(
        self,
        controller: Controller,
        rest: Rest,
        guard: MotionGuard,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.controller, self.guard = controller, guard
        self.ready = False
        self.began_s = (clock(), clock())
        self.slew_um_s = 1e9
        # Where the last move ended and what was commanded; None when anything may have happened since.
        self._rested_um: PositionUm | None = None
        self._held_um: PositionUm | None = None
        self._rest, self._clock, self._sleep = rest, clock, sleep
        self._settling = Settling()
        self._lock = threading.Lock()
        self.stops = Stops("the move was stopped; the stage holds where it came to rest", code=gcs.STOPPED)
        self._unread_stop: object = None  # the stop whose error 10 nobody has read yet
        self._under_way: object = None  # the last stop before the motion that is, unless it is a retraction

    @contextmanager
    def alone(self, *, wait_s: float = 0.0) -> Iterator[None]:
        """Nothing else moves meanwhile; RefusedError where something does, and still does after `wait_s`."""
        if not self._lock.acquire(timeout=wait_s):
            raise RefusedError("another move is under way: wait for it, or stop it")
        try:
            yield
        finally:
            self._lock.release()

    def ask(self, question: Callable[[], T]) -> T:
        """Ask the controller, and tell the guard of the answer, or that there is nobody any more."""
        try:
            answer = question()
        except LinkError:
            if self.controller.link.lost:
                self.invalidate(self.controller.link.lost)
            raise
        self.guard.polled()
        return answer

    def agreed(self, mnemonic: str, *, within_um: float = 0.0) -> PositionUm:
        """What the controller answers twice. GCS has no checksum, and what is relied on must not be one digit off.

        Raises
        ------
        ProtocolError
            Three times it was not the same.
        """
        for _ in range(ATTEMPTS):
            first, second = self.ask(lambda: self.controller.read(mnemonic, times=2))
            if distance_um(first, second) <= within_um:
                return second
            log.warning("two answers to %s differ: %s, %s; asking again", mnemonic, first, second)
        raise ProtocolError(f"{ATTEMPTS} times two answers to {mnemonic} differed: a bad cable, or the stage is moving")

    def here_um(self) -> PositionUm:
        """Where the stage rests: known from its last move, or else measured."""
        return self._rested_um or self.resting_um()

    def resting_um(self) -> PositionUm:
        """Where the stage rests, measured."""
        return self.agreed("POS?", within_um=self._rest.noise_um)

    def invalidate(self, why: str) -> None:
        """From now on nothing is known of position and contact, and nothing moves until the servo is closed again."""
        self.unready()
        self.guard.lost(why)

    def unready(self) -> None:
        """The same, where the guard knows it already."""
        self.ready = False
        self.forget()

    def forget(self) -> None:
        """Where the stage is has to be asked."""
        self._rested_um = self._held_um = None

    def stop(self) -> object:
        """Stop at once, from any thread; which stop it was, for a move that comes after it."""
        stop = self.halt()
        self._read_stop()
        return stop

    def halt(self, then: bytes = b"") -> object:
        """The bytes of a stop, and of commands behind it: waits for nobody, and asks nothing."""
        stop = self._unread_stop = self.stops.new()
        self.forget()
        self.controller.stop(then)
        log.info("stop sent%s", f", and {then!r}" if then else "")
        return stop

    def _read_stop(self) -> None:
        # The error 10 of a stop is not to be taken for the answer to the next command.
        stop = self._unread_stop
        if stop is None:
            return
        code = self.ask(self.controller.error)
        if self._unread_stop is stop:
            self._unread_stop = None
        if code not in (0, gcs.STOPPED):
            log.warning("after a stop the controller reports %s", gcs.meaning(code))

    def _stop_own(self, last_stop: object) -> None:
        # Of the move that failed: no stop to a series, and not sent where another stop came, which may go on (`halt`).
        self.forget()
        self.controller.stop(before_sending=lambda: self.stops.check(last_stop))
        self._unread_stop = object()
        self._read_stop()

    def move(
        self, target_um: PositionUm, last_stop: object, timeout_s: float, *, only: slice = slice(None)
    ) -> PositionUm:
        """Command the axes `only`, wait until all rest, and these on `target_um`, and measure. `alone` is held."""
        held_um = self._held_um or (None,) * 3
        self.forget()
        axes = list(zip(self.controller.axes, target_um, held_um, strict=True))[only]
        # What the controller holds already is not sent again, unless there would be nothing to send.
        command_um = {axis: wanted for axis, wanted, held in axes if wanted != held}
        command_um = command_um or {axis: wanted for axis, wanted, _ in axes}
        ways_um = [abs(wanted - held) for _, wanted, held in axes if held is not None]
        slew_s = max(ways_um) / self.slew_um_s if ways_um else None
        self._read_stop()
        with self.stopping_on_errors(last_stop, retracts=only != slice(None)):
            self._begin(gcs.set_line("MOV", command_um), last_stop)
            measured_um = self._settle(target_um, last_stop, timeout_s, slew_s, only)
        self._rested_um, self._held_um = measured_um, target_um
        if self.stops.came(last_stop):  # looked at last: a stop forgets after it has become the last one
            self.forget()
        return measured_um

    def run(
        self,
        start: bytes,
        done: Callable[[], bool],
        last_stop: object,
        timeout_s: float,
        what: str,
        *,
        ends_um: PositionUm | None = None,
    ) -> None:
        """Send a command that moves the stage by itself, wait until it is done, and at rest. `alone` is held."""
        self.forget()
        self._read_stop()
        with self.stopping_on_errors(last_stop):
            self._begin(start, last_stop)
            deadline_s = self._clock() + timeout_s
            while not self.ask(done):
                self.stops.check(last_stop)
                if self._clock() > deadline_s:
                    raise LinkTimeoutError(f"{what} is not over within {timeout_s:g} s: it is stopped now")
                self._sleep(POLL_S)
            self.stops.check(last_stop)
            if ends_um is not None:
                self._settle(ends_um, last_stop, timeout_s, None)

    def _begin(self, motion: bytes, last_stop: object) -> None:
        sent_s = self._clock()

        def sending() -> None:
            nonlocal sent_s
            self.stops.check(last_stop)
            sent_s = self._clock()

        self.ask(lambda: self.controller.command(motion, before_sending=sending))
        self.began_s = (sent_s, self._clock())

    @contextmanager
    def stopping_on_errors(self, last_stop: object, *, retracts: bool = False) -> Iterator[None]:
        """Whatever goes wrong after a motion was commanded, the stage is stopped before the caller hears of it.

        Also a Ctrl-C. Where somebody else stopped it meanwhile, it is not stopped again.
        """
        self._under_way = None if retracts else last_stop
        try:
            yield
        except RefusedError as exc:
            self._stop_own(last_stop)  # the error may have been another's or one digit off, and the stage moving
            open_loops = self.ask(self.controller.open_loops) if exc.code == gcs.SERVO_OFF else ""
            if open_loops:
                raise self._servo_lost(open_loops) from exc
            raise
        except BaseException:
            try:
                self._stop_own(last_stop)
            except StoppedError as exc:
                log.info("%s", exc)
            except LinkError as exc:
                log.error("the stage could not be stopped, and may be moving: %s", exc)
            raise
        finally:
            self._under_way = None

    def end(self) -> None:
        """Stop the motion that is under way, and hear that it was; not a retraction, which may go on."""
        last_stop = self._under_way
        if last_stop is None:
            return
        try:
            self._stop_own(last_stop)
            self.stops.new()  # so that who waits for the motion hears of it
        except StoppedError as exc:
            log.info("%s", exc)
        except LinkError as exc:
            log.error("the stage could not be stopped as it is closed, and may be moving: %s", exc)

    def _settle(
        self,
        target_um: PositionUm,
        last_stop: object,
        timeout_s: float,
        slew_s: float | None,
        only: slice = slice(None),
    ) -> PositionUm:
        deadline_s = self.began_s[1] + timeout_s
        arrived_s: float | None = None
        suspected = too_early = False
        if slew_s is not None:
            self.pause(min(slew_s + self._settling.wait_s, timeout_s), last_stop)
        while True:
            self.stops.check(last_stop)
            looked_s = self._clock()
            seen = self.ask(lambda: self.controller.look(self._rest.readings))
            if arrived_s is None and not seen.moving:
                arrived_s = self._clock()
                deadline_s = min(deadline_s, arrived_s + self._rest.timeout_s)
            rests = seen.on_target and not seen.moving
            if rests and self._agree(seen.positions_um, target_um, only):
                self.stops.check(last_stop)
                if slew_s is not None:  # else it is not known what was slew
                    self._settling.learn(too_early=too_early)
                return seen.positions_um[-1]
            too_early = too_early or not rests
            if not rests and not suspected and looked_s > (arrived_s or looked_s) + self._settling.wait_s + SUSPECT_S:
                suspected = True
                open_loops = self.ask(self.controller.open_loops)
                if open_loops:
                    raise self._servo_lost(open_loops)
            self._check_before(deadline_s, target_um, timeout_s)
            self.pause(POLL_S, last_stop)

    def _agree(self, readings_um: Sequence[PositionUm], target_um: PositionUm, only: slice) -> bool:
        apart_um = distance_um(readings_um[0], readings_um[-1])
        if apart_um > self._rest.noise_um:
            # Within the tolerance it may still be settling; beyond it, it was the wire.
            level = logging.WARNING if apart_um > self._rest.tolerance_um else logging.DEBUG
            log.log(level, "two readings differ: %s; reading again", readings_um)
            return False
        return distance_um(tuple(readings_um[-1])[only], tuple(target_um)[only]) <= self._rest.tolerance_um

    def _servo_lost(self, found: str) -> ServoLostError:
        why = f"{found}: the controller was started anew, or switched over at its front panel"
        self.invalidate(why)
        return ServoLostError(f"{why}. Position and contact are unknown: lift the sphere, then servo_on()")

    def _check_before(self, deadline_s: float, target_um: PositionUm, timeout_s: float) -> None:
        if self._clock() > deadline_s:
            (here_um,) = self.ask(lambda: self.controller.read("POS?"))
            raise LinkTimeoutError(
                f"not settled on {target_um} within {timeout_s:g} s, or {self._rest.timeout_s:g} s after the motion: "
                f"it was at {here_um} and is stopped now; check servo, load and velocity"
            )

    def pause(self, seconds: float, last_stop: object) -> None:
        """Wait, or raise StoppedError soon after a stop."""
        end_s = self._clock() + seconds
        while (left_s := end_s - self._clock()) > 0:
            self._sleep(min(left_s, LONGEST_PAUSE_S))
            self.stops.check(last_stop)


def distance_um(a: Sequence[float], b: Sequence[float]) -> float:
    """The largest distance in one axis."""
    return max(abs(p - q) for p, q in zip(a, b, strict=True))
