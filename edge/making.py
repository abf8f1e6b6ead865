"""The TensorRT engine of an instrument: the one that was chosen before, or one that a thread makes meanwhile.

Building and measuring take minutes. In these minutes the plan that was chosen before runs, where only another one is to
be made; else the CPU, labelled, where the configuration allows it. The GPU's times are measured beside what runs then.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge.devices import Camera, Engine
from edge.engine.builder import GRACE_S, BuildJob, BuildProgress, Progress
from edge.engine.choice import Choice
from edge.engine.select import choose, fall_back, load_plan, stored_choice, unfinished
from edge.errors import EngineError
from edge.frames import DTYPE, FramePool, slot_shape

log = logging.getLogger(__name__)

FRAMES = 4
"""Frames of the camera that a plan is judged on."""
_FRAME_TIMEOUT_S = 10.0


class Made(NamedTuple):
    """An engine, the slots of its frames, and why it is the one."""

    engine: Engine
    pool: FramePool
    choice: Choice


class Making:
    """A choice of a plan in a thread of its own, named "build", begun by :meth:`start`.

    Parameters
    ----------
    frames
        As `edge.engine.select.choose`.
    slots
        Frames that the engine's memory holds.
    """

    def __init__(self, job: BuildJob, frames: Sequence[NDArray[Any]], slots: int) -> None:
        self.progress = BuildProgress(model=job.bundle.name, precision="fp16", phase="Starting")
        self._job, self._frames, self._slots = job, frames, slots
        self._cancelled = threading.Event()
        self._future: Future[Made] | None = None

    def start(self) -> None:
        """Begin; once."""
        worker = ThreadPoolExecutor(1, thread_name_prefix="build")
        self._future = worker.submit(self._make)
        worker.shutdown(wait=False)

    def _make(self) -> Made:
        choice = choose(self._job, self._frames, progress=self._note, cancelled=self._cancelled)
        return _with_slots(load_plan(self._job, choice.precision, self._job.plans), choice, self._slots)

    def _note(self, progress: BuildProgress) -> None:
        self.progress = progress

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._future is not None and self._future.done()

    @property
    def failure(self) -> BaseException | None:
        """What ended it, once it is :attr:`done`; None where it went well."""
        return self._future.exception() if self._future is not None else None

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end for so long; whether it came."""
        future = self._future
        return future is None or not wait([future], timeout_s).not_done

    def made(self) -> Made:
        """Once it is :attr:`done` without a failure; who takes it owns it."""
        if self._future is None:
            raise EngineError("No engine is being made.")
        future, self._future = self._future, None
        return future.result()

    def close(self) -> None:
        """Cancel, and wait for the builder's end; an engine that nobody took is closed. May be called twice."""
        self._cancelled.set()
        future, self._future = self._future, None
        if future is None:
            return
        wait([future], GRACE_S + 5)
        if not future.done():
            log.warning("the builder of TensorRT plans did not end")
        elif future.exception() is None:
            future.result().engine.close()


def open_engine(
    job: BuildJob,
    frames: Callable[[], Sequence[NDArray[Any]]],
    *,
    slots: int,
    fallback: bool,
    again: bool = False,
    progress: Progress = lambda _: None,
    cancelled: threading.Event | None = None,
) -> tuple[Engine, Choice, Making | None]:
    """The engine to begin with, why it is the one, and what is to be made while it runs, not yet started.

    Without ``fallback`` nothing but TensorRT may run: where no plan can be used, one is made here and now.

    Parameters
    ----------
    frames
        As `edge.engine.select.choose`; asked for only when something must be measured.
    again
        Build and measure every plan again, here and now, whatever was chosen before.

    Raises
    ------
    CameraError
        There are no frames to judge a plan on.
    EngineError
        TensorRT does not run, and nothing may run in its place.
    """
    if not again:
        try:
            choice = stored_choice(job)
            missing = unfinished(job, choice)
            judges = frames() if missing else ()
            engine = load_plan(job, choice.precision, job.plans)
        except EngineError as exc:
            log.info("%s", exc)
            reason = str(exc)
        else:
            if missing is None:
                return engine, choice, None
            log.info("%s", missing)
            return engine, choice, Making(job, judges, slots)
        if fallback:
            judges = frames()
            return *fall_back(job, reason), Making(job, judges, slots)
    choice = choose(job, frames(), progress=progress, cancelled=cancelled, again=again)
    return load_plan(job, choice.precision, job.plans), choice, None


def stand_in(job: BuildJob, reason: str, slots: int) -> Made:
    """The model on the CPU in the place of TensorRT, which ``reason`` keeps from running. EdgeError if it cannot."""
    return _with_slots(*fall_back(job, reason), slots)


def _with_slots(engine: Engine, choice: Choice, slots: int) -> Made:
    try:
        return Made(engine, engine.allocate(slots), choice)
    except BaseException:
        engine.close()
        raise


def next_frames(camera: Camera, *, exposure_s: float) -> list[NDArray[Any]]:
    """Some frames of a camera that is not started: what the model will be given. Errors as the camera's."""
    pool = FramePool([np.empty(slot_shape(camera.format, camera.shape), DTYPE[camera.format]) for _ in range(FRAMES)])
    timeout_s = max(_FRAME_TIMEOUT_S, 2 * (camera.frame_time_s or 0))
    camera.start(pool, exposure_s=exposure_s, triggered=False)
    try:
        return [camera.next_frame(timeout_s=timeout_s).pixels for _ in range(FRAMES)]
    finally:
        camera.stop()
