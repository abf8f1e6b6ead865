"""ONNX Runtime on the CPU: the reference that other engines are compared with. Slower, and f32 only."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge.engine.prepare import Counts, kept_for
from edge.engine.tensors import Tensor, check_tensors
from edge.errors import ConfigError, EngineError
from edge.frames import FramePool, aligned_empty
from export.errors import PrecisionError
from export.manifest import Manifest, check_onnxruntime

_DTYPE = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
}


class OnnxRuntimeEngine:
    """One session whose input and output are bound to memory of ours.

    The prepare stage is a counted numpy pass from the slot into the bound input, and another from the bound output to
    counts, which also turns planes of colour into (height, width, 3); no byte is copied unchanged.
    """

    backend = "onnxruntime"
    copies_per_frame = 0

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        counts: Counts,
        *,
        hint: str,
    ) -> None:
        if hint == "bf16":
            raise ConfigError('ONNX Runtime has no bf16 on the CPU. Set [engine] hint = "f32" or "auto".')
        try:
            check_onnxruntime(manifest.precision, ort.__version__)
        except PrecisionError as exc:
            raise EngineError(str(exc)) from exc
        self.manifest = manifest
        self.precision = "f32"
        self.passes_per_frame = 1 + len(manifest.outputs)
        self._counts = counts
        options = ort.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # ONNX Runtime's errors share no public base class
            raise EngineError(f"ONNX Runtime {ort.__version__} cannot run {path}: {exc}") from exc
        height, width = counts.shape_px
        self._input = aligned_empty((1, 1, height, width), np.float32)
        self._slots: dict[int, NDArray[Any]] = {}
        self._values: dict[str, NDArray[np.float32]] = {}
        self._outputs: dict[str, NDArray[Any]] = {}
        self._check(path)
        self._binding = self._session.io_binding()
        try:
            _bind(self._binding.bind_input, manifest.inputs[0].name, self._input)
            for spec in manifest.outputs:
                sides = (height * manifest.scale, width * manifest.scale)
                shape = (*sides, 3) if spec.channels == 3 else sides
                self._outputs[spec.name] = aligned_empty(shape, counts.result_dtype)
                self._values[spec.name] = aligned_empty((1, spec.channels, *sides), np.float32)
                _bind(self._binding.bind_output, spec.name, self._values[spec.name])
        except Exception as exc:
            raise EngineError(f"ONNX Runtime {ort.__version__} does not take the tensors of {path}: {exc}") from exc

    def _check(self, path: Path) -> None:
        """The file against its manifest. The sizes of the outputs are known only after a frame, so a black one runs."""
        shape_px = self._counts.shape_px
        inputs, outputs = (_tensors(puts) for puts in (self._session.get_inputs(), self._session.get_outputs()))
        check_tensors(path, self.manifest, shape_px, inputs | outputs)
        self._input[:] = 0
        try:
            pictures = self._session.run(list(outputs), {self.manifest.inputs[0].name: self._input})
        except Exception as exc:
            raise EngineError(f"ONNX Runtime {ort.__version__} cannot run {path}: {exc}") from exc
        made = {name: Tensor(one.dtype.name, one.shape) for name, one in zip(outputs, pictures, strict=True)}
        check_tensors(path, self.manifest, shape_px, inputs | made)

    def allocate(self, slots: int) -> FramePool:
        """``slots`` aligned arrays of counts, which :meth:`infer` reads in its prepare pass."""
        pool = FramePool([aligned_empty(self._counts.slot_shape, self._counts.dtype) for _ in range(slots)])
        self._slots |= {slot.ctypes.data: slot for slot in pool.slots}
        return pool

    def infer(self, pixels: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """Prepare, run, turn back to counts. EngineError if ``pixels`` is no slot of :meth:`allocate`."""
        self._counts.to_network(kept_for(pixels, self._slots), self._input[0, 0])
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as exc:
            raise EngineError(f"ONNX Runtime {ort.__version__} did not run {self.manifest.name}: {exc}") from exc
        for name, values in self._values.items():
            output = self._outputs[name]
            self._counts.from_network(values[0], np.moveaxis(np.atleast_3d(output), 2, 0))
        return self._outputs

    def close(self) -> None:
        """Let go of the slots; the session goes with the object."""
        self._slots.clear()


def _tensors(puts: Iterable[Any]) -> dict[str, Tensor]:
    """As the file declares them: a side with a name, or none, is free."""
    found = {}
    for put in puts:
        sides = (side if isinstance(side, int) else None for side in put.shape)
        found[put.name] = Tensor(_DTYPE.get(put.type, put.type), tuple(sides))
    return found


def _bind(bind: Any, name: str, array: NDArray[np.float32]) -> None:
    bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
