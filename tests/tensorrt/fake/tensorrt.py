"""A stand-in for TensorRT that keeps its contract: ONNX Runtime computes, on host memory, in place of the GPU.

It has the names that our code uses and no others (a test holds them against the real bindings), takes arguments of the
real types only, and refuses what TensorRT refuses. ``FAKE_TENSORRT_VERSION`` is the release it pretends to be, and
``FAKE_TENSORRT_FAULTS`` what goes wrong: names of methods, comma-separated, which then answer None or False as the real
ones do, or one of `OTHER_FAULTS`.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as pybind11_state

__version__ = os.environ.get("FAKE_TENSORRT_VERSION", "10.3.0")
FAULTS = {name for name in os.environ.get("FAKE_TENSORRT_FAULTS", "").split(",") if name}
OTHER_FAULTS = {
    "out of memory",
    "out of memory in a frame",
    "endless build",
    "killed build",
    "device lost",
    "no library",
    "shapes raise",
}
ALIGNMENT = 256  # bytes, of a tensor's address
STEPS = 3  # of a build

_can_answer_nothing: set[str] = set()
_MAGIC = b"fake plan\n"


def launch(stream: int, run: Callable[[], None]) -> None:
    """At once; a test that has CUDA streams puts another in its place."""
    run()


class _Enum(enum.Enum):
    """As pybind11's: no integer, but `int()` makes one of it."""

    def __int__(self) -> int:
        return int(self.value)


DataType = _Enum("DataType", {"FLOAT": 0, "HALF": 1})
float32 = DataType.FLOAT

