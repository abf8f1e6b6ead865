"""The simulated data recorder: what the axes do, sampled with the servo's cycle, read back as a GCS array."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from firmware_bridge import gcs

from .axis import Axis, Stage
from .grammar import (
    BAD_RECORD_OPTION,
    BAD_RECORD_SOURCE,
    BAD_TABLE,
    TOO_FEW_RECORDED,
    Handlers,
    array,
    expect,
    fixed,
    groups,
    integer,
    named,
)
from .waves import CYCLE_S

TABLES, MAX_POINTS = 8, 262_144
POINTS = MAX_POINTS // TABLES
NOTHING, TARGET, POSITION, ERROR = 0, 1, 2, 3
OPTIONS = {NOTHING: "Nothing", TARGET: "Target Position", POSITION: "Current Position", ERROR: "Position Error"}
BY_DEFAULT, BY_MOVES, BY_NEXT_COMMAND, AT_ONCE, BY_NEXT_MOVE = 0, 1, 2, 4, 6
TRIGGERS = {
    BY_DEFAULT: "default",
    BY_MOVES: "any command changing target position",
    BY_NEXT_COMMAND: "next command, reset trigger after execution",
    AT_ONCE: "trigger immediately",
    BY_NEXT_MOVE: "any command changing target position, reset trigger after execution",
}


class Recorder:
    """Tables that fill from a trigger on until they are full.

    STE and WGO always start a recording, other moves as DRT says (manual E727T0005, "Data Recording").

    Parameters
    ----------
    stage : Stage
        What is recorded.
    random : numpy.random.Generator
        The sensors' noise.
    """

    def __init__(self, stage: Stage, random: np.random.Generator) -> None:
        self._stage, self._random = stage, random
        self.rate = 1
        self._trigger = BY_DEFAULT
        self._setup = {
            n: (stage.axes[n - 1] if n <= 3 else stage.axes[0], POSITION if n <= 3 else NOTHING)
            for n in range(1, TABLES + 1)
        }
        self._data: dict[int, list[NDArray[np.float64]]] = {n: [] for n in self._setup}
        self._begin_s, self._step_s, self._count = math.inf, CYCLE_S, 0

    def handlers(self) -> Handlers:
        """The commands."""
        return {
            "RTR": self._set_rate,
            "RTR?": lambda args: fixed(f"{self.rate}\n")(args),
            "DRC": self._set_up,
            "DRC?": self._tell_setup,
            "DRT": self._set_trigger,
            "DRT?": self._tell_trigger,
            "DRL?": self._lengths,
            "DRR?": self._read,
            "TNR?": fixed(f"{TABLES}\n"),
            "HDR?": fixed(_help()),
        }

    def commanded(self) -> None:
        """A command comes, whatever it is."""
        if self._trigger == BY_NEXT_COMMAND:
            self._trigger = BY_DEFAULT
            self.start()

    def moved(self) -> None:
        """A command has changed a target."""
        if self._trigger in (BY_MOVES, BY_NEXT_MOVE):
            self.start()
        if self._trigger == BY_NEXT_MOVE:
            self._trigger = BY_DEFAULT

    def start(self) -> None:
        """Record from now on."""
        self._begin_s, self._step_s, self._count = self._stage.now_s, self.rate * CYCLE_S, 0
        for parts in self._data.values():
            parts.clear()

    def advance(self, now_s: float) -> None:
        """Take the samples up to now."""
        due = min(POINTS, int((now_s - self._begin_s) / self._step_s + 1e-6) + 1) if now_s >= self._begin_s else 0
        if due <= self._count:
            return
        times_s = np.asarray(self._begin_s + np.arange(self._count, due) * self._step_s, dtype=np.float64)
        for table, (axis, option) in self._setup.items():
            if option != NOTHING:
                self._data[table].append(self._sample(axis, option, times_s))
        self._count = due

    def _sample(self, axis: Axis, option: int, times_s: NDArray[np.float64]) -> NDArray[np.float64]:
        targets_um = axis.motion.set_points_um(times_s)
        if option == TARGET:
            return targets_um
        noise_um = axis.noise_um * self._random.standard_normal(len(times_s))
        positions_um = axis.motion.positions_um(times_s) + noise_um
        return positions_um if option == POSITION else targets_um - positions_um

    def _tables(self, args: Sequence[str]) -> list[int]:
        return [integer(text, 1, TABLES, code=BAD_TABLE) for text in args] or list(self._setup)

    def _set_rate(self, args: list[str]) -> str:
        expect(len(args) == 1, gcs.WRONG_COUNT)
        self.rate = integer(args[0], 1, 1_000_000)
        return ""

    def _set_up(self, args: list[str]) -> str:
        triples = [
            (
                integer(table, 1, TABLES, code=BAD_TABLE),
                named(source, self._stage.names, code=BAD_RECORD_SOURCE),
                integer(option, 0, 2**31, code=BAD_RECORD_OPTION),
            )
            for table, source, option in groups(args, 3)
        ]
        expect(all(option in OPTIONS for _, _, option in triples), BAD_RECORD_OPTION)
        for table, axis, option in triples:
            self._setup[table] = (axis, option)
            self._data[table] = [np.zeros(self._count)]
        return ""

    def _name(self, axis: Axis) -> str:
        return next((name for name, one in self._stage.names.items() if one is axis), "ZERO")

    def _tell_setup(self, args: list[str]) -> str:
        setups = ((table, *self._setup[table]) for table in self._tables(args))
        return gcs.format_items((str(table), f"{self._name(axis)} {option}") for table, axis, option in setups)

    def _set_trigger(self, args: list[str]) -> str:
        for table, source, _ in groups(args, 3):
            integer(table, 0, TABLES, code=BAD_TABLE)
            trigger = integer(source, 0, 6)
            expect(trigger in TRIGGERS, gcs.OUT_OF_RANGE)
            self._trigger = trigger
        if self._trigger == AT_ONCE:
            self.start()
            self._trigger = BY_DEFAULT
        return ""

    def _tell_trigger(self, args: list[str]) -> str:
        return gcs.format_items((str(table), f"{self._trigger} 0") for table in self._tables(args))

    def _lengths(self, args: list[str]) -> str:
        return gcs.format_items((str(table), str(self._count)) for table in self._tables(args))

    def _read(self, args: list[str]) -> str:
        first = integer(args[0], 1, POINTS) if args else 1
        count = integer(args[1], 1, POINTS) if len(args) > 1 else self._count - first + 1
        expect(first - 1 + count <= self._count, TOO_FEW_RECORDED)
        tables = self._tables(args[2:])
        columns = []
        for table in tables:
            values = np.concatenate([np.zeros(0), *self._data[table]])
            values = values if len(values) else np.zeros(self._count)
            columns.append(values[first - 1 : first - 1 + count].tolist())
        names = [f"{OPTIONS[self._setup[table][1]]} of Axis {self._name(self._setup[table][0])}" for table in tables]
        return array(names, columns, sample_time_s=self._step_s)


def _help() -> str:
    return gcs.format_lines(
        [
            "#RecordOptions",
            *(f"{number}={what}" for number, what in OPTIONS.items()),
            "#TriggerOptions",
            *(f"{number}={what}" for number, what in TRIGGERS.items()),
            "#Parameters to be set with SPA",
            "0x16000000=Data Recorder Table Rate",
            "#Additional information",
            f"{TABLES} record tables",
            f"{POINTS} datapoints per table",
            "#Sources for Record Options",
            "end of help",
        ]
    )
