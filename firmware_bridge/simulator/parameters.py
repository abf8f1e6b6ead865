"""The simulated controller's parameters: SPA, SPA? and HPA?, and the command level that writing them needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from firmware_bridge import gcs

from .axis import Axis, Stage
from .grammar import (
    BAD_PASSWORD,
    PROTECTED,
    READ_ONLY,
    Handlers,
    expect,
    groups,
    integer,
    listing,
    number,
)
from .recorder import MAX_POINTS, POINTS, TABLES
from .waves import CYCLE_S

TOLERANCE, SETTLING_TIME, QUIET_STOP, SINGLE_DIRECTION = 0x07000900, 0x07000901, 0x0E000301, 0x18000300
_FIXED = 9  # a command level that nobody reaches


class Parameter(NamedTuple):
    """One parameter: of each axis, or of the controller (item 1); of both controllers, or of one only."""

    kind: str
    level: int
    of_axis: bool
    first: float | str
    what: str
    only: str = ""


PARAMETERS = {
    TOLERANCE: Parameter("FLOAT", 0, True, 0.002, "On Target Tolerance"),
    SETTLING_TIME: Parameter("FLOAT", 0, True, 0.002, "On Target Settling Time"),
    0x07000300: Parameter("FLOAT", 1, True, 0.02, "Servo Loop P-Term"),
    0x07000301: Parameter("FLOAT", 1, True, 500.0, "Servo Loop I-Term"),
    0x07000601: Parameter("CHAR", _FIXED, True, "um", "Axis Unit"),
    0x0E000200: Parameter("FLOAT", _FIXED, False, CYCLE_S, "Servo Update Time"),
    QUIET_STOP: Parameter("INT", 0, False, 0, "No Error 10 After Stop", "e727"),
    0x0F000100: Parameter("CHAR", _FIXED, True, "P-733.3CL", "Stage Type"),
    0x0F000200: Parameter("CHAR", _FIXED, True, "SIMULATED", "Stage Serial Number"),
    0x0F000300: Parameter("CHAR", _FIXED, True, "01.01.2020", "Stage Assembly Date"),
    0x0F000400: Parameter("INT", _FIXED, True, 1, "Stage Hardware Version"),
    0x16000200: Parameter("INT", _FIXED, False, MAX_POINTS, "Data Recorder Max Points"),
    0x16000300: Parameter("INT", _FIXED, False, TABLES, "Data Recorder Channel Number"),
    0x16000201: Parameter("INT", _FIXED, False, POINTS, "Data Recorder Points Per Table", "e517"),
    SINGLE_DIRECTION: Parameter("INT", 1, False, 0, "Pos. Distance Trig. Single Direction"),
    0x18000400: Parameter("INT", 1, False, 0, "Pos. Distance Trig. High Time Definition"),
    0x18000401: Parameter("FLOAT", 1, False, 0.0, "Position Distance Trigger High Time"),
}


class Parameters:
    """What SPA sets; lost at a power cycle.

    Parameters
    ----------
    stage : Stage
        Whose axes the items are.
    written : callable
        Told the axis (None: the controller's), the parameter and its new value.
    only : str
        The profile; it does not know what is another one's only.
    """

    def __init__(self, stage: Stage, written: Callable[[Axis | None, int, float], None], *, only: str) -> None:
        self._stage, self._written = stage, written
        self._known = {number: one for number, one in PARAMETERS.items() if one.only in ("", only)}
        self._values: dict[tuple[int, int], float | str] = {}
        self._level = 0

    def handlers(self) -> Handlers:
        """The commands."""
        return {
            "CCL": self._set_level,
            "CCL?": lambda args: f"{self._level}\n",
            "SPA": self._write,
            "SPA?": self._read,
            "HPA?": lambda args: listing(
                f"0x{n:X}=\t{p.level}\t{3 if p.of_axis else 1}\t{p.kind}\t{p.what}" for n, p in self._known.items()
            ),
        }

    def __getitem__(self, parameter: int) -> float | str:
        """A value of the controller's own."""
        return self._values.get((0, parameter), PARAMETERS[parameter].first)

    def put(self, axis: Axis | None, parameter: int, value: float | str) -> None:
        """Set a value, whatever the command level."""
        place = 0 if axis is None else self._stage.axes.index(axis)
        self._values[place, parameter] = value
        if not isinstance(value, str):
            self._written(axis, parameter, value)

    def _find(self, item: str, text: str) -> tuple[Axis | None, int]:
        parameter = integer(text, 0, 2**32)
        expect(parameter in self._known, gcs.UNKNOWN_PARAMETER)
        if PARAMETERS[parameter].of_axis:
            return self._stage.axis(item), parameter
        expect(item == "1", gcs.BAD_AXIS)
        return None, parameter

    def _set_level(self, args: list[str]) -> str:
        expect(bool(args), gcs.MISSING_ARGUMENT)
        level = integer(args[0], 0, _FIXED)
        expect(level == 0 or (level == 1 and args[1:2] == ["advanced"]), BAD_PASSWORD)
        self._level = level
        return ""

    def _write(self, args: list[str]) -> str:
        found = [(*self._find(item, text), value) for item, text, value in groups(args, 3)]
        values: list[tuple[Axis | None, int, float]] = []
        for axis, parameter, text in found:
            expect(PARAMETERS[parameter].level != _FIXED, READ_ONLY)
            expect(self._level >= PARAMETERS[parameter].level, PROTECTED)
            values.append((axis, parameter, number(text)))
            expect(values[-1][2] >= 0, gcs.OUT_OF_RANGE)
        for axis, parameter, value in values:
            self.put(axis, parameter, value)
        return ""

    def _read(self, args: list[str]) -> str:
        if not args:
            items = {True: list(self._stage.names), False: ["1"]}
            args = [word for n, p in self._known.items() for item in items[p.of_axis] for word in (item, hex(n))]
        found = [(item, text, *self._find(item, text)) for item, text in groups(args, 2)]
        return gcs.format_items(
            # leading zeros are dropped, and the x is as it was asked
            (f"{item.upper()} 0{'X' if 'X' in text else 'x'}{parameter:X}", self._text(axis, parameter))
            for item, text, axis, parameter in found
        )

    def _text(self, axis: Axis | None, parameter: int) -> str:
        place = 0 if axis is None else self._stage.axes.index(axis)
        value = self._values.get((place, parameter), PARAMETERS[parameter].first)
        return value if isinstance(value, str) else f"{value:g}"
