"""The controller's data recorder: where the stage was while nobody asked; and what became of each tile of a line.

Sources: PI manual E727T0005 (DRC, DRT, RTR, DRR?). The recorder keeps what it recorded, so it is read twice, and both
have to be the same: a digit that flipped on the wire does not enter a record.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import gcs
from .errors import OutOfRangeError, ProtocolError, RefusedError
from .stage import PztStage

log = logging.getLogger(__name__)

CYCLE_S = 50e-6  # of the servo; a rate of n keeps one value in n cycles
MEASURED = 2  # recording option: the axis' measured position
# Trigger source: the next command that changes a target, once. 2 would be any command, the ERR? behind this one too.
# A wave starts a recording by itself (source 0, the default); that it does so with 6 too is not verified.
WITH_THE_NEXT_MOTION = 6
BLOCK_ROWS = 100  # at a time over the wire: a stop, or a look at the position, has its turn between blocks
ATTEMPTS = 3


class Table(NamedTuple):
    """What a ``DRR?`` reply says: the time between rows, seconds; columns' names; values (rows, columns)."""

    sample_time_s: float
    names: tuple[str, ...]
    values: NDArray[np.float64]


class Recording(NamedTuple):
    """Measured positions (rows, 3), um, and when, seconds since the motion began (rows,)."""

    t_s: NDArray[np.float64]
    position_um: NDArray[np.float64]


def parse_table(reply: str) -> Table:
    r"""Read a GCS array: header lines ``# KEY = VALUE``, ``# END_HEADER``, and a line for each row.

    Raises
    ------
    ProtocolError
        It is not one, or has not the rows and columns that its header names.

    >>> parse_table("# DIM = 1 \n# SAMPLE_TIME = 0.0001 \n# NDATA = 2 \n# NAME0 = x \n# END_HEADER \n1.5 \n2.5").values
    array([[1.5],
           [2.5]])
    """
    lines = [line.strip(" ") for line in reply.lstrip("\0").split("\n")]
    if "# END_HEADER" not in lines:
        raise ProtocolError(f"expected an array with a header, received {reply[:80]!r}")
    end = lines.index("# END_HEADER")
    header = {key.strip(" #"): value.strip() for key, _, value in (line.partition("=") for line in lines[:end])}
    try:
        separator = chr(int(header.get("SEPARATOR", "32")))
        columns, rows = int(header["DIM"]), int(header["NDATA"])
        sample_time_s = gcs.parse_number(header["SAMPLE_TIME"])
    except (KeyError, ValueError, OverflowError) as exc:
        raise ProtocolError(f"expected a header with DIM, NDATA and SAMPLE_TIME, received {header}") from exc
    values = [[gcs.parse_number(word) for word in line.split(separator) if word] for line in lines[end + 1 :]]
    if len(values) != rows or any(len(row) != columns for row in values) or sample_time_s <= 0:
        raise ProtocolError(f"expected {rows} rows of {columns} values, received {len(values)} rows")
    names = tuple(header.get(f"NAME{n}", "") for n in range(columns))
    return Table(sample_time_s, names, np.array(values).reshape(rows, columns))


class Recorder:
    """The measured positions of all axes, from the next motion on.

    Parameters
    ----------
    stage : PztStage
        Whose motion it is.
    """

    def __init__(self, stage: PztStage) -> None:
        self._stage = stage
        self._period_s, self._rows = 0.0, 0  # of what is armed

    def arm(self, *, duration_s: float, rows: int = 200) -> None:
        """Record for so long, in at most so many rows, from the next command that moves.

        Raises
        ------
        OutOfRangeError
            A time or a number that makes no sense.
        RefusedError, LinkError
            As in `Controller.command`.
        """
        if not (math.isfinite(duration_s) and duration_s > 0 and rows >= 2):
            raise OutOfRangeError(f"{rows} rows in {duration_s} s: expected 2 or more, in a time above 0")
        rate = max(1, math.ceil(duration_s / CYCLE_S / (rows - 1)))
        self._period_s, self._rows = rate * CYCLE_S, int(duration_s / (rate * CYCLE_S)) + 1
        axes = self._stage.profile.axes
        words = [word for table, axis in enumerate(axes, 1) for word in (table, axis, MEASURED)]
        for line in (
            gcs.command_line("RTR", rate),
            gcs.command_line("DRC", *words),
            gcs.command_line("DRT", 0, WITH_THE_NEXT_MOTION, 0),
        ):
            self._stage.command(line)

    def read(self) -> Recording:
        """What was recorded, up to the duration that `arm` was told.

        Raises
        ------
        RefusedError
            It was never armed.
        ProtocolError
            Not an array, or never the same twice.
        LinkError
            As in `Link.ask`.
        """
        if not self._rows:
            raise RefusedError("nothing was recorded: arm the recorder before the motion, then read it")
        blocks = [
            self._agreed(start, min(BLOCK_ROWS, self._rows + 1 - start))
            for start in range(1, self._rows + 1, BLOCK_ROWS)
        ]
        if any(not math.isclose(block.sample_time_s, self._period_s, rel_tol=1e-3) for block in blocks):
            raise ProtocolError(f"rows are {blocks[0].sample_time_s:g} s apart, expected {self._period_s:g} s")
        position_um = np.concatenate([block.values for block in blocks])
        return Recording(np.arange(len(position_um), dtype=np.float64) * self._period_s, position_um)

    def _agreed(self, start: int, rows: int) -> Table:
        query = gcs.command_line("DRR?", start, rows, *range(1, len(self._stage.profile.axes) + 1))
        ask = partial(self._stage.controller.query, query, parse_table)
        for _ in range(ATTEMPTS):
            first, second = (self._stage.ask(ask) for _ in range(2))
            if first.values.shape != (rows, len(self._stage.profile.axes)):
                raise ProtocolError(f"asked for {rows} recorded rows from {start}, received {first.values.shape}")
            if np.array_equal(first.values, second.values):
                return second
            log.warning("two readings of the recorder's rows from %d differ; reading again", start)
        raise ProtocolError(f"{ATTEMPTS} times two readings of the recorder differed: a bad cable?")


