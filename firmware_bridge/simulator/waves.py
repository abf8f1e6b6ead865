"""The simulated wave generator: tables of points, generators that put them out, triggers at their points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from firmware_bridge import gcs

from .axis import Axis, Stage
from .grammar import (
    NO_WAVE,
    WAVE_RUNNING,
    WAVE_TOO_LARGE,
    Handlers,
    Refusal,
    array,
    expect,
    fixed,
    groups,
    integer,
    number,
)
from .motion import Ramp

CYCLE_S = 50e-6  # of the servo: one point at a table rate of 1
TABLES, OUTPUTS = 8, 3
MAX_POINTS = 262_144
_MAX_CYCLES = 2**31 - 1


def scan(points: int, speed_up: int) -> NDArray[np.float64]:
    """A line from 0 to 1: constant velocity but for a parabola over `speed_up` points at each end.

    >>> line = scan(101, 20)
    >>> line[[0, 50, 100]].round(6).tolist(), bool(np.allclose(np.diff(line)[20:80], 1 / 80))
    ([0.0, 0.5, 1.0], True)
    """
    last = max(1, points - 1)
    t = np.arange(points, dtype=float)
    slope = 1.0 / (last - speed_up)
    way = slope * (t - speed_up / 2)
    if speed_up:
        way = np.where(t < speed_up, slope * t**2 / (2 * speed_up), way)
        way = np.where(t > last - speed_up, 1.0 - slope * (last - t) ** 2 / (2 * speed_up), way)
    return np.asarray(way)


def segment(kind: str, args: Sequence[str]) -> NDArray[np.float64]:
    """The points of one segment, as ``WAV`` describes it (manual E727T0005, and PIPython's order of arguments)."""
    if kind == "PNT":
        expect(len(args) >= 3, gcs.MISSING_ARGUMENT)
        values = [number(text) for text in args[2:]]
        integer(args[0], 1, MAX_POINTS)
        expect(integer(args[1], 1, MAX_POINTS) == len(values), gcs.WRONG_COUNT)
        return np.array(values)
    expect(kind in ("LIN", "RAMP", "SIN_P"), gcs.SYNTAX)
    expect(len(args) == {"LIN": 6, "RAMP": 7, "SIN_P": 6}[kind], gcs.WRONG_COUNT)
    length = integer(args[0], 1, MAX_POINTS, code=WAVE_TOO_LARGE)
    amplitude, offset = number(args[1]), number(args[2])
    points = integer(args[3], 2, length)
    start = integer(args[4], 0, length - points)
    if kind == "LIN":
        curve = scan(points, integer(args[5], 0, points // 2 - 1))
        after = 1.0
    else:
        centre = integer(args[-1], 1, points - 1)
        t = np.arange(points, dtype=float)
        if kind == "SIN_P":
            phase = np.where(t < centre, t / centre, 1.0 + (t - centre) / (points - centre))
            curve = (1.0 - np.cos(np.pi * phase)) / 2.0
        else:
            speed_up = integer(args[5], 0, max(0, min(centre, points - centre) // 2 - 1))
            curve = np.concatenate([scan(centre + 1, speed_up)[:-1], scan(points - centre + 1, speed_up)[:0:-1]])
        after = 0.0
    tail = np.full(length - points - start, after)
    return np.asarray(offset + amplitude * np.concatenate([np.zeros(start), curve, tail]))


@dataclass(frozen=True, eq=False)
class Run:
    """A wave on its way out of a generator."""

    begin_s: float
    step_s: float
    points: NDArray[np.float64]
    cycles: int
    smooth: bool

    @property
    def end_s(self) -> float:
        """When its last point has been put out; infinity: never."""
        return self.at_s(self.cycles, 0) if self.cycles else math.inf

    def at_s(self, cycle: int, point: int) -> float:
        """When a point (from 0) comes."""
        return self.begin_s + (cycle * len(self.points) + point) * self.step_s

    def ramps(self) -> Iterator[Ramp]:
        """The set point: points of one value, or in one line where the output is interpolated, are one ramp."""
        values = self.points
        rises = np.append(np.diff(values), values[0] - values[-1]) if self.smooth else np.zeros(len(values))
        changes = np.abs(np.diff(rises if self.smooth else values)) > 1e-12
        starts = [0, *(np.flatnonzero(changes) + 1).tolist(), len(values)]
        at_um, by_um_s = values.tolist(), (rises / self.step_s).tolist()
        cycle = 0
        while not self.cycles or cycle < self.cycles:
            for first, end in pairwise(starts):
                slope_um_s = by_um_s[first]
                if self.smooth and end == len(values) and cycle + 1 == self.cycles:
                    if first < end - 1:
                        yield Ramp(self.at_s(cycle, first), self.at_s(cycle, end - 1), at_um[first], slope_um_s)
                    first, slope_um_s = end - 1, 0.0  # the last point of all is held
                yield Ramp(self.at_s(cycle, first), self.at_s(cycle, end), at_um[first], slope_um_s)
            cycle += 1
        yield Ramp(self.end_s, math.inf, float(values[-1]))


@dataclass
class Generator:
    """One generator; it drives the axis of its number."""

    axis: Axis
    table: int = 0
    cycles: int = 0
    rate: int = 1
    smooth: bool = False
    offset_um: float = 0.0
    run: Run | None = None


@dataclass
class Waves:
    """Tables, generators and the trigger points.

    Attributes
    ----------
    started : bool
        Whether a generator was started since somebody looked: it triggers the data recorder.
    """

    stage: Stage
    tables: dict[int, NDArray[np.float64]] = field(default_factory=lambda: {n + 1: np.empty(0) for n in range(TABLES)})
    triggers: dict[int, set[int]] = field(default_factory=lambda: {n + 1: set() for n in range(OUTPUTS)})
    started: bool = False

    def __post_init__(self) -> None:
        self.generators = {n: Generator(axis) for n, axis in enumerate(self.stage.axes, 1)}

    def handlers(self) -> Handlers:
        """The commands."""
        return {
            "WAV": self._define,
            "WAV?": self._lengths,
            "WCL": self._clear,
            "GWD?": self._read,
            "WSL": lambda args: self._set(args, "table", TABLES),
            "WSL?": lambda args: self._tell(args, lambda g: str(g.table)),
            "WGC": lambda args: self._set(args, "cycles", _MAX_CYCLES),
            "WGC?": lambda args: self._tell(args, lambda g: str(g.cycles)),
            "WTR": self._set_rate,
            "WTR?": lambda args: self._tell(args, lambda g: f"{g.rate} {int(g.smooth)}"),
            "WOS": self._set_offset,
            "WOS?": lambda args: self._tell(args, lambda g: f"{g.offset_um:.5f}"),
            "WGO": self._go,
            "WGO?": lambda args: self._tell(args, lambda g: str(int(g.axis.waving(self.stage.now_s)))),
            "TWG?": fixed(f"{len(self.generators)}\n"),
            "TWS": self._set_triggers,
            "TWS?": self._read_triggers,
            "TWC": self._clear_triggers,
        }

    def running(self) -> int:
        """A bit for each generator that runs: #9."""
        return sum(g.axis.waving(self.stage.now_s) << (n - 1) for n, g in self.generators.items())

    def rises_s(self, output: int, axis: Axis, begin_s: float, until_s: float) -> Iterator[float]:
        """When the trigger points of an output come, as the generator of an axis (or another one that runs) says."""
        runs = [g.run for g in self.generators.values() if g.run is not None and g.axis.wave_ends_s > begin_s]
        own = [g.run for g in self.generators.values() if g.axis is axis and g.run in runs]
        points = sorted(p for p in self.triggers[output] if p - 1 not in self.triggers[output])
        for run in [*own, *runs][:1]:
            if run is None or not points:
                return
            period_s = len(run.points) * run.step_s
            cycle = max(0, int((begin_s - run.begin_s) / period_s) - 1)
            while run.at_s(cycle, 0) <= until_s and (not run.cycles or cycle < run.cycles):
                for point in points:
                    if point <= len(run.points) and begin_s < run.at_s(cycle, point - 1) <= until_s:
                        yield run.at_s(cycle, point - 1)
                cycle += 1

    def _generator(self, text: str) -> Generator:
        return self.generators[integer(text, 1, len(self.generators))]

    def _tables(self, args: Sequence[str]) -> list[int]:
        return [integer(text, 1, TABLES) for text in args] or list(self.tables)

    def _define(self, args: list[str]) -> str:
        expect(len(args) >= 3, gcs.MISSING_ARGUMENT)
        table = integer(args[0], 1, TABLES)
        expect(args[1].upper() in ("X", "&"), gcs.SYNTAX)
        points = segment(args[2].upper(), args[3:])
        if args[1] == "&":
            points = np.concatenate([self.tables[table], points])
        others = sum(len(values) for n, values in self.tables.items() if n != table)
        expect(others + len(points) <= MAX_POINTS, WAVE_TOO_LARGE)
        self.tables[table] = points
        return ""

    def _lengths(self, args: list[str]) -> str:
        if args:
            expect(all(integer(param, 1, 1, code=gcs.UNKNOWN_PARAMETER) for _, param in groups(args, 2)), gcs.SYNTAX)
        return gcs.format_items((f"{n} 1", f"{len(self.tables[n]):.5f}") for n in self._tables(args[::2]))

    def _clear(self, args: list[str]) -> str:
        for (text,) in groups(args, 1):
            self.tables[integer(text, 1, TABLES)] = np.empty(0)
        return ""

    def _read(self, args: list[str]) -> str:
        tables = self._tables(args[2:])
        longest = max(len(self.tables[n]) for n in tables)
        first = integer(args[0], 1, max(1, longest)) if args else 1
        count = integer(args[1], 1, MAX_POINTS) if len(args) > 1 else longest - first + 1
        columns = [self.tables[n][first - 1 : first - 1 + count].tolist() for n in tables]
        expect(all(len(column) == len(columns[0]) for column in columns), gcs.OUT_OF_RANGE)
        return array([f"Wave Table {n}" for n in tables], columns, sample_time_s=CYCLE_S)

    def _tell(self, args: list[str], value: Callable[[Generator], str]) -> str:
        return gcs.format_items((n, value(self._generator(n))) for n in args or [str(n) for n in self.generators])

    def _set(self, args: list[str], which: str, most: int) -> str:
        chosen = [(self._generator(item), integer(text, 0, most)) for item, text in groups(args, 2)]
        expect(not any(g.axis.waving(self.stage.now_s) for g, _ in chosen), WAVE_RUNNING)
        for generator, value in chosen:
            setattr(generator, which, value)
        return ""

    def _set_rate(self, args: list[str]) -> str:
        for item, rate, smooth in groups(args, 3):
            values = integer(rate, 1, 1_000_000), bool(integer(smooth, 0, 1))
            for generator in self.generators.values() if item == "0" else [self._generator(item)]:
                generator.rate, generator.smooth = values
        return ""

    def _set_offset(self, args: list[str]) -> str:
        chosen = [(self._generator(item), number(text)) for item, text in groups(args, 2)]
        for generator, value in chosen:
            generator.offset_um = value
        return ""

    def _go(self, args: list[str]) -> str:
        now_s = self.stage.now_s
        chosen = [(self._generator(item), bool(integer(mode, 0, 1))) for item, mode in groups(args, 2)]
        for generator, on in chosen:
            axis = generator.axis
            if on:
                self.stage.free(axis)
                expect(not axis.waving(now_s), WAVE_RUNNING)
                expect(generator.table > 0 and len(self.tables[generator.table]) > 0, NO_WAVE)
                expect(axis.servo, gcs.SERVO_OFF)
                points = self.tables[generator.table] + generator.offset_um
                expect(axis.in_range(float(points.min())) and axis.in_range(float(points.max())), gcs.POSITION_LIMITS)
        for generator, on in chosen:
            if on:
                points = self.tables[generator.table] + generator.offset_um
                step_s = CYCLE_S * generator.rate
                # from the next cycle of the servo on
                run = generator.run = Run(now_s + CYCLE_S, step_s, points, generator.cycles, generator.smooth)
                if generator.axis.online:
                    wait = Ramp(now_s, run.begin_s, generator.axis.motion.set_point_um(now_s))
                    path = chain([wait], run.ramps())
                    generator.axis.follow(now_s, path, ends_s=run.end_s, ends_um=float(points[-1]))
                self.started = True
            elif generator.axis.waving(now_s):
                generator.axis.hold(now_s)
        return ""

    def _set_triggers(self, args: list[str]) -> str:
        triples = [
            (integer(line, 1, OUTPUTS), integer(point, 1, MAX_POINTS), integer(level, 0, 1))
            for line, point, level in groups(args, 3)
        ]
        for line, point, level in triples:
            (self.triggers[line].add if level else self.triggers[line].discard)(point)
        return ""

    def _read_triggers(self, args: list[str]) -> str:
        expect(bool(args), gcs.MISSING_ARGUMENT)
        first = integer(args[0], 1, MAX_POINTS)
        count = integer(args[1], 1, MAX_POINTS) if len(args) > 1 else 1
        lines = [integer(text, 1, OUTPUTS) for text in args[2:]] or list(self.triggers)
        columns = [[float(first + n in self.triggers[line]) for n in range(count)] for line in lines]
        return array([f"Trigger Line {line}" for line in lines], columns, sample_time_s=CYCLE_S)

    def _clear_triggers(self, args: list[str]) -> str:
        if args:
            raise Refusal(gcs.WRONG_COUNT)
        for points in self.triggers.values():
            points.clear()
        return ""
