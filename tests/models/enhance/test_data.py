"""Training and held-out pairs are reproducible, disjoint, and what they say they are."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import models
from models.enhance import data
from models.enhance.data import HELDOUT, Conditions, batches, heldout, pairs, real_heldout, scenes
from models.errors import RecipeError
from models.recipe import read_recipe

CONFIGS = sorted((Path(models.__file__).parent / "configs").glob("*.toml"))

SMALL = Conditions(families=("dots", "empty"), effective_na=("traced", 1.0), photons=(1000,), axis_offset_um=((0, 2),))


def overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return max(a[0], b[0]) <= min(a[1], b[1])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_no_training_config_contains_what_is_held_out(config: Path) -> None:
    trained = read_recipe(config).data
    assert not set(trained.families) & set(HELDOUT.families)
    assert not set(trained.effective_na) & set(HELDOUT.effective_na)
    assert not set(trained.photons) & set(HELDOUT.photons)
    assert not [
        (mine, theirs) for mine in trained.axis_offset_um for theirs in HELDOUT.axis_offset_um if overlap(mine, theirs)
    ]


def test_there_are_configs_to_compare_with() -> None:
    assert "enhance-rt" in [path.stem for path in CONFIGS]


def test_the_held_out_set_is_the_same_every_time_and_mixes_all_conditions() -> None:
    first, second = heldout(images_per_family=4, side_px=96), heldout(images_per_family=4, side_px=96)
    assert len(first) == 20
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.truth, other.truth)
    for family in HELDOUT.families:
        names = [pair.name.split() for pair in first if pair.name.startswith(f"{family} ")]
        assert len({name[2] for name in names}) == 4, "every family is seen through every aperture"
        assert len({name[3] for name in names}) == 3, "and at every noise level"


def test_the_held_out_set_is_the_published_one() -> None:
    """Figures quoted from other machines hold only while these means stand."""
    published = [[0.6588, 0.6718], [0.0651, 0.2256], [0.2095, 0.3605], [0.2229, 0.3566], [0.3645, 0.4971]]
    found = heldout(images_per_family=1, side_px=96)
    means = [[float(pair.truth.mean()), float(pair.image.mean())] for pair in found]
    np.testing.assert_allclose(means, published, atol=2e-4)


def test_truth_is_reflectivity_without_psf_or_illumination() -> None:
    pair = pairs(SMALL, images_per_family=1, side_px=96, seed=3)[1]
    assert pair.name.startswith("empty")
    assert np.ptp(pair.truth) == 0
    assert np.ptp(pair.light) > 0.02
    veiled = pair.image / pair.light
    assert veiled.mean() >= pair.truth.mean() - 0.02
    assert 0 <= pair.image.min() <= pair.image.max() <= 1


def test_scenes_do_not_depend_on_the_number_of_workers() -> None:
    alone = scenes(SMALL, count=3, side_px=96, seed=5, workers=1)
    together = scenes(SMALL, count=3, side_px=96, seed=5, workers=2)
    np.testing.assert_array_equal(alone.truth, together.truth)
    np.testing.assert_array_equal(alone.blurred, together.blurred)


def test_batches_are_the_seeds_and_never_the_same_twice() -> None:
    bank = scenes(SMALL, count=3, side_px=96, seed=5, workers=1)
    stream, again = (batches(bank, SMALL, crops=2, crop_px=64, seed=9) for _ in range(2))
    image, truth = next(stream)
    assert image.shape == truth.shape == (2, 1, 64, 64)
    assert image.dtype == truth.dtype == np.float32
    np.testing.assert_array_equal(image, next(again)[0])
    assert not np.array_equal(image, next(stream)[0])


def test_unknown_families_are_refused() -> None:
    with pytest.raises(ValueError, match="no specimen family unicorn"):
        SMALL.model_validate(SMALL.model_dump() | {"families": ["unicorn"]})


def test_real_images_are_seen_through_the_same_optics(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (300, 280), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "chip.png")
    (tmp_path / "notes.txt").write_text("no image")
    (pair,) = real_heldout(tmp_path)
    assert pair.name.startswith("chip NA")
    assert pair.truth.shape == (256, 256)
    with pytest.raises(RecipeError, match="has no image of at least"):
        real_heldout(tmp_path / "nowhere")


def test_the_published_optics_is_the_default(tmp_path: Path) -> None:
    assert data.Conditions.model_fields["pixel_size_nm"].default == pytest.approx(48.148, abs=1e-3)