def crossings_s(recording: Recording, axis: int, at_um: Sequence[float]) -> list[float]:
    """When an axis first passed some positions, seconds since the motion began; NaN for those it did not pass.

    >>> crossings_s(Recording(np.array([0.0, 1.0, 2.0]), np.array([[0.0], [2.0], [4.0]])), 0, [1.0, 3.0, 9.0])
    [0.5, 1.5, nan]
    """
    t_s, along_um = recording.t_s, recording.position_um[:, axis]
    times_s = []
    for one_um in at_um:
        side = np.sign(along_um - one_um)
        passed = np.flatnonzero(side[:-1] * side[1:] <= 0)
        if not passed.size:
            times_s.append(math.nan)
            continue
        at = int(passed[0])
        way_um = along_um[at + 1] - along_um[at]
        share = float((one_um - along_um[at]) / way_um) if way_um else 0.0
        times_s.append(float(t_s[at] + share * (t_s[at + 1] - t_s[at])))
    return times_s


@dataclass(frozen=True)
class Account:
    """What became of each tile of a line.

    Attributes
    ----------
    expected, triggers, frames, rows : int
        Tiles; pulses that were counted; frames that came; tiles whose position the recorder knows.
    frame_of : tuple of int or None
        For each tile, the index of its frame among those of the line.
    gap : str
        What is missing or too many, in words; empty where triggers = frames = rows = tiles.
    """

    expected: int
    triggers: int
    frames: int
    rows: int
    frame_of: tuple[int | None, ...]
    gap: str


def reconcile(due_s: Sequence[float], came_s: Sequence[float], *, triggers: int, unsure_s: float = 0.0) -> Account:
    """Find out which frame belongs to which tile, by time; a missing or surplus one is named, never shifted.

    Where that cannot be told, as when one is missing at an end and the clocks leave room for a shift, no frame is
    given to a tile, and the gap says so.

    Parameters
    ----------
    due_s : sequence of float
        When each tile's pulse fell, seconds, rising; NaN where the recorder does not know.
    came_s : sequence of float
        When frames began, seconds on the same clock, rising. They may all be late by the same time, less than half
        the time between tiles.
    triggers : int
        Pulses that were counted.
    unsure_s : float
        By how much all of `due_s` may be too early, seconds (`flying.Flown.unsure_s`).
    """
    due, came = np.asarray(due_s, dtype=float), np.asarray(came_s, dtype=float)
    known = np.flatnonzero(np.isfinite(due))
    frame_of: list[int | None] = [None] * len(due)
    spare, ambiguous = set(range(len(came))), ""
    if known.size and came.size:
        between_s = float(np.min(np.diff(due[known]))) if known.size > 1 else 1.0
        # The true lateness brings one of the first frames to its tile. A shift by one tile would lose one at a gap,
        # or, where the gap is at an end of the line, be early, or later than is possible.
        candidates = (came[:3, None] - due[known]).ravel()
        candidates = candidates[np.abs(candidates) < 1.5 * between_s + unsure_s]
        found = [(float(late_s), _tiles_of(came - late_s, due, known, between_s / 4)) for late_s in candidates]
        most = max((len(tiles) for _, tiles in found), default=0)
        best = [(late_s, tiles) for late_s, tiles in found if len(tiles) == most]
        best = [one for one in best if -between_s / 4 <= one[0] <= between_s / 2 + unsure_s] or best
        lates_s = sorted(late_s for late_s, _ in best)
        if best and lates_s[-1] - lates_s[0] > between_s / 2:
            ambiguous = f"frames may be late by {lates_s[0]:.4f} or {lates_s[-1]:.4f} s, so none is given to a tile"
        elif best:
            for tile, index in min(best, key=lambda one: abs(one[0]))[1].items():
                frame_of[tile] = index
                spare.discard(index)
    rows, expected = int(known.size), len(due)
    said = []
    if triggers != expected:
        said.append(f"{triggers} pulses for {expected} tiles")
    missing = [tile for tile, frame in enumerate(frame_of) if frame is None]
    if ambiguous:
        said.append(f"{len(came)} frames for {expected} tiles: {ambiguous}")
    elif missing:
        said.append(f"no frame for tile {', '.join(map(str, missing))}")
    if spare and not ambiguous:
        said.append(f"frame {', '.join(map(str, sorted(spare)))} belongs to no tile")
    if rows != expected:
        said.append(f"the recorder knows {rows} of {expected} tiles")
    return Account(expected, triggers, len(came), rows, tuple(frame_of), "; ".join(said))


def _tiles_of(
    came: NDArray[np.float64], due: NDArray[np.float64], known: NDArray[np.intp], within_s: float
) -> dict[int, int]:
    """The frame of each tile that has one so near."""
    frames: dict[int, int] = {}
    for index, at_s in enumerate(came):
        tile = int(known[np.argmin(np.abs(due[known] - at_s))])
        if abs(due[tile] - at_s) <= within_s:
            frames.setdefault(tile, index)
    return frames
