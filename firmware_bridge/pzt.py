"""The PZT stage: positions, limits, servo, moves that end at rest, stop. Refuses, never clips."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from . import gcs
from .errors import LinkError, LinkTimeoutError, OutOfRangeError, RefusedError, StoppedError
from .link import Link, open_transport
from .position import Box as Box
from .position import PositionUm as PositionUm

if TYPE_CHECKING:
    from .simulator import Server, Simulator

log = logging.getLogger(__name__)

# Between two looks at a moving stage: less than a settling time, and no busy loop.
POLL_S = 0.001


class PztStage:
    """A three-axis piezo stage behind a PI controller. `open_stage` makes one.

    `stop` may be called from any thread at any moment; the rest from several threads, but one move at a time.

    Attributes
    ----------
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
        link: Link,
        profile: gcs.Profile,
        *,
        limits_um: Box | None = None,
        max_step_um: float | None = None,
        settle_timeout_s: float = 1.0,
        tolerance_um: float = 0.02,
        noise_um: float = 0.004,
        server: Server | None = None,
    ) -> None:
        self._link, self._server, self.profile = link, server, profile
        self._max_step_um, self._settle_timeout_s = max_step_um, settle_timeout_s
        self._tolerance_um, self._noise_um = tolerance_um, noise_um
        self._move_lock = threading.Lock()
        self._last_stop = object()  # a new one with each stop(): a move ends when it is not the one it began with
        self.identity = link.identity
        self.simulator: Simulator | None = server.simulator if server else None
        self.simulated = self.simulator is not None or "SIMULATED" in self.identity
        names = link.ask(gcs.query_line("SAI?"), str.split)
        if tuple(names) != profile.axes:
            raise RefusedError(f"the controller's axes are {names}, expected {list(profile.axes)}: rename them (SAI)")
        travel_um = Box(self._read("TMN?"), self._read("TMX?"))
        self.limits_um = travel_um.intersect(limits_um) if limits_um else travel_um
        # Ready: a move will move. A closed servo says so, except behind channels that may still be offline.
        self._ready = not profile.starts_offline and self.servo_is_on()

    def position_um(self) -> PositionUm:
        """The measured position, read once; it may be moving.

        Raises
        ------
        LinkError
            No answer, or one that makes no sense.
        """
        return self._read("POS?")

    def target_um(self) -> PositionUm:
        """The controller's target. Errors as in `position_um`."""
        return self._read("MOV?")

    def on_target(self) -> bool:
        """Whether the controller sees all axes settled on their targets. Errors as in `position_um`."""
        return all(self._flags("ONT?"))

    def servo_is_on(self) -> bool:
        """Whether all axes are in closed loop. Errors as in `position_um`."""
        return all(self._flags("SVO?"))

    def set_velocity(self, *, velocity_um_s: float) -> None:
        """Set the velocity of all axes.

        Raises
        ------
        OutOfRangeError
            Not a positive number, or more than the controller allows.
        LinkError
            The link failed.
        """
        if not (math.isfinite(velocity_um_s) and velocity_um_s > 0):
            raise OutOfRangeError(f"a velocity of {velocity_um_s} um/s: expected a positive number")
        self._set("VEL", dict.fromkeys(self.profile.axes, velocity_um_s))

    def servo_on(self) -> None:
        """Close the servo loop, and verify that it is closed. **The stage may jump**: lift the sphere first.

        An E-517 is switched from its analogue inputs to this interface first (``ONL``), and its velocity control on.

        Raises
        ------
        RefusedError
            The controller refused, or says that a servo is still open.
        LinkError
            The link failed.
        """
        before_um = self.position_um()
        axes = self.profile.axes
        if self.profile.starts_offline:
            channels = self._link.ask(gcs.query_line("TPC?"), gcs.parse_integer)
            if channels < len(axes):
                raise RefusedError(
                    f"the controller has {channels} piezo channels, expected {len(axes)}: wrong modules?"
                )
            self._set("ONL", {str(channel): True for channel in range(1, len(axes) + 1)})
        if self.profile.velocity_control:
            self._set("VCO", dict.fromkeys(axes, True))
        self._set("SVO", dict.fromkeys(axes, True))
        states = self._flags("SVO?")
        if not all(states):
            still_open = [axis for axis, on in zip(axes, states, strict=True) if not on]
            raise RefusedError(
                f"the servo of axis {' '.join(still_open)} stays off: check the switch on the front panel"
            )
        self._ready = True
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
            The servo is off, or another move is under way.
        StoppedError
            `stop` was called meanwhile, or `unless` is set.
        LinkTimeoutError
            Not settled in time; the stage was stopped.
        LinkError
            The link failed: the position is unknown.
        """
        target_um = PositionUm(*target_um)
        if not all(map(math.isfinite, target_um)):
            raise OutOfRangeError(f"target {target_um} is not a position: expected three finite numbers")
        if not self.limits_um.contains(target_um):
            raise OutOfRangeError(f"target {target_um} lies outside the limits {self.limits_um}")
        if not self._ready:
            raise RefusedError(
                "the servo is off, the stage would not move: lift the sphere, then enable it (servo_on(), enable_servo)"
            )
        if not self._move_lock.acquire(blocking=False):
            raise RefusedError("another move is under way: wait for it, or stop it")
        try:
            last_stop = self._last_stop
            if unless is not None and unless.is_set():  # looked at after last_stop was taken, so no stop slips between
                raise StoppedError("the series of moves was stopped before this one; the stage holds", code=gcs.STOPPED)
            if self._max_step_um is not None:
                here_um = self.position_um()
                step_um = max(abs(a - b) for a, b in zip(target_um, here_um, strict=True))
                if step_um > self._max_step_um:
                    raise OutOfRangeError(
                        f"a step of {step_um:.3f} um to {target_um}: at most {self._max_step_um:g} um are "
                        "allowed; go there in smaller steps"
                    )
            return self._move(dict(zip(self.profile.axes, target_um, strict=True)), target_um, last_stop, timeout_s)
        finally:
            self._move_lock.release()

    def park(self) -> None:
        """Stop, then retract z, and z alone, to its minimum. With the servo off it only stops: nothing can be moved.

        Raises
        ------
        FirmwareError
            As in `move_to` and `stop`.
        """
        self.stop()
        if not self._ready:
            return
        with self._move_lock:
            last_stop = self._last_stop
            target_um = self.position_um()._replace(z=self.limits_um.low.z)
            self._move({self.profile.axes[2]: target_um.z}, target_um, last_stop, 5.0)

    def stop(self) -> None:
        """Stop all axes at once (#24), past any request that waits; a move under way ends with a StoppedError.

        Raises
        ------
        LinkError
            The stop could not be sent: cut the power.
        """
        self._last_stop = object()
        self._link.interrupt()
        log.info("stop sent")
        code = self._link.ask(gcs.query_line("ERR?"), gcs.parse_integer)
        if code not in (0, gcs.STOPPED):
            log.warning("after a stop the controller reports %s", gcs.meaning(code))

    def close(self) -> None:
        """Close the link, and stop the simulator behind it. Does not move. Idempotent."""
        self._link.close()
        if self._server is not None:
            self._server.stop()

    def __enter__(self) -> PztStage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _move(
        self, command_um: Mapping[str, float], target_um: PositionUm, last_stop: object, timeout_s: float
    ) -> PositionUm:
        try:
            self._set("MOV", command_um, before_sending=lambda: self._check_stopped(last_stop))
            return self._settle(target_um, last_stop, timeout_s)
        except (OutOfRangeError, StoppedError):
            raise
        except RefusedError as exc:
            self._check_stopped(last_stop)
            if exc.code == gcs.SERVO_OFF:
                self._ready = False  # a reboot or the front panel: to be enabled again knowingly
            else:
                self.stop()  # the error may have been another's, and the stage moving all the same
            raise
        except LinkError:
            try:
                self.stop()
            except LinkError as exc:
                log.error("the stage could not be stopped, and may be moving: %s", exc)
            raise

    def _settle(self, target_um: PositionUm, last_stop: object, timeout_s: float) -> PositionUm:
        deadline = time.monotonic() + timeout_s
        while True:
            self._check_stopped(last_stop)
            if not self._link.ask(gcs.MOVING, lambda reply: gcs.parse_integer(reply, base=16)):
                deadline = min(deadline, time.monotonic() + self._settle_timeout_s)
                if self.on_target():
                    first_um, second_um = self.position_um(), self.position_um()
                    self._check_stopped(last_stop)
                    if _distance_um(first_um, second_um) > self._noise_um:
                        log.warning("two readings differ: %s, %s; reading again", first_um, second_um)
                    elif _distance_um(second_um, target_um) <= self._tolerance_um:
                        return second_um
            if time.monotonic() > deadline:
                raise LinkTimeoutError(
                    f"not settled on {target_um} within {timeout_s:g} s, or {self._settle_timeout_s:g} s after the "
                    f"motion: it was at {self.position_um()} and is stopped now; check servo, load and velocity"
                )
            time.sleep(POLL_S)

    def _check_stopped(self, last_stop: object) -> None:
        if self._last_stop is not last_stop:
            raise StoppedError("the move was stopped; the stage holds where it came to rest", code=gcs.STOPPED)

    def _set(
        self,
        mnemonic: str,
        values: Mapping[str, float | bool],
        *,
        before_sending: Callable[[], None] | None = None,
    ) -> None:
        # One write for the command and for the question whether it was accepted: one round trip.
        command = gcs.set_line(mnemonic, values)
        code = self._link.ask(command + gcs.query_line("ERR?"), gcs.parse_integer, before_sending=before_sending)
        if code:
            beyond = code in (gcs.POSITION_LIMITS, gcs.VELOCITY_LIMITS, gcs.OUT_OF_RANGE)
            error = OutOfRangeError if beyond else RefusedError
            raise error(
                f"the controller refused {command.decode(gcs.ENCODING).strip()!r}: {gcs.meaning(code)}", code=code
            )

    def _read(self, mnemonic: str) -> PositionUm:
        axes = self.profile.axes
        values = self._link.ask(gcs.query_line(mnemonic, axes), lambda reply: gcs.parse_numbers(reply, axes))
        return PositionUm(*values)

    def _flags(self, mnemonic: str) -> list[bool]:
        axes = self.profile.axes
        return self._link.ask(gcs.query_line(mnemonic, axes), lambda reply: gcs.parse_flags(reply, axes))


def _distance_um(a: PositionUm, b: PositionUm) -> float:
    return max(abs(p - q) for p, q in zip(a, b, strict=True))


def open_stage(
    port: str,
    *,
    profile: str | None = None,
    baud: int = 115200,
    limits_um: Box | None = None,
    velocity_um_s: float | None = None,
    max_step_um: float | None = None,
    settle_timeout_s: float = 1.0,
    tolerance_um: float = 0.02,
    noise_um: float = 0.004,
    enable_servo: bool | None = None,
    simulator: Simulator | None = None,
) -> PztStage:
    """Open the stage behind a port. Nothing moves, unless the servo is enabled.

    Parameters
    ----------
    port : str
        ``/dev/ttyUSB0``, ``tcp://host:50000``, or ``sim:``, ``sim:e727``, ``sim:e517``: a simulator in this process,
        behind a real pty.
    profile : str, optional
        ``e727`` or ``e517``; by default, what the controller says that it is.
    baud : int
        Of a serial port, Bd.
    limits_um : Box, optional
        Where the stage may go; by default the controller's whole travel.
    velocity_um_s : float, optional
        Of all axes; by default, what the controller has.
    max_step_um : float, optional
        The largest step of one axis in one move; by default any.
    settle_timeout_s : float
        From the end of the motion to on target, seconds.
    tolerance_um, noise_um : float
        A returned position is at most this far from its target, and its two readings from each other. The defaults
        are wide for a P-733.3CL's noise (about 0.3 nm rms), and unverified on hardware.
    enable_servo : bool, optional
        Close the servo loop, in which **the stage may jump**. By default only where the instrument is simulated.
    simulator : Simulator, optional
        The one to stand behind ``sim:``; by default a new one.

    Returns
    -------
    PztStage
        Close it after use; it is a context manager.

    Raises
    ------
    LinkError
        Nobody is there, or the port is in use, or no controller answers.
    OutOfRangeError
        A value of the configuration makes no sense.
    RefusedError
        It is another controller than the profile says, or one that we do not know, or it refused.
    """
    if profile is not None and profile not in gcs.PROFILES:
        raise OutOfRangeError(f"no profile {profile!r}: expected one of {', '.join(gcs.PROFILES)}")
    server = None
    scheme, _, name = port.partition(":")
    if scheme == "sim":
        from .simulator import Simulator, serve_pty  # a real instrument needs none

        server = serve_pty(simulator or Simulator(name or profile or "e727"))
        port = server.address
    elif simulator is not None:
        raise OutOfRangeError(f"a simulator stands behind the port sim:, not behind {port!r}")
    link = None
    try:
        link = Link(open_transport(port, baud=baud), name=port)
        found = gcs.profile_of(link.identify())
        if found is None or found.name != (profile or found.name):
            wanted = gcs.PROFILES[profile].model if profile else " or ".join(p.model for p in gcs.PROFILES.values())
            raise RefusedError(
                f"{port} is {link.identity!r}, expected an {wanted}: correct the [stage] port or profile"
            )
        foreign = link.ask(gcs.query_line("ERR?"), gcs.parse_integer)
        if foreign:
            log.warning("%s had an error before we came, now cleared: %s", port, gcs.meaning(foreign))
        stage = PztStage(
            link,
            found,
            limits_um=limits_um,
            max_step_um=max_step_um,
            settle_timeout_s=settle_timeout_s,
            tolerance_um=tolerance_um,
            noise_um=noise_um,
            server=server,
        )
        if velocity_um_s is not None:
            stage.set_velocity(velocity_um_s=velocity_um_s)
        if stage.simulated if enable_servo is None else enable_servo:
            stage.servo_on()
        log.info("stage open: %s at %s, limits %s", stage.identity, port, stage.limits_um)
        return stage
    except BaseException:
        if link is not None:
            link.close()
        if server is not None:
            server.stop()
        raise
