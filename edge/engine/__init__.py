"""Engines: one bundle, one camera's shape and format, several back ends behind one protocol."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from edge.devices import Engine
from edge.engine.prepare import Counts
from edge.errors import ConfigError, EngineError
from edge.frames import LAYOUTS, PixelFormat
from export.errors import ManifestError
from export.manifest import PIXEL_SIZE_TOLERANCE, Bundle, Manifest, Precision, load_bundle

Backend = Literal["openvino", "onnxruntime", "tensorrt"]
Hint = Literal["auto", "bf16", "f32"]

BACKENDS: dict[Backend, str] = {
    "openvino": "edge.engine.openvino:OpenVinoEngine",
    "onnxruntime": "edge.engine.onnxruntime:OnnxRuntimeEngine",
    "tensorrt": "edge.engine.tensorrt:TensorRtEngine",
}
"""The driver of each back end, imported when it is asked for."""

INSTALL: dict[Backend, str] = {
    "openvino": "make install, in the checkout",
    "onnxruntime": ".venv/bin/pip install -e '.[export]' in the checkout",
    "tensorrt": "it comes with JetPack; .venv/bin/pip install -e '.[jetson]' in the checkout for what it runs on",
}


def installed(backend: Backend) -> bool:
    """Whether what a back end runs on can be imported; each is named after it."""
    return importlib.util.find_spec(backend) is not None


def reference_backend() -> Backend:
    """What runs the FP32 model that others are compared with: ONNX Runtime, or OpenVINO where that is missing."""
    return "onnxruntime" if installed("onnxruntime") else "openvino"


def find_bundle(model: str) -> Bundle:
    """The bundle in folder ``model``, or the one of that name that ships with superlens.

    Raises
    ------
    ConfigError
        Neither exists, or the bundle is malformed.
    """
    zoo = Path(__file__).resolve().parents[2] / "models" / "zoo"
    folder = Path(model)
    if not folder.is_dir() and folder.name == model:
        folder = zoo / model
    if not folder.is_dir():
        shipped = ", ".join(sorted(path.name for path in zoo.iterdir() if path.is_dir()))
        raise ConfigError(f"No model {model!r}: it is no folder, and superlens ships with: {shipped}.")
    try:
        return load_bundle(folder)
    except ManifestError as exc:
        raise ConfigError(str(exc)) from exc


def manifest_of(bundle: Bundle, precision: Precision) -> Manifest:
    """The manifest of one precision.

    Raises
    ------
    ConfigError
        It is not in the bundle, with the command that makes it; or it is malformed.
    """
    if precision not in bundle.precisions:
        raise ConfigError(
            f"{bundle.name} is not there in {precision}, only in {', '.join(bundle.precisions)}. Choose one of these, "
            f"or make it: {convert_command(bundle, precision)}"
        )
    try:
        return bundle.manifest(precision)
    except ManifestError as exc:
        raise ConfigError(str(exc)) from exc


def convert_command(bundle: Bundle, precision: Precision) -> str:
    """What adds a precision to a bundle. INT8 comes in two files, and needs pictures to measure its ranges on."""
    wanted, data = precision.partition("_")[0], ""
    if wanted == "int8":
        data = " --calibration synthetic:calibration"
    return f"superlens-export convert {bundle.folder} --out {bundle.folder} --precision {wanted}{data}"


def model_path(bundle: Bundle, precision: Precision) -> Path:
    """The model file of one precision, its hash in order.

    Raises
    ------
    ConfigError
        It is absent, or was changed.
    """
    try:
        return bundle.model_path(precision)
    except ManifestError as exc:
        raise ConfigError(str(exc)) from exc


def check_pixel_size(bundle: Bundle, precision: Precision, pixel_size_nm: float | None, *, remedy: str) -> None:
    """Refuse a camera whose pixel is more than 10 % off the model's; an unknown size passes, and is shown as such.

    Raises
    ------
    ConfigError
        Too far off; the message ends with ``remedy``.
    """
    manifest = manifest_of(bundle, precision)
    if manifest.pixel_fits(pixel_size_nm):
        return
    raise ConfigError(
        f"The images have {pixel_size_nm:g} nm/px, but {bundle.name} was trained for {manifest.pixel_size_nm:g} nm/px "
        f"({100 * PIXEL_SIZE_TOLERANCE:g} % off is the most it may be). {remedy}"
    )


def check_shape(manifest: Manifest, shape_px: tuple[int, ...], *, what: str) -> None:
    """Refuse a frame the network cannot take; ``what`` delivers it.

    Raises
    ------
    ConfigError
        More than one channel, or a side that is too short or no multiple of what the network divides it by.
    """
    if len(shape_px) != 2 or min(shape_px) < manifest.min_side_px:
        raise ConfigError(
            f"{what} gives frames of {' x '.join(map(str, shape_px))} px (height x width), but {manifest.name} takes "
            f"one channel of at least {manifest.min_side_px} x {manifest.min_side_px} px."
        )
    step = manifest.side_multiple_px
    if any(side % step for side in shape_px):
        height, width = (max(step, side // step * step) for side in shape_px)
        raise ConfigError(
            f"{what} gives frames of {' x '.join(map(str, shape_px))} px (height x width), but {manifest.name} takes "
            f"sides that are multiples of {step} px. Crop the images, or set [camera] shape_px, to {height} x {width} "
            f"px (shape_px = [{height}, {width}])."
        )


def load_engine(
    bundle: Bundle,
    *,
    frame_shape_px: tuple[int, ...],
    pixel_format: PixelFormat,
    bit_depth: int,
    backend: Backend = "openvino",
    precision: Precision = "fp32",
    hint: Hint = "auto",
    dark: NDArray[np.float32] | None = None,
    flat: NDArray[np.float32] | None = None,
) -> Engine:
    """Load a bundle for one camera.

    Parameters
    ----------
    frame_shape_px
        (height, width), or with the 3 of rgb8; the graph is reshaped to it, because free sizes cost 10-45 % of the
        speed.
    pixel_format, bit_depth
        What a slot holds; full scale is 2**bit_depth - 1 counts. Of colour the network is given the green, see
        `edge.engine.prepare.one_channel`.
    hint
        The arithmetic of the back end; ``auto`` is bf16 where the processor has it, else f32.
    dark, flat
        (height, width), counts and relative gain: input = (counts - dark) / flat / full scale.

    Raises
    ------
    ConfigError
        The size, the bit depth or the back end's own limits do not fit; a model file's hash is wrong.
    EngineError
        The back end is not installed, or it cannot run the model.
    """
    if pixel_format == "rgb8" and frame_shape_px[2:] == (3,):
        frame_shape_px = frame_shape_px[:2]  # of which the network is given one channel
    counts = Counts(frame_shape_px, pixel_format, bit_depth, dark, flat)
    return load_for(bundle, counts, backend=backend, precision=precision, hint=hint)


def load_for(bundle: Bundle, counts: Counts, *, backend: Backend, precision: Precision, hint: Hint) -> Engine:
    """`load_engine`, for slots that hold these counts. Errors as there."""
    pixel_format, bit_depth = counts.pixel_format, counts.bit_depth
    storage_bits = LAYOUTS[pixel_format].depth
    if not 1 <= bit_depth <= storage_bits:
        raise ConfigError(
            f"A bit depth of {bit_depth} does not fit {pixel_format}: expected 1 to {storage_bits}. "
            "Leave --bit-depth out, or give the camera's own."
        )
    manifest = manifest_of(bundle, precision)
    path = model_path(bundle, precision)
    check_shape(manifest, counts.shape_px, what="The camera")
    module, name = BACKENDS[backend].split(":")
    try:
        build = cast("Callable[..., Engine]", getattr(importlib.import_module(module), name))
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] != backend:
            raise
        raise EngineError(
            f"The engine back end {backend!r} is not installed. Install it: {INSTALL[backend]}. "
            "Nothing else is used in its place."
        ) from exc
    return build(path, manifest, counts, hint=hint)
