"""`superlens bench engine`: back ends and precisions side by side, in one run, on this machine.

Each row is timed against a reference that runs in turn with it, window by window, so that what slows the machine down
slows both:

* OpenVINO against OpenVINO's own benchmark loop (`benchmark_app -api sync -hint latency -nireq 1`): the same file at
  the same size and in the same arithmetic, on float input that is already there, with no camera's counts to convert;
* ONNX Runtime and TensorRT against the FP32 model: on ONNX Runtime, or, where that is not installed, on OpenVINO.

The row's `reference` says which. `psnr_to_fp32_db` is that of the worst output on frames of the simulated camera, to
the same FP32 model, 200 where they are equal. A bundle without an FP32 file (networks of random weights) has neither:
these figures are None then.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from edge.bench import render
from edge.cameras import open_camera
from edge.cameras.microscope import fitted
from edge.cameras.simulated import SimulatedCamera
from edge.config import Config
from edge.devices import Engine
from edge.engine import (
    INSTALL,
    Backend,
    Hint,
    convert_command,
    find_bundle,
    installed,
    load_for,
    manifest_of,
    model_path,
    reference_backend,
)
from edge.engine.measure import pictures_of, psnr_db
from edge.engine.prepare import Counts
from edge.errors import EdgeError
from edge.frames import DTYPE, FramePool, aligned_empty
from edge.windows import OtherWork, quiet, undisturbed
from export.manifest import Bundle, Precision
from firmware_bridge.simulator.controller import TRAVEL_UM

log = logging.getLogger(__name__)

PRECISIONS: dict[Backend, tuple[Precision, ...]] = {
    "openvino": ("fp32", "int8"),
    "onnxruntime": ("fp32", "int8"),
    "tensorrt": ("fp16", "int8_fp16", "fp32"),
}
"""The model files a back end has a use for."""
FRAMES = 4
WINDOW_S = 0.5
"""Of each of the two in a window, at least."""
LEAST_FRAMES = 2
OPENVINO_LOOP = "openvino benchmark loop"
_TABLE_WIDTH = 140

Run = Callable[[int], object]
"""Runs the frame of that number, to its end."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A model, and what a camera sees that it is for."""

    bundle: Bundle
    camera: SimulatedCamera
    pictures: NDArray[Any]

    @property
    def full_scale(self) -> int:
        """In counts."""
        return (1 << self.camera.bit_depth) - 1

    def load(self, backend: Backend, precision: Precision, hint: Hint) -> Engine:
        """Errors as `load_for`."""
        return load_for(self.bundle, Counts.of(self.camera), backend=backend, precision=precision, hint=hint)


@dataclass(frozen=True, slots=True)
class Reference:
    """The FP32 model: how fast it is, and what it makes of the pictures."""

    words: str
    run: Run
    expected: list[dict[str, NDArray[Any]]]


