"""The one thread that owns the GPU, and what the GPU's refusals mean in words."""

from __future__ import annotations

import functools
import logging
import queue
import threading
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge.errors import EngineError

log = logging.getLogger(__name__)

T = TypeVar("T")

CLOSE_TIMEOUT_S = 10.0
"""How long :meth:`GpuThread.close` waits for the work that was handed over before it."""

_ELSE = 'Without a GPU, set [engine] backend = "openvino".'

_local = threading.local()


class GpuThread:
    """The thread with the GPU's primary context, which TensorRT, pycuda and cuda-bindings share.

    A context is current in some threads and in no other, and pycuda frees an object in the thread of its context or not
    at all: so everything that touches the GPU runs here, in the order it was handed over.

    Raises
    ------
    EngineError
        pycuda is not installed, or there is no driver, no such GPU, or one that cannot map host memory.
    """

    def __init__(self, device: int = 0) -> None:
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._lent: dict[int, NDArray[Any]] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._hangs = False
        self._finished = threading.Event()
        opened: Future[tuple[Any, str]] = Future()
        # A daemon: a driver that hangs, or a frame somebody keeps, must not keep the process from ending.
        self._thread = threading.Thread(target=self._own, args=(device, opened), name="gpu", daemon=True)
        self._thread.start()
        _, self.device_name = opened.result()

    @staticmethod
    def current() -> GpuThread:
        """The one that runs the caller.

        Raises
        ------
        EngineError
            This is another thread.
        """
        owner: GpuThread | None = getattr(_local, "owner", None)
        if owner is None:
            raise EngineError("This is not the thread that owns the GPU: hand the call to GpuThread.run.")
        return owner

    def run(self, call: Callable[[], T], *, timeout_s: float | None = None) -> T:
        """The result of ``call``, which runs in the thread; its exception comes back to the caller.

        Raises
        ------
        EngineError
            The thread was closed, or the GPU has not answered for ``timeout_s``; None waits for ever. What was handed
            over is done if the GPU comes back.
        """
        if threading.current_thread() is self._thread:
            return call()
        answer: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise EngineError("The GPU was closed. Load the engine again.")
            self._calls.put(functools.partial(_answer, call, answer))
        try:
            if timeout_s is not None and wait([answer], timeout_s).not_done:
                self._hangs = True
                raise EngineError(
                    f"The GPU has not answered for {timeout_s:g} s, and is given up. Restart superlens; if it comes "
                    "again, look for NVRM and Xid in dmesg."
                )
            return answer.result()
        finally:
            del answer  # or it, its exception and this frame hold each other, and the caller's frame slots with them

    def lend(self, block: NDArray[Any]) -> NDArray[Any]:
        """The same memory for the rest of the process; pycuda's ``block`` is freed here after the last view of it.

        A frame may be held, by a page or a recorder, longer than the engine: its memory stays until it is let go, and
        until then so does the context that memory belongs to.
        """
        lent = np.asarray(block.data)  # a view of a view holds `lent`, where it would hold pycuda's array itself
        self._lent[id(block)] = block
        weakref.finalize(lent, self._calls.put, functools.partial(self._take_back, id(block))).atexit = False
        return lent

    def _take_back(self, key: int) -> None:
        self._lent.pop(key).base.free()  # type: ignore[union-attr]  # pycuda's own block, which numpy types as an array

    def close(self, last: Callable[[], object] = lambda: None) -> None:
        """Finish what was handed over, run ``last``, and end the thread once no memory of it is used.

        A GPU that hangs is given :data:`CLOSE_TIMEOUT_S` for all of it, once. May be called twice: ``last`` runs once.
        """
        answer: Future[object] = Future()
        with self._lock:
            handed_over = not self._closed
            if handed_over:
                self._closed = True
                self._calls.put(functools.partial(_answer, last, answer))
                self._calls.put(None)
        if threading.current_thread() is self._thread:
            return
        if not self._finished.wait(0 if self._hangs else CLOSE_TIMEOUT_S):
            self._hangs = True
            log.error("the GPU does not answer: its thread is left behind")
        elif handed_over:
            answer.result()

    def _own(self, device: int, opened: Future[tuple[Any, str]]) -> None:
        _answer(lambda: _open(device), opened)
        if opened.exception() is not None:
            return
        context, _ = opened.result()
        _local.owner = self
        try:
            while not self._finished.is_set() or self._lent:
                call = self._calls.get()
                if call is None:
                    self._finished.set()
                else:
                    call()
                del call  # what it holds must not live on while the thread waits
        finally:
            _give_back(context)


