"""The classical methods sharpen, keep what needs no change, and get the settings that suit them best."""

import os

import numpy as np
import pytest
from numpy.typing import NDArray

if os.environ.get("CI") != "true":
    pytest.importorskip("skimage", reason="needs the extra [train]")

from skimage.restoration import richardson_lucy

from models import classical
from models.classical import METHODS, Method, best, histogram_matched, lucy, methods, wiener
from models.metrics import psnr_db
from models.optics import Optics, blur
from models.samples import render

Image = NDArray[np.float32]

PSF = Optics(effective_na=1.2).psf(60.0)
TRUTH = render("ic-metal", shape_px=(120, 140), pixel_size_nm=60.0, seed=3)
RNG = np.random.default_rng(5)
SEEN = (blur(TRUTH, PSF) + 0.01 * RNG.standard_normal(TRUTH.shape)).astype(np.float32)


def _score(image: Image, number: int) -> float:
    return psnr_db(image, TRUTH, border_px=20)


def test_the_set_is_the_one_the_definitions_ask_for() -> None:
    assert list(METHODS) == [
        "unsharp", "gauss-unsharp", "wiener", "richardson-lucy-10", "richardson-lucy-30", "wiener-tv",
        "richardson-lucy-tv",
    ]  # fmt: skip
    assert [method.name for method in methods(psf_known=False)] == ["unsharp", "gauss-unsharp"]


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_at_its_best_comes_nearer_to_the_truth(name: str) -> None:
    found = best(METHODS[name], [SEEN], [PSF], _score)
    assert found.score > _score(SEEN, 0) + 0.5
    assert found.score == pytest.approx(_score(found.images[0], 0))
    assert found.images[0].shape == SEEN.shape
    assert found.images[0].dtype == np.float32
    assert found.setting_text.split("=")[0] == next(iter(METHODS[name].grid))


def test_total_variation_after_wiener_is_at_least_as_good_as_wiener_alone() -> None:
    scores = {name: best(METHODS[name], [SEEN], [PSF], _score).score for name in ("wiener", "wiener-tv")}
    assert scores["wiener-tv"] >= scores["wiener"]


@pytest.mark.parametrize("name", list(METHODS))
def test_a_flat_picture_stays_flat(name: str) -> None:
    method, flat = METHODS[name], np.full((90, 80), 0.4, np.float32)
    setting = {key: values[len(values) // 2] for key, values in method.grid.items()}
    # Wiener dims by 1 / (1 + noise), which is part of the method.
    scale = 1 / (1 + setting.get("noise", 0))
    np.testing.assert_allclose(method.restore(flat, PSF, **setting), 0.4 * scale, atol=2e-4)


def test_wiener_inverts_a_blur_that_no_noise_hides() -> None:
    mild = np.zeros((5, 5), np.float32)
    mild[2, 1:4], mild[1:4, 2] = 0.1, 0.1
    mild[2, 2] = 1 - mild.sum() + mild[2, 2]
    restored = wiener(blur(TRUTH, mild), mild, noise=1e-9)
    np.testing.assert_allclose(restored, TRUTH, atol=1e-3)


def test_richardson_lucy_equals_the_published_implementation() -> None:
    margin = 60  # so that the two ideas of what lies outside do not matter
    wide = np.pad(SEEN, margin, mode="symmetric")
    expected = richardson_lucy(np.maximum(wide, 1e-4), PSF, num_iter=10, clip=False, filter_epsilon=1e-6)  # type: ignore[no-untyped-call]
    inside = (slice(margin + 25, -margin - 25),) * 2
    np.testing.assert_allclose(lucy(wide, PSF, iterations=10)[inside], expected[inside], atol=2e-3)


def test_an_aperture_that_is_not_centred_is_undone_without_a_shift() -> None:
    skew = np.zeros((5, 5), np.float32)
    skew[2, 4] = 1  # the picture moved two pixels to the right
    restored = wiener(blur(TRUTH, skew), skew, noise=1e-9)
    np.testing.assert_allclose(restored[:, 2:-6], TRUTH[:, 2:-6], atol=1e-3)


def test_a_histogram_match_has_the_grey_values_of_the_reference_in_the_order_of_the_picture() -> None:
    matched = histogram_matched(SEEN**2, TRUTH)
    np.testing.assert_allclose(np.sort(matched, axis=None), np.sort(TRUTH, axis=None), atol=0.05)
    order = np.argsort(SEEN, axis=None)
    assert (np.diff(matched.ravel()[order]) >= 0).all()
    np.testing.assert_allclose(matched, histogram_matched(SEEN, TRUTH), atol=1e-6)


def test_the_search_walks_to_the_top_of_a_hill_and_computes_each_sharpening_once() -> None:
    calls = []

    def sharpen(image: Image, psf: Image | None, *, noise: float) -> Image:
        calls.append(noise)
        return image + np.float32(noise)

    grid = {"noise": (0.0, 1.0, 2.0, 3.0, 4.0, 5.0), "weight": (0.0, 0.1, 0.2)}
    method = Method("hill", sharpen, grid, start={"noise": 0.0, "weight": 0.2})
    images = [np.zeros((4, 4), np.float32)] * 2
    found = best(
        method,
        images,
        [PSF, PSF],
        lambda image, _: -abs(float(image[0, 0]) - 3),
    )
    assert found.setting["noise"] == 3
    assert sorted(set(calls)) == [0, 1, 2, 3, 4]
    assert len(calls) == 2 * 5


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0 pictures"):
        best(METHODS["unsharp"], [], [], _score)
    with pytest.raises(ValueError, match="wiener needs the PSF of every picture"):
        best(METHODS["wiener"], [SEEN], [None], _score)
    assert best(METHODS["unsharp"], [SEEN], [None], _score).score > _score(SEEN, 0)


def test_a_weight_of_nothing_changes_nothing() -> None:
    assert classical.total_variation(SEEN, weight=0) is SEEN


def test_a_finer_grid_shows_the_same_picture_and_the_same_psf() -> None:
    y, x = np.mgrid[:40, :50]
    coarse = (0.5 + 0.2 * np.sin(y / 5) * np.cos(x / 6)).astype(np.float32)
    fine = classical.enlarged(coarse, 2)
    assert fine.shape == (80, 100)
    np.testing.assert_allclose(fine.reshape(40, 2, 50, 2).mean((1, 3)), coarse, atol=3e-3)
    wide = classical.enlarged_psf(PSF, 2)
    assert wide.shape == (2 * len(PSF) - 1,) * 2
    np.testing.assert_allclose(wide, Optics(effective_na=1.2).psf(30.0), atol=3e-5)
    assert classical.enlarged(coarse, 1) is coarse
