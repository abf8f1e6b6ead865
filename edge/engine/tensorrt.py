"""TensorRT on the GPU: one plan, one execution context, in the one thread that owns the GPU.

What runs before and after the network, and the memory of the frames, are `edge.engine.cuda`'s; TensorRT itself is
imported when an engine is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from edge.engine.builder import default_plans, rebuild_words
from edge.engine.cuda.thread import GpuThread
from edge.engine.prepare import Counts
from edge.engine.tensors import Tensor, check_names, check_tensors
from edge.errors import ConfigError, EngineError
from edge.frames import FramePool
from export.bindings import check_release, checked, make_logger, started, why
from export.errors import PlanError
from export.manifest import Manifest
from export.plan import key_here, plan_name, read_plan

if TYPE_CHECKING:
    from edge.engine.cuda.loop import CudaLoop

FRAME_TIMEOUT_S = 10.0
"""After which a GPU that has not finished a frame is taken for one that hangs: frames take milliseconds."""


class TensorRtEngine:
    """The plan of one ONNX file for one camera's shape, built before by `export.build_engine`.

    Parameters
    ----------
    path
        The ONNX file that the plan was built from.
    hint
        ``auto``, or ``f32`` with an FP32 model: the arithmetic is the ONNX file's own.
    plans
        The folder of the plan; None is :func:`default_plans`.

    Raises
    ------
    ConfigError
        The hint is not the file's arithmetic.
    EngineError
        There is no TensorRT, no GPU or no plan, or the plan was not built for what is here: one message that names all
        that differs and the command that builds and measures it.
    """

    backend = "tensorrt"
    copies_per_frame = 0
    passes_per_frame = 0

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        counts: Counts,
        *,
        hint: str,
        plans: Path | None = None,
    ) -> None:
        if hint != "auto" and (hint, manifest.precision) != ("f32", "fp32"):
            raise ConfigError(
                f"TensorRT computes as the model file says, in {manifest.precision}; [engine] hint = {hint!r} is not. "
                'Set hint = "auto", and choose the precision.'
            )
        self.manifest = manifest
        self.precision: str = manifest.precision
        folder = plans or default_plans()
        self._parts = ExitStack()  # closed in the GPU's thread
        self._gpu = GpuThread()
        with ExitStack() as undo:
            undo.callback(self.close)
            try:
                network = self._gpu.run(lambda: LoadedPlan(path, manifest, counts, folder))
            except PlanError as exc:
                raise EngineError(str(exc)) from exc
            self._parts.callback(network.close)
            self._loop = self._gpu.run(lambda: _loop(network, counts, manifest))
            self._parts.callback(self._loop.close)
            undo.pop_all()

    @property
    def captured(self) -> bool | None:
        """Whether a frame replays a CUDA graph; None before :meth:`allocate`."""
        return self._loop.captured

    def allocate(self, slots: int) -> FramePool:
        """``slots`` frames in memory that both the camera and the GPU see."""
        return self._gpu.run(lambda: self._loop.allocate(slots))

    def infer(self, pixels: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """Prepare, network and delivery on the GPU; the outputs are memory that both see.

        Raises
        ------
        EngineError
            ``pixels`` is no slot of :meth:`allocate`, the GPU failed, or it took :data:`FRAME_TIMEOUT_S`.
        """
        return self._gpu.run(lambda: self._loop.infer(pixels), timeout_s=FRAME_TIMEOUT_S)

    def close(self) -> None:
        """The loop, then the network, then the thread; a GPU that hangs is left behind. May be called twice."""
        self._gpu.close(self._parts.close)


def _loop(network: LoadedPlan, counts: Counts, manifest: Manifest) -> CudaLoop:
    try:
        from edge.engine.cuda.loop import CudaLoop
    except ModuleNotFoundError as exc:
        raise EngineError(
            f"{exc.name} is not installed. Install it: .venv/bin/pip install -e '.[jetson]' in the checkout."
        ) from exc
    return CudaLoop(network, counts, manifest)


class LoadedPlan:
    """A plan and its execution context, made once: what `CudaLoop` runs between its kernels.

    Lives in the GPU's thread. Every answer of TensorRT is read: one that is overlooked gives pictures of zeros.
    """

    def __init__(self, path: Path, manifest: Manifest, counts: Counts, folder: Path) -> None:
        release = check_release()
        import tensorrt as trt

        height, width = counts.shape_px
        precision, shape_px = manifest.precision, (height, width)
        key = key_here(release, onnx_sha256=manifest.sha256, precision=precision, shape_px=shape_px)
        plan, _ = read_plan(folder, plan_name(manifest.name, precision, shape_px), key, remedy=rebuild_words())
        (frame,) = manifest.inputs
        scaled = (height * manifest.scale, width * manifest.scale)
        self._shapes = {frame.name: (1, 1, height, width)}
        self._shapes |= {spec.name: (1, spec.channels, *scaled) for spec in manifest.outputs}
        self._logger = make_logger()
        self._runtime = started(lambda: trt.Runtime(self._logger), self._logger)
        self._engine = checked(self._runtime.deserialize_cuda_engine(plan), "cannot load the plan", self._logger)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        check_names(path, manifest, names)
        context = self._engine.create_execution_context()
        self._context = checked(context, "made no execution context", self._logger)
        fits = self._context.set_input_shape(frame.name, self._shapes[frame.name])
        checked(fits, f"takes no {frame.name} of {self._shapes[frame.name]}", self._logger)
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as exc:  # as the bindings put what is wrong with a shape
            raise PlanError(f"TensorRT cannot tell the shapes of {path}: {exc}; {why(self._logger)}") from exc
        if missing:
            raise PlanError(f"TensorRT lacks {', '.join(missing)} of {path}: {why(self._logger)}")
        types = {name: self._engine.get_tensor_dtype(name) for name in names}
        found = {
            name: Tensor("float32" if kind == trt.float32 else str(kind), tuple(self._context.get_tensor_shape(name)))
            for name, kind in types.items()
        }
        check_tensors(path, manifest, shape_px, found)

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Tell TensorRT where each tensor lies on the device."""
        for name in self._shapes:
            if not self._context.set_tensor_address(name, addresses[name]):
                raise EngineError(
                    f"TensorRT refuses the memory at {addresses[name]:#x} for the tensor {name}: {why(self._logger)}"
                )

    def enqueue(self, stream: int) -> None:
        """Run the network on a stream; returns before it has run."""
        self._logger.errors.clear()  # of an earlier frame: they do not explain this one
        if not self._context.execute_async_v3(stream):
            raise EngineError(
                f"TensorRT did not run {', '.join(self._shapes)}: {why(self._logger)}. If the GPU was lost, restart "
                "the service; superlens doctor says whether it is back."
            )

    def close(self) -> None:
        """Give the device memory back; the context before the engine, the engine before the runtime."""
        for part in ("_context", "_engine", "_runtime"):
            if hasattr(self, part):
                delattr(self, part)
