"""The steps of registration, each by itself: pictures, starts, refinement, and what shading leaves alone."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if os.environ.get("CI") != "true":
    pytest.importorskip("cv2", reason="needs the extra [train]")

import cv2

from models.alignment import averaged, divided_by_light, edge_side, optical_side, refined, sem_side, starts
from models.samples import render
from tests.lab import error_px, similarity

SIDE = 192
EVERYWHERE = np.ones((SIDE, SIDE), bool)


def scene(seed: int = 3) -> np.ndarray:
    drawn = render("leaves", shape_px=(SIDE + 80, SIDE + 80), pixel_size_nm=48.1, seed=seed)
    return cv2.GaussianBlur(drawn, (0, 0), 1.5)


def seen(drawn: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """What the other instrument sees when `matrix` takes pixels of the middle of the scene to its own."""
    place = matrix @ np.array([[1, 0, -40], [0, 1, -40], [0, 0, 1.0]])
    return cv2.warpAffine(drawn, place[:2], (SIDE, SIDE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def test_a_vignette_is_divided_away() -> None:
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    flat = divided_by_light((0.8 - 0.3 * (x**2 + y**2)).astype(np.float32), EVERYWHERE)
    assert float(np.ptp(flat[20:-20, 20:-20])) < 0.05


def test_what_averages_invalid_pixels_is_invalid() -> None:
    valid = EVERYWHERE.copy()
    valid[10, 10] = False
    small, small_valid = averaged(scene()[:SIDE, :SIDE], valid, (SIDE // 2, SIDE // 2))
    assert small.shape == small_valid.shape == (SIDE // 2, SIDE // 2)
    assert np.argwhere(~small_valid).tolist() == [[5, 5]]


def test_pictures_have_no_mean_and_no_scale_and_are_blank_outside() -> None:
    valid = EVERYWHERE.copy()
    valid[:, :60] = False
    for halvings in (0, 1):
        side = sem_side(scene()[:SIDE, :SIDE], valid, halvings)
        for picture in side.pictures:
            assert float(picture[side.valid].mean()) == pytest.approx(0, abs=1e-3)
            assert float(picture[side.valid].std()) == pytest.approx(1, abs=1e-3)
            assert not picture[~side.valid].any()


@pytest.mark.parametrize("inverted", [False, True])
def test_the_grid_has_a_start_that_refinement_finishes(inverted: bool) -> None:
    drawn, truth = scene(), similarity(0.88, 11.0, (9, -14), SIDE)
    other = seen(1 - drawn if inverted else drawn, truth)
    sides = optical_side(drawn[40:-40, 40:-40], EVERYWHERE, 1), sem_side(other, EVERYWHERE, 1)
    finer = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])
    truth = np.linalg.inv(finer) @ truth @ finer
    tries = starts(*sides, (0.8, 1.1), 15.0)
    assert min(error_px(truth, one, SIDE // 2) for one in tries) < 6
    best = max((refined(*sides, one, "similarity") for one in tries), key=lambda fit: fit.score)
    assert error_px(truth, best.matrix, SIDE // 2) < 0.3


@settings(max_examples=10, deadline=None)
@given(y=st.floats(-2, 2), x=st.floats(-2, 2))
def test_refinement_by_shift_alone_finds_small_shifts(y: float, x: float) -> None:
    drawn, truth = scene(), similarity(1, 0, (y, x), SIDE)
    sides = (
        optical_side(drawn[40:-40, 40:-40], EVERYWHERE, 0),
        sem_side(seen(drawn, truth), EVERYWHERE, 0),
    )
    found = refined(*sides, np.eye(3), "shift").matrix
    assert error_px(truth, found, SIDE) < 0.2
    np.testing.assert_allclose(found[:2, :2], np.eye(2), atol=1e-9)


def test_edges_keep_nothing_that_intensities_and_slopes_say() -> None:
    side = edge_side(scene()[40:-40, 40:-40], EVERYWHERE)
    assert side.known is not None
    inside = side.known[:, side.valid]
    products = inside @ side.pictures[0][side.valid] / inside.shape[1]
    assert float(np.abs(products).max()) < 0.02


def test_nothing_fits_where_nothing_is_valid() -> None:
    drawn = scene()[:SIDE, :SIDE]
    nowhere = optical_side(drawn, np.zeros_like(EVERYWHERE), 0)
    assert refined(nowhere, sem_side(drawn, EVERYWHERE, 0), np.eye(3), "similarity").score == 0
