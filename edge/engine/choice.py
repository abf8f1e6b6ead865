"""What was measured of each plan of a model, and which one runs: records, and the rule that decides. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from edge.engine import Backend
from export.manifest import Precision, Sha256
from export.plan import PlanKey, Shape

LEAST_PSNR_DB = 35.0
"""From the FP32 model's picture; what `superlens-export convert` asks of a precision, too."""

MOST_ATTEMPTS = 3
"""At so many starts in a row a precision is tried that could not be built or did not run; then the choice stands."""

FAST: tuple[Precision, ...] = ("fp16", "int8_fp16")
LAST_RESORT: tuple[Precision, ...] = ("fp32",)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Candidate(_Record):
    """One precision on this device. ``problem`` says why it is out of the question, ``note`` what else happened.

    ``plan_sha256`` is the plan that the figures are of. ``attempts``: how often in a row it could not be built or did
    not run, which may pass, unlike figures that are bad.
    """

    precision: Precision
    key: PlanKey
    plan_sha256: Sha256 | None = None
    attempts: int = 0
    median_s: float | None = None
    p99_s: float | None = None
    psnr_db: float | None = None
    problem: str | None = None
    note: str | None = None


class Choice(_Record):
    """What runs and why, for the status and for the file beside the plans.

    ``fallback``: it runs in place of what was asked for, and ``note`` says why. ``frames`` were compared.
    """

    schema_version: Literal[1] = 1
    model: str
    shape_px: Shape
    backend: Backend
    precision: Precision
    fallback: bool = False
    candidates: tuple[Candidate, ...] = ()
    frames: int = 0
    note: str
    chosen_utc: str


def first_choices(precisions: Iterable[Precision]) -> tuple[Precision, ...]:
    """What is built first; FP32, which every bundle has, only where none of it can be used.

    >>> first_choices(["fp32", "int8", "int8_fp16", "fp16"])
    ('fp16', 'int8_fp16')
    >>> first_choices(["fp32", "int8"])
    ()
    """
    offered = set(precisions)
    return tuple(precision for precision in FAST if precision in offered)


def fastest(candidates: Iterable[Candidate]) -> Candidate | None:
    """The one with the shortest median of those without a problem."""
    usable = [one for one in candidates if one.problem is None and one.median_s is not None]
    return min(usable, key=lambda one: one.median_s or 0.0, default=None)


def words(one: Candidate) -> str:
    """What runs, for the status."""
    return f"{one.precision} runs: {1e3 * (one.median_s or 0):.2f} ms a frame, {one.psnr_db} dB from FP32"
