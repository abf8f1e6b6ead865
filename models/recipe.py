"""A recipe: everything that decides what a training run makes. Read from TOML, kept in the checkpoint."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.enhance.data import Conditions
from models.errors import RecipeError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkSection(_Section):
    """Which network: a name of `models.enhance.networks.NETWORKS` and its options."""

    name: str
    options: dict[str, Any] = {}


class ScenesSection(_Section):
    """The bank of specimens that crops are cut from."""

    count: int = Field(gt=0)
    side_px: int = Field(ge=64)


class TrainSection(_Section):
    """The optimisation. `bf16` is autocast: about 1.5 times as fast on a processor that has it."""

    steps: int = Field(gt=0)
    crops: int = Field(gt=0)
    crop_px: int = Field(ge=16)
    learning_rate: float = Field(gt=0, le=1)
    warmup_steps: int = Field(ge=0)
    clip: float = Field(gt=0)
    ema: float = Field(ge=0, lt=1)
    gradient_weight: float = Field(ge=0)
    epsilon: float = Field(gt=0)
    precision: Literal["bf16", "fp32"]
    log_every: int = Field(default=100, gt=0)


class ValidationSection(_Section):
    """Whole images of the training conditions with other seeds, judged every so many steps."""

    images_per_family: int = Field(ge=1)
    side_px: int = Field(ge=96)
    every: int = Field(gt=0)


class Recipe(_Section):
    """One training run. `description` goes into the manifest and the model card: the training data in words."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    task: Literal["enhance"]
    description: str
    seed: int = Field(ge=0)
    network: NetworkSection
    data: Conditions
    scenes: ScenesSection
    train: TrainSection
    validation: ValidationSection


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read and check a recipe; RecipeError says which key is wrong, what was expected, and what to do."""
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise RecipeError(f"recipe {path} cannot be read ({exc.strerror}); give a TOML file of models/configs") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise RecipeError(f"recipe {path} is not TOML: {exc}; correct it") from exc
    return parse_recipe(content, source=str(path))


def parse_recipe(content: Any, *, source: str) -> Recipe:
    """Check a recipe that was already parsed; `source` is named in the error."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as exc:
        wrong = "; ".join(
            f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors(include_url=False)
        )
        raise RecipeError(f"recipe {source}: {wrong}; correct these keys") from exc
