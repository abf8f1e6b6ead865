"""Any enhancer is judged, against classical methods at their best, by the same rules."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

if os.environ.get("CI") != "true":
    pytest.importorskip("skimage", reason="needs the extra [train]")

from models.classical import METHODS
from models.enhance import by_size, cases, evaluate, robustness, sharpness
from models.enhance.cases import Case
from models.enhance.data import Conditions, pairs
from models.errors import RecipeError
from models.evaluate import Subject
from models.pairs import Pairing
from models.recipe import read_recipe

Image = NDArray[np.float32]

CONDITIONS = Conditions(families=("ic-metal", "dots"), effective_na=(1.2,), photons=(8000,), axis_offset_um=((0, 2),))


def _subject(infer: Callable[[Image], Image], scale: int = 1) -> Subject:
    recipe = read_recipe("enhance-rt")
    return Subject(
        "tested", "enhance", lambda image: {"enhanced": infer(image)}, scale, 32, recipe.pixel_size_nm, ("enhanced",),
        recipe,
    )  # fmt: skip


@pytest.fixture(scope="module")
def some() -> list[Case]:
    return [Case(*pair) for pair in pairs(CONDITIONS, images_per_family=1, side_px=128, seed=1)]


@pytest.fixture(scope="module")
def doing_nothing(some: list[Case]) -> dict[str, Any]:
    return evaluate.judge(_subject(lambda image: image), some)[0]


def test_the_report_holds_input_output_and_the_best_classical_method(doing_nothing: dict[str, Any]) -> None:
    table = doing_nothing["tables"]["methods"]
    assert (doing_nothing["images"], doing_nothing["halo_px"]) == (2, 32)
    assert list(table) == ["input", "output", *METHODS]
    for figure in ("psnr_db", "ssim", "epi"):
        assert table["input"][figure] == table["output"][figure], "doing nothing changes nothing"
    for figure in ("psnr_db", "psnr_corrected_db", "ssim", "epi"):
        assert set(doing_nothing[figure]) == {"input", "output", "best_classical"}
        assert doing_nothing[figure]["best_classical"] == max(table[name][figure] for name in METHODS)
        assert doing_nothing[figure]["best_classical"] > doing_nothing[figure]["input"]
    assert doing_nothing["tables"]["settings"]["wiener"]["psnr_corrected_db"].startswith("noise=")
    assert doing_nothing["tables"]["gain of the output, dB"]["over input"]["psnr_db"] == 0
    assert set(doing_nothing["tables"]["output by family"]) == {"ic-metal", "dots"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "methods", lambda *, psf_known: [METHODS["wiener"]])


@pytest.mark.usefixtures("quick")
def test_the_truth_is_the_best_possible_output_and_the_network_is_told_the_picture_only(some: list[Case]) -> None:
    truths, seen = iter([case.truth for case in some]), []

    def infer(image: Image) -> Image:
        seen.append(image)
        return next(truths)

    report, _, outputs = evaluate.judge(_subject(infer), some)
    assert report["psnr_db"]["output"] == 200
    assert report["epi"]["output"] == report["ssim"]["output"] == 1
    assert [image is case.image for image, case in zip(seen, some, strict=True)] == [True, True]
    assert len(outputs) == 2


@pytest.mark.usefixtures("quick")
def test_another_brightness_changes_the_raw_figure_only(some: list[Case], doing_nothing: dict[str, Any]) -> None:
    brighter, _, _ = evaluate.judge(_subject(lambda image: (1.4 * image - 0.4).astype(np.float32)), some)
    assert abs(brighter["psnr_db"]["output"] - doing_nothing["psnr_db"]["output"]) > 1
    # Of the output alone: the input's corrected figure is that of the picture divided by the light.
    same = doing_nothing["psnr_corrected_db"]["output"]
    assert brighter["psnr_corrected_db"]["output"] == pytest.approx(same, abs=0.01)


def test_without_psf_and_light_only_methods_that_need_neither_take_part(some: list[Case]) -> None:
    bare = [Case(case.name, case.image, case.truth) for case in some]
    report, found, _ = evaluate.judge(_subject(lambda image: image), bare)
    assert [one.method for one in found] == ["unsharp", "gauss-unsharp"]
    assert report["psnr_corrected_db"]["input"] == report["psnr_corrected_db"]["output"]


@pytest.mark.usefixtures("quick")
def test_scale_two_is_judged_on_the_truths_grid() -> None:
    twice = CONDITIONS.model_copy(update={"scale": 2, "families": ("ic-metal",)})
    fine = [Case(*pair) for pair in pairs(twice, images_per_family=1, side_px=96, seed=1)]
    assert fine[0].scale == 2
    assert fine[0].start(flat=True).shape == fine[0].truth.shape == (192, 192)
    report, found, _ = evaluate.judge(_subject(lambda image: np.kron(image, np.ones((2, 2), np.float32)), 2), fine)
    assert found[0].images[0].shape == (192, 192)
    assert report["psnr_corrected_db"]["best_classical"] > report["psnr_corrected_db"]["input"]


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(RecipeError, match="no data set 'imagenet'; choose synthetic:heldout, real:heldout or pairs"):
        evaluate.evaluate(_subject(lambda image: image), "imagenet")
    with pytest.raises(RecipeError, match="give it with --data-dir"):
        evaluate.evaluate(_subject(lambda image: image), "real:heldout")
    with pytest.raises(RecipeError, match="is of scale 3, expected 1 or 2"):
        evaluate.evaluate(_subject(lambda image: image, 3), "synthetic:heldout")
    with pytest.raises(RecipeError, match="on one grid, the network is of scale 2"):
        evaluate.evaluate(_subject(lambda image: image, 2), "pairs", folder=Path())


def test_a_labs_own_pairs_are_judged_without_what_nobody_knows_of_them(
    monkeypatch: pytest.MonkeyPatch, some: list[Case]
) -> None:
    asked = []

    def read(folder: Path, split: str) -> list[Pairing]:
        asked.append((folder, split))
        return [Pairing(f"test/{number}", case.image, case.truth, 48.1) for number, case in enumerate(some)]

    monkeypatch.setattr(cases, "read_pairs", read)
    judgement = evaluate.evaluate(_subject(lambda image: image), "pairs", folder=Path("lab"), thorough=True)
    assert asked == [(Path("lab"), "test")]
    assert list(judgement.report["tables"]["methods"]) == ["input", "output", "unsharp", "gauss-unsharp"]
    assert "background_std" not in judgement.report
    assert "curves" not in judgement.report
    assert any("neither PSF nor light is known" in note for note in judgement.report["notes"])
    assert judgement.report["tables"]["resolution, nm"]["input"]["frc of"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_thorough_judgement_has_tables_curves_and_pictures_that_are_json(
    monkeypatch: pytest.MonkeyPatch, some: list[Case]
) -> None:
    import json

    monkeypatch.setattr(evaluate, "load_cases", lambda data_set, **_: some)
    monkeypatch.setattr(evaluate, "empty", lambda scale: cases.empty(scale, count=2))
    monkeypatch.setattr(by_size, "_IMAGES", 2)
    monkeypatch.setattr(by_size, "_GAPS_NM", (200, 400))
    monkeypatch.setattr(sharpness, "_GAPS_NM", (100, 300))
    monkeypatch.setattr(robustness, "_SWEEPS", {"photons": (500.0, 5000.0), "rotation_deg": (0.0, 45.0)})
    monkeypatch.setattr(robustness, "FAMILIES", {"dots": None, "empty": None, "bars": None})
    judgement = evaluate.evaluate(_subject(lambda image: image), "synthetic:heldout", thorough=True)
    report = json.loads(json.dumps(judgement.report, allow_nan=False))
    assert set(report["background_std"]) == set(report["false_features_per_1e6_px"]) == {"input", "output"}
    assert report["background_std"]["input"] == report["background_std"]["output"] > 0
    assert {"methods", "object size", "images", "resolution, nm", "two-line gap, nm"} <= set(report["tables"])
    assert set(report["curves"]) == {
        f"{figure} against {x}" for figure in ("psnr_corrected_db", "epi") for x in ("photons", "rotation_deg")
    }
    assert report["tables"]["families, seen in training or not"]["dots"]["in training"] == "yes"
    assert report["tables"]["families, seen in training or not"]["bars"]["in training"] == "no"
    assert [picture.title for picture in judgement.pictures] == [case.name for case in some]
    assert judgement.pictures[0].image.shape == (128, 5 * 128 + 4 * 6)
    assert len(report["notes"]) == 4