def bench_engine(
    models: Sequence[str],
    *,
    backends: Sequence[Backend] = (),
    precisions: Sequence[Precision] = (),
    shape_px: tuple[int, int] | None = None,
    windows: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure; see the module's docstring.

    Parameters
    ----------
    models
        Bundle folders, or names of bundles that ship with superlens.
    backends, precisions
        What to compare; empty is all that is installed, and all that a back end has a use for.
    shape_px
        (height, width); None is the simulated camera's own for the model.
    windows
        Whose median counts. At most 15 are tried; then the least disturbed ones stand, and the row is `contended`.

    Returns
    -------
    A row for each, and a line for each that was left out: why, and what to do.

    Raises
    ------
    ConfigError
        A model does not exist, or cannot take frames of that shape.
    """
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for model in models:
        scene = _scene(find_bundle(model), shape_px)
        with ExitStack() as held:
            fp32 = _reference(scene, held) if "fp32" in scene.bundle.precisions else None
            for engine, path in _engines(scene, backends, precisions, left_out):
                with closing(engine):
                    rows.append(_row(scene, engine, path, fp32, windows, clock))
                log.info("%(model)s on %(backend)s, %(precision)s in %(arithmetic)s: %(fps).1f frames/s", rows[-1])
    return rows, left_out


def _reference(scene: Scene, held: ExitStack) -> Reference:
    backend = reference_backend()
    engine = scene.load(backend, "fp32", "f32")
    held.callback(engine.close)
    expected = [pictures_of(engine, picture) for picture in scene.pictures]
    return Reference(f"{backend} fp32", _on_slots(engine, scene.pictures)[0], expected)


def _row(
    scene: Scene,
    engine: Engine,
    path: Path,
    fp32: Reference | None,
    windows: int,
    clock: Callable[[], float],
) -> dict[str, Any]:
    run, slots = _on_slots(engine, scene.pictures)
    worst_db = None
    if fp32 is not None:
        worst_db = min(
            psnr_db(picture, wanted[name], scene.full_scale)
            for slot, wanted in zip(slots, fp32.expected, strict=True)
            for name, picture in engine.infer(slot).items()
        )
    reference = None if fp32 is None else fp32.run
    words = None if fp32 is None else fp32.words
    if engine.backend == "openvino":
        values = scene.pictures * np.float32(1 / scene.full_scale)
        reference, words = openvino_loop(path, values, engine.precision), OPENVINO_LOOP
    return {
        "model": scene.bundle.name,
        "backend": engine.backend,
        "precision": engine.manifest.precision,
        "arithmetic": engine.precision,
        "shape": list(scene.camera.shape),
        **_figures(run, reference, windows, clock),
        "reference": words,
        "psnr_to_fp32_db": worst_db,
    }


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """The rows as a table on standard output."""
    table = Table(
        "model", "back end", "file", "in", "px", "p50", "p99", "frames/s", "ratio", "to", "dB to FP32", "", box=None
    )
    for row in rows:
        table.add_row(
            row["model"],
            row["backend"],
            row["precision"],
            row["arithmetic"],
            " x ".join(map(str, row["shape"])),
            f"{1e3 * row['p50_s']:.2f} ms",
            f"{1e3 * row['p99_s']:.2f} ms",
            f"{row['fps']:.1f}",
            _words(row["ratio_to_reference"], ".3f"),
            row["reference"] or "-",
            _words(row["psnr_to_fp32_db"], ".1f"),
            "contended" if row["contended"] else "",
        )
    Console(width=max(Console().width, _TABLE_WIDTH)).print(table)  # a pipe has 80 columns, which are too few


def _words(figure: float | None, how: str) -> str:
    return "-" if figure is None else format(figure, how)


def openvino_loop(path: Path, values: NDArray[np.float32], precision: str) -> Run:
    """OpenVINO's own benchmark loop on ``values`` (n, height, width) of 0 to 1, which lie in its memory beforehand."""
    import openvino as ov

    from edge.engine.openvino import the_core

    core = the_core()
    model = core.read_model(path)
    model.reshape({0: [1, 1, *values.shape[1:]]})
    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    memory = [aligned_empty((1, 1, *value.shape), np.float32) for value in values]
    for array, value in zip(memory, values, strict=True):
        array[0, 0] = value
    tensors = [ov.Tensor(array, shared_memory=True) for array in memory]

    def run(index: int) -> None:
        request.set_input_tensor(tensors[index % len(tensors)])
        request.infer()

    return run


def _scene(bundle: Bundle, shape_px: tuple[int, int] | None) -> Scene:
    camera = {} if shape_px is None else {"shape_px": shape_px}
    any_file = "fp32" if "fp32" in bundle.precisions else bundle.precisions[0]
    config = fitted(Config.model_validate({"camera": camera}), manifest_of(bundle, any_file))
    opened = open_camera(config, pose_um=lambda: TRAVEL_UM.centre)
    assert isinstance(opened, SimulatedCamera)  # noqa: S101  it is the configuration's default
    with closing(opened):
        pool = FramePool([np.empty(opened.shape, DTYPE[opened.format])])
        pictures = render(opened, pool, exposure_s=config.camera.exposure_s, frames=FRAMES)
    return Scene(bundle, opened, pictures)


def _engines(
    scene: Scene, backends: Sequence[Backend], precisions: Sequence[Precision], left_out: list[str]
) -> Iterator[tuple[Engine, Path]]:
    """Every engine that was asked for and can be had, one at a time; a line in ``left_out`` for every other."""
    bundle = scene.bundle
    for backend in backends or PRECISIONS:
        if not installed(backend):
            left_out.append(f"{bundle.name} on {backend}: not installed. Install it: {INSTALL[backend]}")
            continue
        for precision in PRECISIONS[backend]:
            if precisions and precision not in precisions:
                continue
            if precision not in bundle.precisions:
                left_out.append(
                    f"{bundle.name} on {backend} in {precision}: not in the bundle. "
                    f"Make it: {convert_command(bundle, precision)}"
                )
                continue
            for hint in ("auto", "f32") if backend == "openvino" else ("auto",):
                try:
                    engine = scene.load(backend, precision, hint)
                except EdgeError as exc:
                    left_out.append(f"{bundle.name} on {backend} in {precision}: {exc}")
                    continue
                arithmetic = engine.precision
                yield engine, model_path(bundle, precision)
                if arithmetic == "f32":
                    break  # this processor has nothing faster, so `auto` was f32


def _on_slots(engine: Engine, pictures: NDArray[Any]) -> tuple[Run, list[NDArray[Any]]]:
    """The engine on slots that hold the pictures already, as a camera would have left them."""
    pool = engine.allocate(len(pictures))
    slots = [pool.acquire(timeout_s=0) for _ in pictures]
    for slot, picture in zip(slots, pictures, strict=True):
        slot[:] = picture
    return lambda index: engine.infer(slots[index % len(slots)]), slots


@dataclass(frozen=True, slots=True)
class Window:
    """Seconds of each frame, of both, and how many cores others used meanwhile."""

    subject_s: list[float]
    reference_s: list[float]
    other_cores: float

    @property
    def ratio(self) -> float:
        """How much faster than the reference; above 1 is faster."""
        return statistics.fmean(self.reference_s) / statistics.fmean(self.subject_s)


def _figures(subject: Run, reference: Run | None, windows: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Of the undisturbed windows: percentiles over their frames, medians of their rates and ratios."""
    pair = [subject] if reference is None else [subject, reference]
    frame_s = max(min(_times(run, 3, clock)) for run in pair)  # warm; the first may be slow
    frames = max(LEAST_FRAMES, math.ceil(WINDOW_S / max(frame_s, 1e-6)))

    def window() -> Window:
        others = OtherWork([])
        times_s = {run: _times(run, frames, clock) for run in pair}
        pair.reverse()  # neither is always the one that finds the other's caches
        return Window(times_s[subject], [] if reference is None else times_s[reference], others.cores())

    kept, tried = undisturbed(window, windows)
    p50, p99 = np.percentile([time_s for one in kept for time_s in one.subject_s], (50, 99))
    return {
        "p50_s": float(p50),
        "p99_s": float(p99),
        "fps": statistics.median(1 / statistics.fmean(one.subject_s) for one in kept),
        "ratio_to_reference": None if reference is None else statistics.median(one.ratio for one in kept),
        "frames": frames * len(kept),
        "windows": len(kept),
        "windows_tried": tried,
        "other_cores": max(one.other_cores for one in kept),
        "contended": not all(map(quiet, kept)),
    }


def _times(run: Run, frames: int, clock: Callable[[], float]) -> list[float]:
    times_s = []
    for index in range(frames):
        began_s = clock()
        run(index)
        times_s.append(clock() - began_s)
    return times_s
