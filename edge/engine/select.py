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
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from edge.devices import Engine
from edge.engine import manifest_of, model_path
from edge.engine.builder import BuildJob, BuildProgress, Progress, build_in_child, rebuild_words
from edge.engine.choice import (
    LAST_RESORT,
    LEAST_PSNR_DB,
    MOST_ATTEMPTS,
    Candidate,
    Choice,
    fastest,
    first_choices,
    words,
)
from edge.engine.measure import measure, pictures_of, textures
from edge.engine.tensorrt import TensorRtEngine
from edge.engine.tiling import load_for_camera
from edge.errors import ConfigError, EdgeError, EngineError
from edge.utc import utc_now
from export.errors import CancelledBuildError, PlanError
from export.manifest import Precision
from export.plan import PlanKey, check_private, choice_name, move_plan, read_private, remedy_of, write_together

log = logging.getLogger(__name__)

Build = Callable[[BuildJob, Precision, Path, Progress, threading.Event], None]
Load = Callable[[BuildJob, Precision, Path | None], Engine]

_SILENCE_S = 2.0  # while plans are measured, after which whoever waits is told that it goes on


def load_plan(job: BuildJob, precision: Precision, folder: Path | None) -> Engine:
    """The engine of a plan in ``folder``; None: OpenVINO in f32, which is the reference and the fallback.

    The GPU has whole frames of any size. What the CPU takes for one grows with it, to gigabytes: there they are cut.
    """
    counts = job.counts
    if folder is not None:
        manifest = manifest_of(job.bundle, precision)
        return TensorRtEngine(model_path(job.bundle, precision), manifest, counts, hint="auto", plans=folder)
    return load_for_camera(job.bundle, counts, backend="openvino", precision=precision, hint="f32")


def fall_back(job: BuildJob, reason: str, *, load: Load = load_plan) -> tuple[Engine, Choice]:
    """The FP32 model on the CPU, labelled as standing in for TensorRT: also for the minutes that a build takes."""
    return load(job, "fp32", None), Choice(
        model=job.bundle.name,
        shape_px=job.shape_px,
        backend="openvino",
        precision="fp32",
        fallback=True,
        note=f"OpenVINO runs in place of TensorRT: {reason}",
        chosen_utc=utc_now(),
    )


def stored_choice(job: BuildJob) -> Choice:
    """The choice that was made before, its plan's key still what it was and its plan the one that was measured.

    Raises
    ------
    EngineError
        It is time to choose: none was made, or its plan must not be used here (all that differs, and the command that
        builds and measures it again). Or TensorRT or the GPU is not there.
    """
    name = job.bundle.name
    try:
        job.key("fp32")  # first whether there is a TensorRT and a GPU at all
        choice = _written_choice(job)
        if choice is None:
            raise EngineError(f"No TensorRT plan was chosen yet for {name} at {job.shape_px} px.")
        if choice.precision not in job.bundle.precisions:
            raise EngineError(f"{name} has changed since {choice.chosen_utc}: it has no {choice.precision} any more.")
        record = job.check_plan(choice.precision, job.plans)
    except PlanError as exc:
        raise EngineError(str(exc)) from exc
    measured = {candidate.precision: candidate for candidate in choice.candidates}
    if record.sha256 != measured[choice.precision].plan_sha256:
        raise EngineError(
            f"The plan {record.file} is not the one that was measured at {choice.chosen_utc}. {rebuild_words()}"
        )
    return choice


def unfinished(job: BuildJob, choice: Choice) -> str | None:
    """Why there is to be chosen again while a :func:`stored_choice` runs; None where there is not.

    The file or the key of another precision has changed, or one that could not be built or run is to be tried again.
    """
    name, measured = job.bundle.name, {candidate.precision: candidate.key for candidate in choice.candidates}
    offered = first_choices(job.bundle.precisions)
    if changed := [one for one in offered if measured.get(one) != job.key(one)]:
        return f"{', '.join(changed)} of {name} has changed since {choice.chosen_utc}."
    if again := [f"{one.precision}: {one.problem}" for one in choice.candidates if 0 < one.attempts < MOST_ATTEMPTS]:
        return f"{name} is chosen again, for what may have passed. {'; '.join(again)}."
    return None


def _written_choice(job: BuildJob) -> Choice | None:
    path = job.plans / choice_name(job.bundle.name, job.shape_px)
    text = read_private(path)
    if text is None:
        return None
    try:
        choice = Choice.model_validate_json(text)
    except ValidationError as exc:
        raise PlanError(f"{path} is no choice of a plan: {exc}") from exc
    if choice.precision not in {candidate.precision for candidate in choice.candidates}:
        raise PlanError(f"{path} is no choice of a plan: there are no figures of {choice.precision}.")
    return choice


