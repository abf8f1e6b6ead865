"""The interlock: the one place that says what may move. A state machine without I/O; time comes from outside.

::

                 arm(by)              begin_approach(here)            engage(here)
    DISARMED -------------> ARMED ------------------------> APPROACHING ------------> ENGAGED
     |  ^  ^                |  ^ ^                               |                       |
     |  |  |   lost(why)    |  | +---- retracted(here) ----------+                       |
     |  |  +----------------+  +------ retracted(here) ----------------------------------+
     |  |                   |                                    |                       |
     |  | reset(by)         v       overload, stale sample       v                       v
     |  +---------------- FAULT <--------------------------------+-----------------------+
     |                      ^       silent link (any state but DISARMED), lost(why) once it approaches
     +----------------------+
      overload, stale sample

A fault is latched first, so that nothing may move any more, and then retracts: stop, PZT z and focus in the order that
the mount of the sphere wants; z is sent again until it has arrived, or a person resets. A loss does the same once,
unless the sphere is lifted. As it may have been left in contact, it is armed, with a contact guard, only where the
signal is below the set point, and z at its end away from the sphere or the sphere lifted by a person's word.

What may move where:

    always        a pure retraction: z away from the sphere, x and y where they are; the focus stage away
    DISARMED      nothing else
    ARMED         steps up to max_step_um; towards the sphere only without a contact guard or while a person says that
                  the sphere is lifted: with a guard that is what an approach is for, and all steps together may be
                  no more than standing still is
    APPROACHING   z alone, in small steps, each after a contact sample, for a bounded way and time
    ENGAGED       small steps, slower, with a contact guard that is alive
    FAULT         nothing else, until a person resets it

The cantilever holds the sphere beside the objective, so only the PZT can separate sphere and sample: z goes to its end
first, then the focus up; with the servo open z cannot be moved at all, and closing it (the stage may jump) needs a
person's word that the sphere is lifted. A sphere on the objective goes up with the focus: focus first, then z.

Software can retract through a link that works. Against a dead one only hardware helps; see docs/bring-up.md.
"""

from __future__ import annotations

import enum
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from .errors import FirmwareError, OutOfRangeError, RefusedError
from .position import Box, PositionUm
from .retraction import ARRIVED_UM, Liftable, Retractable, Retraction
from .rules import ApproachBounds
from .rules import Rules as Rules

log = logging.getLogger(__name__)

CLOSE_S = 10.0  # a retraction that is given up may wait for its time-outs


class State(enum.Enum):
    """Where the interlock stands; drawn at the top of this file."""

    DISARMED = "disarmed"
    ARMED = "armed"
    APPROACHING = "approaching"
    ENGAGED = "engaged"
    FAULT = "fault"


