"""The judge tells a perfect network from an idle one, and measures through focus what it says."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

from numpy.typing import NDArray

from models.errors import RecipeError
from models.evaluate import Subject, evaluate
from models.recipe import read_recipe
from models.sem import data
from models.sem.evaluate import range_um

Image = NDArray[np.float32]


def subject(infer: object) -> Subject:
    recipe = read_recipe("sem-lite")
    return Subject("some", "sem", infer, 1, 8, recipe.pixel_size_nm, ("sem",), recipe)  # type: ignore[arg-type]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[data.Pair]:
    """The held-out set at a size for tests."""
    whole, empty = data.heldout, data.background
    monkeypatch.setattr(
        data, "heldout", lambda focus_um=None: whole(images_per_family=1, side_px=96, focus_um=focus_um)
    )
    monkeypatch.setattr(data, "background", lambda: empty(images=1, side_px=96))
    return data.heldout()


def knowing(*sets: list[data.Pair]) -> Subject:
    """A network that knows the answers."""
    answers = {pair.image.tobytes(): pair.truth for one in sets for pair in one}
    return subject(lambda image: {"sem": answers.get(image.tobytes(), image)})


def test_a_network_that_knows_the_truth_is_perfect_and_an_idle_one_is_the_input(small: list[data.Pair]) -> None:
    perfect = evaluate(knowing(small), "synthetic:heldout").report
    assert perfect["psnr_db"]["output"] > 100
    assert perfect["epi"]["output"] == pytest.approx(1)
    assert perfect["contextual"]["output"] < perfect["contextual"]["best_classical"]
    idle = evaluate(subject(lambda image: {"sem": image}), "synthetic:heldout").report
    assert idle["psnr_db"]["output"] == idle["psnr_db"]["input"] < idle["psnr_db"]["best_classical"]
    assert idle["background_std"]["output"] == idle["background_std"]["input"] > 0
    assert idle["model"] == "some"
    assert set(idle["tables"]["families"]) == set(data.HELDOUT.families)


@pytest.mark.slow
def test_a_network_without_a_plane_of_focus_has_the_whole_range(small: list[data.Pair]) -> None:
    from models.sem.evaluate import DEFOCUS_UM

    judgement = evaluate(
        knowing(small, *(data.heldout(focus_um=z) for z in DEFOCUS_UM)), "synthetic:heldout", thorough=True
    )
    depth = judgement.report["depth_of_field_um"]
    assert depth["output"] == 1.0
    assert depth["input"] < 1.0
    assert depth["ratio"] == pytest.approx(1.0 / depth["best_classical"], abs=0.01)
    curve = judgement.report["curves"]["epi against defocus"]
    assert {0.0, 0.3, 0.6, 1.0} <= set(curve["x"]["values"])
    assert curve["series"]["output"] == pytest.approx([1.0] * len(DEFOCUS_UM))
    assert curve["series"]["input"][0] > curve["series"]["input"][-1]
    assert len(judgement.pictures) == 5
    assert judgement.pictures[0].image.shape == (96, 5 * 96)
    assert judgement.pictures[0].image[:, 4 * 96 :].max() == 0, "no difference to the truth"


def test_the_range_of_focus_ends_where_seven_tenths_are_left() -> None:
    assert range_um([1.0, 0.9, 0.5], [0.0, 0.3, 0.6]) == pytest.approx(0.45)
    assert range_um([1.0, 0.9, 0.8], [0.0, 0.3, 0.6]) == 0.6


def test_real_images_are_judged_as_relief(small: list[data.Pair], tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (300, 280), dtype=np.uint8)
    Picture.fromarray(picture).save(tmp_path / "chip.png")
    report = evaluate(subject(lambda image: {"sem": image}), "real:heldout", folder=tmp_path).report
    assert report["images"] == 1
    assert "background_std" not in report
    with pytest.raises(RecipeError, match="has no image of at least"):
        evaluate(subject(lambda image: {"sem": image}), "real:heldout", folder=tmp_path / "nowhere")


def test_a_labs_pairs_have_no_psf_and_are_held_against_what_needs_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from models.pairs import Pairing
    from models.sem import evaluate as room

    rng = np.random.default_rng(0)
    parts = [rng.random((64, 64), dtype=np.float32) for _ in range(4)]
    monkeypatch.setattr(
        room, "read_pairs", lambda folder, split: [Pairing("a", *parts[:2], 48.1), Pairing("b", *parts[2:], 48.1)]
    )
    report = evaluate(subject(lambda image: {"sem": image}), "pairs", folder=tmp_path).report
    assert any("unsharp" in row for row in report["tables"]["methods"])


@pytest.mark.parametrize(("name", "says"), [("synthetic:train", "there is no data set"), ("pairs", "needs a folder")])
def test_an_unknown_set_or_a_missing_folder_is_refused(name: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        evaluate(subject(lambda image: {"sem": image}), name)