NetworkDefinitionCreationFlag = _Enum(
    "NetworkDefinitionCreationFlag",
    {"STRONGLY_TYPED": 0} if __version__.startswith("11.") else {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
)


BuilderFlag = _Enum("BuilderFlag", {"TF32": 6})
MemoryPoolType = _Enum("MemoryPoolType", {"WORKSPACE": 0})
ProfilingVerbosity = _Enum("ProfilingVerbosity", {"LAYER_NAMES_ONLY": 0, "DETAILED": 2})
LayerInformationFormat = _Enum("LayerInformationFormat", {"JSON": 1})


class ILogger:
    Severity = _Enum("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3})
    INTERNAL_ERROR, ERROR, WARNING, INFO = Severity
    _ready = False

    def __init__(self) -> None:
        self._ready = True

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        raise NotImplementedError("a virtual function")


class IProgressMonitor:
    _ready = False

    def __init__(self) -> None:
        self._ready = True


def _answers(nothing: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A method that answers ``nothing`` when it is among the faults."""

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        _can_answer_nothing.add(method.__qualname__)

        def answer(self: Any, *args: Any, **kwargs: Any) -> Any:
            if method.__qualname__ in FAULTS:
                _error(self._logger, f"{method.__qualname__} failed as it was told to")
                return nothing
            return method(self, *args, **kwargs)

        answer.__wrapped__ = method  # type: ignore[attr-defined]
        return answer

    return decorate


def _error(logger: ILogger, text: str) -> None:
    logger.log(ILogger.ERROR, text)


def _expect(value: Any, kind: Any) -> None:
    """pybind11 converts hardly anything."""
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise TypeError(f"incompatible function arguments: {value!r} is no {kind}")


def _expect_ready(part: Any, kind: type) -> None:
    _expect(part, kind)
    if not part._ready:
        raise TypeError(f"{kind.__name__}.__init__() must be called when overriding __init__")
    if "no library" in FAULTS:
        raise TypeError("pybind11::init(): factory function returned nullptr")


class IHostMemory(bytearray):
    """Something with the buffer protocol."""


class ITensor:
    def __init__(self, put: Any) -> None:
        self.name: str = put.name
        self.shape = tuple(side if isinstance(side, int) else -1 for side in put.shape)
        self.dtype = {"tensor(float)": DataType.FLOAT, "tensor(float16)": DataType.HALF}[put.type]


class INetworkDefinition:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self._onnx = b""
        self._inputs: list[ITensor] = []

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return ""


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        _expect_ready(logger, ILogger)
        self._network = network
        self._errors: list[ParserError] = []

    def parse_from_file(self, model: str) -> bool:
        _expect(model, str)
        try:
            session = _session(model)
            with open(model, "rb") as file:
                self._network._onnx = file.read()
        except (pybind11_state.Fail, pybind11_state.InvalidGraph, pybind11_state.InvalidProtobuf) as exc:
            self._errors.append(ParserError(str(exc)))
            return False
        self._network._inputs = [ITensor(put) for put in session.get_inputs()]
        return True

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        if not min == opt == max:
            raise ValueError("the frames of one camera have one shape")
        self._shapes[input] = opt


class ITimingCache:
    def __init__(self, data: bytes, logger: ILogger) -> None:
        self._data, self._logger = data or f"{__version__}:".encode(), logger

    @_answers(None)
    def serialize(self) -> IHostMemory:
        return IHostMemory(self._data + b"+")  # one more build


class IBuilderConfig:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self._flags = {BuilderFlag.TF32}
        self._limits: dict[MemoryPoolType, int] = {}
        self._profiles: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None
        self.builder_optimization_level = 3
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.progress_monitor: Any = None

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        _expect(pool, MemoryPoolType)
        _expect(pool_size, int)
        self._limits[pool] = pool_size

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    @_answers(-1)
    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    @_answers(None)
    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        if serialized_timing_cache and b":" not in serialized_timing_cache:
            _error(self._logger, "the timing cache is corrupt")
            return None
        return ITimingCache(bytes(serialized_timing_cache), self._logger)

    @_answers(False)
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        _expect(ignore_mismatch, bool)
        if not cache._data.startswith(f"{__version__}:".encode()):
            return ignore_mismatch
        self._cache = cache
        return True

    @_answers(None)
    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    def __init__(self, logger: ILogger) -> None:
        _expect_ready(logger, ILogger)
        self._logger = logger

    @_answers(None)
    def create_network(self, flags: int = 0) -> INetworkDefinition:
        _expect(flags, int)
        if flags != 1 << int(NetworkDefinitionCreationFlag["STRONGLY_TYPED"]):
            raise AssertionError(f"network flags {flags:#b} of TensorRT {__version__}: not strongly typed, or more")
        return INetworkDefinition(self._logger)

    @_answers(None)
    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig(self._logger)

    @_answers(None)
    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    @_answers(None)
    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        if BuilderFlag.TF32 in config._flags or config._limits.get(MemoryPoolType.WORKSPACE) != 1 << 30:
            raise AssertionError("TF32 is on, or the workspace is not limited to 1024 MiB")
        if "killed build" in FAULTS:
            os.kill(os.getpid(), signal.SIGKILL)
        going: list[bool] = []
        worker = threading.Thread(target=lambda: going.append(self._steps(config.progress_monitor)), name="tactics")
        worker.start()
        worker.join()
        if not going[0]:
            return None
        shapes = {name: shape for profile in config._profiles for name, shape in profile._shapes.items()}
        for put in network._inputs:
            shapes.setdefault(put.name, put.shape)
        facts = {"version": __version__, "shapes": shapes, "layers": ["convolution"] * 7}
        body = json.dumps(facts).encode() + b"\n" + network._onnx
        return IHostMemory(_MAGIC + hashlib.sha256(body).digest() + body)

    def _steps(self, monitor: IProgressMonitor) -> bool:
        """As TensorRT does, in a thread of its own; False where the monitor ended it."""
        _expect_ready(monitor, IProgressMonitor)
        m: Any = monitor
        m.phase_start("Building engine", None, STEPS)
        m.phase_start("Timing", "Building engine", STEPS)
        step, going = 0, True
        steps = 10_000 if "endless build" in FAULTS else STEPS  # 20 s: the end of a test that fails
        while going and step < steps:
            going = m.step_complete("Timing", step)
            step += 1
            threading.Event().wait(0.002 if "endless build" in FAULTS else 0)
        m.phase_finish("Timing")
        m.phase_finish("Building engine")
        return going


class EngineInspector:
    def __init__(self, layers: list[str], logger: ILogger) -> None:
        self._layers, self._logger = layers, logger

    @_answers("not JSON")
    def get_engine_information(self, format: LayerInformationFormat) -> str:
        _expect(format, LayerInformationFormat)
        return json.dumps({"Layers": self._layers})


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        _expect_ready(logger, ILogger)
        self._logger = logger

    @_answers(None)
    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        data = bytes(serialized_engine)
        digest, body = data[len(_MAGIC) : len(_MAGIC) + 32], data[len(_MAGIC) + 32 :]
        if not data.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
            _error(self._logger, "Serialization (magic tag does not match)")
            return None
        facts, _, onnx = body.partition(b"\n")
        return ICudaEngine(json.loads(facts), onnx, self._logger)


class ICudaEngine:
    alive: ClassVar[int] = 0  # a test counts what was not given back

    def __init__(self, facts: dict[str, Any], onnx: bytes, logger: ILogger) -> None:
        self._facts, self._logger = facts, logger
        self._session = _session(onnx)
        self._puts = {put.name: put for put in (*self._session.get_inputs(), *self._session.get_outputs())}
        ICudaEngine.alive += 1

    def __del__(self) -> None:
        ICudaEngine.alive -= 1

    @property
    def num_io_tensors(self) -> int:
        return len(self._puts)

    def get_tensor_name(self, index: int) -> str:
        return list(self._puts)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return ITensor(self._puts[name]).dtype

    @_answers(None)
    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._facts["layers"], self._logger)

    @_answers(None)
    def create_execution_context(self) -> IExecutionContext | None:
        if "out of memory" in FAULTS:
            _error(self._logger, "Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)")
            return None
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine, self._logger = engine, engine._logger
        self._thread = threading.get_ident()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    @_answers(False)
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        _expect(shape, tuple)
        if tuple(self._engine._facts["shapes"].get(name, ())) != shape:
            _error(self._logger, f"{name} of {shape} is outside the profile")
            return False
        self._shapes[name] = shape
        return True

    @_answers(["image"])
    def infer_shapes(self) -> list[str]:
        if "shapes raise" in FAULTS:
            raise RuntimeError("a shape cannot be inferred")
        missing = [put.name for put in self._engine._session.get_inputs() if put.name not in self._shapes]
        if not missing:
            run = {name: np.zeros(shape, np.float32) for name, shape in self._shapes.items()}
            names = [put.name for put in self._engine._session.get_outputs()]
            for name, value in zip(names, self._engine._session.run(names, run), strict=True):
                self._shapes[name] = value.shape
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes.get(name, (-1,))

    @_answers(False)
    def set_tensor_address(self, name: str, memory: int) -> bool:
        _expect(memory, int)
        if memory == 0 or memory % ALIGNMENT or name not in self._engine._puts:
            _error(self._logger, f"{name} cannot lie at {memory:#x}: expected a multiple of {ALIGNMENT}")
            return False
        self._addresses[name] = memory
        return True

    @_answers(False)
    def execute_async_v3(self, stream_handle: int) -> bool:
        _expect(stream_handle, int)
        unset = self._engine._puts.keys() - self._addresses.keys()
        if threading.get_ident() != self._thread:
            return self._refuse("invalid device context: this thread has none")
        if unset or stream_handle == 0:
            return self._refuse(f"no address of {', '.join(sorted(unset))}, or the default stream")
        if "out of memory in a frame" in FAULTS:
            return self._refuse("Error Code 2: OutOfMemory (Requested size was 8192 bytes.)")
        if "device lost" in FAULTS:
            return self._refuse("Cuda Runtime (unspecified launch failure)")
        launch(stream_handle, self._run)
        return True

    def _run(self) -> None:
        session = self._engine._session
        given = {put.name: self._memory(put.name).copy() for put in session.get_inputs()}
        names = [put.name for put in session.get_outputs()]
        for name, value in zip(names, session.run(names, given), strict=True):
            self._memory(name)[:] = value

    def _memory(self, name: str) -> np.ndarray:
        shape = self._shapes[name]
        pointer = ctypes.cast(self._addresses[name], ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, shape)

    def _refuse(self, reason: str) -> bool:
        _error(self._logger, reason)
        return False


def _session(model: str | bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


if unknown := FAULTS - OTHER_FAULTS - _can_answer_nothing:
    raise ValueError(f"no such fault: {unknown}")
