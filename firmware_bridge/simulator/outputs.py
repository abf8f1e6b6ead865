"""The simulated trigger outputs: which edge falls when, in closed form from the motion, never by polling.

The modes are the E-727's (manual E727T0005, "Configuring Trigger Output"): 0 a pulse each time the axis has covered a
distance, 2 the level of on-target, 3 the level of being between two positions, 4 the points of the wave generator. A
pulse is heard at its leading edge, whatever the polarity; of a level the rising edge of the wire is heard.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from firmware_bridge import gcs

from .axis import Axis, Stage
from .grammar import Handlers, expect, groups, integer, number
from .motion import Piece
from .waves import OUTPUTS, Waves

STEP, AXIS, MODE, LOW, HIGH, POLARITY, START, STOP = 1, 2, 3, 5, 6, 7, 8, 9
DISTANCE, ON_TARGET, BETWEEN, GENERATOR = 0, 2, 3, 4
HORIZON_S = 0.1  # of looking ahead on a path without an end
_EPSILON_UM = 1e-9  # what is reached in the limit only, such as the target of a move, is reached


@dataclass
class Output:
    """One line: its settings, and where on the way its edges stand.

    Attributes
    ----------
    settings : dict
        CTO's parameters; the axis is its place.
    enabled : bool
        TRO, on controllers that have it.
    """

    settings: dict[int, float]
    enabled: bool
    single_direction: bool = False
    level: bool = False
    active: bool = False
    before: bool = False
    last_um: float = math.nan

    def arm(self, axis: Axis, now_s: float) -> None:
        """Begin anew: distances count from here."""
        self.level = self.active = False
        self.last_um = axis.motion.state(now_s)[0]
        start_um, stop_um = self.settings.get(START, 0.0), self.settings.get(STOP, 0.0)
        self.before = (self.last_um - start_um) * (1 if stop_um > start_um else -1) < -_EPSILON_UM

    def walk(
        self, axis: Axis, on_target: bool, rises: Callable[[], Iterator[float]], begin_s: float, until_s: float
    ) -> Iterator[float]:
        """When its edges fall, after begin_s and up to until_s; what it remembers moves on with them."""
        mode = self.settings[MODE]
        if mode == GENERATOR:
            yield from rises()
        elif mode == ON_TARGET:
            yield from self._levels(_settled(axis, on_target, begin_s, until_s))
        elif mode == BETWEEN:
            yield from self._levels(self._inside(axis, begin_s, until_s))
        elif self.settings[STEP] > 0:
            for piece in axis.motion.pieces(begin_s, until_s):
                yield from self._distances(piece)

    def _levels(self, changes: Iterator[tuple[float, bool]]) -> Iterator[float]:
        for t_s, level in changes:
            if level != self.level:
                self.level = level
                if level == bool(self.settings.get(POLARITY, 1)):
                    yield t_s

    def _inside(self, axis: Axis, begin_s: float, until_s: float) -> Iterator[tuple[float, bool]]:
        low_um, high_um = self.settings[LOW], self.settings[HIGH]
        yield begin_s, low_um <= axis.motion.state(begin_s)[0] <= high_um
        for piece in axis.motion.pieces(begin_s, until_s):
            begin_um, end_um = piece.ends_um()
            edges_um = (low_um, high_um) if end_um > begin_um else (high_um, low_um)
            for edge_um, inside in zip(edges_um, (True, False), strict=True):
                t_s = piece.when(edge_um)
                if t_s is not None:
                    yield t_s, inside and low_um <= high_um

    def _distances(self, piece: Piece) -> Iterator[float]:
        begin_um, end_um = piece.ends_um()
        way = 1.0 if end_um > begin_um else -1.0
        start_um, stop_um = self.settings.get(START, 0.0), self.settings.get(STOP, 0.0)
        if start_um != stop_um:
            forward = 1.0 if stop_um > start_um else -1.0
            if way == forward and self.before and (end_um - start_um) * way >= -_EPSILON_UM:
                self.before, self.active, self.last_um = False, True, start_um
                yield _when(piece, start_um)
            if self.active and not (self.single_direction and way != forward):
                yield from self._steps(piece, way, (stop_um if way == forward else start_um))
            if (end_um - stop_um) * forward > _EPSILON_UM:
                self.active = False
            if (end_um - start_um) * forward < -_EPSILON_UM:
                self.active, self.before = False, True
        else:
            yield from self._steps(piece, way, way * math.inf)

    def _steps(self, piece: Piece, way: float, last_um: float) -> Iterator[float]:
        end_um = piece.ends_um()[1]
        limit_um = min(end_um * way, last_um * way) + _EPSILON_UM
        while (self.last_um + way * self.settings[STEP]) * way <= limit_um:
            self.last_um += way * self.settings[STEP]
            yield _when(piece, self.last_um)


def _when(piece: Piece, level_um: float) -> float:
    t_s = piece.when(level_um)
    if t_s is not None:
        return t_s
    begin_um, end_um = piece.ends_um()
    return piece.begin_s if abs(begin_um - level_um) < abs(end_um - level_um) else piece.end_s


def _settled(axis: Axis, possible: bool, begin_s: float, until_s: float) -> Iterator[tuple[float, bool]]:
    if not possible:
        yield begin_s, False
        return
    for stretch in axis.motion.stretches():
        if stretch.ramp.begin_s > until_s:
            return
        settles_s = stretch.settles_s(axis.tolerance_um, axis.settling_s)
        if stretch.ramp.end_s <= begin_s:
            continue
        yield max(begin_s, stretch.ramp.begin_s), settles_s <= max(begin_s, stretch.ramp.begin_s)
        if settles_s <= min(until_s, stretch.ramp.end_s):
            yield max(begin_s, settles_s), True


@dataclass
class Outputs:
    """All lines.

    Parameters
    ----------
    stage, waves : Stage, Waves
        What they watch.
    parameters : tuple of int
        CTO's, of this controller.
    switchable : bool
        Whether TRO switches them; else they work as soon as they are set.
    on_target : callable
        Whether an axis may say that it is on target.
    """

    stage: Stage
    waves: Waves
    parameters: tuple[int, ...]
    switchable: bool
    on_target: Callable[[Axis], bool]
    lines: dict[int, Output] = field(init=False)

    def __post_init__(self) -> None:
        self._walked_s = self.stage.now_s
        first = dict.fromkeys(self.parameters, 0.0) | {AXIS: 0.0, POLARITY: 1.0}
        self.lines = {n + 1: Output(dict(first), not self.switchable) for n in range(OUTPUTS)}

    def handlers(self) -> Handlers:
        """The commands."""
        return {"CTO": self._configure, "CTO?": self._tell, "TRO": self._enable, "TRO?": self._enabled}

    def _walk(self, output: int, line: Output, until_s: float) -> Iterator[float]:
        axis = self.stage.axes[int(line.settings[AXIS])]
        begin_s = self._walked_s

        def rises() -> Iterator[float]:
            return self.waves.rises_s(output, axis, begin_s, until_s)

        return line.walk(axis, self.on_target(axis), rises, begin_s, until_s)

    def advance(self, now_s: float) -> list[tuple[float, int]]:
        """The edges up to now: when, and on which output, in order."""
        edges = [
            (t_s, output)
            for output, line in self.lines.items()
            if line.enabled
            for t_s in self._walk(output, line, now_s)
        ]
        self._walked_s = now_s
        return sorted(edges)

    def next_s(self, now_s: float, outputs: set[int]) -> float | None:
        """When the next edge falls on one of these outputs, or when to look again; None: never as it is."""
        waving = any(axis.waving(now_s) for axis in self.stage.axes)
        until_s = now_s + HORIZON_S if waving else math.inf
        lines = ((output, copy.copy(self.lines[output])) for output in outputs if self.lines[output].enabled)
        edges_s = (next(self._walk(output, line, until_s), math.inf) for output, line in lines)
        next_s = min([until_s, *edges_s])
        return None if math.isinf(next_s) else next_s

    def set_single_direction(self, on: bool) -> None:
        """Whether pulses at a distance come in one direction only (parameter 0x18000300)."""
        for line in self.lines.values():
            line.single_direction = on

    def _value(self, parameter: int, text: str) -> float:
        if parameter == AXIS:
            return float(self.stage.axes.index(self.stage.axis(text)))
        value = number(text)
        expect(value in (DISTANCE, ON_TARGET, BETWEEN, GENERATOR) or parameter != MODE, gcs.OUT_OF_RANGE)
        expect(value >= 0 or parameter != STEP, gcs.OUT_OF_RANGE)
        expect(value in (0.0, 1.0) or parameter != POLARITY, gcs.OUT_OF_RANGE)
        return value

    def _parameter(self, text: str) -> int:
        value = integer(text, 0, 2**31)
        expect(value in self.parameters, gcs.UNKNOWN_PARAMETER)
        return value

    def _configure(self, args: list[str]) -> str:
        triples = [
            (self.lines[integer(line, 1, OUTPUTS)], self._parameter(parameter), parameter, text)
            for line, parameter, text in groups(args, 3)
        ]
        values = [(line, parameter, self._value(parameter, text)) for line, parameter, _, text in triples]
        for line, parameter, value in values:
            line.settings[parameter] = value
        for line in {id(line): line for line, _, _ in values}.values():
            line.arm(self.stage.axes[int(line.settings[AXIS])], self.stage.now_s)
        return ""

    def _tell(self, args: list[str]) -> str:
        if args:
            pairs = [(integer(line, 1, OUTPUTS), self._parameter(parameter)) for line, parameter in groups(args, 2)]
        else:
            pairs = [(line, parameter) for line in self.lines for parameter in self.parameters]
        return gcs.format_items((f"{line} {parameter}", self._text(line, parameter)) for line, parameter in pairs)

    def _text(self, line: int, parameter: int) -> str:
        value = self.lines[line].settings[parameter]
        if parameter == AXIS:
            names = {id(axis): name for name, axis in self.stage.names.items()}
            return names.get(id(self.stage.axes[int(value)]), "ZERO")
        return f"{value:g}"

    def _enable(self, args: list[str]) -> str:
        pairs = [(self.lines[integer(line, 1, OUTPUTS)], bool(integer(on, 0, 1))) for line, on in groups(args, 2)]
        for line, on in pairs:
            line.enabled = on
            line.arm(self.stage.axes[int(line.settings[AXIS])], self.stage.now_s)
        return ""

    def _enabled(self, args: list[str]) -> str:
        lines = [integer(text, 1, OUTPUTS) for text in args] or list(self.lines)
        return gcs.format_items((str(line), str(int(self.lines[line].enabled))) for line in lines)
