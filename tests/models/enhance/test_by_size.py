"""Particles are found by size at one false-alarm rate: the truth finds all, a flat picture none."""

import os

import numpy as np
import pytest
from numpy.typing import NDArray

if os.environ.get("CI") != "true":
    pytest.importorskip("skimage", reason="needs the extra [train]")

from models.detection import match
from models.enhance import by_size, data
from models.enhance.by_size import FALSE_PER_1E6_PX, SIZES_NM, judge, particles, table
from models.evaluate import Subject
from models.recipe import read_recipe

Image = NDArray[np.float32]


def _subject(infer) -> Subject:  # type: ignore[no-untyped-def]
    recipe = read_recipe("enhance-rt")
    pixel_nm = recipe.pixel_size_nm
    return Subject("tested", "enhance", lambda image: {"enhanced": infer(image)}, 1, 8, pixel_nm, ("enhanced",), recipe)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_size, "_IMAGES", 2)
    monkeypatch.setattr(by_size, "_GAPS_NM", (0, 100, 200, 300))
    monkeypatch.setattr(by_size, "_CLASSICAL", {"wiener noise=0.0316": {"noise": 0.0316}})


def test_particles_lie_where_they_are_said_to_and_are_as_large() -> None:
    cases = particles(data.HELDOUT, (100, 300))
    for case, points in cases:
        assert 10 < len(points) < 64
        peaks = np.argwhere(case.truth == case.truth.max())
        assert match(peaks[:1], points, 5).recall > 0
        area_px = ((case.truth - np.median(case.truth)) / by_size._RISE).sum()
        mean_nm = 2 * (area_px / len(points) / np.pi) ** 0.5 * data.HELDOUT.pixel_size_nm
        assert 150 < mean_nm < 260
    distances = np.hypot(*(cases[0][1][:, None] - cases[0][1]).T) + 1e9 * np.eye(len(cases[0][1]))
    assert distances.min() > 13, "no particle is in another's surroundings"


def test_the_truth_finds_everything_with_its_full_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    truths = {}
    real = by_size.see

    def remembering(name, truth, conditions, **options):  # type: ignore[no-untyped-def]
        case = real(name, truth, conditions, **options)
        truths[case.image.tobytes()] = truth
        return case

    monkeypatch.setattr(by_size, "see", remembering)
    report = judge(_subject(lambda image: truths[image.tobytes()]))
    assert list(report) == [f"{low}-{high} nm" for low, high in SIZES_NM]
    for figures in report.values():
        assert figures["f1"]["output"] > 0.95
        assert figures["contrast"]["output"] == pytest.approx(1)
        assert figures["f1_of_chance"] < 0.2
        assert figures["std_x_nm"] < 30
        assert figures["contrast"]["input"] < 0.7
    assert report["50-60 nm"]["f1"]["input"] < report["300-600 nm"]["f1"]["input"]


def test_a_flat_picture_finds_nothing_and_the_table_says_so() -> None:
    report = judge(_subject(lambda image: np.full_like(image, 0.5)))
    rows = table(report)
    assert rows["50-60 nm, f1"]["output"] == 0
    assert rows["50-60 nm, f1"]["chance"] == 0
    assert rows["100-300 nm, contrast"]["output"] == 0
    assert rows["300-600 nm, gap_nm"]["output"] is None
    assert report["50-60 nm"]["std_x_nm"] is None
    assert FALSE_PER_1E6_PX > 0