def choose(
    job: BuildJob,
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
        Counts of the camera's shape and type: accuracy is measured on them and on `edge.engine.measure.textures`, for
        a camera may see nothing when it is asked.
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
    frames = [*frames, *textures(job.counts)]
    attempt = _Attempt(job, frames, progress, cancelled or threading.Event(), again, build, load, clock)
    try:
        job.plans.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_private(job.plans)
        with _alone(job.plans):
            candidates = list(attempt.candidates(_attempts(job)))
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
                chosen_utc=utc_now(),
            )
            text = choice.model_dump_json(indent=2) + "\n"
            write_together(job.plans, {choice_name(job.bundle.name, job.shape_px): text.encode()})
    except CancelledBuildError as exc:
        raise EngineError(f"The build of {job.bundle.name} was cancelled. What ran before goes on.") from exc
    except PlanError as exc:
        raise EngineError(str(exc)) from exc
    except OSError as exc:
        reason = f"{exc.strerror}. {remedy_of(exc, job.plans)}"
        raise EngineError(f"Engines cannot be kept in {job.plans}: {reason}") from exc
    log.info("%s: %s", job.bundle.name, choice.note)
    return choice


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One call of `choose`."""

    job: BuildJob
    frames: Sequence[NDArray[Any]]
    progress: Progress
    cancelled: threading.Event
    again: bool
    build: Build
    load: Load
    clock: Callable[[], float]

    def candidates(self, attempts: Mapping[PlanKey, int]) -> Iterator[Candidate]:
        """The fast precisions; FP32 where none of these can be used. ``attempts``: how often each failed before."""
        alive = self.telling("fp32", "Reference on the CPU")
        expected = []
        with closing(self.load(self.job, "fp32", None)) as reference:
            for frame in self.frames:
                alive()
                expected.append(pictures_of(reference, frame))
        usable = False
        for precision in first_choices(self.job.bundle.precisions) + LAST_RESORT:
            if not (usable and precision in LAST_RESORT):
                candidate = self.consider(precision, expected)
                usable = usable or candidate.problem is None
                if candidate.problem is not None and candidate.psnr_db is None:  # nothing is known of its figures
                    candidate = candidate.model_copy(update={"attempts": 1 + attempts.get(candidate.key, 0)})
                yield candidate

    def consider(self, precision: Precision, expected: Sequence[Mapping[str, NDArray[Any]]]) -> Candidate:
        """Build in a folder of its own, measure there, and only then let it replace the plan before it."""
        job, new = self.job, self.job.plans / "new"
        key, troubles = job.key(precision), list[str]()
        figures, sha256, passed = None, None, False
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
            alive = self.telling(precision, "Measuring")
            try:
                sha256 = job.check_plan(precision, place).sha256
                with closing(self.load(job, precision, place)) as engine:
                    figures = measure(
                        engine, self.frames, expected, job.counts.full_scale, clock=self.clock, alive=alive
                    )
            except CancelledBuildError:
                raise
            except (EdgeError, PlanError) as exc:
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
        found = figures._asdict() if figures else {}
        found.pop("timed", None)
        return Candidate(precision=precision, key=key, plan_sha256=sha256 if found else None, **found, **told)

    def telling(self, precision: Precision, phase: str) -> Callable[[], None]:
        """Say what begins. The function says it again now and then, so that whoever waits knows that it goes on, and
        ends it once ``cancelled`` is set.
        """
        step, told_s = BuildProgress(model=self.job.bundle.name, precision=precision, phase=phase), time.monotonic()
        self.progress(step)

        def alive() -> None:
            nonlocal told_s
            if self.cancelled.is_set():
                raise CancelledBuildError("The measurement was cancelled; the plans are as they were.")
            if time.monotonic() - told_s >= _SILENCE_S:
                told_s = time.monotonic()
                self.progress(step)

        return alive


def _attempts(job: BuildJob) -> dict[PlanKey, int]:
    """How often in a row each precision could not be built or did not run."""
    try:
        before = _written_choice(job)
    except PlanError as exc:
        log.info("%s", exc)
        before = None
    return {} if before is None else {candidate.key: candidate.attempts for candidate in before.candidates}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time builds and measures here: another would spoil the times, and both write the same files."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise EngineError(f"Another process builds engines in {folder}. Wait for it, or stop it.") from exc
        yield
