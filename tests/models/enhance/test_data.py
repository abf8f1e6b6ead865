"""Training and held-out pairs are reproducible, disjoint, and what they say they are."""

import os
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import models
from models.enhance import data
from models.enhance.data import HELDOUT, Conditions, crop, heldout, pairs, real_heldout, scenes
from models.errors import RecipeError
from models.recipe import read_recipe

CONFIGS = [
    path
    for path in sorted((Path(models.__file__).parent / "configs").glob("*.toml"))
    if read_recipe(path).task == "enhance"
]

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


@pytest.mark.parametrize("scale", [1, 2])
def test_a_crop_is_a_window_of_both_parts_exposed_anew(scale: Literal[1, 2]) -> None:
    conditions = SMALL.model_copy(update={"scale": scale, "families": ("leaves",), "photons": (20_000,)})
    bank = scenes(conditions, count=3, side_px=96, seed=5, workers=1)
    assert bank.truth.shape == (3, 96 * scale, 96 * scale)
    image, truth = crop(bank, conditions, crop_px=64, rng=np.random.default_rng(9))
    assert (image.shape, truth.shape) == ((64, 64), (64 * scale, 64 * scale))
    small = truth.reshape(64, scale, 64, scale).mean((1, 3))
    assert np.corrcoef(image.ravel(), small.ravel())[0, 1] > 0.9
    np.testing.assert_array_equal(image, crop(bank, conditions, crop_px=64, rng=np.random.default_rng(9))[0])
    assert not np.array_equal(image, crop(bank, conditions, crop_px=64, rng=np.random.default_rng(10))[0])


def test_at_scale_2_a_camera_pixel_collects_the_light_of_four_truth_pixels() -> None:
    conditions = SMALL.model_copy(update={"scale": 2})
    truth = np.zeros((96, 96), np.float32)
    truth[40:44, 40:44] = 1
    seen = conditions.seen(truth, 1.0)
    assert seen.shape == (48, 48)
    assert seen.sum() == pytest.approx(truth.sum() / 4, rel=1e-3)
    assert np.unravel_index(seen.argmax(), seen.shape) in [(20, 20), (20, 21), (21, 20), (21, 21)]


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
