"""Optical and electron pictures show the same specimen, are reproducible, and the held-out ones are new."""

import os
from pathlib import Path

import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import models
from models.optics import blur
from models.recipe import read_recipe
from models.sem import data
from models.sem.data import HELDOUT, Conditions, background, crop, heldout, pairs, scenes
from models.sem.recipe import SemRecipe

CONFIGS = [
    path for path in sorted((Path(models.__file__).parent / "configs").glob("*.toml"))
    if 'task = "sem"' in path.read_text()
]  # fmt: skip

SMALL = Conditions(
    families=("dots", "grating"),
    effective_na=("traced", 1.0),
    height_um=(0.1, 0.2),
    focus_um=(-0.5, 0.5),
    photons=(4000,),
    axis_offset_um=((0, 2),),
)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_no_training_config_contains_what_is_held_out(config: Path) -> None:
    recipe = read_recipe(config)
    assert isinstance(recipe, SemRecipe)
    trained = recipe.data
    assert isinstance(trained, Conditions)
    assert not set(trained.families) & set(HELDOUT.families)
    assert not set(trained.effective_na) & set(HELDOUT.effective_na)
    assert not set(trained.height_um) & set(HELDOUT.height_um)
    assert not set(trained.photons) & set(HELDOUT.photons)
    for mine in trained.axis_offset_um:
        for theirs in HELDOUT.axis_offset_um:
            assert max(mine[0], theirs[0]) > min(mine[1], theirs[1])


def test_there_are_configs_to_compare_with() -> None:
    assert {"sem-lite", "ssum"} <= {path.stem for path in CONFIGS}


def test_the_held_out_set_is_the_same_every_time_and_mixes_all_conditions() -> None:
    first, second = (heldout(images_per_family=2, side_px=96) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.truth, other.truth)
    names = [pair.name for pair in first]
    assert {name.split()[0] for name in names} == set(HELDOUT.families)
    for part in ("NA 0.9", "NA 1.5", "500 photons", "8000 photons", "0.15 um high", "0.3 um high"):
        assert any(part in name for name in names), part


def test_looking_at_another_plane_changes_the_focus_and_nothing_else() -> None:
    near, far = (heldout(images_per_family=1, side_px=96, focus_um=focus_um) for focus_um in (0.0, 0.6))
    for sharp, soft in zip(near, far, strict=True):
        np.testing.assert_array_equal(sharp.truth, soft.truth)
        np.testing.assert_array_equal(sharp.light, soft.light)
        np.testing.assert_array_equal(sharp.psf, sharp.psf_defocused)
        assert soft.psf_defocused.max() < sharp.psf.max()
        assert not np.array_equal(sharp.image, soft.image)


def test_the_background_is_empty_and_what_was_seen_of_it_is_noise() -> None:
    for pair in background(images=2, side_px=96):
        assert np.ptp(pair.truth) < 1e-5
        assert 0 < (pair.image / pair.light).std() < 0.1


def test_the_electron_picture_is_bright_where_the_optical_one_has_steps() -> None:
    steps = SMALL.model_copy(update={"families": ("siemens",), "focus_um": (0.0, 0.0)})
    pair = pairs(steps, images_per_family=1, side_px=128, seed=5)[0]
    slope = np.hypot(*np.gradient(pair.image / pair.light))
    rims = blur(pair.truth, pair.psf)
    assert np.corrcoef(slope[8:-8, 8:-8].ravel(), rims[8:-8, 8:-8].ravel())[0, 1] > 0.3


def test_scenes_do_not_depend_on_the_number_of_workers() -> None:
    alone, together = (scenes(SMALL, count=3, side_px=96, seed=5, workers=workers) for workers in (1, 2))
    np.testing.assert_array_equal(alone.seen, together.seen)
    np.testing.assert_array_equal(alone.truth, together.truth)


def coordinates(count: int = 3, side: int = 64) -> data.Scenes:
    """A bank whose pixels say where they are: scene x 100 + place."""
    y, x = np.mgrid[:side, :side] / (100 * side)
    each = np.stack([scene + y + x for scene in range(count)])
    return data.Scenes(each.astype(np.float16), each.astype(np.float16))


def test_paired_crops_show_one_specimen_and_unpaired_ones_two(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, rng = coordinates(), np.random.default_rng(0)
    monkeypatch.setattr(Conditions, "observe", lambda self, seen, photons, rng: (seen, seen))
    for _ in range(20):
        image, truth = crop(bank, SMALL, crop_px=32, paired=True, rng=rng)
        np.testing.assert_array_equal(image, truth)
        image, truth = crop(bank, SMALL, crop_px=32, paired=False, rng=rng)
        assert round(float(image.mean() // 1)) != round(float(truth.mean() // 1))


def test_misregistered_crops_are_shifted_by_no_more_than_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, rng = coordinates(count=1), np.random.default_rng(0)
    bank = data.Scenes(*(np.indices((64, 64))[None].sum(1).astype(np.float16) for _ in range(2)))  # y + x
    monkeypatch.setattr(Conditions, "observe", lambda self, seen, photons, rng: (seen, seen))
    loose = SMALL.model_copy(update={"misregistration_px": 3})
    shifts = []
    for _ in range(60):
        image, truth = crop(bank, loose, crop_px=32, paired=True, rng=rng)
        shifts.append(float((truth - image).mean()))
    assert max(map(abs, shifts)) <= 6
    assert len(set(shifts)) > 5


def test_unknown_families_are_refused() -> None:
    with pytest.raises(ValueError, match="no specimen family unicorn"):
        SMALL.model_validate(SMALL.model_dump() | {"families": ["unicorn"]})
