"""Compares recipes fairly: equal training time, several seeds, the same judge; means and standard deviations."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.checkpoint import load_checkpoint, subject_of
from models.errors import RecipeError
from models.evaluate import Subject, evaluate
from models.recipe import Recipe
from models.systems import SYSTEMS, imported
from models.train import Ranks, Trainee, fit, update_of

log = logging.getLogger(__name__)

# Steps that are timed, in turns: what else the machine does then slows all recipes alike.
_ROUNDS, _STEPS_A_ROUND = 6, 5


def on_heldout(subject: Subject) -> Mapping[str, Any]:
    """The report on `synthetic:heldout`."""
    return evaluate(subject, "synthetic:heldout").report


def compare(
    recipes: Sequence[Recipe],
    out: Path,
    *,
    seeds: Sequence[int],
    minutes: float,
    workers: int | None = None,
    judge: Callable[[Subject], Mapping[str, Any]] = on_heldout,
) -> dict[str, Any]:
    """Train every recipe with every seed for the same time, and judge the results on `synthetic:heldout`.

    Time is computing time of the steps: it is measured first, in turns, and gives each recipe its number of steps,
    so that its learning rate ends where it should. Runs that are there already are not repeated.

    Parameters
    ----------
    recipes
        At least two, with different names, of one task.
    out
        A folder for the runs, NAME-SEED each.
    seeds
        At least two: one seed has no spread.
    minutes
        Training time of each run.
    judge
        Gives the report of a trained network; its numbers about the output are what is compared.

    Returns
    -------
    {"minutes", "seeds", "steps": {name: n}, "figures": {figure: {name: {"mean", "std"}}}}; std with ddof 1.
    """
    if len({recipe.name for recipe in recipes}) < 2 or len({recipe.task for recipe in recipes}) > 1:
        raise RecipeError("compare needs at least two recipes of different names and one task; give others")
    if len(set(seeds)) < 2:
        raise RecipeError("compare needs at least two different seeds: one has no spread; give more with --seeds")
    step_s = step_times_s({recipe.name: recipe for recipe in recipes}, workers=workers)
    steps = {recipe.name: max(1, round(60 * minutes / step_s[recipe.name])) for recipe in recipes}
    log.info("steps of equal time: %s", steps)
    figures: dict[str, dict[str, list[float]]] = {}
    for recipe in recipes:
        for seed in seeds:
            run = out / f"{recipe.name}-{seed}"
            if not (run / "best.safetensors").is_file():
                count = steps[recipe.name]
                every = max(1, count // 4)
                timed = recipe.having("train", steps=count).having("validation", every=every)
                fit(timed.model_copy(update={"seed": seed}), run, workers=workers)
            trained = load_checkpoint(run / "last.safetensors")
            steps[recipe.name] = trained.recipe.train.steps  # of a run that was there already, its own
            report = judge(subject_of(trained))
            for figure, value in _figures(report):
                figures.setdefault(figure, {}).setdefault(recipe.name, []).append(value)
    summary = {
        figure: {
            name: {"mean": round(float(np.mean(values)), 4), "std": round(float(np.std(values, ddof=1)), 4)}
            for name, values in by_recipe.items()
        }
        for figure, by_recipe in figures.items()
    }
    return {"minutes": minutes, "seeds": list(seeds), "steps": steps, "figures": summary}


def step_times_s(recipes: Mapping[str, Recipe], *, workers: int | None = None) -> dict[str, float]:
    """Median time of a training step of each recipe, by its label, measured in turns."""
    trainees: dict[str, Trainee] = {}
    # Which specimens a step sees does not matter to its time.
    few = {label: _with_few_scenes(recipe) for label, recipe in recipes.items()}
    for label, recipe in few.items():
        torch.manual_seed(recipe.seed)
        trainees[label] = imported(SYSTEMS[recipe.task].trainee)(recipe)
        trainees[label].prepare(workers=workers)
        trainees[label].nets.train()
    times: dict[str, list[float]] = {label: [] for label in recipes}
    with Ranks() as ranks:
        for _ in range(_ROUNDS):
            for label, recipe in few.items():
                trainee = trainees[label]
                parts = trainee.draw(1, range(recipe.train.crops))
                batch = {name: torch.from_numpy(part) for name, part in parts.items()}
                started = time.perf_counter()
                for _ in range(_STEPS_A_ROUND):
                    trainee.train_step(batch, 1, update_of(trainee, recipe.train, 1, ranks))
                times[label].append((time.perf_counter() - started) / _STEPS_A_ROUND)
    return {label: float(np.median(values)) for label, values in times.items()}


def _with_few_scenes(recipe: Recipe) -> Recipe:
    return recipe.having("scenes", count=12) if "scenes" in type(recipe).model_fields else recipe


def _figures(report: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a report that is about the output, by its path."""
    for key, value in report.items():
        where = f"{path} {key}".strip()
        if isinstance(value, Mapping):
            yield from _figures(value, where)
        elif isinstance(value, int | float) and "output" in where.split():
            yield where, float(value)
