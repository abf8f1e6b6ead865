"""The enhancer learns from a lab's own pairs, and a zoo network gets better on them."""

import os
from pathlib import Path

import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")


import models
from models import metrics
from models.checkpoint import load_checkpoint
from models.enhance.data import Conditions, pairs
from models.enhance.train import EnhanceTrainee
from models.errors import RecipeError
from models.network import Network, infer_with
from models.pairs import read_pairs
from models.recipe import read_recipe
from models.train import fit
from tests.pairs import write_pairs

ZOO = Path(models.__file__).parent / "zoo" / "enhance-rt"

# An instrument the zoo network never saw: thick veil, dim light, a wide aperture, and one kind of specimen.
FOREIGN = Conditions(
    families=("ic-contacts",),
    effective_na=(1.75,),
    photons=(3000,),
    axis_offset_um=((1.0, 2.0),),
    veil=(0.55, 0.6),
    exposure=(0.55, 0.6),
)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn = [(p.image, p.truth) for p in pairs(FOREIGN, images_per_family=16, side_px=224, seed=7)]
    splits = {"train": drawn[:10], "validation": drawn[10:12], "test": drawn[12:]}
    return write_pairs(tmp_path_factory.mktemp("foreign") / "pairs", splits, FOREIGN.pixel_size_nm)


def test_crops_of_a_folder_keep_image_and_truth_together(foreign: Path) -> None:
    recipe = read_recipe("enhance-rt").with_pairs(foreign).tiny()
    trainee = EnhanceTrainee(recipe)
    trainee.prepare(workers=1)
    batch = trainee.draw(1, range(2))
    assert {name: part.shape for name, part in batch.items()} == {"image": (2, 1, 64, 64), "truth": (2, 1, 64, 64)}
    for image, truth in zip(batch["image"], batch["truth"], strict=True):
        assert np.corrcoef(image.ravel(), truth.ravel())[0, 1] > 0.5
    again = trainee.draw(1, range(1, 2))
    np.testing.assert_array_equal(again["image"][0], batch["image"][1])


@pytest.mark.slow
def test_a_zoo_network_gets_better_on_a_small_foreign_set(foreign: Path, tmp_path: Path) -> None:
    recipe = read_recipe("enhance-rt").with_pairs(foreign)
    short = recipe.having("train", steps=150, warmup_steps=20, learning_rate=5e-4).having("validation", every=50)
    tuned = load_checkpoint(fit(short, tmp_path / "run", init=ZOO, workers=1)).net
    before, after = (
        np.mean(
            [
                metrics.psnr_db(infer(pair.image)["enhanced"], pair.truth, border_px=32)
                for pair in read_pairs(foreign, "test")
            ]
        )
        for infer in (infer_with(load_checkpoint(ZOO / "weights.safetensors").net), infer_with(tuned))
    )
    assert after > before + 1.0


def test_a_network_of_another_scale_than_its_data_is_refused() -> None:
    recipe = read_recipe("enhance-rt-x2").having("data", scale=1)
    with pytest.raises(RecipeError, match="pictures of scale 2, the data are of scale 1"):
        EnhanceTrainee(recipe)


def test_half_of_a_batch_is_that_half_of_the_whole() -> None:
    trainee = EnhanceTrainee(read_recipe("srcnn").tiny())
    trainee.prepare(workers=1)
    whole, half = trainee.draw(3, range(2)), trainee.draw(3, range(1, 2))
    np.testing.assert_array_equal(whole["truth"][1:], half["truth"])
    assert not np.array_equal(trainee.draw(4, range(2))["truth"], whole["truth"])


def test_validation_says_how_uneven_pictures_of_nothing_become() -> None:
    tiny = read_recipe("enhance-rt").tiny().having("data", families=["empty", "dots"])
    trainee = EnhanceTrainee(tiny.having("validation", side_px=160))
    trainee.prepare(workers=1)
    net = trainee.nets["net"].eval()
    assert isinstance(net, Network)
    figures = trainee.validate(net)  # a network that has learned nothing returns its input
    assert next(iter(figures)) == "psnr_db", "decides which checkpoint is best"
    assert figures["background_std"] == pytest.approx(figures["background_std_input"], rel=0.02)
    assert figures["background_std_input"] > 0.01
