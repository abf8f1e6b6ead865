"""Pictures that are larger than memory or than a network's field: cut into tiles that overlap, put together unseen.

Every tile has one shape, so that one engine does all of them. They begin at multiples of `STEP_PX` and end as far from
one as the frame does: a network that pads to such a multiple pads the frame's own end, and elsewhere only what is
thrown away.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.devices import Engine
from edge.engine import Backend, Hint, load_for, manifest_of, model_path
from edge.engine.openvino import DEPENDS_ON_ALL, OpenVinoEngine, OpenVinoLight, check_cut, reads_the_whole_frame
from edge.engine.prepare import Counts, kept_for
from edge.errors import ConfigError
from edge.frames import FramePool, aligned_empty
from export.manifest import Bundle, Manifest, Precision

log = logging.getLogger(__name__)

TILE_PX = 2048
"""Side of a tile, and what a frame may have without being cut.

The hungriest model that ships, srcnn, was measured to take 400 bytes a pixel in f32, so 1.6 GB for a tile: that is
there beside the system on the smallest Jetson, with 8 GB. enhance-rt takes 117, and below 10 a pixel of the frame.
"""

STEP_PX = 8
"""The networks that can be tiled pad to 2, 4 or 8 px."""


class Span(NamedTuple):
    """Of one axis: pixels [start, stop) are put in, [first, end) of the result are kept."""

    start: int
    stop: int
    first: int
    end: int


def spans(length_px: int, *, tile_px: int, margin_px: int, step_px: int = STEP_PX) -> list[Span]:
    """Cut one axis so that kept pixels are at least ``margin_px`` from where a tile ends and the frame does not.

    Parameters
    ----------
    tile_px
        More than twice the margin by ``2 * step_px`` at least; what is not longer stays in one piece.

    Examples
    --------
    >>> for span in spans(100, tile_px=64, margin_px=8):
    ...     print(*span)
    0 60 0 50
    40 100 50 100
    """
    if length_px <= tile_px:
        return [Span(0, length_px, 0, length_px)]

    def starts_of(size: int) -> list[int]:
        stride = (size - 2 * margin_px) // step_px * step_px
        return [*range(0, length_px - size, stride), length_px - size]

    largest = tile_px - (tile_px - length_px) % step_px
    fewest = len(starts_of(largest))
    # The smallest of which no more are needed: what overlaps by more than it must is computed twice.
    size = min(size for size in range(largest, 2 * margin_px + step_px - 1, -step_px) if len(starts_of(size)) == fewest)
    starts = starts_of(size)
    seams = [after + (before + size - after) // 2 for before, after in itertools.pairwise(starts)]
    return [
        Span(start, start + size, first, end)
        for start, first, end in zip(starts, [0, *seams], [*seams, length_px], strict=True)
    ]


def load_tiled(
    bundle: Bundle,
    frame: Counts,
    *,
    backend: Backend = "openvino",
    precision: Precision = "fp32",
    hint: Hint = "auto",
    tile_px: int = TILE_PX,
) -> Engine:
    """As `edge.engine.load_for`, for frames of any size: those with a side above ``tile_px`` are cut.

    Raises
    ------
    ConfigError
        As `check_tiles` and `load_engine`; or TensorRT is to correct tiles by a dark or a flat.
    EngineError
        As `load_engine`.
    """
    if max(frame.shape_px) <= tile_px:
        return load_for(bundle, frame, backend=backend, precision=precision, hint=hint)
    check_tiles(bundle, precision, backend=backend, tile_px=tile_px)
    if backend == "tensorrt" and frame.corrected:
        raise ConfigError(
            "TensorRT takes dark and flat into the GPU's memory once, and tiles of a frame have each their own. Allow "
            "larger tiles (--tile-px), or choose another back end."
        )
    manifest, path = manifest_of(bundle, precision), model_path(bundle, precision)
    step_px, margin_px = _step_and_margin_px(manifest)
    rows, columns = (spans(side, tile_px=tile_px, margin_px=margin_px, step_px=step_px) for side in frame.shape_px)
    shape_px = (rows[0].stop, columns[0].stop)
    of_tile = [None if whole is None else np.empty(shape_px, np.float32) for whole in (frame.dark, frame.flat)]
    tile = replace(frame, shape_px=shape_px, dark=of_tile[0], flat=of_tile[1], tiles=True)
    if not reads_the_whole_frame(path):
        engine: Engine = load_for(bundle, tile, backend=backend, precision=precision, hint=hint)
        return TiledEngine(engine, frame, tile, rows, columns)
    light = OpenVinoLight(path, manifest, frame, hint=hint)
    assert step_px % light.cell_px == 0  # noqa: S101  or a tile would begin inside a cell; 1/8 is all the networks have
    engine = OpenVinoEngine(path, manifest, tile, hint=hint, light_given=True)
    return TiledEngine(engine, frame, tile, rows, columns, light)


def load_for_camera(bundle: Bundle, frame: Counts, *, backend: Backend, precision: Precision, hint: Hint) -> Engine:
    """As the box runs it: frames with a side above `TILE_PX` are cut, or go whole through a model that cannot be tiled.

    Errors as `edge.engine.load_engine`.
    """
    tile_px = TILE_PX
    if max(frame.shape_px) > tile_px:
        try:
            check_tiles(bundle, precision, backend=backend, tile_px=tile_px)
        except ConfigError as exc:
            log.info("frames of %s px go through the model whole: %s", " x ".join(map(str, frame.shape_px)), exc)
            tile_px = max(frame.shape_px)
    return load_tiled(bundle, frame, backend=backend, precision=precision, hint=hint, tile_px=tile_px)


def check_tiles(bundle: Bundle, precision: Precision, *, backend: Backend, tile_px: int) -> None:
    """Refuse what cannot be computed tile by tile.

    Raises
    ------
    ConfigError
        The model's result depends on the whole picture, or on what only OpenVINO can be given apart from it; or the
        tile is not larger than what is thrown away of it.
    """
    manifest = manifest_of(bundle, precision)
    instead = "Make the pictures smaller, or allow larger tiles (--tile-px) where there is memory for them."
    if manifest.task == "neural-lens":
        raise ConfigError(f"{DEPENDS_ON_ALL} {manifest.name} is a neural lens. {instead}")
    step_px, margin_px = _step_and_margin_px(manifest)
    if tile_px < 2 * (margin_px + step_px):
        raise ConfigError(
            f"Tiles of {tile_px} px are too small for {manifest.name}: {margin_px} px along each seam are thrown away, "
            f"so at least {2 * (margin_px + step_px)} px are expected."
        )
    path = model_path(bundle, precision)
    if not reads_the_whole_frame(path):
        return
    if backend != "openvino":
        raise ConfigError(
            f"{manifest.name} evens out the light from the mean of the whole frame, which tiles have to be given: only "
            f'the back end "openvino" can do that, not {backend!r}. Choose it, or: {instead}'
        )
    try:
        check_cut(path)
    except ConfigError as exc:
        raise ConfigError(f"{exc} {instead}") from exc


class TiledEngine:
    """An engine for frames, over an engine for tiles of them; implements `edge.devices.Engine`.

    A tile is copied in and its inner part out: two copies a frame beside what the engine of the tiles costs.
    """

    def __init__(
        self,
        engine: Engine,
        frame: Counts,
        tile: Counts,
        rows: Sequence[Span],
        columns: Sequence[Span],
        light: OpenVinoLight | None = None,
    ) -> None:
        self.manifest, self.backend, self.precision = engine.manifest, engine.backend, engine.precision
        self.copies_per_frame, self.passes_per_frame = 2, engine.passes_per_frame
        self.tiles = len(rows) * len(columns)
        self._engine, self._frame, self._tile, self._light = engine, frame, tile, light
        self._cuts = list(itertools.product(rows, columns))
        self._slots: dict[int, NDArray[Any]] = {}
        self._slot = engine.allocate(1).acquire(timeout_s=0)
        sides = [self.manifest.scale * side for side in frame.shape_px]
        self._outputs: dict[str, NDArray[Any]] = {
            spec.name: np.empty([*sides, 3] if spec.channels == 3 else sides, frame.result_dtype)
            for spec in self.manifest.outputs
        }

    def allocate(self, slots: int) -> FramePool:
        """``slots`` whole frames."""
        pool = FramePool([aligned_empty(self._frame.slot_shape, self._frame.dtype) for _ in range(slots)])
        self._slots |= {slot.ctypes.data: slot for slot in pool.slots}
        return pool

    def infer(self, pixels: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """All outputs of the whole frame. EngineError if ``pixels`` is no slot of :meth:`allocate`."""
        pixels = kept_for(pixels, self._slots)
        light = None if self._light is None else self._light.infer(pixels)
        scale = self.manifest.scale
        for y, x in self._cuts:
            part = slice(y.start, y.stop), slice(x.start, x.stop)
            self._slot[:] = self._frame.cut(pixels, *part)
            for mine, whole in ((self._tile.dark, self._frame.dark), (self._tile.flat, self._frame.flat)):
                if mine is not None and whole is not None:
                    mine[:] = whole[part]
            if light is not None:
                self._give_light(light, y, x)
            for name, tile in self._engine.infer(self._slot).items():
                self._outputs[name][_scaled(scale, y.first, y.end, x.first, x.end)] = tile[
                    _scaled(scale, y.first - y.start, y.end - y.start, x.first - x.start, x.end - x.start)
                ]
        return self._outputs

    def close(self) -> None:
        """Close the engine of the tiles, and let go of the slots."""
        self._slots.clear()
        self._engine.close()

    def _give_light(self, light: NDArray[np.float32], y: Span, x: Span) -> None:
        # Light is given only where load_tiled made both halves, of one OpenVINO graph.
        assert self._light is not None  # noqa: S101
        assert isinstance(self._engine, OpenVinoEngine)  # noqa: S101
        assert self._engine.light is not None  # noqa: S101
        cell = self._light.cell_px
        self._engine.light[:] = light[..., y.start // cell : -(-y.stop // cell), x.start // cell : -(-x.stop // cell)]


def _step_and_margin_px(manifest: Manifest) -> tuple[int, int]:
    """What tiles begin at multiples of, and how far from a seam's tile end results are used.

    The manifest's halo is what metrics leave out. Cut off there, sem-lite still differs by 0.003 of full scale, twice
    as far away by 2e-7.
    """
    step_px = math.lcm(STEP_PX, manifest.side_multiple_px)
    least_px = max(2 * manifest.halo_px, manifest.min_side_px)
    return step_px, -(-least_px // step_px) * step_px


def _scaled(scale: int, top: int, bottom: int, left: int, right: int) -> tuple[slice, slice]:
    return slice(scale * top, scale * bottom), slice(scale * left, scale * right)
