"""Runs a model file as a function of one picture: ONNX Runtime (the reference) or OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.errors import ExportError

Image = NDArray[np.float32]


def infer_with(model: Path, engine: str = "onnxruntime") -> Callable[[Image], Image]:
    """The model as a function (h, w) to (h, w), float32 in 0..1.

    Parameters
    ----------
    model
        An ONNX file with one input and the shown picture as its first output.
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


def _onnxruntime(model: Path) -> Callable[[Image], Image]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (name,) = [put.name for put in session.get_inputs()]

    def infer(image: Image) -> Image:
        return np.asarray(session.run(None, {name: image[None, None]})[0][0, 0])

    return infer


def _openvino(model: Path) -> Callable[[Image], Image]:
    import openvino

    compiled = openvino.compile_model(str(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def infer(image: Image) -> Image:
        return np.array(compiled({0: image[None, None]})[0][0, 0])

    return infer


ENGINES: dict[str, Callable[[Path], Callable[[Image], Image]]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
