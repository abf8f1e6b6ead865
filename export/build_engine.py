"""Builds the TensorRT plan of an ONNX file, on the device that will run it: `python -m export.build_engine --help`.

One path for TensorRT 10.3 to 11.4: the network is strongly typed, so the ONNX file alone says what is computed in which
precision. It runs as a child process: a builder that crashes, leaks or is killed takes nothing with it. Standard output
is JSON, one event a line (start, phase, step, finish, warning, done, error); the log goes to standard error.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from export.bindings import check_release, checked, make_logger, started, why
from export.errors import CancelledBuildError, PlanError
from export.files import sha256_of
from export.manifest import Precision
from export.plan import (
    PlanRecord,
    Shape,
    check_private,
    key_here,
    plan_name,
    write_together,
)

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger(__name__)

FAILED, CANCELLED = 1, 3
"""Exit codes; 2 is a wrong call."""

Emit = Callable[[dict[str, object]], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What to build. The frames are static: free sides cost speed, and the camera's shape is known."""

    onnx: Path
    folder: Path
    model: str
    precision: Precision
    shape_px: Shape
    workspace_mb: int = 1024
    optimization_level: int = 3
    timing_cache: Path | None = None

    @property
    def plan(self) -> str:
        """File name of the plan."""
        return plan_name(self.model, self.precision, self.shape_px)

    @property
    def timings(self) -> Path:
        """How long kernels took in earlier builds."""
        return self.timing_cache or self.folder / "timing.cache"


def build(request: Request, *, emit: Emit, cancelled: Callable[[], bool]) -> PlanRecord:
    """Build, inspect and write one plan and its record.

    Parameters
    ----------
    emit
        Takes the events, from any thread.
    cancelled
        Asked at every step of the builder, from any thread.

    Raises
    ------
    PlanError
        It cannot be built, or not written: the words are TensorRT's own. A plan that was there before is untouched.
    CancelledBuildError
        ``cancelled`` said so.
    """
    began_s = time.monotonic()
    release = check_release()
    request.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_private(request.folder)
    for left_over in request.folder.glob(f".{request.plan}.*"):  # of a build that was killed while it wrote
        left_over.unlink()
    sha256 = sha256_of(request.onnx)
    key = key_here(release, onnx_sha256=sha256, precision=request.precision, shape_px=request.shape_px)
    emit({"event": "start", "plan": str(request.folder / request.plan), "key": key.model_dump(mode="json")})
    logger = make_logger()
    plan, timings = _serialise(request, logger, emit, cancelled)
    record = PlanRecord(
        file=request.plan,
        sha256=hashlib.sha256(plan).hexdigest(),
        key=key,
        layers=_inspect(plan, logger),
        workspace_mb=request.workspace_mb,
        optimization_level=request.optimization_level,
        build_s=round(time.monotonic() - began_s, 3),
        built_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    text = record.model_dump_json(indent=2) + "\n"
    if cancelled():
        raise CancelledBuildError("The build was cancelled before its plan was written.")
    try:
        write_together(request.folder, {request.plan: plan, f"{request.plan}.json": text.encode()})
    except OSError as exc:
        raise PlanError(
            f"The plan ({len(plan) / 2**20:.1f} MiB) could not be written to {request.folder}: {exc.strerror}. What "
            "was there before is untouched. Free some space and build again."
        ) from exc
    if timings is not None:
        try:
            write_together(request.timings.parent, {request.timings.name: timings})
        except OSError as exc:  # the plan is there; only the next build is slower
            emit({"event": "warning", "message": f"{request.timings} could not be written: {exc.strerror}"})
    emit({"event": "done", "record": record.model_dump(mode="json")})
    return record


def _serialise(request: Request, logger: Any, emit: Emit, cancelled: Callable[[], bool]) -> tuple[bytes, bytes | None]:
    """The plan, and the timings of kernels that make the next build shorter."""
    import tensorrt as trt

    builder = started(lambda: trt.Builder(logger), logger)
    # Its number differs between releases, and one may come that has no other kind of network: never a literal.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = checked(builder.create_network(0 if flag is None else 1 << int(flag)), "made no network", logger)
    parser = started(lambda: trt.OnnxParser(network, logger), logger)
    if not parser.parse_from_file(str(request.onnx)):
        faults = [parser.get_error(index) for index in range(parser.num_errors)]
        said = "; ".join(f"{fault.node_name() or 'the file'}: {fault.desc()}" for fault in faults)
        raise PlanError(f"TensorRT {trt.__version__} cannot read {request.onnx}: {said or why(logger)}")
    config = checked(builder.create_builder_config(), "made no builder configuration", logger)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_mb << 20)
    config.builder_optimization_level = request.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # FP32 means FP32: it is what the others are judged by
    _fix_shape(request, builder, network, config, logger)
    kept = _use_timings(request, config, emit), _make_monitor(emit, cancelled)  # the configuration only points at them
    config.progress_monitor = kept[1]
    blob = builder.build_serialized_network(network, config)
    if cancelled():
        raise CancelledBuildError("The build was cancelled; the plans are as they were.")
    plan = bytes(memoryview(checked(blob, f"could not build {request.onnx.name}", logger)))
    cache = config.get_timing_cache()
    timings = None if cache is None else cache.serialize()
    return plan, None if timings is None else bytes(memoryview(timings))


