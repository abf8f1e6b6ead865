"""The PZT stage: positions, limits, servo, moves that end at rest, stop. Refuses, never clips."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar

from . import gcs
from .controller import Controller
from .drift import Drift, watch
from .errors import OutOfRangeError, RefusedError, StoppedError
from .finite import check_positive
from .guard import MotionGuard, Unguarded
from .moves import Mover, Rest
from .position import Box, PositionUm
from .survey import survey

if TYPE_CHECKING:
    from .simulator import Simulator

log = logging.getLogger(__name__)

T = TypeVar("T")

# A move that was stopped has to notice before another can begin.
PATIENCE_S = 5.0


class PztStage:
    """A three-axis piezo stage behind a PI controller. `open_stage` makes one.

    `stop` may be called from any thread at any moment; the rest from several threads, but one move at a time.

    Parameters
    ----------
    controller : Controller
        Owned from now on. The other parameters are those of `open_stage`.

    Attributes
    ----------
    controller : Controller
        For what goes beyond moves: trigger outputs, wave generators, the recorder.
    identity : str
        The controller's answer to ``*IDN?``.
    profile : gcs.Profile
        Which controller it is.
    limits_um : Box
        The controller's travel, intersected with the limits that were asked for.
    simulator : Simulator or None
        The simulated instrument behind a ``sim:`` port.
    simulated : bool
        Whether the instrument says that it is a simulated one.
    """

    def __init__(
        self,
        controller: Controller,
        *,
        limits_um: Box | None = None,
        velocity_um_s: float | None = None,
        max_step_um: float | None = None,
        rest: Rest = Rest(),  # noqa: B008 - immutable
        z_sign: int = 1,
        guard: MotionGuard | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if z_sign not in (-1, 1):
            raise OutOfRangeError(f"z_sign {z_sign}: expected 1 where +z brings the sample to the sphere, else -1")
        check_positive(max_step_um=max_step_um)
        self.controller, self.guard = controller, guard or Unguarded()
        self.identity, self.profile = controller.identity, controller.profile
        server = controller.server
        self.simulator: Simulator | None = server.simulator if server else None
        self.simulated = self.simulator is not None or "SIMULATED" in self.identity
        self._wanted_limits_um, self._max_step_um, self._z_sign = limits_um, max_step_um, z_sign
        self._wanted_velocity_um_s: PositionUm | None = None
        self._clock = clock
        self._mover = Mover(controller, rest, self.guard, clock=clock, sleep=sleep)
        self._read_all()
        # A closed servo says that it is; behind channels that may still be offline that is not enough.
        self._mover.ready = not self.profile.starts_offline and self.servo_is_on()
        if velocity_um_s is not None:
            self.set_velocity(velocity_um_s=velocity_um_s)

    def _read_all(self) -> None:
        travel_um = survey(self._mover)
        self.limits_um = travel_um.intersect(self._wanted_limits_um) if self._wanted_limits_um else travel_um
        self._mover.slew_um_s = min(self.velocity_um_s())

    # -- what it says -------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a move would move: the servo was closed knowingly, and nothing has happened since."""
        return self._mover.ready

    @property
    def z_sign(self) -> int:
        """1 where +z brings the sample towards the sphere, else -1."""
        return self._z_sign

    @property
    def away_z_um(self) -> float:
        """The end of z that is away from the sphere: where parking and a fault's retraction go."""
        return self.limits_um.low.z if self._z_sign > 0 else self.limits_um.high.z

    def position_um(self) -> PositionUm:
        """The measured position, read once; it may be moving.

        Raises
        ------
        LinkError
            No answer, or one that makes no sense.
        """
        return self._mover.ask(lambda: self.controller.read("POS?"))[0]

    def target_um(self) -> PositionUm:
        """The controller's target, read until two readings are the same. Errors as in `position_um`."""
        return self._mover.agreed("MOV?")

    def rest_um(self) -> PositionUm:
        """Where the stage rests: read until two readings are the same within the noise. Errors as in `position_um`."""
        return self._mover.resting_um()

    def velocity_um_s(self) -> PositionUm:
        """The velocities of the axes, read until two readings are the same. Errors as in `position_um`."""
        return self._mover.agreed("VEL?")

    def on_target(self) -> bool:
        """Whether the controller sees all axes settled on their targets. Errors as in `position_um`."""
        return all(self._mover.ask(lambda: self.controller.flags("ONT?")))

    def servo_is_on(self) -> bool:
        """Whether all axes are in closed loop. Errors as in `position_um`."""
        return all(self._mover.ask(lambda: self.controller.flags("SVO?")))

    def open_loops(self) -> str:
        """Which axes are not under our control, in words; empty when all are. Errors as in `position_um`."""
        return self._mover.ask(self.controller.open_loops)

    def error(self) -> int:
        """The controller's error register, which reading clears. Errors as in `position_um`."""
        return self._mover.ask(self.controller.error)

    def drift_um(self, *, duration_s: float = 1.0, samples: int = 100) -> Drift:
        """Watch the stage at rest.

        Parameters
        ----------
        duration_s : float
            How long, seconds.
        samples : int
            How often it is read, at least 3.

        Raises
        ------
        OutOfRangeError
            A duration or number that makes no sense.
        RefusedError
            A move is under way.
        StoppedError
            `stop` was called meanwhile.
        LinkError
            The link failed.
        """
        last_stop = self._mover.stops.since  # before the turn is taken: whoever stops waits for this one to end
        with self._mover.alone():
            return watch(
                self.position_um,
                self.target_um(),
                duration_s=duration_s,
                samples=samples,
                clock=self._clock,
                sleep=lambda wait_s: self._mover.pause(wait_s, last_stop),
            )

    # -- what it is told ----------------------------------------------------------------------------------------------

    def set_velocity(self, *, velocity_um_s: float | PositionUm) -> None:
        """Set the velocity of all axes, or of each its own; it is set again when the servo is closed after a reboot.

        Raises
        ------
        OutOfRangeError
            Not a positive number, or more than the interlock or the controller allows.
        LinkError
            The link failed.
        """
        each_um_s = velocity_um_s if isinstance(velocity_um_s, PositionUm) else PositionUm(*[velocity_um_s] * 3)
        if not all(math.isfinite(one_um_s) and one_um_s > 0 for one_um_s in each_um_s):
            raise OutOfRangeError(f"a velocity of {velocity_um_s} um/s: expected a positive number")
        self.guard.check_velocity(max(each_um_s))
        before_um_s, self._wanted_velocity_um_s = self._wanted_velocity_um_s, each_um_s
        try:
            self.tell(gcs.set_line("VEL", dict(zip(self.profile.axes, each_um_s, strict=True))))
        except OutOfRangeError:  # what failed in another way is still wanted when the servo is closed again
            self._wanted_velocity_um_s = before_um_s
            raise
        self._mover.slew_um_s = min(each_um_s)

    def servo_on(self) -> None:
        """Close the servo loop, and verify that it is closed. **The stage may jump**: lift the sphere first.

        An E-517 is switched from its analogue inputs to this interface first (``ONL``), and its velocity control on.

        Raises
        ------
        RefusedError
            The interlock or the controller refused, or a servo is still open.
        StoppedError
            `stop` was called meanwhile, or since the `series` began.
        LinkError
            The link failed.
        """
        last_stop = self._mover.stops.since
        self.guard.check_servo()
        with self._mover.alone(wait_s=PATIENCE_S):
            before_um = self.position_um()
            self._clear_error()
            self._mover.ask(
                lambda: self.controller.close_loops(before_sending=lambda: self._mover.stops.check(last_stop))
            )
            if self._wanted_velocity_um_s is not None:  # a controller that was off has forgotten it
                self.set_velocity(velocity_um_s=self._wanted_velocity_um_s)
            self._mover.forget()
            self._mover.stops.check(last_stop)
            self._mover.ready = True
            log.info("servo on; was at %s, is at %s", before_um, self.position_um())

    def move_to(
        self, target_um: PositionUm, *, timeout_s: float = 5.0, unless: threading.Event | None = None
    ) -> PositionUm:
        """Move, wait until the stage is at rest on its target, and measure where it is.

        Parameters
        ----------
        target_um : PositionUm
            Inside `limits_um`, and not further away than the largest step.
        timeout_s : float
            For all of it, seconds.
        unless : threading.Event, optional
            What ends a series of moves. Whoever stops the series sets it before calling `stop`: then no move of the
            series can begin after the stop, however the threads fall.

        Returns
        -------
        PositionUm
            Measured: two readings that agree with each other and with the target.

        Raises
        ------
        OutOfRangeError
            NaN, infinite, or out of range: nothing was sent, or the controller refused.
        RefusedError
            The servo is off, another move is under way, or the interlock refused: nothing moved.
        StoppedError
            `stop` was called meanwhile, or since the `series` began, or `unless` is set.
        ServoLostError
            The controller has opened a servo: it was started anew, or switched over at its front panel.
        LinkTimeoutError
            Not settled in time; the stage was stopped.
        LinkError
            The link failed: the position is unknown.
        """
        target_um = PositionUm(*target_um)
        check_positive(timeout_s=timeout_s)
        self.check_target(target_um)
        with self._mover.alone():
            last_stop = self._mover.stops.since
            if unless is not None and unless.is_set():  # looked at after last_stop was taken, so no stop slips between
                raise StoppedError("the series of moves was stopped before this one; the stage holds", code=gcs.STOPPED)
            self._check_way(target_um)
            return self._mover.move(target_um, last_stop, timeout_s)

    def park(self) -> None:
        """Stop, then retract z, and z alone, to the end that is away from the sphere.

        With the servo off it only stops: nothing can be moved.

        Raises
        ------
        FirmwareError
            As in `move_to` and `stop`.
        """
        last_stop = self._mover.stop()
        if not self.ready:
            return
        with self._mover.alone(wait_s=PATIENCE_S):
            # x and y stay where the controller holds them; measured, they may still be braking.
            target_um = self.target_um()._replace(z=self.away_z_um)
            self._mover.move(target_um, last_stop, 5.0, only=slice(2, 3))

    def stop(self) -> None:
        """Stop all axes at once (#24), past any request that waits; a move under way ends with a StoppedError.

        Raises
        ------
        LinkError
            The stop could not be sent: cut the power.
        """
        self._mover.stop()

    def retreat(self, z_um: float) -> None:
        """Stop all axes, and send z, and z alone, to a place: in one write, past any request that waits.

        The last resort of the interlock: nothing is asked before, also not whether the servo is closed, and nothing
        is waited for. A move under way ends with a StoppedError. Whether z moves is for the caller to look at.

        Raises
        ------
        OutOfRangeError
            Not inside the limits: nothing was sent.
        LinkError
            It could not be sent: cut the power.
        """
        if not self.limits_um.low.z <= z_um <= self.limits_um.high.z:  # NaN is not, either
            raise OutOfRangeError(f"z at {z_um} um lies outside the limits {self.limits_um}")
        self._mover.halt(gcs.set_line("MOV", {self.profile.axes[2]: z_um}))

    def series(self, since: object = None) -> AbstractContextManager[object]:
        """Several moves that one stop ends: a move of this thread that comes after it is not begun.

        Inside ``with stage.series():`` each of `move_to`, `run`, `autozero` and `servo_on` ends with a StoppedError
        after any `stop` or `retreat` since the beginning, also one between two moves. A series inside a series is
        part of it. `park` belongs to none: it stops by itself, and then retracts.

        Parameters
        ----------
        since : object, optional
            What the ``with`` of an earlier part of the same series gave, to go on with it.
        """
        return self._mover.stops.series(since)

    def invalidate(self, why: str) -> None:
        """Somebody found out that position and contact are unknown: no move until `servo_on`, and the guard is told."""
        self._mover.invalidate(why)

    def autozero(self, *, timeout_s: float = 60.0) -> None:
        """Calibrate the sensors' zero (ATZ). **All axes move over their whole travel**: lift the sphere first.

        Afterwards positions are others than before: the interlock is disarmed, and the servo is to be closed anew
        (`servo_on`).

        Raises
        ------
        RefusedError
            The interlock refused, a move is under way, or the controller cannot, or did not succeed.
        LinkTimeoutError
            It takes longer; it was stopped.
        LinkError
            The link failed.
        """
        check_positive(timeout_s=timeout_s)
        last_stop = self._mover.stops.since  # a stop may come while the guard lifts the focus
        self.guard.check_servo()
        with self._mover.alone():
            here_um = self._mover.here_um()
            for end_um in self.limits_um:
                self.guard.check_move(here_um, end_um)
            if not self._mover.ask(lambda: self.controller.has("ATZ")):
                raise RefusedError(f"{self.identity} has no autozero: HLP? does not list ATZ")
            self.guard.disarm("an autozero moves the stage and changes what its positions mean")
            self._mover.unready()
            self._mover.run(gcs.query_line("ATZ"), self.controller.ready, last_stop, timeout_s, "the autozero")
            if self._mover.ask(lambda: self.controller.has("ATZ?")) and not all(
                self._mover.ask(lambda: self.controller.flags("ATZ?"))
            ):
                raise RefusedError("the controller says that its autozero did not succeed: run it again")
            self._read_all()

    def reconnect(self) -> None:
        """Open the port again after the link or the controller was lost, and read everything anew. Nothing moves.

        The stage is not ready then, whatever its servo says: a person, or who has their word, calls `servo_on`. A
        move that was under way is never sent again.

        Raises
        ------
        RefusedError
            Another device is at the port, or a move is under way.
        LinkError
            Nobody is at the port.
        """
        with self._mover.alone():
            self._mover.invalidate("the port is opened again")
            self.controller.reconnect()
            self._clear_error()
            self._read_all()
            log.info("connected again at %s; the servo is to be closed knowingly", self.position_um())

    def close(self) -> None:
        """Stop the motion that is under way, but no retraction, and close the link and a simulator. Idempotent."""
        self._mover.end()
        self.controller.close()

    def __enter__(self) -> PztStage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- for those who move it by other commands: fly lines and wave generators ----------------------------------------

    def check_target(self, target_um: PositionUm) -> None:
        """Refuse a target that is not a position, lies outside the limits, or cannot be reached with the servo off.

        Raises
        ------
        OutOfRangeError, RefusedError
            Nothing was sent.
        """
        if not all(map(math.isfinite, target_um)):
            raise OutOfRangeError(f"target {target_um} is not a position: expected three finite numbers")
        if not self.limits_um.contains(target_um):
            raise OutOfRangeError(f"target {target_um} lies outside the limits {self.limits_um}")
        if not self.ready:
            raise RefusedError(
                "the servo is off, the stage would not move: lift the sphere, then enable it (servo_on(), enable_servo)"
            )

    def run(
        self,
        start: bytes,
        done: Callable[[], bool],
        *,
        through: Iterable[PositionUm],
        ends_um: PositionUm,
        velocity_um_s: float,
        timeout_s: float,
        what: str,
    ) -> None:
        """Send a command that moves the stage by itself, such as a wave generator's; at rest when this returns.

        Parameters
        ----------
        start : bytes
            The command.
        done : callable
            Asks the controller.
        through : iterable of PositionUm
            Where it will go; checked as a move to each of them is.
        ends_um : PositionUm
            Where it will rest.
        velocity_um_s : float
            How fast it will go: the interlock is asked. A wave does not keep to the velocity that is set.
        timeout_s : float
            Then it is stopped, seconds.
        what : str
            How an error calls it.

        Raises
        ------
        FirmwareError
            As in `move_to`.
        """
        check_positive(timeout_s=timeout_s)
        through = [*through, ends_um]
        for at_um in through:
            self.check_target(at_um)
        with self._mover.alone():
            last_stop = self._mover.stops.since
            for at_um in through:
                self._check_way(at_um)
            self.guard.check_velocity(velocity_um_s)
            self._mover.run(start, done, last_stop, timeout_s, what, ends_um=ends_um)

    def ask(self, question: Callable[[], T]) -> T:
        """Ask `controller` something, so that the interlock hears of the answer, or of nobody being there."""
        return self._mover.ask(question)

    def command(self, line: bytes) -> None:
        """Send a command that moves nothing, once; errors as in `Controller.command`."""
        self._mover.ask(lambda: self.controller.command(line))

    def tell(self, line: bytes) -> None:
        """Send a command that moves nothing and may be sent twice: it is, where a stop came in between.

        Raises
        ------
        RefusedError, LinkError
            As in `Controller.command`.
        """
        try:
            self.command(line)
        except StoppedError:  # the stop's error hides whether the command was accepted
            self.command(line)

    @property
    def began_s(self) -> tuple[float, float]:
        """The last motion began between these times on the stage's clock (`time.monotonic`): before its command was
        sent, and after the controller had accepted it.
        """
        return self._mover.began_s

    def _clear_error(self) -> None:
        # What was latched while nobody could ask is not to be taken for the answer to the next command.
        code = self.error()
        if code:
            log.warning("%s had an error, now cleared: %s", self.identity, gcs.meaning(code))

    def _check_way(self, target_um: PositionUm) -> None:
        if self._max_step_um is None and isinstance(self.guard, Unguarded):
            return
        here_um = self._mover.here_um()
        step_um = max(abs(a - b) for a, b in zip(target_um, here_um, strict=True))
        if self._max_step_um is not None and step_um > self._max_step_um:
            raise OutOfRangeError(
                f"a step of {step_um:.3f} um to {target_um}: at most {self._max_step_um:g} um are allowed; go there in "
                "smaller steps"
            )
        self.guard.check_move(here_um, target_um)
