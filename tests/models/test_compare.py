"""A comparison of recipes gives each the same time, and says how far seeds differ."""

import os
from pathlib import Path

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import numpy as np
from click.testing import CliRunner

from models.__main__ import main
from models.compare import compare
from models.errors import RecipeError
from models.evaluate import Subject
from models.recipe import read_recipe

A, B = (read_recipe(name).tiny() for name in ("srcnn", "srcnn-attention"))


def brightness(subject: Subject) -> dict[str, dict[str, float]]:
    """What a judge reports, in a moment."""
    image = np.full((64, 64), 0.5, np.float32)
    return {"mean": {"input": 0.5, "output": float(subject.shown(image).mean())}}


@pytest.mark.slow
def test_recipes_are_given_the_same_time_and_judged_with_a_spread(tmp_path: Path) -> None:
    report = compare([A, B], tmp_path, seeds=[1, 2], minutes=0.02, workers=1, judge=brightness)
    # Attention costs time, so it gets fewer steps.
    assert report["steps"]["srcnn"] > report["steps"]["srcnn-attention"] >= 1
    assert list(report["figures"]) == ["mean output"]
    means = report["figures"]["mean output"]
    assert set(means) == {"srcnn", "srcnn-attention"}
    assert all(figure["std"] > 0 for figure in means.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}-{seed}" for name in ("srcnn", "srcnn-attention") for seed in (1, 2)
    ]


def test_a_comparison_with_itself_or_of_one_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="two recipes of different names"):
        compare([A, A], tmp_path, seeds=[1, 2], minutes=1)
    with pytest.raises(RecipeError, match="one has no spread"):
        compare([A, B], tmp_path, seeds=[1], minutes=1)
    result = CliRunner().invoke(main, ["compare", "srcnn", "--out", str(tmp_path), "--minutes", "1"])
    assert result.exit_code == 2
    assert "two recipes" in result.output
