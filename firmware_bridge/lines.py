"""Fly lines as plans: tiles that are exposed while the stage moves at a constant velocity. No I/O; `flying` flies them.

At both ends of a line the stage speeds up and slows down in the overscan, where no pulse falls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from . import gcs
from .errors import OutOfRangeError
from .outputs import STEP_IN_NOISES
from .position import PositionUm
from .recording import CYCLE_S

WAVE_POINTS = 2000  # of a line, about: the generator's rate follows from it
TRIPLES = 10  # of arguments of one command: an E-727 takes 32


@dataclass(frozen=True)
class FlyLine:
    """One line of tiles.

    Attributes
    ----------
    first_um : PositionUm
        Where the stage is in the middle of the first tile's exposure.
    axis : int
        That flies: 0 for x, 1 for y.
    step_um : float
        From tile to tile; negative flies backwards.
    count : int
        Tiles, at least 2.
    velocity_um_s, exposure_s : float
        Both above 0.
    overscan_um : float
        For speeding up and slowing down, at each end.
    offset_um : float
        Calibrated for this direction: how much further along +axis the pulses have to fall so that the tiles come to
        lie where they should.
    """

    first_um: PositionUm
    axis: int
    step_um: float
    count: int
    velocity_um_s: float
    exposure_s: float
    overscan_um: float = 2.0
    offset_um: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.step_um, self.velocity_um_s, self.exposure_s, self.overscan_um, self.offset_um)
        if (
            not all(map(math.isfinite, (*numbers, *self.first_um)))
            or self.axis not in (0, 1)
            or self.count < 2
            or not self.step_um
            or min(self.velocity_um_s, self.exposure_s, self.overscan_um) <= 0
        ):
            raise OutOfRangeError(
                f"{self} is no line: expected axis 0 or 1, 2 or more tiles, finite numbers, and a velocity, an "
                "exposure and an overscan above 0"
            )

    @property
    def direction(self) -> int:
        """1 forwards, -1 backwards."""
        return 1 if self.step_um > 0 else -1

    @property
    def pulses_um(self) -> list[float]:
        """Where along the axis the pulses fall: half an exposure before the tiles."""
        lead_um = self.direction * self.velocity_um_s * self.exposure_s / 2 - self.offset_um
        return [self.first_um[self.axis] - lead_um + n * self.step_um for n in range(self.count)]

    @property
    def ends_um(self) -> tuple[PositionUm, PositionUm]:
        """Where the run begins and where it ends."""
        pulses_um = self.pulses_um
        before_um = pulses_um[0] - self.direction * self.overscan_um
        after_um = pulses_um[-1] + self.direction * (self.overscan_um + self.velocity_um_s * self.exposure_s)
        return self._at(before_um), self._at(after_um)

    @property
    def duration_s(self) -> float:
        """Of the run at its velocity, without speeding up and slowing down."""
        begin_um, end_um = self.ends_um
        return abs(end_um[self.axis] - begin_um[self.axis]) / self.velocity_um_s

    def _at(self, along_um: float) -> PositionUm:
        at_um = list(self.first_um)
        at_um[self.axis] = along_um
        return PositionUm(*at_um)

    def check(
        self, *, blur_um: float, noise_pp_um: float, frame_time_s: float, shutter: Literal["global", "rolling"]
    ) -> None:
        """Refuse a line whose tiles would be smeared or sheared, or whose pulses would be lost.

        Parameters
        ----------
        blur_um : float
            The most that the stage may move during an exposure.
        noise_pp_um : float
            Peak-to-peak noise of the sensor, as `PztStage.drift_um` measures it.
        frame_time_s : float
            What the camera needs from frame to frame.
        shutter : "global" or "rolling"
            The camera's: one that exposes its rows one after the other shears what moves.

        Raises
        ------
        OutOfRangeError
            With what would do.
        """
        if shutter != "global":
            raise OutOfRangeError(
                f"a {shutter} shutter cannot fly: its rows are exposed one after the other and shear a moving field; "
                "step and shoot, or take a camera with a global shutter"
            )
        # not (a <= b): NaN is refused too
        if not self.velocity_um_s * self.exposure_s <= blur_um:
            raise OutOfRangeError(
                f"{self.velocity_um_s:g} um/s smear an exposure of {self.exposure_s:g} s by "
                f"{self.velocity_um_s * self.exposure_s:g} um: fly at {blur_um / self.exposure_s:g} um/s at most"
            )
        if not abs(self.step_um) >= STEP_IN_NOISES * noise_pp_um:
            raise OutOfRangeError(
                f"a step of {abs(self.step_um):g} um is less than {STEP_IN_NOISES} x the sensor's noise of "
                f"{noise_pp_um:g} um peak to peak: take a larger step"
            )
        if not abs(self.step_um) / self.velocity_um_s >= frame_time_s:
            raise OutOfRangeError(
                f"a tile comes every {abs(self.step_um) / self.velocity_um_s:g} s, faster than the camera's "
                f"{frame_time_s:g} s: fly at {abs(self.step_um) / frame_time_s:g} um/s at most"
            )


def raster(
    first: FlyLine, *, lines: int, pitch_um: float, meander: bool = False, offset_um: tuple[float, float] | None = None
) -> list[FlyLine]:
    """Parallel lines of the same tiles.

    Parameters
    ----------
    first : FlyLine
        The first of them.
    lines : int
        How many.
    pitch_um : float
        From line to line, along the other axis.
    meander : bool
        Every second line is flown backwards; otherwise all the same way, with a flyback between.
    offset_um : tuple of float, optional
        `FlyLine.offset_um` forwards and backwards, see `offsets_um`. A meander needs it: without calibration its
        lines do not match.

    Raises
    ------
    OutOfRangeError
        A meander without calibrated offsets, no lines, or no pitch.
    """
    if lines < 1 or not math.isfinite(pitch_um):
        raise OutOfRangeError(f"{lines} lines {pitch_um} um apart: expected 1 or more, and a finite distance")
    if meander and offset_um is None:
        raise OutOfRangeError("a meander needs a calibrated offset for each direction: measure them, or fly one way")
    forwards, backwards = offset_um or (first.offset_um, first.offset_um)
    made = []
    for number in range(lines):
        start_um = list(first.first_um)
        start_um[1 - first.axis] += number * pitch_um
        step_um, ahead_um = first.step_um, forwards
        if meander and number % 2:
            start_um[first.axis] += (first.count - 1) * step_um
            step_um, ahead_um = -step_um, backwards
        made.append(
            FlyLine(
                PositionUm(*start_um),
                first.axis,
                step_um,
                first.count,
                first.velocity_um_s,
                first.exposure_s,
                first.overscan_um,
                ahead_um,
            )
        )
    return made


def offsets_um(shift_um: float) -> tuple[float, float]:
    """The offsets of both directions from one calibration: a line of the same tiles, flown there and back.

    What comes late, such as the camera, shifts tiles along the motion: forwards and backwards by as much.

    Parameters
    ----------
    shift_um : float
        Along the axis, where the tiles that were flown backwards turned out to be, minus where the others did. From
        the registration of the images, at the velocity that is used later.

    Raises
    ------
    OutOfRangeError
        Not a number.

    >>> offsets_um(-0.04)
    (-0.02, 0.02)
    """
    if not math.isfinite(shift_um):
        raise OutOfRangeError(f"a shift of {shift_um} um: expected a measured one")
    return shift_um / 2, -shift_um / 2


@dataclass(frozen=True)
class Wave:
    """A line as a wave: constant velocity but for `ramp` points at each end.

    Attributes
    ----------
    generator : int
        Of the axis.
    begin_um, way_um : float
        Where it begins, and how far it goes.
    points, rate, ramp : int
        Points in all, servo cycles from point to point, points to speed up.
    marks : tuple of int
        At which points the pulses fall, from 1.
    """

    generator: int
    begin_um: float
    way_um: float
    points: int
    rate: int
    ramp: int
    marks: tuple[int, ...]

    @classmethod
    def of(cls, line: FlyLine) -> Wave:
        """The wave of a line.

        Raises
        ------
        OutOfRangeError
            The pulses come too fast for its points, or in the overscan.
        """
        begin_um, end_um = (end[line.axis] for end in line.ends_um)
        way_um = end_um - begin_um
        rate = max(1, math.ceil(line.duration_s / CYCLE_S / WAVE_POINTS))
        per_point_um = math.copysign(line.velocity_um_s * rate * CYCLE_S, way_um)
        # While it speeds up it covers half the way that the same time takes at full velocity.
        ramp = max(1, int(line.overscan_um / abs(per_point_um)))
        points = round(way_um / per_point_um) + ramp + 1
        marks = tuple(round((at_um - begin_um) / per_point_um + ramp / 2) + 1 for at_um in line.pulses_um)
        if min(np.diff(marks)) < 2 or marks[0] <= ramp or marks[-1] >= points - ramp:
            raise OutOfRangeError(
                f"{line} does not fit into a wave of {points} points: take a larger step, or a larger overscan"
            )
        return cls(line.axis + 1, begin_um, way_um, points, rate, ramp, marks)

    @property
    def duration_s(self) -> float:
        """From the first point to the last."""
        return (self.points - 1) * self.rate * CYCLE_S

    def commands(self, output: int) -> list[bytes]:
        """What loads it, with its pulses on an output."""
        table = 1
        made = [
            gcs.command_line(
                "WAV", table, "X", "LIN", self.points, self.way_um, self.begin_um, self.points, 0, self.ramp
            ),
            gcs.command_line("WSL", self.generator, table),
            gcs.command_line("WGC", self.generator, 1),
            gcs.command_line("WTR", 0, self.rate, 1),
            gcs.command_line("TWC"),
        ]
        for start in range(0, len(self.marks), TRIPLES):
            words = [word for point in self.marks[start : start + TRIPLES] for word in (output, point, 1)]
            made.append(gcs.command_line("TWS", *words))
        return made
