"""The raster scan: a plan that can be saved and iterated, and the acquisition that follows it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from edge.devices import Camera, Positioner, Trigger
from edge.errors import CameraError, CameraTimeoutError, ConfigError
from edge.frames import Frame, Gap
from firmware_bridge.pzt import Box, PositionUm

DEFAULT_OVERLAP = 0.15
MAX_TILES = 100_000
"""Of one scan: three hours at ten tiles a second, and two files a tile in one folder."""


@dataclass(frozen=True, slots=True)
class ScanPoint:
    """One tile to take: its place in the raster and where the stage goes for it."""

    index: int
    line: int
    column: int
    target_um: PositionUm


class ScanPlan(BaseModel):
    """A step-and-shoot raster, lines always in the same direction (a meander would need a measured backlash offset).

    ``region_um`` is (width x, height y) in stage axes, centred on ``centre_um``. Tiles are squares of ``tile_um``, the
    inscribed square of the sphere's field; the step is ``tile_um * (1 - overlap)``. The tiles cover the region.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    region_um: tuple[Annotated[float, Field(gt=0, le=10_000)], Annotated[float, Field(gt=0, le=10_000)]]
    centre_um: PositionUm
    tile_um: Annotated[float, Field(gt=0)]
    overlap: Annotated[float, Field(ge=0, lt=0.9)] = DEFAULT_OVERLAP
    settle_s: Annotated[float, Field(ge=0, le=60)] = 0.0

    @property
    def step_um(self) -> float:
        """Distance between neighbouring tiles."""
        return self.tile_um * (1 - self.overlap)

    @property
    def columns(self) -> int:
        """Tiles in a line, along x."""
        return self._count(self.region_um[0])

    @property
    def lines(self) -> int:
        """Lines, along y."""
        return self._count(self.region_um[1])

    @property
    def tiles(self) -> int:
        """Tiles in all."""
        return self.columns * self.lines

    def points(self) -> Iterator[ScanPoint]:
        """The tiles in the order they are taken."""
        for line in range(self.lines):
            for column in range(self.columns):
                yield ScanPoint(line * self.columns + column, line, column, self._target_um(line, column))

    def check(self, limits_um: Box) -> None:
        """Refuse a plan the stage cannot reach or nobody can wait for, before anything moves.

        Raises
        ------
        ConfigError
            A tile lies outside ``limits_um``, or there are more than `MAX_TILES`.
        """
        if self.tiles > MAX_TILES:
            raise ConfigError(
                f"The region {self.region_um[0]:g} x {self.region_um[1]:g} µm makes {self.columns} x {self.lines} = "
                f"{self.tiles} tiles of {self.tile_um:g} µm; at most {MAX_TILES} go into one scan. Choose a smaller "
                "region or overlap, or correct [sphere] field_um. Nothing was moved."
            )
        low, high = limits_um.low, limits_um.high
        for line in (0, self.lines - 1):  # travel is a box: between the corners lies nothing outside
            for column in (0, self.columns - 1):
                target_um = self._target_um(line, column)
                if not limits_um.contains(target_um):
                    raise ConfigError(
                        f"The region {self.region_um[0]:g} x {self.region_um[1]:g} µm (x, y) around "
                        f"x {self.centre_um.x:g}, y {self.centre_um.y:g} µm needs the stage at x {target_um.x:.2f}, "
                        f"y {target_um.y:.2f} µm, outside its travel of x {low.x:g} to {high.x:g}, y {low.y:g} to "
                        f"{high.y:g} µm. Choose a smaller region. Nothing was moved."
                    )

    def _target_um(self, line: int, column: int) -> PositionUm:
        x_um = self.centre_um.x + (column - (self.columns - 1) / 2) * self.step_um
        y_um = self.centre_um.y + (line - (self.lines - 1) / 2) * self.step_um
        return PositionUm(x_um, y_um, self.centre_um.z)

    def _count(self, length_um: float) -> int:
        # A hair less, so that a region of exactly n steps does not become n + 1 tiles by rounding.
        return 1 + max(0, math.ceil((length_um - self.tile_um) / self.step_um - 1e-9))


def inscribed_square_um(field_um: float) -> float:
    """Side of the square inside a disc of that diameter: the tile a sphere's field gives."""
    return field_um / math.sqrt(2)


def acquire(
    plan: ScanPlan,
    stage: Positioner,
    trigger: Trigger,
    camera: Camera,
    *,
    stop: threading.Event,
    discard: Callable[[Frame], None],
    timeout_s: float = 5.0,
) -> Iterator[Frame | Gap]:
    """Move, settle, pulse, fetch; one :class:`Frame` or :class:`Gap` a point, in the plan's order.

    The frame's index is the point's, its position is the measured one. The next move begins when the frame is taken
    over, so the stage travels while the engine works. Ends early when ``stop`` is set.

    The camera counts its exposures from 0, as we count pulses. A frame that comes after its time-out is known by its
    number and goes to ``discard``: it must not be taken for the next tile.

    Raises
    ------
    RefusedError, LinkError
        From the stage: the scan cannot go on. A missing frame does not end it; that is a gap.
    CameraError
        The camera counted more exposures than pulses: the trigger line picks up noise, and no tile can be trusted.
    """
    for pulse, point in enumerate(plan.points()):
        if stop.is_set():
            return
        position_um = stage.move_to(point.target_um, unless=stop)
        if stop.wait(plan.settle_s):
            return
        trigger.fire()
        try:
            frame = camera.next_frame(timeout_s=timeout_s)
            while frame.index < pulse:
                discard(frame)
                frame = camera.next_frame(timeout_s=timeout_s)
        except CameraTimeoutError as exc:
            yield Gap(point.index, str(exc))
            continue
        if frame.index > pulse:
            discard(frame)
            raise CameraError(
                f"The camera counts {frame.index + 1} exposures after {pulse + 1} trigger pulses. Check the trigger "
                "line for noise, and that nothing else triggers the camera."
            )
        yield replace(frame, index=point.index, position_um=position_um)
