"""The path of a frame: acquire -> queue -> infer -> sinks -> back to the pool. Two threads.

::

    acquire thread                         queue of 2          job thread (the caller of run)
    source: camera, or stage+trigger+camera  ------->   engine.infer -> sink.write ... -> pool.release

Live view and scan are the same pipeline with another source and another overflow policy. The engine's output is valid
until its next call, so the sinks run before the next frame is taken.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Literal

from edge.devices import Camera, Engine, FrameSink
from edge.errors import CameraTimeoutError, EdgeError
from edge.frames import Frame, FramePool, Gap, Ledger, Tile
from edge.meter import FlowMeter

Policy = Literal["newest", "lossless"]
"""What happens when the engine is slower than the source: the newest frame wins, or the source waits."""

QUEUE_LENGTH = 2
SLOTS = QUEUE_LENGTH + 2
"""Frame slots a pipeline needs: the queue, one in the engine, one in the camera."""

JOIN_TIMEOUT_S = 10.0
FIRST_FRAME_S = 10.0


class FrameQueue:
    """A short queue between the two threads, with a named policy for when it is full."""

    def __init__(self, policy: Policy, length: int = QUEUE_LENGTH) -> None:
        self._policy, self._length = policy, length
        self._items: deque[Frame | Gap] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, item: Frame | Gap) -> tuple[bool, Frame | None]:
        """Add an item; (whether it was taken, a frame that it pushed out). Not taken: the reader has gone."""
        with self._changed:
            pushed_out = None
            if self._policy == "lossless":
                self._changed.wait_for(lambda: len(self._items) < self._length or self._ended)
            if self._ended:
                return False, None
            if len(self._items) >= self._length:
                oldest = self._items.popleft()
                pushed_out = oldest if isinstance(oldest, Frame) else None
            self._items.append(item)
            self._changed.notify_all()
            return True, pushed_out

    def get(self) -> Frame | Gap | None:
        """The oldest item, waiting for one; None when the writer has ended. Raises what ended it."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended)
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            return None

    def end(self, error: BaseException | None = None) -> None:
        """No more items, from either side; ``error`` reaches the reader after the items before it."""
        with self._changed:
            self._ended = True
            self._error = self._error or error
            self._changed.notify_all()

    def drain(self) -> list[Frame]:
        """Take out what nobody will read."""
        with self._changed:
            left = [item for item in self._items if isinstance(item, Frame)]
            self._items.clear()
            return left


def live(camera: Camera, stop: threading.Event, *, timeout_s: float) -> Iterator[Frame]:
    """The source of a live view: the camera's frames until ``stop`` is set."""
    while not stop.is_set():
        try:
            frame = camera.next_frame(timeout_s=timeout_s)
        except CameraTimeoutError:
            if stop.is_set():
                return  # the wait was ended on purpose
            raise
        yield frame


def run(
    source: Iterable[Frame | Gap],
    engine: Engine,
    pool: FramePool,
    sinks: Sequence[FrameSink],
    *,
    policy: Policy,
    stop: threading.Event,
    meter: FlowMeter,
    frames: int | None = None,
    clock_ns: Callable[[], int] = time.monotonic_ns,
) -> None:
    """Carry frames from ``source`` through ``engine`` into ``sinks`` until the source ends or ``stop`` is set.

    Parameters
    ----------
    source
        Iterated in a thread of its own, named "acquire". It must end soon after ``stop`` is set.
    policy
        ``newest``: a full queue loses its oldest frame, which is counted. ``lossless``: the source waits.
    frames
        End after this many enhanced frames; None for no limit.

    Raises
    ------
    Exception
        Whatever the source, the engine or a sink raised, in this thread, after every slot went back to the pool.
    """
    queue = FrameQueue(policy)

    def acquire() -> None:
        for item in source:
            if isinstance(item, Frame):
                meter.captured(item.index)
            taken, pushed_out = queue.put(item)
            if pushed_out is not None:
                pool.release(pushed_out.pixels)
                meter.overwritten()
            if not taken:
                if isinstance(item, Frame):
                    pool.release(item.pixels)
                return

    thread = ThreadPoolExecutor(1, thread_name_prefix="acquire")
    acquiring = thread.submit(acquire)
    # What ended the acquire thread, an exception or None, reaches the job thread through the queue.
    acquiring.add_done_callback(lambda done: queue.end(done.exception()))
    try:
        while not stop.is_set() and (frames is None or meter.frames < frames):
            item = queue.get()
            if item is None:
                break
            if isinstance(item, Gap):
                for sink in sinks:
                    sink.skip(item.index, item.reason)
                continue
            try:
                _infer(item, engine, sinks, meter, clock_ns)
            finally:
                pool.release(item.pixels)
    finally:
        stop.set()
        queue.end()
        wait([acquiring], JOIN_TIMEOUT_S)
        thread.shutdown(wait=False)
        for frame in queue.drain():
            pool.release(frame.pixels)
    if not acquiring.done():
        raise EdgeError(f"The camera did not end within {JOIN_TIMEOUT_S:g} s of being stopped. Restart the program.")


def _infer(
    frame: Frame, engine: Engine, sinks: Sequence[FrameSink], meter: FlowMeter, clock_ns: Callable[[], int]
) -> None:
    begun_ns = clock_ns()
    outputs = engine.infer(frame.pixels)
    engine_s = (clock_ns() - begun_ns) / 1e9
    spent = frame.ledger
    ledger = Ledger(spent.copies + engine.copies_per_frame, spent.passes + engine.passes_per_frame)
    tile = Tile(outputs, frame.index, frame.position_um, ledger)
    meter.enhanced(engine_s, ledger)
    for sink in sinks:
        sink.write(frame, tile)


def copies_per_frame(
    camera: Camera,
    engine: Engine,
    pool: FramePool,
    sinks: Sequence[FrameSink] = (),
    *,
    exposure_s: float,
    frames: int,
) -> float:
    """Host copies of a frame on its way, as the ledgers of ``frames`` frames have them. The camera is not started yet.

    Raises
    ------
    EdgeError
        It delivers no frame. Other errors as :func:`run`.
    """
    meter, stop = FlowMeter(), threading.Event()
    camera.start(pool, exposure_s=exposure_s, triggered=False)
    try:
        source = live(camera, stop, timeout_s=FIRST_FRAME_S + 2 * (camera.frame_time_s or 0))
        run(source, engine, pool, sinks, policy="lossless", stop=stop, meter=meter, frames=frames)
    finally:
        camera.stop()
    copies = meter.flow().copies_per_frame
    if copies is None:
        raise EdgeError(f"The camera {camera.name} delivered no frame.")
    return copies
