"""Any callable is judged, against classical methods at their best, by the same rules."""

import os

import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

from models import metrics
from models.enhance.data import Conditions, Pair, pairs
from models.enhance.evaluate import by_family, data_set, evaluate, lucy, unsharp, wiener
from models.errors import RecipeError

CONDITIONS = Conditions(families=("ic-metal", "dots"), effective_na=(1.2,), photons=(8000,), axis_offset_um=((0, 2),))


@pytest.fixture(scope="module")
def some() -> list[Pair]:
    return pairs(CONDITIONS, images_per_family=1, side_px=128, seed=1)


def test_the_report_holds_input_output_and_the_best_classical_method(some: list[Pair]) -> None:
    report = evaluate(lambda image: image, some, halo_px=32)
    assert (report["images"], report["halo_px"]) == (2, 32)
    assert set(report["methods"]) == {"input", "output", "unsharp", "wiener", "richardson-lucy-10"}
    for figure in ("psnr_db", "ssim", "epi"):
        assert report[figure]["input"] == report[figure]["output"], "doing nothing changes nothing"
    for figure in ("psnr_db", "psnr_corrected_db"):
        assert set(report[figure]) == {"input", "output", "best_classical"}
        classical = [report["methods"][name][figure] for name in ("unsharp", "wiener", "richardson-lucy-10")]
        assert report[figure]["best_classical"] == max(classical) > report[figure]["input"]
    assert report["methods"]["wiener"]["psnr_corrected_db_setting"].startswith("noise=")


def test_the_truth_is_the_best_possible_output(some: list[Pair]) -> None:
    truths = iter([pair.truth for pair in some])
    report = evaluate(lambda _: next(truths), some, halo_px=32)
    assert report["psnr_db"]["output"] == 200
    assert report["epi"]["output"] == report["ssim"]["output"] == 1


def test_another_brightness_changes_the_raw_figure_only(some: list[Pair]) -> None:
    plain = evaluate(lambda image: image, some, halo_px=32)
    brighter = evaluate(lambda image: (1.4 * image - 0.4).astype(np.float32), some, halo_px=32)
    assert abs(brighter["psnr_db"]["output"] - plain["psnr_db"]["output"]) > 1
    assert brighter["psnr_corrected_db"]["output"] == pytest.approx(plain["psnr_corrected_db"]["output"], abs=0.01)


def test_the_enhancer_is_told_the_picture_only_and_families_are_listed(some: list[Pair]) -> None:
    seen = []
    table = by_family(lambda image: seen.append(image.shape) or image, some, halo_px=32)  # type: ignore[func-returns-value]
    assert set(table) == {"ic-metal", "dots"}
    assert seen == [(128, 128)] * 2


@pytest.mark.parametrize("method", [wiener(0.003), lucy(10), unsharp(3, 1)])
def test_each_classical_method_sharpens_a_clean_blurred_picture(some: list[Pair], method) -> None:  # type: ignore[no-untyped-def]
    pair = some[0]
    flat = (pair.image / pair.light).astype(np.float32)
    restored = method(flat, pair.psf)
    assert restored.shape == flat.shape
    assert restored.dtype == np.float32
    gain = metrics.psnr_corrected_db(restored, pair.truth, border_px=32) - metrics.psnr_corrected_db(
        flat, pair.truth, border_px=32
    )
    assert gain > 0.1


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(RecipeError, match="no data set 'imagenet'; choose synthetic:heldout or real:heldout"):
        data_set("imagenet")
    with pytest.raises(RecipeError, match="give it with --data-dir"):
        data_set("real:heldout")
