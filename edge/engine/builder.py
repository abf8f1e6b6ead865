"""The plans of one model for one camera, and the child process that builds them."""

from __future__ import annotations

import json
import logging
import os
import selectors
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import BaseModel, ConfigDict

import export
from edge.engine import manifest_of, model_path
from edge.engine.prepare import Counts
from export.bindings import check_release
from export.errors import CancelledBuildError, PlanError
from export.manifest import Bundle, Precision
from export.plan import PlanKey, PlanRecord, Shape, as_user, build_command, key_here, plan_name, read_plan

log = logging.getLogger(__name__)

GRACE_S = 30.0
"""How long a builder that was asked to stop may take to reach its next step before it is killed."""
_NICER = 10  # than this process, whose threads watch the contact and fill frames on the same processor
_POLL_S = 0.1
_SILENCE_S = 5.0  # after which whoever waits is told that nothing is new


def default_plans() -> Path:
    """Where plans are kept: the service's own folder where systemd gives one, else the user's cache."""
    state = os.environ.get("STATE_DIRECTORY")
    root = Path(state.split(":")[0]) if state else platformdirs.user_cache_path("superlens")
    return root / "plans"


def rebuild_words() -> str:
    """What to do about a plan that is refused. The builder alone would make one that nobody has measured."""
    service = as_user(os.geteuid())
    program = f"{service}{shlex.quote(str(Path(sys.executable).with_name('superlens')))}" if service else "superlens"
    return (
        f"Build and measure it: {program} doctor --selftest --rebuild "
        "(as the user and with the options of superlens run, --config among them)."
    )


@dataclass(frozen=True, slots=True)
class BuildJob:
    """A model, the camera it is for, and the folder of its plans, which nobody else may write."""

    bundle: Bundle
    counts: Counts
    plans: Path = field(default_factory=default_plans)

    @property
    def shape_px(self) -> Shape:
        """(height, width) of the frames."""
        height, width = self.counts.shape_px
        return height, width

    def plan(self, precision: Precision) -> str:
        """File name of a plan."""
        return plan_name(self.bundle.name, precision, self.shape_px)

    def key(self, precision: Precision) -> PlanKey:
        """Of a plan that may run here; PlanError without TensorRT or GPU."""
        sha256 = manifest_of(self.bundle, precision).sha256
        return key_here(check_release(), onnx_sha256=sha256, precision=precision, shape_px=self.shape_px)

    def build_command(self, precision: Precision, folder: Path) -> tuple[str, ...]:
        """What builds a plan into ``folder``, as arguments of `python`."""
        onnx = model_path(self.bundle, precision).resolve()
        return build_command(
            onnx, model=self.bundle.name, precision=precision, shape_px=self.shape_px, folder=folder.resolve()
        )

    def check_plan(self, precision: Precision, folder: Path) -> PlanRecord:
        """The record of the plan in ``folder``; PlanError where it must not be used here, as `read_plan`."""
        return read_plan(folder, self.plan(precision), self.key(precision), remedy=rebuild_words())[1]


class BuildProgress(BaseModel):
    """Where the making of an engine is. ``fraction`` of the phase, 0 to 1; None where nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    precision: Precision
    phase: str
    fraction: float | None = None


Progress = Callable[[BuildProgress], None]


def build_in_child(
    job: BuildJob, precision: Precision, folder: Path, progress: Progress, cancelled: threading.Event
) -> None:
    """Build one plan into ``folder`` by `export.build_engine`; minutes.

    Raises
    ------
    PlanError
        It was not built, in the builder's words; or the builder died.
    CancelledBuildError
        ``cancelled`` was set.
    """
    model, timings = job.bundle.name, str(job.plans.resolve() / "timing.cache")
    command = [sys.executable, *job.build_command(precision, folder), "--timing-cache", timings]
    # Its own package's folder first on its path, not whatever folder the service was started in.
    home = Path(export.__file__).parents[1]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=home)
    # Here and not in a preexec_fn, which may deadlock beside threads: what the child starts from now on inherits it.
    os.setpriority(os.PRIO_PROCESS, child.pid, min(19, os.getpriority(os.PRIO_PROCESS, child.pid) + _NICER))
    problem, outermost = None, ""
    last = BuildProgress(model=model, precision=precision, phase="Starting")
    try:
        for event in _events(child, cancelled):
            kind = event.get("event")
            if kind == "phase" and event.get("parent") is None:
                outermost = str(event["phase"])
                last = BuildProgress(model=model, precision=precision, phase=outermost, fraction=0.0)
                progress(last)
            elif kind == "step" and event["phase"] == outermost and event["steps"]:
                fraction = min(1.0, (event["step"] + 1) / event["steps"])
                last = BuildProgress(model=model, precision=precision, phase=outermost, fraction=fraction)
                progress(last)
            elif kind == "silence":  # whoever waits shows that it is alive
                progress(last)
            elif kind == "warning":
                log.warning("%s", event["message"])
            elif kind == "error":
                problem = str(event["message"])
        code = child.wait()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        if child.stdout is not None:
            child.stdout.close()
    if cancelled.is_set() and code != 0:
        raise CancelledBuildError("The build was cancelled; the plans are as they were.")
    if code < 0:
        memory = " As a rule the memory was full (see dmesg): close other programs, or take smaller frames."
        name = _signal_name(-code)
        raise PlanError(f"The builder was ended by {name}; its log says more.{memory if name == 'SIGKILL' else ''}")
    if code != 0:
        raise PlanError(problem or f"The builder ended with code {code}; its log says why.")


def _events(child: subprocess.Popen[bytes], cancelled: threading.Event) -> Iterator[dict[str, Any]]:
    """What the child says, line by line, and that it says nothing; asks it to stop once ``cancelled`` is set."""
    stream = child.stdout
    if stream is None:
        raise PlanError("The builder has no output to read.")
    asked_s, rest = None, b""
    heard_s = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if cancelled.is_set() and asked_s is None:
                asked_s = time.monotonic()
                child.terminate()
            elif asked_s is not None and time.monotonic() - asked_s > GRACE_S:
                child.kill()
            if not selector.select(_POLL_S):
                if time.monotonic() - heard_s >= _SILENCE_S:
                    heard_s = time.monotonic()
                    yield {"event": "silence"}
                continue
            heard_s = time.monotonic()
            block = os.read(stream.fileno(), 1 << 16)
            if not block:
                return
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                if (event := _event(line)) is not None:
                    yield event
                else:  # a library that prints, maybe into a line of ours
                    log.info("builder: %s", line.decode(errors="replace"))


def _event(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(b'{"event":'):
        return None
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return event


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal between the first and the last
        return f"signal {number}"
