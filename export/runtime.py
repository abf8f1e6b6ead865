"""Runs a model file as a function of one picture: ONNX Runtime (the reference) or OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.errors import ExportError

Image = NDArray[np.float32]
Infer = Callable[[Image], Mapping[str, Image]]


def infer_with(model: Path, engine: str = "onnxruntime") -> Infer:
    """The model as a function (h, w) in 0..1 to its outputs by name, (h, w) or (h, w, 3), float32.

    Parameters
    ----------
    model
        An ONNX file with one input.
    engine
        One of `ENGINES`; always FP32, whatever the processor would rather do.

    Raises
    ------
    ExportError
        There is no such engine, or it is not installed.
    """
    if engine not in ENGINES:
        raise ExportError(f"there is no engine {engine!r}; choose one of {', '.join(ENGINES)}")
    try:
        return ENGINES[engine](model)
    except ModuleNotFoundError as exc:
        raise ExportError(f"engine {engine} needs {exc.name}: pip install 'superlens[export]'") from exc


def _onnxruntime(model: Path) -> Infer:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (name,) = [put.name for put in session.get_inputs()]
    names = [put.name for put in session.get_outputs()]

    def infer(image: Image) -> Mapping[str, Image]:
        return _pictures(names, session.run(None, {name: image[None, None]}))

    return infer


def _openvino(model: Path) -> Infer:
    import openvino

    compiled = openvino.compile_model(str(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [put.get_any_name() for put in compiled.outputs]

    def infer(image: Image) -> Mapping[str, Image]:
        results = compiled({0: image[None, None]})
        return _pictures(names, [np.array(results[put]) for put in compiled.outputs])

    return infer


def _pictures(names: Sequence[str], batches: Sequence[Image]) -> dict[str, Image]:
    """(1, channels, h, w) each, to (h, w) or (h, w, channels)."""
    return {
        name: np.asarray(batch[0, 0] if batch.shape[1] == 1 else np.moveaxis(batch[0], 0, -1))
        for name, batch in zip(names, batches, strict=True)
    }


ENGINES: dict[str, Callable[[Path], Infer]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
