"""OpenVINO on the CPU: the default engine. The frame slot is its input tensor, its output tensor is the tile."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino.preprocess import PrePostProcessor

from edge.engine.prepare import Counts, kept_for
from edge.engine.tensors import Tensor, check_tensors
from edge.errors import ConfigError, EngineError
from edge.frames import SLOT_ALIGNMENT, FramePool, aligned_empty
from export.manifest import Manifest

_TYPE = {np.uint8: ov.Type.u8, np.uint16: ov.Type.u16}
_BY_THE_GRAPH = ("mono8", "mono16", "rgb8")


def _by_the_graph(counts: Counts) -> bool:
    """Whether nodes of the graph prepare. Bits of packed formats, Bayer sites, and corrections that differ from one
    frame to the next take a pass of numpy.
    """
    return counts.pixel_format in _BY_THE_GRAPH and not (counts.tiles and counts.corrected)


@functools.cache
def the_core() -> ov.Core:
    """The one of this process, which stays to its end.

    OpenVINO 2026.4 gives the thread that loads its CPU plugin another stack for signals, and takes it away when the
    plugin goes, in the order in which they came or not: with two of them the next signal, SIGTERM say, could find none.
    `export.runtime` has its own, which the appliance never imports; where a test runs both, that one stays too.
    """
    return ov.Core()


class OpenVinoEngine:
    """One compiled graph, one request, reshaped to one camera.

    The prepare stage (scale, dark, flat) and the way back to counts are nodes of the graph, so a frame costs no pass
    over memory of ours; packed and Bayer formats cost one, into the input. The arithmetic is pinned: OpenVINO's own
    default differs between processors, so would results.

    Parameters
    ----------
    light_given
        The frames are tiles of a larger one. What the network reads from the whole of that, an `OpenVinoLight` has
        found, and `light` is where its part for the next tile is to be written.
    """

    backend = "openvino"
    copies_per_frame = 0

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        counts: Counts,
        *,
        hint: str,
        light_given: bool = False,
    ) -> None:
        self.manifest = manifest
        self._counts = counts
        core = the_core()
        self.precision = _arithmetic(core, hint)
        try:
            model = core.read_model(path)
            declared = _tensors(model.inputs, manifest)
            shapes = {0: [1, 1, *counts.shape_px]}
            if light_given:
                cut = _Cut(model)
                model, shapes[1] = cut.detail(), cut.light_shape(counts.shape_px)
            model.reshape(shapes)
            check_tensors(path, manifest, counts.shape_px, declared | _tensors(model.outputs, manifest))
            model = _with_counts(model, manifest, counts)
            self._compiled = _compiled(core, model, self.precision)
            self._request = self._compiled.create_infer_request()
            tensors = {spec.name: self._request.get_tensor(spec.name).data[0] for spec in manifest.outputs}
            self.light: NDArray[np.float32] | None = self._request.get_tensor(_LIGHT).data if light_given else None
        except RuntimeError as exc:
            raise EngineError(f"OpenVINO {ov.__version__} cannot run {path}: {exc}") from exc
        self._input = _network_input(counts)
        if self._input is not None:
            self._request.set_input_tensor(0, ov.Tensor(self._input, shared_memory=True))
        self.passes_per_frame = 0 if self._input is None else 1
        self._slots: dict[int, ov.Tensor] = {}  # each holds the memory of its slot
        self._outputs: dict[str, NDArray[Any]] = {
            spec.name: tensors[spec.name] if spec.channels == 3 else tensors[spec.name][0] for spec in manifest.outputs
        }

    def allocate(self, slots: int) -> FramePool:
        """``slots`` aligned arrays, each wrapped once as an input tensor that shares its memory."""
        pool = FramePool([aligned_empty(self._counts.slot_shape, self._counts.dtype) for _ in range(slots)])
        if self._input is not None:
            self._slots |= {slot.ctypes.data: ov.Tensor(slot, shared_memory=True) for slot in pool.slots}
            return pool
        shape = self._compiled.input(0).shape
        for slot in pool.slots:
            # OpenVINO accepts a misaligned shared array and then copies or slows down: refuse it here.
            if slot.ctypes.data % SLOT_ALIGNMENT:
                raise EngineError(f"a frame slot at {slot.ctypes.data:#x} is not aligned to {SLOT_ALIGNMENT} bytes")
            self._slots[slot.ctypes.data] = ov.Tensor(slot.reshape(shape), shared_memory=True)
        return pool

    def infer(self, pixels: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """Run the graph on a slot of :meth:`allocate`; the outputs are the request's own memory.

        Raises
        ------
        EngineError
            ``pixels`` is no slot of :meth:`allocate`, or OpenVINO did not run the graph.
        """
        slot = kept_for(pixels, self._slots)
        if self._input is None:
            self._request.set_input_tensor(0, slot)
        else:
            self._counts.to_network(pixels, self._input[0, 0])
        try:
            self._request.infer()
        except RuntimeError as exc:
            raise EngineError(f"OpenVINO {ov.__version__} did not run {self.manifest.name}: {exc}") from exc
        return self._outputs

    def close(self) -> None:
        """Drop the tensors, so that the slots can be freed."""
        self._slots.clear()


class OpenVinoLight:
    """What a network reads from the whole of a frame, as a small picture, for the tiles that the frame is cut into.

    ``cell_px`` is how many pixels of the frame, along each side, one of that picture is.

    Raises
    ------
    ConfigError
        The network's result depends on the whole frame in another way.
    """

    def __init__(self, path: Path, manifest: Manifest, counts: Counts, *, hint: str) -> None:
        core = the_core()
        try:
            cut = _Cut(core.read_model(path))
            self.cell_px = cut.cell_px
            model = cut.light()
            model.reshape([1, 1, *counts.shape_px])
            model = _with_counts(model, manifest.model_copy(update={"outputs": ()}), counts)
            self._counts, self._input = counts, _network_input(counts)
            self._request = _compiled(core, model, _arithmetic(core, hint)).create_infer_request()
        except RuntimeError as exc:
            raise EngineError(f"OpenVINO {ov.__version__} cannot run {path}: {exc}") from exc

    def infer(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """(1, channels, rows of cells, columns of cells), valid until the next call. ``pixels`` is any whole frame."""
        if self._input is not None:
            self._counts.to_network(pixels, self._input[0, 0])
            pixels = self._input
        shape = self._request.get_input_tensor().shape
        try:
            self._request.infer([ov.Tensor(np.ascontiguousarray(pixels).reshape(shape), shared_memory=True)])
        except RuntimeError as exc:
            raise EngineError(f"OpenVINO {ov.__version__} did not run the light of a frame: {exc}") from exc
        return np.asarray(self._request.get_output_tensor().data)


def reads_the_whole_frame(path: Path) -> bool:
    """Whether the network of an ONNX file takes a mean or the like over its whole input, as tiles of it cannot.

    Raises
    ------
    EngineError
        OpenVINO cannot read the file.
    """
    try:
        return any(map(_is_frame_wide, the_core().read_model(path).get_ops()))
    except RuntimeError as exc:
        raise EngineError(f"OpenVINO {ov.__version__} cannot read {path}: {exc}") from exc


def check_cut(path: Path) -> None:
    """Refuse a network that cannot be cut into an `OpenVinoLight` and a part for tiles.

    Raises
    ------
    ConfigError
        Its result depends on the whole frame in another way.
    """
    _Cut(the_core().read_model(path)).detail()


_LIGHT = "light"


class _Cut:
    """A network in two parts: up to where what it read from the whole frame is enlarged again, and the rest.

    In the networks of the enhance family gain and offset of the light are found on a frame 1/8 as large, where a mean
    over the frame costs nothing, and enlarged; everything after that reaches as far as the manifest's halo.
    """

    def __init__(self, model: ov.Model) -> None:
        self._model = model
        reached = {op.get_friendly_name() for op in model.get_ops() if _is_frame_wide(op)}
        enlarge = None
        for op in model.get_ordered_ops():
            sources = (put.get_source_output().get_node().get_friendly_name() for put in op.inputs())
            if not reached.isdisjoint(sources):
                reached.add(op.get_friendly_name())
                if op.get_type_name() == "Interpolate":
                    enlarge = op
                    break
        if enlarge is None:
            raise ConfigError(DEPENDS_ON_ALL)
        self._enlarge = enlarge.input(0)
        self._small = enlarge.input_value(0)
        side_px = 512
        model.reshape([1, 1, side_px, side_px])
        self.cell_px = side_px // self._small.get_shape()[2]

    def light_shape(self, shape_px: tuple[int, ...]) -> list[int]:
        """Of the small picture of a frame."""
        return [1, self._small.get_shape()[1], *(-(-side // self.cell_px) for side in shape_px)]

    def light(self) -> ov.Model:
        """Frame to small picture."""
        return ov.Model([ops.result(self._small)], self._model.get_parameters(), _LIGHT)

    def detail(self) -> ov.Model:
        """Tile, and its part of the small picture, to the outputs."""
        channels = self._small.get_shape()[1]
        given = ops.parameter([1, channels, -1, -1], self._small.get_element_type(), name=_LIGHT)
        given.output(0).get_tensor().set_names({_LIGHT})
        self._enlarge.replace_source_output(given.output(0))
        detail = ov.Model(self._model.get_results(), [*self._model.get_parameters(), given], "detail")
        if any(map(_is_frame_wide, detail.get_ops())):
            raise ConfigError(DEPENDS_ON_ALL)
        return detail


DEPENDS_ON_ALL = (
    "The result of this model depends on the whole picture, at each of its pixels: it cannot be computed tile by tile."
)


def _is_frame_wide(op: Any) -> bool:
    """Whether an operation of the graph takes in all rows or columns at once."""
    kind = op.get_type_name()
    if kind.startswith("Adaptive"):
        return True
    if not kind.startswith("Reduce") and kind != "MVN":
        return False
    axes = op.input_value(1).get_node()
    if axes.get_type_name() != "Constant":
        return True
    rank = op.get_input_partial_shape(0).rank.get_length()
    return any(axis % rank >= 2 for axis in np.atleast_1d(axes.get_data()))


def _tensors(puts: Iterable[Any], manifest: Manifest) -> dict[str, Tensor]:
    """Inputs or outputs, each by the one of its names that the manifest has, if there is one."""
    known = {spec.name for spec in (*manifest.inputs, *manifest.outputs)}
    found = {}
    for put in puts:
        names = put.get_names()
        shape = [None if side.is_dynamic else side.get_length() for side in put.get_partial_shape()]
        found[min(known & names or names)] = Tensor(put.get_element_type().to_dtype().name, tuple(shape))
    return found


def _arithmetic(core: ov.Core, hint: str) -> str:
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if hint == "bf16" and not has_bf16:
        raise ConfigError('This processor has no bf16 arithmetic. Set [engine] hint = "f32" or "auto".')
    return ("bf16" if has_bf16 else "f32") if hint == "auto" else hint


def _network_input(counts: Counts) -> NDArray[np.float32] | None:
    """Memory for what numpy prepares; None where the graph does."""
    return None if _by_the_graph(counts) else aligned_empty((1, 1, *counts.shape_px), np.float32)


def _compiled(core: ov.Core, model: ov.Model, precision: str) -> ov.CompiledModel:
    options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    return core.compile_model(model, "CPU", options)


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
    if _by_the_graph(counts):
        tensor = steps.input(0).tensor()
        tensor.set_element_type(_TYPE[counts.dtype])
        if counts.pixel_format == "rgb8":
            tensor.set_shape([1, *counts.slot_shape])
        steps.input(0).preprocess().convert_element_type(ov.Type.f32).custom(to_network)
    for spec in manifest.outputs:
        output = steps.output(spec.name)
        output.postprocess().custom(from_network)
        output.tensor().set_element_type(_TYPE[counts.result_dtype])
        if spec.channels == 3:
            output.model().set_layout(ov.Layout("NCHW"))
            output.tensor().set_layout(ov.Layout("NHWC"))
    return steps.build()
