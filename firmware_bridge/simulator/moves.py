"""The simulated controller's commands for its axes: who and where they are, servo, moves, limits, stop, autozero."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from firmware_bridge import gcs

from .axis import HIGH_V, LOW_V, MAX_VELOCITY_UM_S, Axis, Stage
from .dialects import COMMANDS, NUMBERS
from .grammar import (
    ILLEGAL_AXIS_NAME,
    OPEN_LOOP_WITH_SERVO_ON,
    VOLTAGE_LIMITS,
    WAVE_RUNNING,
    Handler,
    Handlers,
    Refusal,
    expect,
    fixed,
    groups,
    listing,
    named,
    number,
)
from .recorder import Recorder

ADC_COUNTS = 65536  # over the travel
_MARGIN_V = 5.0  # beyond the amplifier's range before OVF? says so


class Moves:
    """Handlers of one controller's life from power-up on."""

    def __init__(
        self,
        profile: gcs.Profile,
        stage: Stage,
        recorder: Recorder,
        random: np.random.Generator,
        may_be_on_target: Callable[[Axis], bool],
        halt: Callable[[list[Axis]], str],
    ) -> None:
        self._profile, self._stage, self._recorder, self._random = profile, stage, recorder, random
        self._may_be_on_target, self._halt = may_be_on_target, halt

    def handlers(self) -> Handlers:
        """The commands."""
        stage = self._stage
        commands = COMMANDS[self._profile.name]
        return {
            "CSV?": fixed("2.0\n"),
            "HLP?": fixed(listing([*(f"#{byte}" for byte in gcs.CONTROL_BYTES), *commands])),
            "VER?": fixed(gcs.format_lines(["Firmware: superlens simulator 0.1", f"Model: {self._profile.model}"])),
            "TPC?": fixed(f"{len(stage.channels)}\n"),
            "SAI": self._rename,
            "SAI?": self._names,
            "POS?": self._of_axes(self._measure),
            "MOV?": self._of_axes(lambda axis: axis.target_um),
            "VEL?": self._of_axes(lambda axis: axis.velocity_um_s),
            "SVO?": self._of_axes(lambda axis: axis.servo),
            "VCO?": self._of_axes(lambda axis: axis.velocity_control),
            "ONT?": self._of_axes(self._on_target),
            "OVF?": self._of_axes(self._overflows),
            "TMN?": self._of_axes(lambda axis: axis.low_um),
            "TMX?": self._of_axes(lambda axis: axis.high_um),
            "NLM?": self._of_axes(lambda axis: axis.soft_low_um),
            "PLM?": self._of_axes(lambda axis: axis.soft_high_um),
            "ATZ?": self._of_axes(lambda axis: axis.zeroed and not axis.zeroing(stage.now_s)),
            "SVA?": self._of_axes(lambda axis: axis.volts(stage.now_s)),
            "VOL?": self._of_channels(lambda axis: axis.volts(stage.now_s)),
            "VMI?": self._of_channels(lambda axis: LOW_V),
            "VMA?": self._of_channels(lambda axis: HIGH_V),
            "TAD?": self._of_channels(lambda axis: ADC_COUNTS * axis.share(self._measure(axis))),
            "ONL?": self._of_channels(lambda axis: axis.online),
            "MOV": lambda args: self._move(self._pairs(args)),
            "MVR": lambda args: self._move([(axis, axis.target_um + by) for axis, by in self._pairs(args)]),
            "STE": self._step,
            "SVA": self._apply_volts,
            "VEL": self._set_velocity,
            "NLM": lambda args: self._set_limits(args, "soft_low_um"),
            "PLM": lambda args: self._set_limits(args, "soft_high_um"),
            "SVO": lambda args: self._switch(args, stage.names, "servo"),
            "VCO": lambda args: self._switch(args, stage.names, "velocity_control"),
            "ONL": lambda args: self._switch(args, stage.channels, "online"),
            "ATZ": self._autozero,
            "STP": self._stop,
            "HLT": lambda args: self._halt(self._named(args)),
        }

    # -- questions ----------------------------------------------------------------------------------------------------

    def _of_axes(self, value: Callable[[Axis], float | bool]) -> Handler:
        return lambda args: self._answer(args, self._stage.names, value)

    def _of_channels(self, value: Callable[[Axis], float | bool]) -> Handler:
        return lambda args: self._answer(args, self._stage.channels, value)

    def _answer(self, args: Sequence[str], items: Mapping[str, Axis], value: Callable[[Axis], float | bool]) -> str:
        return gcs.format_items((item.upper(), self._text(value(named(item, items)))) for item in args or items)

    def _text(self, value: float | bool) -> str:
        return str(int(value)) if isinstance(value, bool) else NUMBERS[self._profile.name].format(value)

    def _measure(self, axis: Axis) -> float:
        return axis.motion.state(self._stage.now_s)[0] + axis.noise_um * float(self._random.standard_normal())

    def _on_target(self, axis: Axis) -> bool:
        settled = axis.motion.settled(self._stage.now_s, axis.tolerance_um, axis.settling_s)
        return self._may_be_on_target(axis) and settled

    def _overflows(self, axis: Axis) -> bool:
        return not LOW_V - _MARGIN_V <= axis.volts(self._stage.now_s) <= HIGH_V + _MARGIN_V

    def _names(self, args: list[str]) -> str:
        expect([word.upper() for word in args] in ([], ["ALL"]), gcs.SYNTAX)
        hidden = len(self._stage.axes) - len(self._stage.names)
        return gcs.format_lines([*self._stage.names, *(["ZERO"] * hidden if args else [])])

    # -- commands -----------------------------------------------------------------------------------------------------

    def _named(self, args: Sequence[str]) -> list[Axis]:
        return [self._stage.axis(item) for item in args] or list(self._stage.names.values())

    def _pairs(self, args: Sequence[str]) -> list[tuple[Axis, float]]:
        return [(self._stage.axis(item), number(text)) for item, text in groups(args, 2)]

    def _rename(self, args: list[str]) -> str:
        names = {name: name for name in self._stage.names}
        for old, new in groups(args, 2):
            named(old, self._stage.names)
            expect(new.isalnum() and len(new) <= 8, ILLEGAL_AXIS_NAME)
            names[old.upper()] = new.upper()
        given = [name for name in names.values() if name != "ZERO"]
        expect(len(set(given)) == len(given) > 0, ILLEGAL_AXIS_NAME)
        self._stage.rename(names)
        return ""

    def _move(self, targets: Sequence[tuple[Axis, float]]) -> str:
        # All or nothing: one axis that may not move keeps the others from moving.
        now_s = self._stage.now_s
        self._stage.free(*(axis for axis, _ in targets))
        expect(all(axis.servo for axis, _ in targets), gcs.SERVO_OFF)
        expect(not any(axis.waving(now_s) for axis, _ in targets), WAVE_RUNNING)
        expect(all(axis.in_range(um) for axis, um in targets), gcs.POSITION_LIMITS)
        for axis, target_um in targets:
            axis.command(now_s, target_um)
        self._recorder.moved()
        return ""

    def _step(self, args: list[str]) -> str:
        self._move([(axis, axis.target_um + by) for axis, by in self._pairs(args)])
        self._recorder.start()
        return ""

    def _apply_volts(self, args: list[str]) -> str:
        pairs = self._pairs(args)
        self._stage.free(*(axis for axis, _ in pairs))
        expect(not any(axis.servo for axis, _ in pairs), OPEN_LOOP_WITH_SERVO_ON)
        expect(all(LOW_V <= volts <= HIGH_V for _, volts in pairs), VOLTAGE_LIMITS)
        for axis, volts in pairs:
            if axis.online:
                axis.apply_volts(self._stage.now_s, volts)
        self._recorder.moved()
        return ""

    def _set_velocity(self, args: list[str]) -> str:
        pairs = self._pairs(args)
        expect(all(0.0 < value <= MAX_VELOCITY_UM_S for _, value in pairs), gcs.VELOCITY_LIMITS)
        for axis, value in pairs:
            axis.velocity_um_s = value
        return ""

    def _set_limits(self, args: list[str], which: str) -> str:
        pairs = self._pairs(args)
        expect(all(axis.low_um <= value <= axis.high_um for axis, value in pairs), gcs.OUT_OF_RANGE)
        for axis, value in pairs:
            setattr(axis, which, value)
        return ""

    def _switch(self, args: list[str], items: Mapping[str, Axis], which: str) -> str:
        pairs = [(named(item, items), number(text)) for item, text in groups(args, 2)]
        expect(all(value in (0.0, 1.0) for _, value in pairs), gcs.OUT_OF_RANGE)
        self._stage.free(*(axis for axis, _ in pairs))
        for axis, value in pairs:
            if which == "velocity_control":
                axis.velocity_control = bool(value)
            elif getattr(axis, which) != bool(value):
                axis.hold(self._stage.now_s, **{which: bool(value)})  # without a jump, but for servo_jump_um
                if which == "servo" and axis.servo and axis.servo_jump_um:
                    axis.command(
                        self._stage.now_s, min(max(axis.target_um + axis.servo_jump_um, axis.low_um), axis.high_um)
                    )
        return ""

    def _stop(self, args: list[str]) -> str:
        if args:
            raise Refusal(gcs.WRONG_COUNT)
        return self._halt(list(self._stage.axes))

    def _autozero(self, args: list[str]) -> str:
        axes = [self._stage.axis(item) for item, _ in groups(args, 2)] if args else self._named([])
        self._stage.free(*axes)
        expect(not any(axis.waving(self._stage.now_s) for axis in axes), WAVE_RUNNING)
        for axis in axes:
            if axis.online:
                axis.autozero(self._stage.now_s)
        return ""
