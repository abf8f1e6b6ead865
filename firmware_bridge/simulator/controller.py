"""A simulated PZT controller with its stage: the same bytes, motion, trigger outputs and faults. Time is injected.

Bytes in, bytes out; `serving` puts it on a wire. What it knows of an E-727 and of an E-517 comes from their manuals
(PZ285EN, E727T0005, MS249E); what is unverified on hardware stands in docs/protocol.md.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from firmware_bridge import gcs
from firmware_bridge.errors import OutOfRangeError
from firmware_bridge.position import Box, PositionUm

from .axis import Axis, Stage, three_axes
from .dialects import COMMANDS, CTO_PARAMETERS, MAX_ARGUMENTS
from .faults import Faults
from .grammar import INPUT_OVERFLOW, RECEIVE_TIMEOUT, Handlers, Refusal, expect, fixed
from .moves import Moves
from .outputs import Outputs
from .parameters import QUIET_STOP, SETTLING_TIME, SINGLE_DIRECTION, TOLERANCE, Parameters
from .pulses import Listener, Pulses
from .recorder import Recorder
from .waves import Waves

TRAVEL_UM = Box(PositionUm(0.0, 0.0, 0.0), PositionUm(100.0, 100.0, 10.0))  # P-733.3CL
NO_DRIFT = PositionUm(0.0, 0.0, 0.0)
LONGEST_LINE = 4096


class Simulator:
    """A controller's firmware with three axes and a stage, as the host sees it through its bytes.

    Safe to use from several threads: the wire in one, cameras that look at the pose in others. Pulses reach their
    listeners in the thread that calls `feed`, `advance` or `pulse`; a `Server` sleeps until the next one.

    Parameters
    ----------
    profile : str
        ``e727`` or ``e517``.
    clock : callable
        Monotonic time, ns.
    seed : int
        Of the sensor noise.
    noise_um : PositionUm
        Standard deviation of a position reading. The default is about a P-733.3CL's in closed loop (from memory of
        its data sheet, unverified).
    travel_um : Box
        What the axes reach.
    start_um : PositionUm, optional
        Where the stage stands at power-up; by default in the middle.
    tolerance_um, settling_s : float
        On target is: within this of the target for this long.
    drift_um_s : PositionUm
        How fast an axis creeps in open loop; POS? shows it, a servo takes it away.
    sensor_drift_um_s : PositionUm
        How fast the sensors' zero drifts: the servo follows it, so that POS? does not show it and the pose does.
        Autozero takes it away.
    hysteresis : float
        Of the piezos in open loop (SVA), of the travel.
    boot_s : float
        For how long after power-up moves are refused (error 63).
    answer_s : float
        How long the firmware thinks about each reply.
    servo_jump_um : PositionUm
        How far the stage jumps when its servo is closed, as far as its travel reaches: why nobody closes it blindly.

    Attributes
    ----------
    faults : Faults
        What goes wrong: ``simulator.faults.inject("late", only="POS?")``.
    clock : callable
        As given.
    identity : str
        What ``*IDN?`` says.

    Raises
    ------
    OutOfRangeError
        No such profile, or a hysteresis that is none.
    """

    def __init__(
        self,
        profile: str = "e727",
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        seed: int = 0,
        noise_um: PositionUm = PositionUm(0.0003, 0.0003, 0.0002),  # noqa: B008 - immutable
        travel_um: Box = TRAVEL_UM,
        start_um: PositionUm | None = None,
        tolerance_um: float = 0.002,
        settling_s: float = 0.002,
        drift_um_s: PositionUm = NO_DRIFT,
        sensor_drift_um_s: PositionUm = NO_DRIFT,
        hysteresis: float = 0.12,
        boot_s: float = 0.0,
        answer_s: float = 0.0,
        servo_jump_um: PositionUm = NO_DRIFT,
    ) -> None:
        if profile not in gcs.PROFILES:
            raise OutOfRangeError(f"no profile {profile!r}: expected one of {', '.join(gcs.PROFILES)}")
        self.profile = gcs.PROFILES[profile]
        self.identity = f"Physik Instrumente (PI) GmbH & Co. KG, {self.profile.model}, SIMULATED, 0.1"
        self.clock = clock
        self.faults = Faults(clock, seed=seed)
        self._random = np.random.default_rng(seed)
        self._tolerance_um, self._settling_s = tolerance_um, settling_s
        self._boot_s, self._answer_s = boot_s, answer_s
        self._axes = three_axes(
            start_um or travel_um.centre,
            travel_um,
            noise_um=noise_um,
            drift_um_s=drift_um_s,
            sensor_drift_um_s=sensor_drift_um_s,
            hysteresis=hysteresis,
            servo_jump_um=servo_jump_um,
            now_s=clock() / 1e9,
        )
        self._lock = threading.RLock()
        self._reader = gcs.CommandReader(longest=LONGEST_LINE)
        self._outbox: deque[tuple[int, str]] = deque()  # replies, and when they are due, ns
        self._silent_until_ns = 0
        self._unplugged: float | None = None
        self._pulses = Pulses()
        self._edge_ns: int | None = None  # the next one, as far as it is known
        self._edge_known = False
        self._power_up()

    def feed(self, data: bytes) -> bytes:
        """Take the host's bytes, return what the controller has to say by now; what is late comes with a later call."""
        with self._lock:
            for command in self._reader.feed(data):
                self._take(command)
            self._advance()
            replies = ""
            while self._outbox and self._outbox[0][0] <= self.clock():
                replies += self._outbox.popleft()[1]
        self._pulses.deliver()
        return replies.encode(gcs.ENCODING)

    def forget_input(self) -> None:
        """Drop the beginning of a line, and replies that are late; their client has gone."""
        with self._lock:
            self._reader = gcs.CommandReader(longest=LONGEST_LINE)
            self._outbox.clear()

    def next_event_ns(self) -> int | None:
        """When something happens by itself, on `clock`: call `advance` or `feed` then. None: nothing will."""
        with self._lock:
            if not self._edge_known:
                self._advance()
                edge_s = self._outputs.next_s(self._stage.now_s, self._pulses.heard())
                self._edge_ns, self._edge_known = None if edge_s is None else round(edge_s * 1e9) + 1, True
            late_ns = self._outbox[0][0] if self._outbox else None
            pulse_ns = self.clock() if self._pulses.waiting() else None
            times_ns = (self._edge_ns, late_ns, pulse_ns, self.faults.ends_ns())
            return min((t_ns for t_ns in times_ns if t_ns is not None), default=None)

    def advance(self) -> None:
        """Let happen what is due by now: pulses reach their listeners."""
        with self._lock:
            self._advance()
        self._pulses.deliver()

    def pose_um(self) -> PositionUm:
        """Where the stage truly is now, without the sensor's noise."""
        with self._lock:
            self._advance()
            return self._stage.pose_um(self._stage.now_s)

    def on_pulse(self, callback: Listener, *, output: int = 1) -> Callable[[], None]:
        """Call ``callback(index, t_ns, pose_um)`` at each pulse of a trigger output, and at each `pulse`.

        Parameters
        ----------
        callback : callable
            Told the pulse's number, its time and where the stage truly was.
        output : int
            The trigger output (1 to 3) that the listener's wire comes from.

        Returns
        -------
        callable
            Ends it.
        """
        with self._lock:
            self._edge_known = False
            return self._pulses.listen(output, callback)

    def pulse(self) -> None:
        """Make one pulse, as a trigger line of somebody else's does; it has reached every listener at return."""
        with self._lock:
            self._advance()
            for output in sorted({1} | self._pulses.heard()):
                self._fall(self._stage.now_s, output)
        self._pulses.deliver()

    def take_unplug(self) -> float | None:
        """Whether a fault has pulled the plug since the last call, and for how many seconds (0: for good)."""
        with self._lock:
            unplugged, self._unplugged = self._unplugged, None
            return unplugged

    # -- inside the controller ------------------------------------------------------------------------------------

    def _power_up(self) -> None:
        now_s = self.clock() / 1e9
        self._error = 0
        for axis in self._axes:
            axis.reset(
                now_s, online=not self.profile.starts_offline, velocity_control=not self.profile.velocity_control
            )
        self._stage = Stage(self._axes, self.profile.axes, now_s=now_s)
        self._stage.ready_s = now_s + self._boot_s
        self._waves = Waves(self._stage)
        self._recorder = Recorder(self._stage, self._random)
        self._outputs = Outputs(
            self._stage,
            self._waves,
            CTO_PARAMETERS[self.profile.name],
            switchable="TRO" in COMMANDS[self.profile.name],
            on_target=self._may_be_on_target,
        )
        self._parameters = Parameters(self._stage, self._written, only=self.profile.name)
        for axis in self._axes:
            self._parameters.put(axis, TOLERANCE, self._tolerance_um)
            self._parameters.put(axis, SETTLING_TIME, self._settling_s)
        moves = Moves(self.profile, self._stage, self._recorder, self._random, self._may_be_on_target, self._halt)
        everything: Handlers = {
            **moves.handlers(),
            **self._waves.handlers(),
            **self._recorder.handlers(),
            **self._outputs.handlers(),
            **self._parameters.handlers(),
            "*IDN?": lambda args: fixed(f"{self.identity}\n")(args),
            "ERR?": self._read_error,
            "RBT": self._reboot,
        }
        self._handlers = {name: everything[name] for name in COMMANDS[self.profile.name]}
        self._edge_known = False

    def _advance(self) -> None:
        now_s = max(self._stage.now_s, self.clock() / 1e9)
        self._stage.now_s = now_s
        edges = self._outputs.advance(now_s)
        self._recorder.advance(now_s)
        for t_s, output in edges:
            self._fall(t_s, output)
        for axis in self._axes:
            axis.motion.forget(now_s)
        if edges or (self._edge_ns is not None and now_s * 1e9 >= self._edge_ns):
            self._edge_known = False

    def _fall(self, t_s: float, output: int) -> None:
        self._pulses.fall(output, t_s, self._stage.pose_um(t_s))

    def _written(self, axis: Axis | None, parameter: int, value: float) -> None:
        if axis is not None and parameter == TOLERANCE:
            axis.tolerance_um = value
        elif axis is not None and parameter == SETTLING_TIME:
            axis.settling_s = value
        elif parameter == SINGLE_DIRECTION:
            self._outputs.set_single_direction(bool(value))

    def _may_be_on_target(self, axis: Axis) -> bool:
        live = axis.servo and axis.online and axis.velocity_control
        return live and not self.faults.holds("never_on_target")

    def _take(self, command: str) -> None:
        self._advance()
        now_ns = self.clock()
        for fault in self.faults.events(command):
            if fault.name == "latched":
                self._error = RECEIVE_TIMEOUT
            elif fault.name == "servo_off":
                for axis in self._axes:
                    axis.hold(self._stage.now_s, servo=False)
            elif fault.name == "reboot":
                self._power_up()
                self._silent_until_ns = now_ns + round(fault.delay_s * 1e9)
            elif fault.name == "unplug":
                self._unplugged = fault.delay_s
        if self._unplugged is not None or self.faults.holds("dead") or now_ns < self._silent_until_ns:
            return
        reply, late_s = self.faults.reply(command, self._execute(command), self._execute, self.profile.axes)
        if reply:
            due_ns = now_ns + round((late_s + self._answer_s) * 1e9)
            self._outbox.append((max([due_ns, *(t_ns for t_ns, _ in self._outbox)]), reply))

    def _execute(self, command: str) -> str:
        control = command.encode(gcs.ENCODING)
        now_s = self._stage.now_s
        if control == gcs.READY:
            busy = now_s < self._stage.ready_s or any(axis.zeroing(now_s) for axis in self._axes)
            return (gcs.BUSY_REPLY if busy else gcs.READY_REPLY) + "\n"
        if control == gcs.GENERATING:
            return f"0x{self._waves.running():X}\n"
        if control == gcs.MOVING:
            moving = [axis.moving(now_s) for axis in self._axes]
            return f"{sum(flag << bit for bit, flag in enumerate(moving)):x}\n"
        if not command.endswith("?"):
            self._edge_known = False
        if control == gcs.STOP:
            return self._halt(list(self._axes))
        self._recorder.commanded()
        name, *args = command.split() or [""]
        try:
            expect(len(command) <= LONGEST_LINE, INPUT_OVERFLOW)
            expect(name.upper() in self._handlers or not name, gcs.UNKNOWN_COMMAND)
            expect(len(args) <= MAX_ARGUMENTS[self.profile.name], gcs.WRONG_COUNT)
            reply = self._handlers[name.upper()](args) if name else ""
        except Refusal as refusal:
            self._error = refusal.code
            return ""
        if self._waves.started:
            self._waves.started = False
            self._recorder.start()
        return reply

    def _read_error(self, args: list[str]) -> str:
        expect(not args, gcs.WRONG_COUNT)
        error, self._error = self._error, 0
        return f"{error}\n"

    def _halt(self, axes: list[Axis]) -> str:
        for axis in axes:
            axis.zeroing_until_s = self._stage.now_s
            axis.hold(self._stage.now_s)
        if not self._parameters[QUIET_STOP]:
            self._error = gcs.STOPPED
        return ""

    def _reboot(self, args: list[str]) -> str:
        expect(not args, gcs.WRONG_COUNT)
        self._power_up()
        return ""