class Interlock:
    """Says what may move, and retracts when something is wrong. Safe to use from several threads.

    It is the MotionGuard of a PztStage (`check_move`, `check_servo`, `polled`, `lost`) and the guard of a focus stage
    (`check_focus`). Somebody has to call `tick` a few times a second: the contact monitor's thread, the
    watch and the daemon's heartbeat all do, so that each watches the others.

    Parameters
    ----------
    rules : Rules
        What is allowed.
    stage : Retractable
        The PZT.
    focus : Liftable, optional
        The focus stage, where there is one.
    clock : callable
        Seconds, monotonic.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        stage: Retractable,
        focus: Liftable | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules = rules
        self._stage, self._focus, self._clock = stage, focus, clock
        self._retraction = Retraction(stage, focus, rules.mount)
        self._lock = threading.RLock()  # never held while an action runs: the action's own exchange calls polled()
        self._state = State.DISARMED
        self._why: str | None = None
        self._lifted = False
        self._polled_s: float | None = None
        self._sampled_s: float | None = None
        self._overloaded = self._touches = False
        self._crept_um = 0.0  # sideways, in all, by retractions while nothing may move
        self._farthest_um = math.inf  # from the sphere since it was armed or retracted, z * z_sign: lower is farther
        self._approach: ApproachBounds | None = None  # the one under way, or that led here

    @property
    def state(self) -> State:
        """Where it stands."""
        return self._state

    @property
    def rules(self) -> Rules:
        """What is allowed; `narrow` alone changes it."""
        return self._rules

    @property
    def why(self) -> str | None:
        """The reason for a fault or a loss; None when armed."""
        return self._why

    @property
    def velocity_limit_um_s(self) -> float:
        """How fast the PZT may move now."""
        most_um_s = self.rules.max_velocity_um_s
        near = self._state in (State.APPROACHING, State.ENGAGED)
        return min(most_um_s, self.rules.engaged_velocity_um_s) if near else most_um_s

    def narrow(self, *, limits_um: Box, max_velocity_um_s: float) -> None:
        """Allow less, while disarmed: what the stage that was opened can do. Where the rules are tighter they stay.

        Raises
        ------
        RefusedError
            It is not disarmed.
        OutOfRangeError
            Limits that leave no position, or a velocity that is not a positive number.
        """
        with self._lock:
            self._require(State.DISARMED, "rules are narrowed")
            self._rules = replace(
                self._rules,
                limits_um=limits_um.intersect(self._rules.limits_um),
                max_velocity_um_s=min(max_velocity_um_s, self._rules.max_velocity_um_s),
            )

    def check_armed(self) -> None:
        """Refuse (RefusedError) unless it is armed and the PZT controller answers: a search asks before each step."""
        if self._state is State.FAULT:
            raise RefusedError(f"a fault is latched ({self._why}): a person has to look and reset it")
        if self._state is State.DISARMED:
            reason = f" ({self._why})" if self._why else ""
            raise RefusedError(f"not armed{reason}: check that nothing can collide, then arm")
        if self._age_s(self._polled_s) > self.rules.poll_timeout_s:
            raise RefusedError(f"the PZT controller did not answer for {self.rules.poll_timeout_s:g} s")

    def check_velocity(self, velocity_um_s: float) -> None:
        """Refuse a velocity that is not allowed now (OutOfRangeError)."""
        if not 0 < velocity_um_s <= self.velocity_limit_um_s:  # NaN is not, either
            raise OutOfRangeError(
                f"a velocity of {velocity_um_s} um/s while {self._state.value}: at most "
                f"{self.velocity_limit_um_s:g} um/s are allowed"
            )

    def check_move(self, here_um: PositionUm, target_um: PositionUm) -> None:
        """Refuse a move of the PZT that is not allowed now. Ask at the last moment before it is sent.

        Raises
        ------
        OutOfRangeError
            Not finite, out of the limits, or too large a step.
        RefusedError
            Not in this state.
        """
        here_um, target_um = PositionUm(*here_um), PositionUm(*target_um)
        self._finite(here_um, target_um)
        if not self.rules.limits_um.contains(target_um):
            raise OutOfRangeError(f"target {target_um} lies outside the limits {self.rules.limits_um}")
        towards_um = (target_um.z - here_um.z) * self.rules.z_sign
        sideways_um = max(abs(target_um.x - here_um.x), abs(target_um.y - here_um.y))
        with self._lock:
            self._farthest_um = min(self._farthest_um, here_um.z * self.rules.z_sign)
            if towards_um <= 0 and self._stands_still(sideways_um):
                return
            self.check_armed()
            if self._state is State.ARMED:
                self._check_step(max(sideways_um, abs(towards_um)), self.rules.max_step_um)
                in_all_um = target_um.z * self.rules.z_sign - self._farthest_um  # many small steps are a long way
                if self.rules.contact and not self._lifted and in_all_um > self.rules.hold_um:
                    raise RefusedError(
                        f"{in_all_um:.3f} um towards the sphere, in all: approach it (contact approach), or lift the "
                        "sphere and say so (sphere_lifted)"
                    )
            elif self._state is State.APPROACHING:
                self._check_approach(target_um.z, towards_um, sideways_um)
            else:
                self._require_contact()
                self._check_step(sideways_um, self.rules.engaged_step_um)
                self._check_step(abs(towards_um), self.rules.engaged_z_step_um)

    def check_servo(self) -> None:
        """Refuse to close the servo unless the sphere is out of the way, and lift the focus first where there is one.

        Raises
        ------
        RefusedError
            A fault is latched, nobody said that the sphere is lifted, or the focus stage cannot be lifted.
        """
        with self._lock:
            if self._state is State.FAULT:
                raise RefusedError(f"a fault is latched ({self._why}): a person has to look and reset it first")
            if self._state in (State.APPROACHING, State.ENGAGED):
                raise RefusedError(f"the servo is not closed while {self._state.value}: retract first")
            if not self._lifted and (self.rules.mount == "cantilever" or self._focus is None):
                raise RefusedError(
                    "closing the servo may make the stage jump, and nothing here can lift the sphere: lift it, then "
                    "say so (--sphere-lifted)"
                )
        if self._focus is not None:
            try:
                self._focus.focus_up()
            except FirmwareError as exc:
                raise RefusedError(f"the focus stage cannot be lifted, so the servo stays open: {exc}") from exc

    def check_focus(self, here_um: float, target_um: float) -> None:
        """Refuse a move of the focus stage that is not allowed now; + is away from the sample, and always allowed.

        Raises
        ------
        OutOfRangeError
            Not finite.
        RefusedError
            Towards the sample in a state, or with a mount, where it could touch.
        """
        if not (math.isfinite(here_um) and math.isfinite(target_um)):
            raise OutOfRangeError(f"a focus move from {here_um} to {target_um} um: expected finite positions")
        if target_um >= here_um:
            return
        with self._lock:
            self.check_armed()
            if self.rules.mount == "objective" and self._state is not State.ARMED:
                raise RefusedError(
                    f"the objective carries the sphere and is {self._state.value}: it does not go nearer; retract first"
                )

    def polled(self) -> None:
        """An exchange with the PZT controller succeeded. Takes no lock, so it may be called with any lock held."""
        self._polled_s = self._clock()

    def lost(self, why: str) -> None:
        """The servo was found off, the controller rebooted, or its link broke: position and contact are unknown.

        Near the sphere that is a fault. Otherwise it disarms, and retracts what still can be, unless the sphere is
        lifted.
        """
        with self._lock:
            self._polled_s = None
            lifted, self._lifted = self._lifted, False
            was = self._state
            if was in (State.DISARMED, State.ARMED):
                self._state, self._why = State.DISARMED, why
        if was in (State.APPROACHING, State.ENGAGED):
            self._fault(f"near the sphere, {why}")
        elif was is State.ARMED:
            try:
                if not lifted:
                    self._retraction.begin(self._failed)
            finally:
                log.warning("disarmed: %s", why)

    def disarm(self, why: str) -> None:
        """From ARMED to DISARMED, knowingly: nothing is retracted, because nothing has gone wrong.

        Raises
        ------
        RefusedError
            Near the sphere, or in a fault.
        """
        with self._lock:
            if self._state not in (State.DISARMED, State.ARMED):
                raise RefusedError(f"{why}, and this is {self._state.value}: retract, and reset what is latched, first")
            self._state, self._why, self._polled_s = State.DISARMED, why, None
        log.info("disarmed: %s", why)

    def sampled(self, asked_s: float, *, touches: bool) -> None:
        """A contact sample came, below the overload.

        Parameters
        ----------
        asked_s : float
            When it was asked for, on this clock: it says nothing of a step that came later.
        touches : bool
            Whether it is at the set point or beyond.
        """
        with self._lock:
            self._sampled_s, self._overloaded, self._touches = self._clock(), False, touches
            if self._approach is not None:
                self._approach.sampled(asked_s)

    def overload(self, why: str) -> None:
        """The contact is beyond its overload, or the guard cannot tell: stop and retract at once."""
        with self._lock:
            self._overloaded = True
        self._fault(why)

    def sphere_lifted(self, *, by: str) -> None:
        """A person says that the sphere is lifted. Holds until it is armed or approaches, or something goes wrong."""
        self._named(by)
        with self._lock:
            if self._state in (State.APPROACHING, State.ENGAGED):
                raise RefusedError(f"the sphere cannot be lifted: it is {self._state.value}; retract first")
            self._lifted = True
        log.info("%s says that the sphere is lifted", by)

    def arm(self, *, by: str) -> None:
        """Allow moves, knowingly. With a contact guard the stage is asked where z is.

        Raises
        ------
        RefusedError
            A fault is latched, or the controller was not heard from. With a contact guard: it is silent, overloaded or
            at its set point, or z is not at its end away from the sphere and nobody said that the sphere is lifted.
        LinkError
            The stage does not say where z is.
        """
        self._named(by)
        self._check_arm()
        if self.rules.contact and not self._lifted:
            left_um = self._stage.from_away_um()
            if not left_um <= ARRIVED_UM:
                raise RefusedError(
                    f"z is {left_um:.3f} um from its end away from the sphere, which it may touch: retract (park), or "
                    "lift the sphere and say so (sphere_lifted)"
                )
        with self._lock:
            self._check_arm()  # again: much may have happened meanwhile
            self._state, self._why, self._lifted, self._crept_um = State.ARMED, None, False, 0.0
            self._farthest_um = math.inf
        log.info("armed by %s", by)

    def _check_arm(self) -> None:
        with self._lock:
            if self._state is State.FAULT:
                raise RefusedError(f"a fault is latched ({self._why}): a person has to look and reset it first")
            if self._state is not State.DISARMED:
                raise RefusedError(f"already {self._state.value}")
            if self._age_s(self._polled_s) > self.rules.poll_timeout_s:
                raise RefusedError("the position is unknown: reconnect to the PZT controller and read it, then arm")
            if self.rules.contact:
                self._require_contact()
                if self._touches:
                    raise RefusedError("the contact is at its set point: retract (park), or lift the sphere, then arm")

    def begin_approach(self, here_um: PositionUm) -> None:
        """From ARMED: allow small steps towards the sphere, from here on."""
        self._finite(here_um)
        with self._lock:
            self._require(State.ARMED, "an approach begins")
            if not self.rules.contact:
                raise RefusedError("no contact guard is fitted, so nothing would end an approach: configure one")
            self._require_contact()
            self._lifted = False
            self._approach = ApproachBounds(self.rules, here_um.z, self._clock())
            self._state = State.APPROACHING
        log.info("approaching from %s", here_um)

    def engage(self, here_um: PositionUm) -> None:
        """From APPROACHING: the set point is reached here."""
        self._finite(here_um)
        with self._lock:
            self._require(State.APPROACHING, "the sphere engages")
            self._bounds().engaged(here_um.z)
            self._state = State.ENGAGED
        log.info("engaged at %s", here_um)

    def retracted(self, here_um: PositionUm) -> None:
        """From APPROACHING or ENGAGED: the sample is away from the sphere, measured."""
        with self._lock:
            if self._state not in (State.APPROACHING, State.ENGAGED):
                raise RefusedError(f"there is nothing to retract from: {self._state.value}")
            self._bounds().check_clear(here_um.z)
            self._state, self._farthest_um = State.ARMED, math.inf
        log.info("retracted to %s", here_um)

    def reset(self, *, by: str) -> None:
        """From FAULT to DISARMED, by a person who has looked."""
        self._named(by)
        with self._lock:
            self._require(State.FAULT, "a fault is reset")
            if self._overloaded:
                raise RefusedError("the contact is still overloaded: lift the sphere, then reset")
            self._state, self._why, self._lifted, self._polled_s = State.DISARMED, None, False, None
            way = self._retraction.way  # of this fault: the next one may come before it is given up
        if way is not None:
            way.give_up()
        log.warning("fault reset by %s", by)

    def tick(self) -> None:
        """Look at the clock: no successful poll, or no contact sample near the sphere, for too long is a fault."""
        why = None
        with self._lock:
            if self._state in (State.DISARMED, State.FAULT):
                return
            if self._age_s(self._polled_s) > self.rules.poll_timeout_s:
                why = f"no answer from the PZT controller for {self.rules.poll_timeout_s:g} s"
            elif self._state is not State.ARMED and self._age_s(self._sampled_s) > self.rules.contact_timeout_s:
                why = f"no contact sample for {self.rules.contact_timeout_s:g} s"
        if why is not None:
            self._fault(why)

    def wait_retracted(self, *, timeout_s: float) -> bool:
        """Whether the retraction of a fault has arrived, within so many seconds; True where there was none."""
        return self._retraction.wait(timeout_s)

    def close(self) -> None:
        """Give up a retraction that has not arrived: nothing is left to be told. Idempotent."""
        self._retraction.give_up()
        self._retraction.wait(CLOSE_S)

    def _fault(self, why: str) -> None:
        with self._lock:
            if self._state is State.FAULT:
                return
            way = self._retraction.due()  # before anybody sees the fault, and waits for it
            self._state, self._why, self._crept_um = State.FAULT, why, 0.0
        try:
            self._retraction.begin(self._failed, way)
        finally:  # the bytes first: a log may be slow
            log.error("FAULT: %s; stopping and retracting", why)

    def _failed(self, what: str) -> None:
        with self._lock:
            if self._why is not None:  # else a person has reset it meanwhile
                self._why = f"{self._why}; {what}"
        log.critical("%s; cut the power", what)

    def _stands_still(self, sideways_um: float) -> bool:
        if sideways_um > self.rules.hold_um:
            return False
        if self._state in (State.DISARMED, State.FAULT):  # many small ways are a long one
            if self._crept_um + sideways_um > self.rules.hold_um:
                return False
            self._crept_um += sideways_um
        return True

    def _check_approach(self, target_z_um: float, towards_um: float, sideways_um: float) -> None:
        if sideways_um > self.rules.hold_um:
            raise RefusedError(f"a step of {sideways_um:.3f} um sideways while approaching: only z moves")
        self._require_contact()
        self._check_step(towards_um, self.rules.approach_step_um)
        self._bounds().check_step(target_z_um, self._clock())

    def _bounds(self) -> ApproachBounds:
        if self._approach is None:
            raise RefusedError("no approach was begun")
        return self._approach

    def _check_step(self, step_um: float, most_um: float) -> None:
        if step_um > most_um + self.rules.hold_um:  # from where it was measured, not from where it was sent
            raise OutOfRangeError(
                f"a step of {step_um:.3f} um while {self._state.value}: at most {most_um:g} um are allowed"
            )

    def _require(self, state: State, what: str) -> None:
        if self._state is not state:
            raise RefusedError(f"{what} only when {state.value}, and this is {self._state.value}")

    def _require_contact(self) -> None:
        if self._overloaded or self._age_s(self._sampled_s) > self.rules.contact_timeout_s:
            state = "overloaded" if self._overloaded else f"silent for over {self.rules.contact_timeout_s:g} s"
            raise RefusedError(f"the contact guard is {state}: start or repair it")

    def _age_s(self, since_s: float | None) -> float:
        return math.inf if since_s is None else self._clock() - since_s

    @staticmethod
    def _finite(*positions_um: PositionUm) -> None:
        if not all(math.isfinite(um) for position_um in positions_um for um in position_um):
            raise OutOfRangeError(f"{', '.join(map(str, positions_um))}: expected finite positions")

    @staticmethod
    def _named(by: str) -> None:
        if not by.strip():
            raise RefusedError("this needs a person's name: it is written into the log")
