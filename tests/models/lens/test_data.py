"""Scenes depend on their seed only, the held-out ones are unlike the training's, and most spikes hide in them."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from models import pollen
from models.lens import data
from models.lens.data import HELDOUT, Conditions
from models.lens.evaluate import heldout_conditions
from models.lens.recipe import LensRecipe
from models.optics import Sensor
from models.recipe import CONFIGS, read_recipe

TRAINING = Conditions(radius_um=((6.2, 7.4),), spikes=(20, 24), photons=(300, 460))


def test_the_held_out_scenes_are_unlike_those_of_every_training_recipe() -> None:
    recipes = [recipe for path in sorted(CONFIGS.glob("*.toml")) for recipe in [read_recipe(path)]]
    lenses = [recipe for recipe in recipes if isinstance(recipe, LensRecipe)]
    assert lenses
    ((low, high),) = HELDOUT.radius_um
    for recipe in lenses:
        assert isinstance(recipe.data, Conditions)
        heldout = heldout_conditions(recipe)
        assert not set(heldout.photons) & set(recipe.data.photons)
        assert not set(heldout.spikes) & set(recipe.data.spikes)
        assert all(high < least or most < low for least, most in recipe.data.radius_um)
        # Seeds are disjoint too: the bank's, the validation's and the held-out set's.
        assert data.HELDOUT_SEED not in (recipe.seed, recipe.seed + 1_000_000)


def test_the_same_seed_gives_the_same_scenes_whoever_draws_them() -> None:
    one, other = (data.scenes(TRAINING, count=2, side_px=128, seed=5) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.shadowed, b.shadowed)
    alone = data.bank(TRAINING, count=4, side_px=64, seed=5, workers=1)
    together = data.bank(TRAINING, count=4, side_px=64, seed=5, workers=2)
    for part, again in zip(alone, together, strict=True):
        np.testing.assert_array_equal(part, again)


def test_every_sixth_held_out_scene_is_empty_and_all_hold_what_they_say() -> None:
    scenes = data.scenes(HELDOUT, count=6, side_px=256, seed=1)
    assert [bool(scene.grains) for scene in scenes] == [True] * 5 + [False]
    for scene in scenes:
        assert scene.image.min() >= 0
        assert scene.image.max() <= 1
        assert scene.grains is not None
        assert scene.tips_px is not None
        assert len(scene.tips_px) == sum(len(grain.spikes) for grain in scene.grains)
        found = set(np.unique(scene.labels)) - {0}
        assert found == {HELDOUT.types.index(grain.kind) + 1 for grain in scene.grains}
        assert scene.grain_of.max() == len(scene.grains)


def test_at_least_half_of_the_spikes_are_hidden_pixel_by_pixel_and_yet_inferable() -> None:
    hidden, inferable = [], []
    for scene in data.scenes(HELDOUT, count=6, side_px=256, seed=data.HELDOUT_SEED):
        assert scene.grains is not None
        assert scene.light is not None
        for grain in scene.grains:
            if grain.spikes:
                seen = pollen.visibility(
                    grain,
                    pixel_size_nm=HELDOUT.pixel_size_nm,
                    exposure=scene.light.exposure,
                    veil=scene.light.veil,
                    electrons=scene.light.photons * Sensor().quantum_efficiency,
                    read_noise_e=Sensor().read_noise_e,
                )
                hidden += seen.hidden.tolist()
                inferable += (seen.snr >= 5).tolist()
    assert len(hidden) > 40
    assert np.mean(hidden) >= 0.5
    assert np.mean(inferable) >= 0.9


def test_the_mini_field_is_the_papers_field() -> None:
    assert HELDOUT.pixel_size_nm * 256 == pytest.approx(data.PAPER_PIXEL_NM * 1024)


def test_a_crop_is_one_scene_moved_and_exposed_anew() -> None:
    bank = data.bank(TRAINING, count=1, side_px=128, seed=8, workers=1)
    crops = [data.crop(bank, TRAINING, np.random.default_rng([1, n]), crop_px=128) for n in range(4)]
    for crop in crops:
        assert {name: part.shape for name, part in crop.items()} == {
            "image": (1, 128, 128), "maps": (2, 128, 128), "on_black": (1, 128, 128), "shadowed": (1, 128, 128),
        }  # fmt: skip
        assert {part.dtype for part in crop.values()} == {np.dtype(np.float32)}
        # Whole fields: nothing is lost by translation, turning and mirroring.
        assert crop["maps"].sum() == np.count_nonzero(bank.labels)
        outside = crop["maps"].sum(0) == 0
        assert crop["on_black"][0][outside].mean() < 0.02
    assert np.abs(crops[0]["image"] - crops[1]["image"]).max() > 0.05
    again = data.crop(bank, TRAINING, np.random.default_rng([1, 0]), crop_px=128)
    np.testing.assert_array_equal(again["image"], crops[0]["image"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"types": ("spiny", "furry")}, "types are spiny, furry; choose different ones from"),
        ({"types": ()}, "at least 1 item"),
        ({"radius_um": ()}, "at least 1 item"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_impossible_conditions_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Conditions.model_validate(TRAINING.model_dump() | change)


def test_a_recipe_whose_sides_or_types_do_not_fit_is_refused(tmp_path: Path) -> None:
    text = (CONFIGS / "neural-lens-mini.toml").read_text()
    for old, new, complaint in (
        ("crop_px = 256", "crop_px = 192", "expected a multiple of 2^downs = 256"),
        ('options = { types = ["spiny", "smooth"]', 'options = { types = ["spiny"]', "are not data.types"),
    ):
        path = tmp_path / "wrong.toml"
        path.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=complaint.replace("^", r"\^")):
            read_recipe(path)
