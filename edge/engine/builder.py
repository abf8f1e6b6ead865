"""Runs `export.build_engine` as a child process and reads its progress."""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

import export
from export.errors import CancelledBuildError, PlanError
from export.manifest import Manifest, Precision
from export.plan import Shape, build_command

log = logging.getLogger(__name__)

GRACE_S = 30.0
"""How long a builder that was asked to stop may take to reach its next step before it is killed."""
_POLL_S = 0.1


class BuildProgress(BaseModel):
    """Where the making of an engine is. ``fraction`` of the phase, 0 to 1; None where nobody knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    precision: Precision
    phase: str
    fraction: float | None = None


Progress = Callable[[BuildProgress], None]


def build_in_child(
    onnx: Path,
    manifest: Manifest,
    shape_px: Shape,
    folder: Path,
    *,
    timing_cache: Path,
    progress: Progress,
    cancelled: threading.Event,
) -> None:
    """Build one plan into ``folder``; minutes.

    Raises
    ------
    PlanError
        It was not built, in the builder's words; or the builder died.
    CancelledBuildError
        ``cancelled`` was set.
    """
    precision, folder = manifest.precision, folder.resolve()
    command = build_command(onnx.resolve(), model=manifest.name, precision=precision, shape_px=shape_px, folder=folder)
    # Its own package's folder first on its path, not whatever folder the service was started in.
    home = Path(export.__file__).parents[1]
    child = subprocess.Popen(
        [sys.executable, *command, "--timing-cache", str(timing_cache.resolve())], stdout=subprocess.PIPE, cwd=home
    )
    problem, outermost = None, ""
    try:
        for event in _events(child, cancelled):
            kind = event.get("event")
            if kind == "phase" and event.get("parent") is None:
                outermost = str(event["phase"])
                progress(BuildProgress(model=manifest.name, precision=precision, phase=outermost, fraction=0.0))
            elif kind == "step" and event["phase"] == outermost and event["steps"]:
                fraction = min(1.0, (event["step"] + 1) / event["steps"])
                progress(BuildProgress(model=manifest.name, precision=precision, phase=outermost, fraction=fraction))
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
        raise PlanError(
            f"The builder was ended by {signal.Signals(-code).name}: as a rule the memory was full (see dmesg). Close "
            "other programs, or take smaller frames."
        )
    if code != 0:
        raise PlanError(problem or f"The builder ended with code {code}; its log says why.")


def _events(child: subprocess.Popen[bytes], cancelled: threading.Event) -> Iterator[dict[str, Any]]:
    """What the child says, line by line, until it closes its output; asks it to stop once ``cancelled`` is set."""
    stream = child.stdout
    if stream is None:
        raise PlanError("The builder has no output to read.")
    asked_s, rest = None, b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            if cancelled.is_set() and asked_s is None:
                asked_s = time.monotonic()
                child.terminate()
            elif asked_s is not None and time.monotonic() - asked_s > GRACE_S:
                child.kill()
            if not selector.select(_POLL_S):
                continue
            block = os.read(stream.fileno(), 1 << 16)
            if not block:
                return
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                try:
                    yield json.loads(line)
                except ValueError:  # a library that prints
                    log.info("builder: %s", line.decode(errors="replace"))