def _fix_shape(
    request: Request, builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, logger: Any
) -> None:
    """Give the one input the camera's sides; refuse a graph that has others."""
    import tensorrt as trt

    if network.num_inputs != 1:
        raise PlanError(f"{request.onnx} has {network.num_inputs} inputs, expected one: frames.")
    put = network.get_input(0)
    shape = tuple(put.shape)
    if len(shape) != 4 or shape[1] not in (1, 3) or put.dtype != trt.float32:
        raise PlanError(
            f"The input {put.name} of {request.onnx} is {put.dtype} {shape}, expected float32 (1, 1 or 3, height, "
            "width)."
        )
    wanted = (1, shape[1], *request.shape_px)
    if any(side not in (-1, want) for side, want in zip(shape, wanted, strict=True)):
        raise PlanError(f"The input {put.name} of {request.onnx} is fixed to {shape}, the frames are {wanted}.")
    if -1 in shape:
        profile = checked(builder.create_optimization_profile(), "made no optimization profile", logger)
        profile.set_shape(put.name, wanted, wanted, wanted)
        if config.add_optimization_profile(profile) < 0:
            raise PlanError(f"TensorRT takes no frames of {wanted} for the input {put.name}: {why(logger)}")


def _use_timings(request: Request, config: trt.IBuilderConfig, emit: Emit) -> trt.ITimingCache | None:
    """Begin with the timings of earlier builds; with none where those are damaged or of another device."""
    if request.timings.is_file():
        cache = config.create_timing_cache(request.timings.read_bytes())
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
        emit({"event": "warning", "message": f"{request.timings} is damaged or of another device: begun anew"})
    cache = config.create_timing_cache(b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        emit({"event": "warning", "message": "TensorRT made no timing cache: the next build will take as long"})
    return cache


def _make_monitor(emit: Emit, cancelled: Callable[[], bool]) -> trt.IProgressMonitor:
    import tensorrt as trt

    class ProgressMonitor(trt.IProgressMonitor):  # type: ignore[misc]  # as in make_logger
        """Called by threads of the builder; no exception of ours may enter them."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            emit({"event": "phase", "phase": phase_name, "parent": parent_phase or None, "steps": num_steps})

        def step_complete(self, phase_name: str, step: int) -> bool:
            emit({"event": "step", "phase": phase_name, "step": step, "steps": self._steps.get(phase_name, 0)})
            return not cancelled()

        def phase_finish(self, phase_name: str) -> None:
            emit({"event": "finish", "phase": phase_name})

    return ProgressMonitor()


def _inspect(plan: bytes, logger: Any) -> int | None:
    """Load the plan once, here, where a failure costs nothing; the number of its layers, None if it does not tell."""
    import tensorrt as trt

    runtime = started(lambda: trt.Runtime(logger), logger)
    engine = checked(runtime.deserialize_cuda_engine(plan), "cannot load the plan it has just built", logger)
    inspector = checked(engine.create_engine_inspector(), "made no inspector", logger)
    try:
        return len(json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"])
    except (ValueError, KeyError) as exc:
        log.warning("The inspector's text is no list of layers: %s", exc)
        return None


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Says whether SIGTERM or SIGINT came, in any thread.

    Python's own handlers wait for the main thread, which is inside TensorRT for minutes; the number of the signal is
    written to this pipe at once.
    """
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer)
    came = threading.Event()

    def cancelled() -> bool:
        with suppress(BlockingIOError):
            os.read(reader, 1)
            came.set()
        return came.is_set()

    try:
        yield cancelled
    finally:
        signal.set_wakeup_fd(-1)
        os.close(reader)
        os.close(writer)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("onnx", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--name", "model", required=True, help="The model's name; part of the plan's.")
@click.option("--precision", type=click.Choice(get_args(Precision)), required=True, help="What the ONNX file is.")
@click.option("--shape-px", type=(int, int), required=True, help="Height and width of the frames.")
@click.option("--out", "folder", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--timing-cache", type=click.Path(path_type=Path, dir_okay=False), help="Default: beside the plan.")
@click.option("--workspace-mb", type=click.IntRange(16), default=1024, show_default=True, help="Scratch, at most.")
@click.option("--optimization-level", type=click.IntRange(0, 5), default=3, show_default=True)
def main(**options: Any) -> None:
    """Build the TensorRT plan of ONNX for frames of one shape. SIGTERM and Ctrl-C cancel."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)-7s %(name)s  %(message)s")
    request = Request(**options)
    lock, listener_left = threading.Lock(), threading.Event()

    def emit(event: dict[str, object]) -> None:
        try:
            with lock:
                sys.stdout.write(json.dumps(event) + "\n")
                sys.stdout.flush()
        except BrokenPipeError:  # whoever wanted the plan has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            listener_left.set()

    with _stop_requests() as stop_asked:
        try:
            build(request, emit=emit, cancelled=lambda: listener_left.is_set() or stop_asked())
        except CancelledBuildError as exc:
            emit({"event": "error", "cancelled": True, "message": str(exc)})
            raise SystemExit(CANCELLED) from exc
        except (PlanError, OSError) as exc:
            emit({"event": "error", "cancelled": False, "message": str(exc)})
            raise SystemExit(FAILED) from exc


if __name__ == "__main__":
    main()
