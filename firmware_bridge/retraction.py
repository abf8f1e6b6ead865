"""What the interlock does when something is wrong: out with the bytes first, and z watched until it has arrived.

A stop and z's way out go to the PZT in one write, past any request that waits, and the focus lifts in a thread of its
own: neither waits for an answer, so a controller that is dead does not keep the other. Whether z arrives, and the
focus, is asked afterwards, and each is sent again for as long as it does not: an answer may be garbled, a controller
silent for a while, or a person may have pressed STOP.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

from .errors import FirmwareError, LinkError, LinkTimeoutError
from .position import PositionUm

log = logging.getLogger(__name__)

# z has arrived where its noise says so. It is looked at, and sent again when it came no nearer, each so many seconds;
# a focus that did not lift is sent again as often.
ARRIVED_UM, LOOK_S, AGAIN_S = 0.05, 0.01, 0.1
# The whole travel of a piezo is over after this: then it is said, and z sent again only now and then.
RETRACTION_S, SELDOM_S = 5.0, 1.0


class Retractable(Protocol):
    """What the interlock does to the PZT. Both may raise FirmwareErrors, and are called from any thread."""

    def retract_z(self) -> None:
        """Stop all axes and send z, and z alone, to its end away from the sphere: in one write, past any request that
        waits, and without waiting for an answer.
        """

    def from_away_um(self) -> float:
        """How far z is from that end, measured."""


class Liftable(Protocol):
    """What the interlock does to the focus stage. May raise FirmwareErrors, and is called from any thread."""

    def focus_up(self) -> None:
        """Move away from the sample, whatever it was doing; return when it is up."""

    def lift(self, failed: Callable[[str], None], given_up: threading.Event | None) -> None:
        """Begin the same in a thread, and again until it is up or `given_up`; without that, once.

        It waits for no answer; `failed` is told what could not be done.
        """


class Way:
    """The way out of one fault: from when the fault is latched until z has arrived, or it is given up."""

    def __init__(self) -> None:
        self.given_up = threading.Event()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def follow(self, watch: Callable[[Way], None]) -> None:
        """Run `watch` in a thread; it is over when that ends."""
        with self._lock:
            if self.given_up.is_set():
                return
            self._thread = threading.Thread(target=self._run, args=(watch,), name="retraction", daemon=True)
        self._thread.start()

    def _run(self, watch: Callable[[Way], None]) -> None:
        try:
            watch(self)
        finally:
            self._over.set()

    def unless_given_up(self, action: Callable[[], None]) -> None:
        """Do it, unless it was given up; nobody gives it up meanwhile."""
        with self._lock:
            if not self.given_up.is_set():
                action()

    def give_up(self) -> None:
        """Send nothing any more. Idempotent."""
        with self._lock:
            self.given_up.set()
            if self._thread is None:  # and there will be none
                self._over.set()

    def wait(self, timeout_s: float) -> bool:
        """Whether it is over, at most so many seconds from now."""
        over = self._over.wait(timeout_s)
        if over and self._thread is not None:  # which has begun, and has nothing left to do
            self._thread.join()
        return over


class Retraction:
    """Gets PZT and focus away from the sphere. Any thread; `begin` waits for no answer.

    Parameters
    ----------
    stage, focus, mount
        See `safety.Interlock` and `rules.Rules`.
    """

    def __init__(self, stage: Retractable, focus: Liftable | None, mount: Literal["cantilever", "objective"]) -> None:
        self._stage, self._focus, self._mount = stage, focus, mount
        self._way: Way | None = None

    @property
    def way(self) -> Way | None:
        """The last one that was due."""
        return self._way

    def due(self) -> Way:
        """One has to begin: who waits waits for it from now on, and who gives up gives it up, begun or not."""
        self._way = way = Way()
        return way

    def begin(self, failed: Callable[[str], None], way: Way | None = None) -> None:
        """Send z and the focus away, in the order of the mount.

        Parameters
        ----------
        failed : callable
            Is told what could not be done.
        way : Way, optional
            The one that is `due`: z is watched in a thread until it has arrived, and sent again when it does not; and
            so is the focus. Without it both are sent once.
        """
        actions: list[tuple[str, Callable[[], None]]] = [("retract z", self._stage.retract_z)]
        if self._focus is not None:
            lift = partial(self._focus.lift, failed, None if way is None else way.given_up)
            actions.insert(1 if self._mount == "cantilever" else 0, ("lift the focus", lift))
        with contextlib.ExitStack() as stack:  # runs every action, whatever the one before it raised
            if way is not None:
                stack.callback(way.follow, partial(self._watch, failed))
            for name, action in reversed(actions):
                stack.callback(_attempt, name, action, failed)

    def wait(self, timeout_s: float) -> bool:
        """Whether the last one that was due has arrived, at most so many seconds from now."""
        return self._way is None or self._way.wait(timeout_s)

    def give_up(self) -> None:
        """Send nothing any more: the instrument is closed. Idempotent."""
        if self._way is not None:
            self._way.give_up()

    def _watch(self, failed: Callable[[str], None], way: Way) -> None:
        began_s = sent_s = time.monotonic()
        last_um, said, again, trouble = math.inf, False, True, ""
        while not way.given_up.wait(LOOK_S):
            try:
                left_um = self._stage.from_away_um()
                if left_um <= ARRIVED_UM:
                    log.info("z is retracted")
                    return
                trouble = f"z is {left_um:.3f} um from its end"
            except FirmwareError as exc:
                left_um, trouble = math.inf, str(exc)
            now_s = time.monotonic()
            if not said and now_s - began_s > RETRACTION_S:
                said = True
                failed(f"could not retract z within {RETRACTION_S:g} s: {trouble}")
            if now_s - sent_s < (SELDOM_S if said else AGAIN_S):
                continue
            if not left_um < last_um - ARRIVED_UM:
                log.log(logging.WARNING if again else logging.DEBUG, "z is sent away again: %s", trouble)
                again = False
                with contextlib.suppress(LinkError):  # the next look tells of it
                    way.unless_given_up(self._stage.retract_z)
            last_um, sent_s = left_um, now_s


def _attempt(name: str, action: Callable[[], None], failed: Callable[[str], None]) -> None:
    try:
        action()
    except FirmwareError as exc:
        failed(f"could not {name}: {exc}")


class RetractableStage(Protocol):
    """What a retraction needs of the PZT: a `pzt.PztStage`."""

    @property
    def away_z_um(self) -> float:
        """The end of z that is away from the sphere: the stage alone decides which one that is."""

    def retreat(self, z_um: float) -> None:
        """Stop, and send z there, whatever was under way; waits for no answer."""

    def position_um(self) -> PositionUm:
        """Measured."""


class PztRetraction:
    """What the interlock does to a PztStage: a `Retractable`.

    It is made first, then the interlock with it, then the stage with the interlock as its guard; then it is bound.
    """

    def __init__(self) -> None:
        self._stage: RetractableStage | None = None

    def bind(self, stage: RetractableStage) -> None:
        """Name the stage."""
        self._stage = stage

    def retract_z(self) -> None:
        """See Retractable. With an open servo the controller refuses it (error 5), which harms nobody."""
        stage = self._bound()
        stage.retreat(stage.away_z_um)

    def from_away_um(self) -> float:
        """See Retractable."""
        stage = self._bound()
        return abs(stage.position_um().z - stage.away_z_um)

    def _bound(self) -> RetractableStage:
        if self._stage is None:
            raise LinkError("no PZT stage is open, so it can neither be stopped nor retracted")
        return self._stage


class LiftedStage(Protocol):
    """What a retraction needs of the focus stage: a `focus.FocusStage`."""

    def focus_up(self, *, wait: bool = False) -> None:
        """Move away from the sample."""


class FocusRetraction:
    """What the interlock does to a FocusStage: a `Liftable`. Bound as a PztRetraction is.

    In a fault it lifts in a thread of its own: a focus controller on a slow line takes 50 ms to begin, and the PZT,
    whose turn comes after it when the objective carries the sphere, must not wait for that.
    """

    def __init__(self) -> None:
        self._stage: LiftedStage | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._failure: FirmwareError | None = None

    def bind(self, stage: LiftedStage) -> None:
        """Name the stage."""
        self._stage = stage

    def focus_up(self) -> None:
        """See Liftable."""
        self._bound().focus_up(wait=True)

    def lift(self, failed: Callable[[str], None], given_up: threading.Event | None) -> None:
        """See Liftable."""
        stage = self._bound()
        with self._lock:  # a thread is known only when it has begun
            self._failure = None
            thread = threading.Thread(target=self._lift, args=(stage, failed, given_up), name="focus lift", daemon=True)
            thread.start()
            self._thread = thread

    def _lift(self, stage: LiftedStage, failed: Callable[[str], None], given_up: threading.Event | None) -> None:
        began_s, said, again = time.monotonic(), False, True
        while True:
            try:
                stage.focus_up(wait=True)
                failure = None
            except FirmwareError as exc:
                failure = exc
            with self._lock:
                if self._thread is not threading.current_thread():  # another lift has taken over, and stopped this one
                    return
                self._failure = failure
            if failure is None:
                log.info("the focus is up")
                return
            log.log(logging.WARNING if again else logging.DEBUG, "the focus did not lift: %s", failure)
            again = False
            if not said and (given_up is None or time.monotonic() - began_s > RETRACTION_S):
                said = True
                failed(f"could not lift the focus: {failure}")
            if given_up is None or given_up.wait(SELDOM_S if said else AGAIN_S):
                return

    def check(self, *, timeout_s: float) -> None:
        """Wait until the last lift has arrived, and raise what kept it from doing so."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        with self._lock:
            failure = self._failure
        if failure is not None:
            raise failure
        if thread is not None and thread.is_alive():
            raise LinkTimeoutError(f"the focus was not up within {timeout_s:g} s: look, and cut its power if it stands")

    def wait(self, timeout_s: float) -> None:
        """Wait until nothing is tried any more, at most so many seconds."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _bound(self) -> LiftedStage:
        if self._stage is None:
            raise LinkError("no focus stage is open, so it cannot be lifted")
        return self._stage
