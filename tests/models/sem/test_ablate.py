"""The ablation trains what it names and puts it into one table."""

import os
from pathlib import Path

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

from models.checkpoint import load_checkpoint
from models.recipe import read_recipe
from models.sem import ablate as module
from models.sem.ablate import VARIANTS, ablate, mini
from models.sem.recipe import SemRecipe


@pytest.mark.slow
def test_every_variant_is_a_row_and_was_trained_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read_recipe("sem-lite")
    assert isinstance(recipe, SemRecipe)
    short = recipe.having("data", families=["dots"])
    monkeypatch.setattr(module, "mini", lambda recipe, steps: mini(recipe, steps).having("scenes", count=3))
    table = ablate(tmp_path, recipe=short, steps=2, workers=1, images_per_family=1)
    assert list(table) == list(VARIANTS)
    assert {"blocks 3", "blocks 6", "dropout 0.5", "no norm", "instance norm"} < set(table)
    assert table["blocks 3"]["parameters"] < table["blocks 6"]["parameters"]
    trained = load_checkpoint(tmp_path / "dropout-0.5-1" / "best.safetensors").recipe
    assert trained.network.options == {"features": 16, "blocks": 9, "dropout": 0.5, "norm": "batch"}


def test_the_mini_size_keeps_data_and_losses() -> None:
    recipe = read_recipe("sem-lite")
    assert isinstance(recipe, SemRecipe)
    small = mini(recipe, 100)
    assert small.data == recipe.data
    assert small.loss == recipe.loss
    assert small.train.crop_px == 64
