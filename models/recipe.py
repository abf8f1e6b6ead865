"""A recipe: everything that decides what a training run makes. Read from TOML, kept in the checkpoint."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import RecipeError
from models.samples import render
from models.systems import SYSTEMS, imported

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIGS = Path(__file__).parent / "configs"

_RecipeT = TypeVar("_RecipeT", bound="Recipe")


class Section(BaseModel):
    """A table of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkSection(Section):
    """Which network: a name the system knows, and its options."""

    name: str
    options: dict[str, Any] = {}


class ScenesSection(Section):
    """The bank of specimens that crops are cut from."""

    count: int = Field(gt=0)
    side_px: int = Field(ge=64)


class TrainSection(Section):
    """The optimisation.

    `crops` is the global batch, over all processes. `schedule` is what follows the warm-up: "cosine" falls to a
    hundredth, "constant" stays, "tail" stays for half of the steps and then falls linearly to nothing (Zhu et al.
    2017, CycleGAN). `early_stop` ends the run after that many validations without a better figure, 0 never.
    `bf16` is autocast: about 1.5 times as fast on a processor that has it.
    """

    steps: int = Field(gt=0)
    crops: int = Field(gt=0)
    crop_px: int = Field(ge=16)
    learning_rate: float = Field(gt=0, le=1)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["cosine", "constant", "tail"] = "cosine"
    clip: float = Field(gt=0)
    ema: float = Field(ge=0, lt=1)
    precision: Literal["bf16", "fp32"]
    log_every: int = Field(default=100, gt=0)
    early_stop: int = Field(default=0, ge=0)


class ValidationSection(Section):
    """Whole images of the training conditions with other seeds, judged every so many steps."""

    every: int = Field(gt=0)


class Recipe(Section):
    """One training run of one system; each system adds its tables.

    `description` goes into the manifest and the model card: the training data in words. `remarks` goes into the card:
    what somebody found out about this network in an experiment, with the command.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    task: str
    description: str
    remarks: str = ""
    seed: int = Field(ge=0)
    network: NetworkSection
    train: TrainSection
    validation: ValidationSection

    @property
    def pixel_size_nm(self) -> float:
        """The pixel, on the specimen, that the network is trained for."""
        raise RecipeError(f"a recipe of task {self.task} does not say its pixel size")

    def tiny(self) -> Recipe:
        """The same code in seconds: few maps, few and small crops, for trying whether a recipe runs at all."""
        raise RecipeError(f"a recipe of task {self.task} has no tiny form")

    def with_pairs(self, folder: Path) -> Recipe:
        """The same recipe, fed with a lab's own pairs instead of drawn specimens."""
        raise RecipeError(f"a recipe of task {self.task} does not learn from a folder of pairs")

    def example(self, shape_px: tuple[int, int], seed: int) -> NDArray[np.float32]:
        """A picture (height, width) in 0..1 of the kind the network gets, to compare two forms of it on."""
        return render("leaves", shape_px=shape_px, pixel_size_nm=self.pixel_size_nm, seed=seed)

    def having(self: _RecipeT, section: str, **values: Any) -> _RecipeT:
        """A checked copy with other values in one table."""
        content = self.model_dump(mode="json")
        content[section] = content[section] | values
        return type(self).model_validate(content)


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read and check a recipe; RecipeError says which key is wrong, what was expected, and what to do.

    `path` is a TOML file, or the name of one that ships in models/configs.
    """
    path = Path(path)
    if not path.suffix and (CONFIGS / f"{path}.toml").is_file():
        path = CONFIGS / f"{path}.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise RecipeError(
            f"recipe {path} cannot be read ({exc.strerror}); give a TOML file, or a name of: superlens-train configs"
        ) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise RecipeError(f"recipe {path} is not TOML: {exc}; correct it") from exc
    return parse_recipe(content, source=str(path))


def parse_recipe(content: Any, *, source: str) -> Recipe:
    """Check a recipe that was already parsed; `source` is named in the error."""
    task = content.get("task") if isinstance(content, dict) else None
    if task not in SYSTEMS:
        raise RecipeError(f"recipe {source}: task is {task!r}, expected one of {', '.join(SYSTEMS)}; correct it")
    kind = imported(SYSTEMS[task].recipe)
    try:
        # By way of JSON, so that a list is a tuple's spelling here as it is in TOML.
        recipe: Recipe = kind.model_validate_json(json.dumps(content))
    except ValidationError as exc:
        wrong = "; ".join(
            f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors(include_url=False)
        )
        raise RecipeError(f"recipe {source}: {wrong}; correct these keys") from exc
    return recipe
