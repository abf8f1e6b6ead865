"""Runs a model file as a function of one picture: ONNX Runtime (the reference) or OpenVINO."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import ExportError
from export.manifest import Precision, check_onnxruntime

Image = NDArray[np.float32]
Infer = Callable[[Image], Mapping[str, Image]]


def infer_with(model: Path, engine: str = "onnxruntime", *, precision: Precision = "fp32") -> Infer:
    """The model as a function (h, w) in 0..1 to its outputs by name, (h, w) or (h, w, 3), float32.

    Parameters
    ----------
    model
        An ONNX file with one input.
    engine
        One of `ENGINES`; float operators in FP32, whatever the processor would rather do.
    precision
        What the file is. Of anything but fp32 ONNX Runtime computes every operator as it is written and fuses none.

    Raises
    ------
    ExportError
        There is no such engine, or it is not installed, or it cannot read the file.
    PrecisionError
        The engine computes this precision wrongly.
    """
    if engine not in ENGINES:
        raise ExportError(f"there is no engine {engine!r}; choose one of {', '.join(ENGINES)}")
    try:
        run = ENGINES[engine](model, precision)
    except ModuleNotFoundError as exc:
        raise ExportError(
            f"engine {engine} needs {exc.name}: .venv/bin/pip install -e '.[export]' in the checkout"
        ) from exc

    def infer(image: Image) -> Mapping[str, Image]:
        if image.ndim != 2:
            raise ExportError(f"{model} cannot take a picture of {image.shape} px, expected (height, width)")
        return run(image)

    return infer


def _onnxruntime(model: Path, precision: Precision) -> Infer:
    import onnxruntime

    check_onnxruntime(precision, onnxruntime.__version__)
    options = onnxruntime.SessionOptions()
    if precision != "fp32":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # ONNX Runtime's errors share no public base class
        raise ExportError(f"ONNX Runtime {onnxruntime.__version__} cannot run {model}: {exc}") from exc
    (name,) = [put.name for put in session.get_inputs()]
    names = [put.name for put in session.get_outputs()]

    def infer(image: Image) -> Mapping[str, Image]:
        try:
            return _pictures(names, session.run(None, {name: image[None, None]}))
        except Exception as exc:  # as above
            raise ExportError(f"{model} cannot take a picture of {image.shape} px: {exc}") from exc

    return infer


@functools.cache
def _openvino_core() -> Any:
    """One for the process: a second that goes before the first leaves Ctrl-C without a stack (OpenVINO 2026.4).

    The appliance has its own, `edge.engine.openvino.the_core`: neither package imports the other's part, no command
    runs both, and where a test does, neither goes before the end.
    """
    import openvino

    return openvino.Core()


def _openvino(model: Path, precision: Precision) -> Infer:
    import openvino

    core = _openvino_core()
    try:
        graph = core.read_model(str(model))
    except RuntimeError as exc:
        raise ExportError(f"OpenVINO {openvino.__version__} cannot run {model} in {precision}: {exc}") from exc
    names = [put.get_any_name() for put in graph.outputs]
    of_size: dict[tuple[int, ...], Any] = {}

    def compiled(shape_px: tuple[int, ...]) -> Any:
        # For one size, as the appliance does: where sizes are free, OpenVINO 2026.4 computes the first picture through
        # an If wrongly now and then.
        if shape_px not in of_size:
            of_size.clear()
            sized = graph.clone()
            sized.reshape([1, 1, *shape_px])
            of_size[shape_px] = core.compile_model(sized, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return of_size[shape_px]

    def infer(image: Image) -> Mapping[str, Image]:
        try:
            results = compiled(image.shape)({0: image[None, None]})
        except RuntimeError as exc:
            raise ExportError(f"{model} cannot take a picture of {image.shape} px: {exc}") from exc
        return _pictures(names, [np.array(results[name]) for name in names])

    return infer


def _pictures(names: Sequence[str], batches: Sequence[Image]) -> dict[str, Image]:
    """(1, channels, h, w) each, to (h, w) or (h, w, channels)."""
    return {
        name: np.asarray(batch[0, 0] if batch.shape[1] == 1 else np.moveaxis(batch[0], 0, -1))
        for name, batch in zip(names, batches, strict=True)
    }


ENGINES: dict[str, Callable[[Path, Precision], Infer]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
