"""What the contextual loss is for: pairs that do not lie on one another, and edges that L1 blurs."""

import os
from pathlib import Path

import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

from models import metrics
from models.checkpoint import load_checkpoint, subject_of
from models.recipe import read_recipe
from models.sem import data
from models.sem.ablate import mini
from models.sem.data import Conditions
from models.sem.recipe import SemRecipe
from models.sem.train import contextual
from models.train import fit

STEPS = 900


def trained(out: Path, *, misregistration_px: int, weight: float) -> tuple[float, float]:
    """(EPI, contextual loss) on registered pictures, after training on pairs that are off by up to so much."""
    recipe = read_recipe("sem-lite")
    assert isinstance(recipe, SemRecipe)
    recipe = (
        mini(recipe, STEPS)
        .having("network", options={"features": 16, "blocks": 3})
        .having(
            "data",
            misregistration_px=misregistration_px,
            families=["siemens", "leaves", "lattice", "text"],
            effective_na=[1.2, 1.6],
            photons=[16000],
            focus_um=[0, 0],
        )
        .having("scenes", count=72)
        .having("train", crops=2, crop_px=48)
        .having("loss", paired_share=1, contextual=weight)
        .having("validation", every=STEPS)
    )
    assert isinstance(recipe.data, Conditions)
    subject = subject_of(load_checkpoint(fit(recipe, out, workers=1)))
    seen = data.pairs(recipe.data, images_per_family=2, side_px=128, seed=77)
    made = [subject.shown(pair.image) for pair in seen]
    scores = [
        (metrics.epi(image, pair.truth, border_px=8), contextual(image, pair.truth))
        for image, pair in zip(made, seen, strict=True)
    ]
    epi, context = np.mean(scores, axis=0)
    return float(epi), float(context)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_where_pairs_are_off_the_contextual_loss_is_sharper_than_l1_alone(tmp_path: Path) -> None:
    l1, both = (trained(tmp_path / str(weight), misregistration_px=5, weight=weight) for weight in (0.0, 0.01))
    assert both[0] > l1[0] + 0.005, "edges where they are"
    assert both[1] < l1[1] - 0.5, "and patches as they look"
