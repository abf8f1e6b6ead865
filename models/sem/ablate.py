"""The paper's ablation at mini size: residual blocks, dropout and norm, one changed at a time, in one table."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from models import metrics
from models.checkpoint import load_checkpoint, subject_of
from models.network import parameter_count
from models.recipe import read_recipe
from models.sem import data
from models.sem.recipe import SemRecipe
from models.sem.train import contextual
from models.train import fit

# What is compared: everything but the named option is that of the first row.
_BASE = {"blocks": 9, "dropout": 0.0, "norm": "batch"}
VARIANTS: dict[str, dict[str, object]] = {
    "blocks 9, dropout 0, batch norm": {},
    "blocks 6": {"blocks": 6},
    "blocks 3": {"blocks": 3},
    "dropout 0.5": {"dropout": 0.5},
    "no norm": {"norm": "none"},
    "instance norm": {"norm": "instance"},
}


def mini(recipe: SemRecipe, steps: int) -> SemRecipe:
    """A recipe with a quarter of the maps on 64 px crops: minutes where the full size takes an hour."""
    return (
        recipe.having("network", options={"features": 16})
        .having("reverse", options={"features": 16, "blocks": 1})
        .having("discriminator", features=16)
        .having("scenes", count=240, side_px=128)
        .having("train", steps=steps, crops=4, crop_px=64, warmup_steps=min(100, steps // 4), ema=0.99)
        .having("validation", every=max(steps // 4, 1), side_px=128)
    )


def ablate(
    out: Path,
    *,
    recipe: SemRecipe | None = None,
    steps: int = 800,
    seeds: int = 1,
    workers: int | None = None,
    images_per_family: int = 2,
) -> dict[str, dict[str, float]]:
    """Train every variant equally long and judge it on the held-out set.

    Parameters
    ----------
    out
        Folder of the runs, one each; it must hold none yet.
    recipe
        What is cut down by `mini`; None is sem-lite.
    steps, workers
        As in a recipe and in `models.train.fit`.
    seeds
        Runs of each variant; the table has their means, and the standard deviation of the PSNR.
    images_per_family
        Of the held-out set, at 128 px.

    Returns
    -------
    {variant: {"parameters", "psnr_db", "psnr_std_db", "epi", "contextual", "wall_s"}}.

    Raises
    ------
    CheckpointError
        `out` holds a run already.
    """
    if recipe is None:
        shipped = read_recipe("sem-lite")
        assert isinstance(shipped, SemRecipe)  # noqa: S101  # its task says so
        recipe = shipped
    base = mini(recipe, steps)
    pairs = data.heldout(images_per_family=images_per_family, side_px=128)
    table = {}
    for name, change in VARIANTS.items():
        runs = []
        for seed in range(base.seed, base.seed + seeds):
            options = {"features": 16} | _BASE | change
            varied = base.having("network", options=options).model_copy(update={"seed": seed})
            started = time.perf_counter()
            folder = out / f"{name.replace(',', '').replace(' ', '-')}-{seed}"
            best = load_checkpoint(fit(varied, folder, workers=workers))
            wall_s = time.perf_counter() - started
            subject = subject_of(best)
            made = [subject.shown(pair.image) for pair in pairs]
            scores = [
                (metrics.psnr_db(a, b.truth, border_px=8), metrics.epi(a, b.truth, border_px=8), contextual(a, b.truth))
                for a, b in zip(made, pairs, strict=True)
            ]
            runs.append((*np.mean(scores, axis=0), wall_s))
        psnr_db, epi, context, wall_s = np.mean(runs, axis=0)
        table[name] = {
            "parameters": float(parameter_count(best.net.fused())),
            "psnr_db": round(float(psnr_db), 2),
            "psnr_std_db": round(float(np.std([run[0] for run in runs], ddof=1)) if seeds > 1 else 0.0, 2),
            "epi": round(float(epi), 3),
            "contextual": round(float(context), 3),
            "wall_s": round(float(wall_s), 1),
        }
    return table
