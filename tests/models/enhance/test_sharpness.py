"""Sharper pictures get finer figures."""

import os

import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("skimage", reason="needs the extra [train]")

from models.classical import METHODS, best
from models.enhance import sharpness
from models.enhance.cases import Case
from models.enhance.data import Conditions, pairs
from models.evaluate import Subject
from models.metrics import psnr_corrected_db
from models.recipe import read_recipe

CONDITIONS = Conditions(families=("leaves",), effective_na=(1.2,), photons=(8000,), axis_offset_um=((0, 2),))
CASES = [Case(*pair) for pair in pairs(CONDITIONS, images_per_family=2, side_px=160, seed=1)]
WIENER = best(
    METHODS["wiener"],
    [case.start(flat=True) for case in CASES],
    [case.psf for case in CASES],
    lambda image, number: psnr_corrected_db(image, CASES[number].truth, border_px=16),
)


def _subject() -> Subject:
    recipe = read_recipe("enhance-rt")
    return Subject("tested", "enhance", lambda i: {"enhanced": i}, 1, 16, recipe.pixel_size_nm, ("enhanced",), recipe)


def test_deconvolution_makes_the_agreement_with_the_truth_finer_and_invents_nothing_beyond_the_optics() -> None:
    table = sharpness.table(_subject(), CASES, WIENER)
    assert list(table) == ["input", "best_classical", "output"]
    row = table["best_classical"]
    assert row["frc of"] == row["frc_truth of"] == row["decorrelation of"] == 2
    # A linear filter keeps what correlates: the cut-off of the light, 229 nm, bounds both, and noise comes before.
    for name in ("input", "best_classical"):
        assert 225 < table[name]["frc"] < 400  # type: ignore[operator]  # measured, see above
    assert row["decorrelation"] <= table["input"]["decorrelation"]  # type: ignore[operator]  # as above


def test_a_labs_own_pairs_are_measured_by_one_picture() -> None:
    bare = [Case(case.name, case.image, case.truth) for case in CASES]
    unsharp = best(METHODS["unsharp"], [case.image for case in bare], [None, None], lambda image, number: 0.0)
    table = sharpness.table(_subject(), bare, unsharp)
    assert table["input"]["frc"] == table["output"]["frc"] is not None


def test_the_two_line_gap_of_deconvolved_pictures_is_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharpness, "_GAPS_NM", (100, 150, 200, 250, 300))
    gaps = sharpness.two_line_gap(_subject(), WIENER)
    assert gaps["output"] == gaps["input"]
    assert gaps["best_classical"] is not None
    assert gaps["input"] is not None
    assert gaps["best_classical"] < gaps["input"]
    assert np.isin([gaps["input"], gaps["best_classical"]], (100, 150, 200, 250, 300)).all()
