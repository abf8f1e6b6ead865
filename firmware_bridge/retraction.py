"""What the interlock does when something is wrong: out with the bytes first, and z watched until it has arrived.

A stop and z's way out go to the PZT in one write, past any request that waits, and the focus lifts in a thread of its
own: neither waits for an answer, so a controller that is dead does not keep the other. Whether z arrives is asked
afterwards, and it is sent again for as long as it does not: an answer may be garbled, the controller silent for a
while, or a person may have pressed STOP.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Literal, Protocol

from .errors import FirmwareError, LinkError, LinkTimeoutError
from .position import PositionUm

log = logging.getLogger(__name__)

# z has arrived where its noise says so. It is looked at, and sent again when it came no nearer, each so many seconds.
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

    def focus_up(self, *, wait: bool = False) -> None:
        """Move away from the sample, whatever it was doing; return when it has begun, or, to `wait`, when it is up."""


class Retraction:
    """Gets PZT and focus away from the sphere. Any thread; `begin` waits for no answer.

    Parameters
    ----------
    stage, focus, mount
        See `safety.Interlock` and `rules.Rules`.
    """

    def __init__(self, stage: Retractable, focus: Liftable | None, mount: Literal["cantilever", "objective"]) -> None:
        self._stage, self._focus, self._mount = stage, focus, mount
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._given_up = threading.Event()

    def begin(self, failed: Callable[[str], None], *, follow: bool) -> None:
        """Send z and the focus away, in the order of the mount.

        Parameters
        ----------
        failed : callable
            Is told what could not be done.
        follow : bool
            Watch z in a thread until it has arrived, and send it again when it does not.
        """
        z: tuple[str, Callable[[], None]] = ("retract z", self._stage.retract_z)
        up = [] if self._focus is None else [("lift the focus", self._focus.focus_up)]
        actions = [z, *up] if self._mount == "cantilever" else [*up, z]
        with contextlib.ExitStack() as stack:  # runs every action, whatever the one before it raised
            if follow:
                stack.callback(self._follow, failed)
            for name, action in reversed(actions):
                stack.callback(_attempt, name, action, failed)

    def wait(self, timeout_s: float) -> bool:
        """Whether the last retraction that is followed has arrived, at most so many seconds from now."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        return thread is None or not thread.is_alive()

    def give_up(self) -> None:
        """Send nothing any more: a person has looked, or the instrument is closed. Idempotent."""
        with self._lock:
            self._given_up.set()

    def _follow(self, failed: Callable[[str], None]) -> None:
        with self._lock:
            self._given_up.set()
            self._given_up = threading.Event()
            self._thread = threading.Thread(
                target=self._watch, args=(self._given_up, failed), name="retraction", daemon=True
            )
            self._thread.start()

    def _watch(self, given_up: threading.Event, failed: Callable[[str], None]) -> None:
        began_s = sent_s = time.monotonic()
        last_um, said, again, trouble = math.inf, False, True, ""
        while not given_up.wait(LOOK_S):
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
                with self._lock, contextlib.suppress(LinkError):  # the next look tells of it
                    if given_up.is_set():  # meanwhile; and from then on nothing is sent
                        return
                    self._stage.retract_z()
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
        self._thread: threading.Thread | None = None
        self._failure: FirmwareError | None = None

    def bind(self, stage: LiftedStage) -> None:
        """Name the stage."""
        self._stage = stage

    def focus_up(self, *, wait: bool = False) -> None:
        """See Liftable."""
        stage = self._stage
        if stage is None:
            raise LinkError("no focus stage is open, so it cannot be lifted")
        if wait:
            stage.focus_up(wait=True)
            return
        self._failure = None
        self._thread = threading.Thread(target=self._lift, args=(stage,), name="focus lift", daemon=True)
        self._thread.start()

    def _lift(self, stage: LiftedStage) -> None:
        try:
            stage.focus_up()
        except FirmwareError as exc:
            self._failure = exc
            log.critical("could not lift the focus, cut its power: %s", exc)

    def check(self, *, timeout_s: float = 5.0) -> None:
        """Wait until the last lift has begun, and raise what kept it from doing so."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                raise LinkTimeoutError(f"the focus has not begun to lift within {timeout_s:g} s: cut its power")
        if self._failure is not None:
            raise self._failure