def _answer(call: Callable[[], Any], answer: Future[Any]) -> None:
    try:
        answer.set_result(call())
    except BaseException as exc:  # noqa: BLE001 - it is raised again in the thread that waits
        answer.set_exception(_without_locals(exc))
    finally:
        del call, answer  # as in GpuThread.run


def _without_locals(exc: BaseException) -> BaseException:
    """Drop what the frames of a traceback hold, in this thread: pycuda cannot free it in another."""
    seen: BaseException | None = exc
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    return exc


def _open(device: int) -> tuple[Any, str]:
    """The primary context, current in this thread, and the GPU's name."""
    try:
        import pycuda.driver as cuda
    except ModuleNotFoundError as exc:
        raise EngineError(
            f"{exc.name} is not installed. Install it: .venv/bin/pip install -e '.[jetson]' in the checkout."
        ) from exc
    except ImportError as exc:
        raise EngineError(
            f"pycuda cannot be loaded ({exc}). It needs NVIDIA's driver library libcuda.so.1: install the driver, "
            f"on a Jetson JetPack. {_ELSE}"
        ) from exc
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as exc:
        raise EngineError(f"The CUDA driver does not start: {exc}. Look at nvidia-smi. {_ELSE}") from exc
    if not 0 <= device < count:
        raise EngineError(f"There is no GPU {device}: the CUDA driver has {count}, counted from 0. {_ELSE}")
    gpu = cuda.Device(device)
    name = str(gpu.name())
    if not gpu.get_attribute(cuda.device_attribute.CAN_MAP_HOST_MEMORY):
        raise EngineError(f"{name} cannot read host memory in place, as frame slots want it. {_ELSE}")
    try:
        context = gpu.retain_primary_context()
        context.push()
    except cuda.Error as exc:
        raise EngineError(f"{name} gives no context: {exc}. Close what else uses it. {_ELSE}") from exc
    log.info("GPU %d is %s, compute capability %s", device, name, "{}.{}".format(*gpu.compute_capability()))
    return context, name


def _give_back(context: Any) -> None:
    """Take the context off this thread: one that stays on pycuda's stack aborts the process when the thread ends."""
    import pycuda.driver as cuda

    try:
        context.pop()
    except cuda.Error as exc:
        log.error("the GPU's context is given up: %s", str(exc))
    context.detach()


class explained:  # noqa: N801 - reads as what it does: with explained("..."):
    """Raise what pycuda raises inside as an :class:`EngineError`: ``doing``, the driver's words, and what to do."""

    # No generator of contextlib: up to Python 3.12 that ties the error, and so the caller's frames, into a knot.

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if exc is None:
            return
        import pycuda.driver as cuda

        if isinstance(exc, cuda.MemoryError):
            raise EngineError(f"{self._doing}: {exc}. {_free_memory()}") from exc
        if isinstance(exc, cuda.Error):
            raise EngineError(f"{self._doing}: {exc}.{_advice()}") from exc


def checked(result: tuple[Any, ...], doing: str) -> Any:
    """What a call of cuda-bindings' driver returned, or an :class:`EngineError` as :class:`explained` raises it."""
    error, *values = result
    if error:
        advice = f" {_free_memory()}" if error.name == "CUDA_ERROR_OUT_OF_MEMORY" else _advice()
        raise EngineError(f"{doing}: {error.name}.{advice}")
    return values[0] if values else None


def _advice() -> str:
    """What to do after a call was refused, if there is more to say than the driver said; begins with a space.

    A fault of the GPU sticks to its context: each later call answers with it, where a sound context has no error.
    """
    import pycuda.driver as cuda

    if cuda.Context.get_current() is None:
        return " This is not the thread that owns the GPU: hand the call to GpuThread.run."
    try:
        cuda.Context.synchronize()
    except cuda.Error as exc:
        if "captur" in str(exc):  # a stream is recording, and a sound context refuses too
            return ""
        return " The GPU is lost to this process. Restart superlens; if it comes again, look for NVRM and Xid in dmesg."
    return ""


def _free_memory() -> str:
    """What to do when the memory is full."""
    import pycuda.driver as cuda

    try:
        free, total = cuda.mem_get_info()
        words = f"{free / 2**20:.0f} of {total / 2**20:.0f} MB are free."
    except cuda.Error as exc:
        words = f"How much is free cannot be read ({exc})."
    return f"{words} Close what else uses the GPU, or use a smaller model or frame."
