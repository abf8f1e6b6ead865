"""A simulated PZT controller with its stage: the same bytes, slew, settling and sensor noise. Time is injected.

Bytes in, bytes out; `serving` puts it on a wire. What it knows of an E-727 and of an E-517 comes from their manuals
(PZ285EN, MS249E); what is unverified on hardware stands in docs/protocol.md.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from firmware_bridge import gcs
from firmware_bridge.errors import OutOfRangeError
from firmware_bridge.position import Box, PositionUm

from .faults import Faults
from .motion import PiezoMotion

TRAVEL_UM = Box(PositionUm(0.0, 0.0, 0.0), PositionUm(100.0, 100.0, 10.0))  # P-733.3CL
MAX_ARGUMENTS = 32  # of one command (E-727)
MAX_VELOCITY_UM_S = 10_000.0
RECEIVE_TIMEOUT = 307  # the error that a fault leaves in the register
TOLERANCE, SETTLING_TIME, QUIET_STOP = 0x07000900, 0x07000901, 0x0E000301
PARAMETERS = {  # what HPA? says: type and name
    TOLERANCE: ("FLOAT", "On Target Tolerance"),
    SETTLING_TIME: ("FLOAT", "On Target Settling Time"),
    QUIET_STOP: ("INT", "No Error 10 After Stop"),
}
COMMON = (
    "*IDN? CSV? ERR? HLP? HPA? HLT MOV MOV? MVR NLM NLM? ONT? OVF? PLM PLM? POS? RBT SAI? SPA SPA? STP SVO SVO? "
    "TMN? TMX? VEL VEL? VER? VOL?"
).split()
COMMANDS = {"e727": COMMON, "e517": [*COMMON, "ONL", "ONL?", "TPC?", "VCO", "VCO?"]}


class Refusal(Exception):  # noqa: N818 - not an error of ours, but the number that goes into the error register
    """A command was not accepted."""

    def __init__(self, code: int) -> None:
        super().__init__(gcs.meaning(code))
        self.code = code


@dataclass
class Axis:
    """What the controller keeps for one axis."""

    motion: PiezoMotion
    low_um: float
    high_um: float
    noise_um: float
    target_um: float
    soft_low_um: float
    soft_high_um: float
    online: bool
    velocity_control: bool
    parameters: dict[int, float]
    servo: bool = False
    velocity_um_s: float = 1000.0

    def command(self, now_s: float, target_um: float) -> None:
        """Take a target. An offline channel takes it too, and does not move."""
        self.target_um = target_um
        if self.online:
            limit_um_s = self.velocity_um_s if self.velocity_control else MAX_VELOCITY_UM_S
            self.motion.command(now_s, target_um, limit_um_s)

    def hold(self, now_s: float) -> None:
        """Make where the stage is the target."""
        self.motion.hold(now_s)
        self.target_um = self.motion.at_um


class Simulator:
    """A controller's firmware with three axes and a stage, as the host sees it through its bytes.

    Safe to use from several threads: the wire in one, cameras that look at the pose in others.

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

    Attributes
    ----------
    faults : Faults
        What goes wrong: ``simulator.faults.inject("late", only="POS?")``.
    clock : callable
        As given.

    Raises
    ------
    OutOfRangeError
        No such profile.
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
    ) -> None:
        if profile not in gcs.PROFILES:
            raise OutOfRangeError(f"no profile {profile!r}: expected one of {', '.join(gcs.PROFILES)}")
        self.profile = gcs.PROFILES[profile]
        self.identity = f"Physik Instrumente (PI) GmbH & Co. KG, {self.profile.model}, SIMULATED, 0.1"
        self.clock = self._clock = clock
        self.faults = Faults(clock, seed=seed)
        self._outbox: deque[tuple[int, str]] = deque()  # replies, and when they are due, ns
        self._silent_until_ns = 0
        self._unplugged: float | None = None
        self._random = np.random.default_rng(seed)
        self._lock = threading.RLock()
        self._reader = gcs.CommandReader()
        self._listeners: list[Callable[[int, int, PositionUm], None]] = []
        self._pulses = 0
        self._parameters: dict[int, float] = {TOLERANCE: tolerance_um, SETTLING_TIME: settling_s, QUIET_STOP: 0}
        self._travel_um, self._noise_um = travel_um, noise_um
        self._handlers = self._make_handlers()
        self._power_up(start_um or travel_um.centre)

    def feed(self, data: bytes) -> bytes:
        """Take the host's bytes, return what the controller has to say by now; what is late comes with a later call."""
        with self._lock:
            for command in self._reader.feed(data):
                self._take(command)
            replies = ""
            while self._outbox and self._outbox[0][0] <= self._clock():
                replies += self._outbox.popleft()[1]
            return replies.encode(gcs.ENCODING)

    def forget_input(self) -> None:
        """Drop the beginning of a line, and replies that are late; their client has gone."""
        with self._lock:
            self._reader = gcs.CommandReader()
            self._outbox.clear()

    def next_event_ns(self) -> int | None:
        """When something happens by itself, on `clock`: call `advance` or `feed` then. None: nothing will."""
        with self._lock:
            times_ns = [self._outbox[0][0]] if self._outbox else []
            return min([*times_ns, *filter(None, [self.faults.ends_ns()])], default=None)

    def advance(self) -> None:
        """Let happen what is due by now."""

    def take_unplug(self) -> float | None:
        """Whether a fault has pulled the plug since the last call, and for how many seconds (0: for good)."""
        with self._lock:
            unplugged, self._unplugged = self._unplugged, None
            return unplugged

    def pose_um(self) -> PositionUm:
        """Where the stage truly is now, without the sensor's noise."""
        with self._lock:
            return self._pose_um(self._clock())

    def on_pulse(self, callback: Callable[[int, int, PositionUm], None]) -> Callable[[], None]:
        """Call ``callback(index, t_ns, pose_um)`` at each trigger pulse, in the thread that makes it.

        Returns
        -------
        callable
            Ends it.
        """
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def pulse(self) -> None:
        """Make one trigger pulse; it has reached every listener when this returns."""
        with self._lock:
            index, t_ns = self._pulses, self._clock()
            pose_um = self._pose_um(t_ns)
            self._pulses += 1
        for callback in tuple(self._listeners):
            callback(index, t_ns, pose_um)

    # -- inside the controller ------------------------------------------------------------------------------------

    def _power_up(self, pose_um: PositionUm) -> None:
        now_s = self._clock() / 1e9
        self._error = 0
        self._axes = {
            name: Axis(
                motion=PiezoMotion(at, since_s=now_s),
                low_um=low,
                high_um=high,
                noise_um=noise,
                target_um=at,
                soft_low_um=low,
                soft_high_um=high,
                online=not self.profile.starts_offline,
                velocity_control=not self.profile.velocity_control,
                parameters=dict(self._parameters),
            )
            for name, at, low, high, noise in zip(
                self.profile.axes, pose_um, self._travel_um.low, self._travel_um.high, self._noise_um, strict=True
            )
        }
        self._channels = dict(zip("123", self._axes.values(), strict=True))

    def _pose_um(self, t_ns: int) -> PositionUm:
        return PositionUm(*(axis.motion.state(t_ns / 1e9)[0] for axis in self._axes.values()))

    def _take(self, command: str) -> None:
        now_ns = self._clock()
        for fault in self.faults.events(command):
            if fault.name == "latched":
                self._error = RECEIVE_TIMEOUT
            elif fault.name == "servo_off":
                self._switch([word for name in self._axes for word in (name, "0")], self._axes, "servo")
            elif fault.name == "reboot":
                self._reboot()
                self._silent_until_ns = now_ns + round(fault.delay_s * 1e9)
            elif fault.name == "unplug":
                self._unplugged = fault.delay_s
        if self._unplugged is not None or self.faults.holds("dead") or now_ns < self._silent_until_ns:
            return
        reply, late_s = self.faults.reply(command, self._execute(command), self._execute, self.profile.axes)
        if reply:
            due_ns = now_ns + round(late_s * 1e9)
            self._outbox.append((max([due_ns, *(t_ns for t_ns, _ in self._outbox)]), reply))

    def _execute(self, command: str) -> str:
        control = command.encode(gcs.ENCODING)
        now_s = self._clock() / 1e9
        if control == gcs.STOP:
            return self._halt([])
        if control == gcs.READY:
            return gcs.READY_REPLY + "\n"
        if control == gcs.GENERATING:
            return "0\n"
        if control == gcs.MOVING:
            moving = [axis.servo and axis.motion.slewing(now_s) for axis in self._axes.values()]
            return f"{sum(flag << bit for bit, flag in enumerate(moving)):x}\n"
        name, *args = command.upper().split() or [""]
        if not name:
            return ""
        try:
            if name not in self._handlers:
                raise Refusal(gcs.UNKNOWN_COMMAND)
            if len(args) > MAX_ARGUMENTS:
                raise Refusal(gcs.WRONG_COUNT)
            return self._handlers[name](args)
        except Refusal as refusal:
            self._error = refusal.code
            return ""

    def _make_handlers(self) -> dict[str, Callable[[list[str]], str]]:
        def of_axes(value: Callable[[Axis, float], float | bool]) -> Callable[[list[str]], str]:
            return lambda args: self._answer(args, self._axes, value)

        def of_channels(value: Callable[[Axis, float], float | bool]) -> Callable[[list[str]], str]:
            return lambda args: self._answer(args, self._channels, value)

        def text(reply: str) -> Callable[[list[str]], str]:
            return lambda args: reply if not args else _refuse(gcs.WRONG_COUNT)

        commands = COMMANDS[self.profile.name]
        everything = {
            "*IDN?": text(self.identity + "\n"),
            "CSV?": text("2.0\n"),
            "ERR?": self._read_error,
            "HLP?": text(_listing([*(f"#{byte}" for byte in gcs.CONTROL_BYTES), *commands])),
            "HPA?": text(
                _listing(f"0x{number:X}=\t0\t1\t{kind}\t{what}" for number, (kind, what) in PARAMETERS.items())
            ),
            "SAI?": lambda args: gcs.format_lines(self._axes) if args in ([], ["ALL"]) else _refuse(gcs.SYNTAX),
            "VER?": text(gcs.format_lines(["Firmware: superlens simulator 0.1", f"Model: {self.profile.model}"])),
            "TPC?": text(f"{len(self.profile.axes)}\n"),
            "POS?": of_axes(self._measure),
            "MOV?": of_axes(lambda axis, _: axis.target_um),
            "VEL?": of_axes(lambda axis, _: axis.velocity_um_s),
            "SVO?": of_axes(lambda axis, _: axis.servo),
            "VCO?": of_axes(lambda axis, _: axis.velocity_control),
            "ONT?": of_axes(self._on_target),
            "OVF?": of_axes(lambda axis, _: False),
            "TMN?": of_axes(lambda axis, _: axis.low_um),
            "TMX?": of_axes(lambda axis, _: axis.high_um),
            "NLM?": of_axes(lambda axis, _: axis.soft_low_um),
            "PLM?": of_axes(lambda axis, _: axis.soft_high_um),
            "ONL?": of_channels(lambda axis, _: axis.online),
            "VOL?": of_channels(_voltage),
            "MOV": lambda args: self._move(self._pairs(args, self._axes)),
            "MVR": lambda args: self._move([(axis, axis.target_um + by) for axis, by in self._pairs(args, self._axes)]),
            "VEL": self._set_velocity,
            "NLM": lambda args: self._set_limits(args, "soft_low_um"),
            "PLM": lambda args: self._set_limits(args, "soft_high_um"),
            "SVO": lambda args: self._switch(args, self._axes, "servo"),
            "VCO": lambda args: self._switch(args, self._axes, "velocity_control"),
            "ONL": lambda args: self._switch(args, self._channels, "online"),
            "STP": lambda args: self._halt([]) if not args else _refuse(gcs.WRONG_COUNT),
            "HLT": self._halt,
            "RBT": lambda args: self._reboot() if not args else _refuse(gcs.WRONG_COUNT),
            "SPA": self._set_parameters,
            "SPA?": self._read_parameters,
        }
        return {name: everything[name] for name in commands}

    def _answer(self, args: list[str], items: dict[str, Axis], value: Callable[[Axis, float], float | bool]) -> str:
        now_s = self._clock() / 1e9
        return gcs.format_items((item, self._text(value(_named(item, items), now_s))) for item in (args or list(items)))

    def _text(self, value: float | bool) -> str:
        if isinstance(value, bool):
            return str(int(value))
        return f"{value:+010.4f}" if self.profile.model == "E-517" else f"{value:.5f}"

    def _measure(self, axis: Axis, now_s: float) -> float:
        return axis.motion.state(now_s)[0] + axis.noise_um * self._random.standard_normal()

    def _on_target(self, axis: Axis, now_s: float) -> bool:
        live = axis.servo and axis.online and axis.velocity_control and not self.faults.holds("never_on_target")
        return live and axis.motion.settled(now_s, axis.parameters[TOLERANCE], axis.parameters[SETTLING_TIME])

    def _read_error(self, args: list[str]) -> str:
        if args:
            raise Refusal(gcs.WRONG_COUNT)
        error, self._error = self._error, 0
        return f"{error}\n"

    def _pairs(self, args: list[str], items: dict[str, Axis]) -> list[tuple[Axis, float]]:
        if not args:
            raise Refusal(gcs.MISSING_ARGUMENT)
        if len(args) % 2:
            raise Refusal(gcs.WRONG_COUNT)
        return [(_named(item, items), _number(text)) for item, text in zip(args[::2], args[1::2], strict=True)]

    def _move(self, targets: list[tuple[Axis, float]]) -> str:
        # All or nothing: one axis that may not move keeps the others from moving.
        if not all(axis.servo for axis, _ in targets):
            raise Refusal(gcs.SERVO_OFF)
        for axis, target_um in targets:
            if not max(axis.low_um, axis.soft_low_um) <= target_um <= min(axis.high_um, axis.soft_high_um):
                raise Refusal(gcs.POSITION_LIMITS)
        now_s = self._clock() / 1e9
        for axis, target_um in targets:
            axis.command(now_s, target_um)
        return ""

    def _set_velocity(self, args: list[str]) -> str:
        pairs = self._pairs(args, self._axes)
        if not all(0.0 < value <= MAX_VELOCITY_UM_S for _, value in pairs):
            raise Refusal(gcs.VELOCITY_LIMITS)
        for axis, value in pairs:
            axis.velocity_um_s = value
        return ""

    def _set_limits(self, args: list[str], which: str) -> str:
        pairs = self._pairs(args, self._axes)
        if not all(axis.low_um <= value <= axis.high_um for axis, value in pairs):
            raise Refusal(gcs.OUT_OF_RANGE)
        for axis, value in pairs:
            setattr(axis, which, value)
        return ""

    def _switch(self, args: list[str], items: dict[str, Axis], which: str) -> str:
        pairs = self._pairs(args, items)
        if not all(value in (0.0, 1.0) for _, value in pairs):
            raise Refusal(gcs.OUT_OF_RANGE)
        now_s = self._clock() / 1e9
        for axis, value in pairs:
            if which != "velocity_control":
                axis.hold(now_s)  # servo and control source change without a jump
            setattr(axis, which, bool(value))
        return ""

    def _halt(self, args: list[str]) -> str:
        now_s = self._clock() / 1e9
        for axis in [_named(item, self._axes) for item in args] or self._axes.values():
            axis.hold(now_s)
        if not next(iter(self._axes.values())).parameters[QUIET_STOP]:
            self._error = gcs.STOPPED
        return ""

    def _reboot(self) -> str:
        self._power_up(self._pose_um(self._clock()))
        return ""

    def _set_parameters(self, args: list[str]) -> str:
        if not args or len(args) % 3:
            raise Refusal(gcs.WRONG_COUNT if args else gcs.MISSING_ARGUMENT)
        values = [(*self._parameter(args[n], args[n + 1]), _number(args[n + 2])) for n in range(0, len(args), 3)]
        if any(value < 0 for _, _, value in values):
            raise Refusal(gcs.OUT_OF_RANGE)
        for axis, number, value in values:
            axis.parameters[number] = value
        return ""

    def _read_parameters(self, args: list[str]) -> str:
        if len(args) % 2:
            raise Refusal(gcs.WRONG_COUNT)
        if not args:
            args = [word for item in self._axes for number in PARAMETERS for word in (item, hex(number))]
        found = [(item, *self._parameter(item, text)) for item, text in zip(args[::2], args[1::2], strict=True)]
        return gcs.format_items(
            (f"{item} 0x{number:X}", f"{axis.parameters[number]:g}") for item, axis, number in found
        )

    def _parameter(self, item: str, text: str) -> tuple[Axis, int]:
        axis = _named(item, self._axes)
        try:
            number = int(text, 0)
        except ValueError:
            raise Refusal(gcs.BAD_NUMBER) from None
        if number not in PARAMETERS:
            raise Refusal(gcs.UNKNOWN_PARAMETER)
        return axis, number


def _refuse(code: int) -> str:
    raise Refusal(code)


def _named(item: str, items: dict[str, Axis]) -> Axis:
    if item not in items:
        raise Refusal(gcs.BAD_AXIS)
    return items[item]


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise Refusal(gcs.BAD_NUMBER) from None
    if not math.isfinite(value):
        raise Refusal(gcs.BAD_NUMBER)
    return value


def _voltage(axis: Axis, now_s: float) -> float:
    # -20 to 120 V over the travel: the amplifiers' range, without a piezo's hysteresis
    return -20.0 + 140.0 * (axis.motion.state(now_s)[0] - axis.low_um) / (axis.high_um - axis.low_um)


def _listing(lines: Iterable[str]) -> str:
    return gcs.format_lines(["The following are available:", *lines, "end of help"])
