"""A light micrograph is found on an SEM image whatever its scale, rotation and contrast, or the two are refused."""

import functools
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if os.environ.get("CI") != "true":
    pytest.importorskip("cv2", reason="needs the extra [train]")

import cv2

from models.errors import PairsError
from models.register import LEAST_SCORE, Registration, from_landmarks, local_misfit_px, register
from models.samples import render
from tests.lab import Matrix, Specimen, error_px, optical_view, sem_view, similarity, specimen

SIDE = 512

# Scale, rotation, shift: the corners of what is searched, and places between the steps of the grid.
TRANSFORMS = [
    (0.76, -24.2, (40, -60)),
    (1.31, 24.4, (-50, 30)),
    (0.77, 23.8, (0, 0)),
    (1.32, -24.1, (60, 60)),
    (1.0, 0.0, (90, -70)),
    (1.02, 13.3, (5, 7)),
    (0.91, -8.0, (-80, 20)),
    (1.145, 20.3, (33, -71)),
]


@functools.cache
def seen(family: str, seed: int = 1, side_shading: float = 0.0) -> Specimen:
    return specimen(family, seed, side_px=SIDE + 420, side_shading=side_shading)


def views(family: str, truth: Matrix, *, seed: int = 1, inverted: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return (
        optical_view(seen(family), SIDE, rng),
        sem_view(seen(family, seed), truth, SIDE, rng, inverted=inverted),
    )


def as_3x3(found: Registration) -> Matrix:
    return np.vstack([found.matrix, [0, 0, 1]])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(8))
def test_every_transform_is_found_to_half_a_pixel(number: int) -> None:
    scale, rotation_deg, shift_px = TRANSFORMS[number]
    truth = similarity(scale, rotation_deg, shift_px, SIDE)
    family = ("bars", "text", "leaves", "nanoparticles")[number % 4]
    found = register(*views(family, truth, inverted=number >= 4))
    assert error_px(truth, as_3x3(found), SIDE) < 0.5 * min(1, scale)
    assert found.scale == pytest.approx(scale, abs=1e-3)
    assert found.rotation_deg == pytest.approx(rotation_deg, abs=0.05)
    assert found.shift_px == pytest.approx((truth[1, 2], truth[0, 2]), abs=0.5)
    assert found.score is not None
    assert found.score > LEAST_SCORE + 0.2
    assert found.residual_px < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("number", "family"), [(5, "text"), (6, "leaves")])
def test_light_from_the_side_moves_nothing(number: int, family: str) -> None:
    """A detector at the side makes the SEM image look displaced by two pixels."""
    scale, rotation_deg, shift_px = TRANSFORMS[number]
    truth = similarity(scale, rotation_deg, shift_px, SIDE)
    rng = np.random.default_rng(5)
    shaded = seen(family, side_shading=0.8)
    found = register(optical_view(shaded, SIDE, rng), sem_view(shaded, truth, SIDE, rng, inverted=True))
    assert error_px(truth, as_3x3(found), SIDE) < 0.5 * min(1, scale)
    assert np.hypot(*found.shade_px) > 1


@pytest.mark.slow
def test_sizes_of_pixels_are_taken_into_account() -> None:
    """The SEM's pixel is 2.5 times finer, and its magnification 3 % off."""
    truth = similarity(1.03 * 2.5, 5.0, (10, 20), SIDE)
    found = register(*views("bars", truth), expected_scale=2.5)
    assert error_px(truth, as_3x3(found), SIDE) < 0.5 * 2.5
    assert found.scale == pytest.approx(1.03 * 2.5, abs=3e-3)


@pytest.mark.slow
def test_a_small_field_is_found_in_a_large_mosaic() -> None:
    truth = similarity(0.95, -12.0, (30, 40), SIDE)
    optical, sem = views("text", truth)
    part = sem[200:480, 180:470]
    found = register(optical, part)
    moved = np.array([[1, 0, -180], [0, 1, -200], [0, 0, 1]]) @ truth
    assert error_px(moved, as_3x3(found), SIDE) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bars", "text", "nanoparticles"])
def test_pictures_of_other_places_score_below_those_of_the_same(family: str) -> None:
    truth = similarity(0.97, 8.0, (10, -30), SIDE)
    with pytest.raises(PairsError, match=r"fit nowhere: the best place scores 0\.[0-5]") as refusal:
        register(*views(family, truth, seed=2))
    assert "expected at least 0.5" in str(refusal.value)


def test_a_specimen_that_repeats_itself_is_refused() -> None:
    y, x = np.mgrid[0:300, 0:300]
    dots = (0.5 + 0.2 * np.cos(x * 2 * np.pi / 24) * np.cos(y * 2 * np.pi / 24)).astype(np.float32)
    rng = np.random.default_rng(0)
    a, b = (np.clip(dots + rng.normal(0, 0.02, dots.shape), 0, 1).astype(np.float32) for _ in range(2))
    with pytest.raises(PairsError, match="fit equally well at two places"):
        register(a, b)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.full((300, 300), 0.4, np.float32), "SEM image is empty"),
        (np.ones((100, 400), np.float32), "SEM image is 100 x 400 px on the common pixel, expected at least 128 x 128"),
    ],
)
def test_an_image_without_content_is_refused(image: np.ndarray, says: str) -> None:
    good = render("text", shape_px=(300, 300), pixel_size_nm=48.1, seed=1)
    with pytest.raises(PairsError, match=says):
        register(good, image)


