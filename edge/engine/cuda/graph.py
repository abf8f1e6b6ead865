"""A CUDA graph: the launches of a frame, recorded and replayed as one. cuda-bindings has them, over pycuda's stream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pycuda.driver as cuda
from cuda.bindings import driver

from edge.engine.cuda.thread import checked, explained


class Graph:
    """What ``work`` enqueues on ``stream``, recorded once.

    Everything it enqueues must have run before: libraries allocate at their first call, which no graph can hold.

    Raises
    ------
    EngineError
        Something in ``work`` cannot be recorded. The stream records no longer: work may be enqueued as usual.
    """

    def __init__(self, stream: cuda.Stream, work: Callable[[], None]) -> None:
        self._stream = driver.CUstream(stream.handle)
        self._executable: Any = None
        with explained("the work of a frame cannot be recorded"):
            self._executable = _instantiated(_recorded(self._stream, work))
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            checked(driver.cuGraphUpload(self._executable, self._stream), "the graph of a frame cannot be uploaded")
            undo.pop_all()

    def launch(self) -> None:
        """Enqueue all of it."""
        checked(driver.cuGraphLaunch(self._executable, self._stream), "the graph of a frame cannot be launched")

    def close(self) -> None:
        """Free it; to be called when it has run. May be called twice."""
        if self._executable is not None:
            executable, self._executable = self._executable, None
            checked(driver.cuGraphExecDestroy(executable), "the graph of a frame cannot be freed")


def _recorded(stream: Any, work: Callable[[], None]) -> Any:
    # Thread-local: what other threads of the process do with their own GPU work does not disturb this one.
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    checked(driver.cuStreamBeginCapture(stream, mode), "the stream cannot record")
    try:
        work()
    except BaseException:
        # A recording that was spoiled ends with an error and no graph, one that was not with a graph nobody wants.
        error, graph = driver.cuStreamEndCapture(stream)
        if error == driver.CUresult.CUDA_SUCCESS:
            checked(driver.cuGraphDestroy(graph), "the graph cannot be freed")
        raise
    return checked(driver.cuStreamEndCapture(stream), "the recording was spoiled")


def _instantiated(graph: Any) -> Any:
    try:
        return checked(driver.cuGraphInstantiate(graph, 0), "the recording cannot become a graph")
    finally:
        checked(driver.cuGraphDestroy(graph), "the recording cannot be freed")
