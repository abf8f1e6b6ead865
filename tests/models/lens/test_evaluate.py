"""The truth gets full marks, and each fault of a lens shows in the figure that is named after it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from models.errors import RecipeError
from models.evaluate import Subject, evaluate
from models.lens import data
from models.lens.data import HELDOUT, Conditions, Scene
from models.lens.evaluate import Image, figures, heldout_conditions, labels_of, labels_picture
from models.lens.recipe import LensRecipe
from models.lens.spikes import visibility_figures
from models.recipe import read_recipe

SCENES = data.scenes(HELDOUT, count=6, side_px=256, seed=data.HELDOUT_SEED)
SET = (HELDOUT.types, HELDOUT.pixel_size_nm)
Outputs = dict[str, Image]


def true_outputs(scene: Scene) -> Outputs:
    """What a perfect lens would give."""
    outputs = {"shadowed": scene.shadowed, "magnified": scene.on_black, "map": labels_picture(scene.labels)}
    outputs["coloured"] = outputs["map"]
    for number, kind in enumerate(HELDOUT.types, 1):
        outputs[f"filtered_{kind}"] = scene.on_black * (scene.labels == number)
    return outputs


def lens(
    change: Callable[[Outputs, Scene], None] = lambda outputs, scene: None,
) -> Callable[[Image], Mapping[str, Image]]:
    """A lens that knows the truth, with a fault."""
    known = {scene.image.tobytes(): scene for scene in SCENES}

    def infer(image: Image) -> Outputs:
        scene = known[image.tobytes()]
        outputs = true_outputs(scene)
        change(outputs, scene)
        return outputs

    return infer


def test_the_truth_gets_full_marks() -> None:
    report = figures(lens(), SCENES, *SET)
    assert report["labels"] == {"iou": 1, "grain_accuracy": 1}
    assert report["leak"] == 0
    assert report["own_energy"] == report["contrast"] == pytest.approx(1)
    assert report["psnr_db"]["output"] == 200
    assert report["ssim"]["output"] == pytest.approx(1)
    assert report["epi"]["output"] == pytest.approx(1)
    assert report["spikes"]["f1"] > 0.9
    assert report["spikes"]["f1_of_chance"] < 0.7
    assert report["background_std"]["output"] == 0
    assert report["background_std"]["input"] > 0.02


def test_errors_are_in_px_of_the_papers_field() -> None:
    def shift(outputs: Outputs, scene: Scene) -> None:
        assert scene.light is not None
        turn = -1 if scene.light.photons == HELDOUT.photons[0] else 1
        outputs["shadowed"] = np.roll(outputs["shadowed"], 2 * turn, axis=1)

    still, moved = (figures(one, SCENES, *SET)["spikes"] for one in (lens(), lens(shift)))
    # Two pixels to either side are 8 px of the paper's field, 664 nm.
    assert moved["std_x_px"] == pytest.approx(8, rel=0.25)
    assert moved["std_y_px"] == pytest.approx(still["std_y_px"], rel=0.3)
    assert moved["std_x_nm"] == pytest.approx(83 * moved["std_x_px"])


def test_swapped_types_leak_and_cost_labels() -> None:
    def swap(outputs: Outputs, scene: Scene) -> None:
        a, b = (f"filtered_{kind}" for kind in HELDOUT.types)
        outputs[a], outputs[b] = outputs[b], outputs[a]
        outputs["map"] = outputs["map"][..., ::-1]

    report = figures(lens(swap), SCENES, *SET)
    assert report["leak"] == pytest.approx(1, abs=0.01)
    assert report["own_energy"] == report["contrast"] == 0
    assert report["labels"] == {"iou": 0, "grain_accuracy": 0}


def test_a_lens_that_draws_nothing_finds_nothing() -> None:
    def blank(outputs: Outputs, scene: Scene) -> None:
        for name, picture in outputs.items():
            outputs[name] = np.zeros_like(picture)

    report = figures(lens(blank), SCENES, *SET)
    assert report["spikes"]["f1"] == 0
    assert report["spikes"]["std_x_px"] is None
    assert report["leak"] == 0
    assert report["own_energy"] == 0
    assert report["labels"]["grain_accuracy"] == 0


def test_most_spikes_are_hidden_and_the_true_picture_shows_them() -> None:
    true = [scene.shadowed for scene in SCENES], [scene.labels for scene in SCENES]
    report = visibility_figures(*true, SCENES, number=1, pixel_size_nm=HELDOUT.pixel_size_nm)
    assert report["hidden_share"] >= 0.5
    assert report["inferable_share"] >= 0.9
    assert report["recall_of_hidden"] > 0.9
    assert report["f1_on_truth"] > 0.9


def test_a_map_survives_its_colours() -> None:
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(labels_of(labels_picture(labels) * 0.8, 5), labels)


def subject(recipe: LensRecipe) -> Subject:
    names = ("shadowed", "magnified", "map", "coloured", "filtered_spiny", "filtered_smooth")
    return Subject("mine", "neural-lens", lens(), 1, 0, recipe.pixel_size_nm, names, recipe)


@pytest.mark.slow
def test_the_report_of_a_subject_has_every_promised_key() -> None:
    recipe = read_recipe("neural-lens-mini")
    assert isinstance(recipe, LensRecipe)
    SCENES[6:] = data.scenes(HELDOUT, count=24, side_px=256, seed=data.HELDOUT_SEED)[6:]
    report, pictures = evaluate(subject(recipe), "synthetic:heldout")
    assert report["images"] == 24
    for name in ("psnr_db", "ssim", "epi"):
        assert set(report[name]) == {"input", "output", "best_classical"}
    assert report["psnr_db"]["input"] < report["psnr_db"]["best_classical"] < report["psnr_db"]["output"]
    assert set(report["background_std"]) == {"input", "output"}
    assert {"f1", "std_x_px", "std_y_px", "f1_of_chance", "hidden_share"} <= set(report["spikes"])
    assert set(report["labels"]) == {"iou", "grain_accuracy"}
    assert {"spikes", "labels", "picture"} == set(report["tables"])
    assert {picture.image.shape[:2] for picture in pictures} == {(256, 256)}


def test_another_data_set_is_refused() -> None:
    recipe = read_recipe("neural-lens-mini")
    assert isinstance(recipe, LensRecipe)
    with pytest.raises(RecipeError, match="choose synthetic:heldout"):
        evaluate(subject(recipe), "real:heldout", folder=Path())
    assert heldout_conditions(recipe) == Conditions.model_validate(HELDOUT.model_dump())
