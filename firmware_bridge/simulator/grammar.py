"""What the simulated firmware's commands share: refusals by number, arguments to values, values to replies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from firmware_bridge import gcs

T = TypeVar("T")
Handler = Callable[[list[str]], str]
Handlers = dict[str, Handler]

ILLEGAL_AXIS_NAME, BAD_PASSWORD, BAD_TABLE, BAD_RECORD_OPTION, BAD_RECORD_SOURCE = 23, 56, 57, 58, 59
PROTECTED, AUTOZERO_RUNNING, INITIALISING, READ_ONLY, VOLTAGE_LIMITS, WAVE_TOO_LARGE = 60, 61, 63, 64, 66, 67
WAVE_RUNNING, NO_WAVE, TOO_FEW_RECORDED, OPEN_LOOP_WITH_SERVO_ON, INPUT_OVERFLOW = 73, 75, 77, 79, 304
RECEIVE_TIMEOUT = 307


class Refusal(Exception):  # noqa: N818 - not an error of ours, but the number that goes into the error register
    """A command was not accepted."""

    def __init__(self, code: int) -> None:
        super().__init__(gcs.meaning(code))
        self.code = code


def expect(condition: bool, code: int) -> None:
    """Refuse with a code where a condition does not hold."""
    if not condition:
        raise Refusal(code)


def groups(args: Sequence[str], size: int) -> list[Sequence[str]]:
    """Arguments in pairs, triples, ...: at least one."""
    expect(bool(args), gcs.MISSING_ARGUMENT)
    expect(len(args) % size == 0, gcs.WRONG_COUNT)
    return [args[n : n + size] for n in range(0, len(args), size)]


def named(item: str, items: Mapping[str, T], *, code: int = gcs.BAD_AXIS) -> T:
    """One of the items, which are upper case."""
    expect(item.upper() in items, code)
    return items[item.upper()]


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        raise Refusal(gcs.BAD_NUMBER) from None
    expect(math.isfinite(value), gcs.BAD_NUMBER)
    return value


def integer(text: str, low: int, high: int, *, code: int = gcs.OUT_OF_RANGE) -> int:
    """A whole number of a range, decimal or 0x..., or a float's text of it."""
    try:
        value = int(text, 0)
    except ValueError:
        value_f = number(text)
        expect(value_f == int(value_f), gcs.BAD_NUMBER)
        value = int(value_f)
    expect(low <= value <= high, code)
    return value


def fixed(reply: str) -> Handler:
    """The handler of a query without arguments that always has one answer."""

    def answer(args: list[str]) -> str:
        expect(not args, gcs.WRONG_COUNT)
        return reply

    return answer


def array(names: Sequence[str], columns: Sequence[Sequence[float]], *, sample_time_s: float) -> str:
    r"""Columns of numbers as a GCS array: a header of ``# KEY = VALUE`` lines, then a line for each row.

    >>> array(["x"], [[1.0, 2.0]], sample_time_s=5e-5).split("# END_HEADER")[1]
    ' \n1.00000 \n2.00000\n'
    """
    header = {"VERSION": 1, "TYPE": 1, "SEPARATOR": 32, "DIM": len(columns), "SAMPLE_TIME": f"{sample_time_s:.7f}"}
    header["NDATA"] = len(columns[0]) if columns else 0
    lines = [f"# {key} = {value}" for key, value in header.items()]
    lines += [f"# NAME{n} = {name}" for n, name in enumerate(names)]
    rows = (" ".join(f"{value:.5f}" for value in row) for row in zip(*columns, strict=True))
    return gcs.format_lines([*lines, "# END_HEADER", *rows])


def listing(lines: Iterable[str]) -> str:
    """A help text; PIPython drops its first and last line."""
    return gcs.format_lines(["The following are available:", *lines, "end of help"])
