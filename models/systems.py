"""The three systems by task: where each keeps its recipe, networks, training and evaluation."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple


class System(NamedTuple):
    """The parts of a system as "module:name": a recipe is read and a report written without importing torch."""

    recipe: str
    build: str
    trainee: str
    evaluate: str


SYSTEMS: dict[str, System] = {
    "enhance": System(
        recipe="models.enhance.recipe:EnhanceRecipe",
        build="models.enhance.networks:build",
        trainee="models.enhance.train:EnhanceTrainee",
        evaluate="models.enhance.evaluate:evaluate",
    ),
    "sem": System(
        recipe="models.sem.recipe:SemRecipe",
        build="models.sem.networks:build",
        trainee="models.sem.train:SemTrainee",
        evaluate="models.sem.evaluate:evaluate",
    ),
    "neural-lens": System(
        recipe="models.lens.recipe:LensRecipe",
        build="models.lens.networks:build",
        trainee="models.lens.train:LensTrainee",
        evaluate="models.lens.evaluate:evaluate",
    ),
}


def imported(part: str) -> Any:
    """The object that "module:name" names."""
    module, name = part.split(":")
    return getattr(importlib.import_module(module), name)