def test_what_is_masked_is_not_looked_at() -> None:
    drawn = cv2.GaussianBlur(render("leaves", shape_px=(420, 420), pixel_size_nm=48.1, seed=3), (0, 0), 1.5)
    optical, sem = drawn[:360, :360].copy(), drawn[20:380, 30:390].copy()
    sem[300:] = render("text", shape_px=(60, 360), pixel_size_nm=48.1, seed=1)
    valid = np.ones(sem.shape, bool)
    valid[300:] = False
    found = register(optical, sem, sem_valid=valid)
    assert error_px(similarity(1, 0, (-20, -30), 360), as_3x3(found), 360) < 0.2


def test_a_pure_shift_is_found_by_correlation_alone() -> None:
    drawn = render("text", shape_px=(420, 420), pixel_size_nm=48.1, seed=3)
    noise = np.random.default_rng(0).normal(0, 0.03, (2, 360, 360))
    a, b = (drawn[:360, :360] + noise[0]).clip(0), (1 - drawn[17:377, 9:369] + noise[1]).clip(0)
    found = register(a.astype(np.float32), b.astype(np.float32), scales=(1, 1), rotation_deg=0, model="shift")
    assert found.shift_px == pytest.approx((-17, -9), abs=0.1)
    assert (found.scale, found.rotation_deg) == pytest.approx((1, 0), abs=1e-9)


def test_shear_is_found_where_it_is_asked_for() -> None:
    drawn = cv2.GaussianBlur(render("leaves", shape_px=(420, 420), pixel_size_nm=48.1, seed=3), (0, 0), 1.5)
    truth = np.array([[1.01, 0.015, 4.0], [-0.01, 0.985, -3.0], [0, 0, 1]])
    sem = cv2.warpAffine(drawn, truth[:2], (400, 400), flags=cv2.INTER_CUBIC)
    valid = cv2.warpAffine(np.ones_like(drawn), truth[:2], (400, 400)) > 0.99
    found = register(drawn[:400, :400], sem, sem_valid=valid, model="affine")
    assert error_px(truth, as_3x3(found), 400) < 0.3


@settings(max_examples=50, deadline=None)
@given(
    scale=st.floats(0.2, 5),
    rotation_deg=st.floats(-170, 170),
    shift=st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
    points=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900)), min_size=3, max_size=9, unique=True),
)
def test_landmarks_give_the_similarity_they_were_made_with(
    scale: float, rotation_deg: float, shift: tuple[float, float], points: list[tuple[int, int]]
) -> None:
    truth = similarity(scale, rotation_deg, shift, 900)
    seen_yx = [tuple((truth @ [x, y, 1])[1::-1]) for y, x in points]
    found = from_landmarks(points, seen_yx)
    assert error_px(truth, as_3x3(found), 900) < 1e-6 * 900
    assert found.scale == pytest.approx(scale)
    assert abs((found.rotation_deg - rotation_deg + 180) % 360 - 180) < 1e-6
    assert found.residual_px < 1e-6 * 900


def test_a_landmark_that_is_off_shows_in_the_residuals() -> None:
    points = [(0, 0), (0, 100), (100, 0), (100, 100), (50, 50)]
    seen_yx = [(2.0 * y, 2.0 * x) for y, x in points]
    seen_yx[3] = (206.0, 200.0)
    found = from_landmarks(points, seen_yx)
    assert int(np.argmax(found.residuals_px)) == 3
    assert found.residuals_px[3] == pytest.approx(2, abs=1)  # optical pixels: half of the SEM's 6, less what was fitted


@pytest.mark.parametrize(
    ("a", "b"), [([(1, 2)], [(3, 4)]), ([(1, 2), (3, 4)], [(1, 2)]), ([(5, 5), (5, 5)], [(1, 1), (1, 1)])]
)
def test_landmarks_that_say_too_little_are_refused(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    with pytest.raises(PairsError, match=r"add points|spread them"):
        from_landmarks(a, b)


@pytest.mark.parametrize("shift_px", [0.0, 0.6, 3.0])
def test_the_misfit_of_a_crop_is_measured(shift_px: float) -> None:
    drawn = cv2.GaussianBlur(render("leaves", shape_px=(260, 260), pixel_size_nm=48.1, seed=3), (0, 0), 1.5)
    move = np.array([[1, 0, 0.6 * shift_px], [0, 1, 0.8 * shift_px]])
    moved = cv2.warpAffine(drawn, move, (260, 260), flags=cv2.INTER_CUBIC)
    rng = np.random.default_rng(0)
    a, b = (np.clip(p[20:148, 20:148] + rng.normal(0, 0.02, (128, 128)), 0, 1) for p in (drawn, 1 - moved))
    found = local_misfit_px(a.astype(np.float32), b.astype(np.float32))
    assert found == pytest.approx(shift_px, abs=0.25)


def test_noise_has_no_misfit() -> None:
    a, b = np.random.default_rng(0).random((2, 96, 96), np.float32)
    assert local_misfit_px(a, b) is None
