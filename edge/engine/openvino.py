"""OpenVINO on the CPU: the default engine. The frame slot is its input tensor, its output tensor is the tile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino.preprocess import PrePostProcessor

from edge.engine.prepare import Counts
from edge.errors import ConfigError, EngineError
from edge.frames import SLOT_ALIGNMENT, FramePool, aligned_empty
from export.manifest import Manifest

_TYPE = {np.uint8: ov.Type.u8, np.uint16: ov.Type.u16}
_BY_THE_GRAPH = ("mono8", "mono16", "rgb8")
"""Formats that nodes of the graph prepare. Bits of packed ones and Bayer sites take a pass of numpy."""


class OpenVinoEngine:
    """One compiled graph, one request, reshaped to one camera.

    The prepare stage (scale, dark, flat) and the way back to counts are nodes of the graph, so a frame costs no pass
    over memory of ours; packed and Bayer formats cost one, into the input. The arithmetic is pinned: OpenVINO's own
    default differs between processors, so would results.
    """

    backend = "openvino"

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        counts: Counts,
        *,
        hint: str,
    ) -> None:
        self.manifest = manifest
        self._counts = counts
        core = ov.Core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if hint == "bf16" and not has_bf16:
            raise ConfigError('This processor has no bf16 arithmetic. Set [engine] hint = "f32" or "auto".')
        self.precision = ("bf16" if has_bf16 else "f32") if hint == "auto" else hint
        try:
            model = core.read_model(path)
            model.reshape({0: [1, 1, *counts.shape_px]})
            model = _with_counts(model, manifest, counts)
            self._compiled = core.compile_model(
                model,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": self.precision,
                    "PERFORMANCE_HINT": "LATENCY",
                    "NUM_STREAMS": 1,
                },
            )
            self._request = self._compiled.create_infer_request()
            tensors = {spec.name: self._request.get_tensor(spec.name).data[0] for spec in manifest.outputs}
        except RuntimeError as exc:
            raise EngineError(f"OpenVINO {ov.__version__} cannot run {path}: {exc}") from exc
        self._input: NDArray[np.float32] | None = None
        if counts.pixel_format not in _BY_THE_GRAPH:
            self._input = aligned_empty((1, 1, *counts.shape_px), np.float32)
            self._request.set_input_tensor(ov.Tensor(self._input, shared_memory=True))
        self.passes_per_frame = 0 if self._input is None else 1
        self._tensors: dict[int, ov.Tensor] = {}
        self._outputs: dict[str, NDArray[Any]] = {
            spec.name: tensors[spec.name] if spec.channels == 3 else tensors[spec.name][0] for spec in manifest.outputs
        }

    def allocate(self, slots: int) -> FramePool:
        """``slots`` aligned arrays, each wrapped once as an input tensor that shares its memory."""
        pool = FramePool([aligned_empty(self._counts.slot_shape, self._counts.dtype) for _ in range(slots)])
        if self._input is not None:
            return pool
        shape = self._compiled.input(0).shape
        for slot in pool.slots:
            # OpenVINO accepts a misaligned shared array and then copies or slows down: refuse it here.
            if slot.ctypes.data % SLOT_ALIGNMENT:
                raise EngineError(f"a frame slot at {slot.ctypes.data:#x} is not aligned to {SLOT_ALIGNMENT} bytes")
            self._tensors[slot.ctypes.data] = ov.Tensor(slot.reshape(shape), shared_memory=True)
        return pool

    def infer(self, pixels: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """Run the graph on a slot of :meth:`allocate`; the outputs are the request's own memory."""
        if self._input is None:
            self._request.set_input_tensor(self._tensors[pixels.ctypes.data])
        else:
            self._counts.to_network(pixels, self._input[0, 0])
        self._request.infer()
        return self._outputs

    def close(self) -> None:
        """Drop the tensors, so that the slots can be freed."""
        self._tensors.clear()


def _with_counts(model: ov.Model, manifest: Manifest, counts: Counts) -> ov.Model:
    """`Counts.to_network` before the network and `Counts.from_network` after it, as nodes of the graph.

    So is the way from planes of colour to (height, width, 3), which screens and files want.
    """

    def constant(value: Any) -> Any:
        return ops.constant(np.asarray(value, np.float32))

    def to_network(node: ov.Output) -> ov.Output:
        if counts.pixel_format == "rgb8":
            green = ops.gather(node, ops.constant(np.array([1])), ops.constant(np.array(3)))
            node = ops.transpose(green, ops.constant(np.array([0, 3, 1, 2]))).output(0)
        if counts.dark is not None:
            node = ops.subtract(node, constant(counts.dark[np.newaxis, np.newaxis])).output(0)
        if counts.flat is not None:
            node = ops.divide(node, constant(counts.flat[np.newaxis, np.newaxis])).output(0)
        return ops.multiply(node, constant(1 / counts.full_scale)).output(0)

    def from_network(node: ov.Output) -> ov.Output:
        return ops.round(ops.multiply(node, constant(counts.full_scale)), "half_to_even").output(0)

    steps = PrePostProcessor(model)
    if counts.pixel_format in _BY_THE_GRAPH:
        tensor = steps.input().tensor()
        tensor.set_element_type(_TYPE[counts.dtype])
        if counts.pixel_format == "rgb8":
            tensor.set_shape([1, *counts.slot_shape])
        steps.input().preprocess().convert_element_type(ov.Type.f32).custom(to_network)
    for spec in manifest.outputs:
        output = steps.output(spec.name)
        output.postprocess().custom(from_network)
        output.tensor().set_element_type(_TYPE[counts.result_dtype])
        if spec.channels == 3:
            output.model().set_layout(ov.Layout("NCHW"))
            output.tensor().set_layout(ov.Layout("NHWC"))
    return steps.build()
