"""One axis of a simulated stage: servo, limits, velocity, what its amplifier does in open loop, and three of them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from firmware_bridge.position import Box, PositionUm

from .grammar import AUTOZERO_RUNNING, INITIALISING, Refusal, expect, named
from .hysteresis import Hysteresis
from .motion import PiezoMotion, Ramp

MAX_VELOCITY_UM_S = 10_000.0
LOW_V, HIGH_V = -20.0, 120.0
SLEW_V_S = 14_000.0
AUTOZERO_S = 0.5
ON_TARGET_TOLERANCE_UM, SETTLING_S = 0.002, 0.002


class Axis:
    """What the controller keeps for one axis, and the axis itself.

    Attributes
    ----------
    motion : PiezoMotion
        Of what the sensor sees.
    servo, online, velocity_control : bool
        SVO, ONL, VCO.
    target_um : float
        MOV?
    wave_ends_s : float
        Until when a wave generator has the axis.
    zeroing_until_s : float
        Until when autozero has it.
    """

    def __init__(
        self,
        at_um: float,
        *,
        low_um: float,
        high_um: float,
        noise_um: float,
        drift_um_s: float,
        sensor_drift_um_s: float,
        hysteresis: float,
        servo_jump_um: float,
        now_s: float,
    ) -> None:
        self.servo_jump_um = servo_jump_um
        self.low_um = self.soft_low_um = low_um
        self.high_um = self.soft_high_um = high_um
        self.noise_um, self._drift_um_s, self._sensor_drift_um_s = noise_um, drift_um_s, sensor_drift_um_s
        self.motion = PiezoMotion(at_um, since_s=now_s)
        self.loop = Hysteresis(hysteresis)
        self.loop.reach(self.share(at_um))
        self._sensor_zeroed_s = now_s
        self.servo = self.online = False
        self.reset(now_s, online=True, velocity_control=True)

    def reset(self, now_s: float, *, online: bool, velocity_control: bool) -> None:
        """Power up: the servo is open, the stage stays where it is."""
        self.velocity_control, self.velocity_um_s = velocity_control, 1000.0
        self.tolerance_um, self.settling_s = ON_TARGET_TOLERANCE_UM, SETTLING_S
        self.soft_low_um, self.soft_high_um = self.low_um, self.high_um
        self.wave_ends_s = self.zeroing_until_s = -math.inf
        self.zeroed = False
        self.hold(now_s, servo=False, online=online)

    def share(self, at_um: float) -> float:
        """A position as a part of the travel."""
        return (at_um - self.low_um) / (self.high_um - self.low_um)

    def sensor_zero_um(self, now_s: float) -> float:
        """How far the stage truly is beyond what the sensor says."""
        return self._sensor_drift_um_s * max(0.0, now_s - self._sensor_zeroed_s)

    def in_range(self, um: float) -> bool:
        """Whether a position may be commanded."""
        return max(self.low_um, self.soft_low_um) <= um <= min(self.high_um, self.soft_high_um)

    def command(self, now_s: float, target_um: float) -> None:
        """Take a target. An offline channel takes it too, and does not move."""
        still = not self.motion.slewing(now_s) and target_um == self.motion.target_um
        self.target_um = target_um
        if self.online and not still:
            limit_um_s = self.velocity_um_s if self.velocity_control else MAX_VELOCITY_UM_S
            self.motion.command(now_s, target_um, limit_um_s)

    def follow(self, now_s: float, path: Iterator[Ramp], *, ends_s: float, ends_um: float) -> None:
        """Let a wave generator have the axis."""
        self.motion.follow(now_s, path)
        self.wave_ends_s, self.target_um = ends_s, ends_um

    def hold(self, now_s: float, *, servo: bool | None = None, online: bool | None = None) -> None:
        """Make where the stage is the target, with another state of servo or channel; an open axis drifts."""
        self.volts(now_s)
        self.servo = self.servo if servo is None else servo
        self.online = self.online if online is None else online
        closed = self.servo and self.online
        self.wave_ends_s = -math.inf
        self.motion.hold(now_s, drift_um_s=0.0 if closed else self._drift_um_s)
        self.target_um = self.motion.state(now_s)[0]

    def waving(self, now_s: float) -> bool:
        """Whether a wave generator has the axis."""
        return now_s < self.wave_ends_s

    def moving(self, now_s: float) -> bool:
        """What #5 says."""
        return self.zeroing(now_s) or (self.servo and (self.waving(now_s) or self.motion.slewing(now_s)))

    def volts(self, now_s: float) -> float:
        """What the amplifier gives out: in closed loop, what it takes to be where the axis is."""
        if self.servo and self.online:
            self.loop.reach(self.share(self.motion.state(now_s)[0]))
        return LOW_V + (HIGH_V - LOW_V) * self.loop.voltage

    def apply_volts(self, now_s: float, volts: float) -> None:
        """Set the amplifier in open loop: the axis follows with its hysteresis, and then drifts."""
        goal = (volts - LOW_V) / (HIGH_V - LOW_V)
        at_um, ramps = self.motion.set_point_um(now_s), []
        for corner in self.loop.corners(goal):
            lasts_s = abs(corner - self.loop.voltage) * (HIGH_V - LOW_V) / SLEW_V_S
            before = self.loop.position(self.loop.voltage)
            moves_um = (self.loop.move(corner) - before) * (self.high_um - self.low_um)
            if lasts_s > 0:
                ramps.append(Ramp(now_s, now_s + lasts_s, at_um, moves_um / lasts_s))
                now_s, at_um = now_s + lasts_s, at_um + moves_um
        ramps.append(Ramp(now_s, math.inf, at_um, self._drift_um_s))
        self.motion.follow(ramps[0].begin_s, iter(ramps))

    def zeroing(self, now_s: float) -> bool:
        """Whether autozero has the axis."""
        return now_s < self.zeroing_until_s

    def autozero(self, now_s: float) -> None:
        """Drive to the low end, and take it for zero: the drift of the sensor is gone."""
        self.zeroing_until_s, self.zeroed = now_s + AUTOZERO_S, True
        self._sensor_zeroed_s = self.zeroing_until_s
        self.target_um = self.low_um
        self.motion.command(now_s, self.low_um, 2.0 * (self.high_um - self.low_um) / AUTOZERO_S)


