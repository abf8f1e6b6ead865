"""How fast an engine is, and how far its pictures are from another's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.devices import Engine
from edge.engine import Backend, Hint, load_for, manifest_of
from edge.engine.choice import LEAST_PSNR_DB
from edge.engine.prepare import Counts
from edge.errors import ConfigError
from edge.frames import LAYOUTS, pack
from export.manifest import Bundle

WARM_UP, REPEATS = 20, 100
"""Frames before the clock starts, and frames whose times count."""
BUDGET_S, LEAST_REPEATS = 60.0, 5
"""After which no more frames are timed, nor after a fifth of it any run to warm up; but so many always are."""
_SAME_DB = 200.0  # two equal pictures: JSON has no infinity

TEXTURES = 2
"""Frames that `textures` makes."""
_SIDES_PX, _DARKEST, _BRIGHTEST = (2, 8, 32), 0.2, 0.8


JUDGED_PX = 256
"""Side of the largest frames that `check_int8` judges INT8 on."""


class Figures(NamedTuple):
    """Of one engine on one machine, over ``timed`` frames."""

    median_s: float
    p99_s: float
    psnr_db: float
    timed: int


def measure(
    engine: Engine,
    frames: Sequence[NDArray[Any]],
    expected: Sequence[Mapping[str, NDArray[Any]]],
    full_scale: int,
    *,
    clock: Callable[[], float],
    alive: Callable[[], None] = lambda: None,
) -> Figures:
    """Time from slot to result, and the PSNR of the worst output of all frames (peak: full scale).

    ``alive`` is called between frames, while no clock runs. A slow engine has fewer frames timed, see :data:`BUDGET_S`.
    """
    pool = engine.allocate(len(frames))
    slots = []
    for frame in frames:
        slots.append(pool.acquire(timeout_s=0))
        slots[-1][:] = frame
    worst_db = _SAME_DB
    for slot, wanted in zip(slots, expected, strict=True):
        alive()
        pictures = engine.infer(slot).items()
        worst_db = min(worst_db, *(psnr_db(picture, wanted[name], full_scale) for name, picture in pictures))

    def times_s(frames: int, least: int, budget_s: float) -> list[float]:
        times: list[float] = []
        while len(times) < least or (len(times) < frames and sum(times) < budget_s):
            alive()
            began_s = clock()
            engine.infer(slots[len(times) % len(slots)])
            times.append(clock() - began_s)
        return times

    times_s(WARM_UP, 1, BUDGET_S / 5)
    times = times_s(REPEATS, LEAST_REPEATS, BUDGET_S)
    median_s, p99_s = np.percentile(times, (50, 99))
    return Figures(float(median_s), float(p99_s), worst_db, len(times))


def check_int8(bundle: Bundle, counts: Counts, *, backend: Backend, hint: Hint) -> None:
    """Refuse the INT8 file for frames so small that it is far from FP32: it was judged on larger ones when it was made.

    Nothing larger than `JUDGED_PX` a side is judged: `enhance-rt` is 32 dB from FP32 at 16 px, 38 at 32 px, and from 64
    px on the 45 of 512 px.

    Raises
    ------
    ConfigError
        It is further from FP32 than `edge.engine.choice.LEAST_PSNR_DB`.
    EngineError
        It does not run.
    """
    step_px = manifest_of(bundle, "int8").side_multiple_px
    sides_px = tuple(min(side, JUDGED_PX // step_px * step_px) for side in counts.shape_px)
    small = replace(counts, shape_px=sides_px, dark=None, flat=None)
    with (
        closing(load_for(bundle, small, backend=backend, precision="int8", hint=hint)) as int8,
        closing(load_for(bundle, small, backend=backend, precision="fp32", hint="f32")) as fp32,
    ):
        worst_db = min(
            psnr_db(picture, expected[name], counts.full_scale)
            for frame in textures(small)
            for expected in [pictures_of(fp32, frame)]
            for name, picture in pictures_of(int8, frame).items()
        )
    if worst_db < LEAST_PSNR_DB:
        shape = " x ".join(map(str, counts.shape_px))
        raise ConfigError(
            f"{bundle.name} in int8 is {worst_db:.1f} dB from FP32 for frames of {shape} px, "
            f'expected at least {LEAST_PSNR_DB:g}. Set [engine] precision = "fp32", or take larger frames.'
        )


def textures(counts: Counts) -> list[NDArray[Any]]:
    """Frames of a camera with something to see in them, the same ones every time: blocks of three sizes.

    A frame of a dark or an empty field comes out right of a network that is wrong by any factor. White noise and full
    contrast are no judges either: INT8 is calibrated on micrographs, and of these the sound `enhance-rt` is 28 to 33 dB
    from FP32, of the frames here 46 dB.
    """
    height, width = counts.shape_px[:2]
    frames = []
    for seed in range(TEXTURES):
        rng = np.random.default_rng(seed)
        light = np.zeros((height, width))
        for side in _SIDES_PX:
            blocks = rng.random((-(-height // side), -(-width // side)))
            light += np.kron(blocks, np.ones((side, side)))[:height, :width]
        light = np.interp(light, (light.min(), light.max()), (_DARKEST, _BRIGHTEST))
        values = np.rint(light * counts.full_scale).astype(np.uint16)
        frame = np.empty(counts.slot_shape, counts.dtype)
        if LAYOUTS[counts.pixel_format].packed:
            pack(values, LAYOUTS[counts.pixel_format], frame.view(np.uint8))
        else:
            frame[...] = values[..., np.newaxis] if frame.ndim == 3 else values
        frames.append(frame)
    return frames


def psnr_db(picture: NDArray[Any], wanted: NDArray[Any], full_scale: int) -> float:
    """Of counts; 200 where they are equal.

    >>> psnr_db(np.full((2, 2), 90), np.full((2, 2), 100), 100)
    20.0
    """
    error = float(np.mean(np.square(picture.astype(np.float64) - wanted)))
    return _SAME_DB if error == 0 else round(10 * float(np.log10(full_scale**2 / error)), 2)


def pictures_of(engine: Engine, frame: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """A copy of each output for one frame."""
    pool = engine.allocate(1)
    slot = pool.acquire(timeout_s=0)
    slot[:] = frame
    return {name: picture.copy() for name, picture in engine.infer(slot).items()}
