"""Which TensorRT plan runs: builds what is missing, measures each on this device, keeps the fastest that is accurate.

INT8 is often slower than FP16 on a Jetson, builds of one network differ, and a plan may be wrong: nothing is assumed.
Every plan is timed and compared with the FP32 model on the CPU; one that fails is not used. The choice and its figures
lie beside the plans, and stand until a key of a plan changes.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from edge.devices import Engine
from edge.engine import load_engine, manifest_of, model_path
from edge.engine.builder import BuildProgress, Job, Progress, build_in_child
from edge.engine.choice import LAST_RESORT, LEAST_PSNR_DB, Candidate, Choice, fastest, first_choices, words
from edge.engine.measure import measure, pictures_of
from edge.engine.tensorrt import TensorRtEngine
from edge.errors import ConfigError, EdgeError, EngineError
from export.errors import CancelledBuildError, PlanError
from export.manifest import Precision
from export.plan import check_private, choice_name, move_plan, write_together

log = logging.getLogger(__name__)

Build = Callable[[Job, Precision, Path, Progress, threading.Event], None]
Load = Callable[[Job, Precision, Path | None], Engine]


def load_plan(job: Job, precision: Precision, folder: Path | None) -> Engine:
    """The engine of a plan in ``folder``; None: OpenVINO in f32, which is the reference and the fallback."""
    counts = job.counts
    if folder is not None:
        manifest = manifest_of(job.bundle, precision)
        return TensorRtEngine(model_path(job.bundle, precision), manifest, counts, hint="auto", plans=folder)
    return load_engine(
        job.bundle,
        frame_shape_px=counts.shape_px,
        pixel_format=counts.pixel_format,
        bit_depth=counts.bit_depth,
        backend="openvino",
        precision=precision,
        hint="f32",
        dark=counts.dark,
        flat=counts.flat,
    )


def open_engine(
    job: Job,
    frames: Callable[[], Sequence[NDArray[Any]]],
    *,
    fallback: bool,
    progress: Progress = lambda _: None,
    cancelled: threading.Event | None = None,
    build: Build = build_in_child,
    load: Load = load_plan,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Engine, Choice]:
    """The engine that was chosen before; else choose now, which takes minutes.

    Parameters
    ----------
    frames
        As `choose`; asked for only when something must be measured.
    fallback
        Where TensorRT does not run, take OpenVINO on the CPU, labelled. Otherwise that is an EngineError.
    """
    try:
        try:
            choice = stored_choice(job)
        except EngineError as exc:
            log.info("%s", exc)
            choice = choose(job, frames(), progress=progress, cancelled=cancelled, build=build, load=load, clock=clock)
        return load(job, choice.precision, job.plans), choice
    except EngineError as exc:
        if not fallback:
            raise
        log.warning("OpenVINO runs in place of TensorRT: %s", exc)
        return fall_back(job, str(exc), load=load)


def fall_back(job: Job, reason: str, *, load: Load = load_plan) -> tuple[Engine, Choice]:
    """The FP32 model on the CPU, labelled as standing in for TensorRT: also for the minutes that a build takes."""
    return load(job, "fp32", None), Choice(
        model=job.bundle.name,
        shape_px=job.shape_px,
        backend="openvino",
        precision="fp32",
        fallback=True,
        note=f"OpenVINO runs in place of TensorRT: {reason}",
        chosen_utc=_now_utc(),
    )


def stored_choice(job: Job) -> Choice:
    """The choice that was made before, every key still what it was and its plan in order. Measures nothing.

    Raises
    ------
    EngineError
        None was made, or a plan of it must not be used here: all that differs, and the command that builds it again.
        Or TensorRT or the GPU is not there.
    """
    path = job.plans / choice_name(job.bundle.name, job.shape_px)
    try:
        keys = {precision: job.key(precision) for precision in first_choices(job.bundle.precisions)}
        if not path.is_file():
            raise EngineError(f"No TensorRT plan was chosen yet for {job.bundle.name} at {job.shape_px} px.")
        check_private(path)
        choice = Choice.model_validate_json(path.read_bytes())
        job.check_plan(choice.precision, job.plans)
    except ValidationError as exc:
        raise EngineError(f"{path} is no choice of a plan: {exc}") from exc
    except PlanError as exc:
        raise EngineError(str(exc)) from exc
    measured = {candidate.precision: candidate.key for candidate in choice.candidates}
    if changed := [precision for precision, key in keys.items() if measured.get(precision) != key]:
        raise EngineError(f"{', '.join(changed)} of {job.bundle.name} has changed since {choice.chosen_utc}.")
    return choice


def choose(
    job: Job,
    frames: Sequence[NDArray[Any]],
    *,
    progress: Progress = lambda _: None,
    cancelled: threading.Event | None = None,
    again: bool = False,
    build: Build = build_in_child,
    load: Load = load_plan,
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """Build what is missing, measure every plan on this device, keep the fastest that is accurate.

    What ran before goes on running: a new plan takes its place on disk only after it has passed.

    Parameters
    ----------
    frames
        Counts of the camera's shape and type, of the kind of picture the model is for: accuracy is measured on them.
    again
        Build plans that are in order, too.

    Raises
    ------
    ConfigError
        The frames are not the camera's.
    EngineError
        No plan can be used, or the build was cancelled; the message says of each precision why.
    """
    kind = (job.counts.slot_shape, np.dtype(job.counts.dtype))
    if not frames or any((one.shape, one.dtype) != kind for one in frames):
        got = [(one.shape, str(one.dtype)) for one in frames] or "none"
        raise ConfigError(f"A plan is judged on frames of {kind[0]} px {kind[1]}, like the camera's. Got {got}.")
    attempt = _Attempt(job, frames, progress, cancelled or threading.Event(), again, build, load, clock)
    try:
        job.plans.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_private(job.plans)
        with _alone(job.plans):
            candidates = list(attempt.candidates())
            best = fastest(candidates)
            problems = "; ".join(f"{one.precision}: {one.problem}" for one in candidates if one.problem)
            if best is None:
                raise EngineError(f"No TensorRT plan of {job.bundle.name} can be used. {problems}.")
            choice = Choice(
                model=job.bundle.name,
                shape_px=job.shape_px,
                backend="tensorrt",
                precision=best.precision,
                candidates=tuple(candidates),
                frames=len(frames),
                note="; ".join(filter(None, [words(best), best.note, problems])),
                chosen_utc=_now_utc(),
            )
            text = choice.model_dump_json(indent=2) + "\n"
            write_together(job.plans, {choice_name(job.bundle.name, job.shape_px): text.encode()})
    except CancelledBuildError as exc:
        raise EngineError(f"The build of {job.bundle.name} was cancelled. What ran before goes on.") from exc
    except PlanError as exc:
        raise EngineError(str(exc)) from exc
    except OSError as exc:
        raise EngineError(f"Engines cannot be kept in {job.plans}: {exc.strerror}. Free some space there.") from exc
    log.info("%s: %s", job.bundle.name, choice.note)
    return choice


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One call of `choose`."""

    job: Job
    frames: Sequence[NDArray[Any]]
    progress: Progress
    cancelled: threading.Event
    again: bool
    build: Build
    load: Load
    clock: Callable[[], float]

    def candidates(self) -> Iterator[Candidate]:
        """The fast precisions; FP32 where none of these can be used."""
        with closing(self.load(self.job, "fp32", None)) as reference:
            expected = [pictures_of(reference, frame) for frame in self.frames]
        usable = False
        for precision in first_choices(self.job.bundle.precisions) + LAST_RESORT:
            if not (usable and precision in LAST_RESORT):
                candidate = self.consider(precision, expected)
                usable = usable or candidate.problem is None
                yield candidate

    def consider(self, precision: Precision, expected: Sequence[Mapping[str, NDArray[Any]]]) -> Candidate:
        """Build in a folder of its own, measure there, and only then let it replace the plan before it."""
        job, new = self.job, self.job.plans / "new"
        key, troubles = job.key(precision), list[str]()
        figures, passed = None, False
        places = []
        try:
            job.check_plan(precision, job.plans)
            places.append(job.plans)
        except PlanError as exc:
            log.info("%s", exc)
        if self.again or not places:
            try:
                self.build(job, precision, new, self.progress, self.cancelled)
                places.insert(0, new)
            except CancelledBuildError:
                raise
            except PlanError as exc:
                troubles.append(f"not built ({exc})")
        for place in places:
            self.progress(BuildProgress(model=job.bundle.name, precision=precision, phase="Measuring"))
            try:
                with closing(self.load(job, precision, place)) as engine:
                    figures = measure(engine, self.frames, expected, job.counts.full_scale, clock=self.clock)
            except EdgeError as exc:
                troubles.append(f"does not run ({exc})")
                continue
            passed = figures.psnr_db >= LEAST_PSNR_DB
            if passed:
                if place == new:
                    move_plan(new, job.plans, job.plan(precision))
                break
            troubles.append(f"{figures.psnr_db:.1f} dB from FP32, expected at least {LEAST_PSNR_DB:g}")
        shutil.rmtree(new, ignore_errors=True)
        said = "; ".join(troubles) or None
        told = {"note": said and f"the plan built before is used: {said}"} if passed else {"problem": said}
        return Candidate(precision=precision, key=key, **(figures._asdict() if figures else {}), **told)


def _now_utc() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time builds and measures here: another would spoil the times, and both write the same files."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise EngineError(f"Another process builds engines in {folder}. Wait for it, or stop it.") from exc
        yield