class Stage:
    """Three axes under their names of now, at one time.

    Attributes
    ----------
    axes : tuple of Axis
        x, y, z, whatever they are called.
    names : dict
        Those that a command may name.
    now_s : float
        Of the command that is executed; only grows.
    ready_s : float
        Until then the controller initialises.
    """

    def __init__(self, axes: tuple[Axis, ...], names: tuple[str, ...], *, now_s: float) -> None:
        self.axes, self.now_s, self.ready_s = axes, now_s, now_s
        self.names = dict(zip(names, axes, strict=True))
        self.channels = dict(zip("123", axes, strict=True))

    def axis(self, item: str) -> Axis:
        """The axis of a name; error 15 where there is none."""
        return named(item, self.names)

    def pose_um(self, t_s: float) -> PositionUm:
        """Where the stage truly is."""
        return PositionUm(*(axis.motion.state(t_s)[0] + axis.sensor_zero_um(t_s) for axis in self.axes))

    def free(self, *axes: Axis) -> None:
        """Refuse while the controller initialises, or autozero has one of the axes."""
        expect(self.now_s >= self.ready_s, INITIALISING)
        if any(axis.zeroing(self.now_s) for axis in axes):
            raise Refusal(AUTOZERO_RUNNING)

    def rename(self, names: dict[str, str]) -> None:
        """Give axes other names; ``ZERO`` takes one away from the commands."""
        self.names = {new: self.names[old] for old, new in names.items() if new != "ZERO"}


def three_axes(
    at_um: PositionUm,
    travel_um: Box,
    *,
    noise_um: PositionUm,
    drift_um_s: PositionUm,
    sensor_drift_um_s: PositionUm,
    hysteresis: float,
    servo_jump_um: PositionUm,
    now_s: float,
) -> tuple[Axis, ...]:
    """The axes of a stage."""
    return tuple(
        Axis(
            at,
            low_um=low,
            high_um=high,
            noise_um=noise,
            drift_um_s=drift,
            sensor_drift_um_s=sensor_drift,
            hysteresis=hysteresis,
            servo_jump_um=jump,
            now_s=now_s,
        )
        for at, low, high, noise, drift, sensor_drift, jump in zip(
            at_um,
            travel_um.low,
            travel_um.high,
            noise_um,
            drift_um_s,
            sensor_drift_um_s,
            servo_jump_um,
            strict=True,
        )
    )
