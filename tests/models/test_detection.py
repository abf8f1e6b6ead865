"""Counting is exact: pairs are one to one, errors have their signs, and false alarms have their rate."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.detection import (
    Matches,
    blob_response,
    chance_f1,
    false_features_per_1e6_px,
    find_blobs,
    match,
    pooled,
    threshold_for,
)

Image = NDArray[np.float32]

NONE = np.empty((0, 2))


def test_pairs_are_one_to_one_and_within_the_radius() -> None:
    true = np.array([[10.0, 10], [10, 14], [50, 50]])
    found = np.array([[10.0, 12], [10, 9], [80, 80], [50, 53]])
    matches = match(found, true, radius_px=5)
    assert sorted(zip(matches.found.tolist(), matches.true.tolist(), strict=True)) == [(0, 1), (1, 0), (3, 2)]
    assert (matches.precision, matches.recall, matches.f1) == (3 / 4, 1, 6 / 7)


def test_two_finds_of_one_point_count_once() -> None:
    matches = match(np.array([[5.0, 5], [5, 6]]), np.array([[5.0, 5.4]]), radius_px=3)
    assert (len(matches.found), matches.precision, matches.recall) == (1, 0.5, 1)
    assert matches.found.tolist() == [0]


def test_more_pairs_come_before_shorter_ones() -> None:
    # Taking the nearest pair (found 0, true 1) first would leave found 1 alone.
    matches = match(np.array([[0.0, 4], [0, 7]]), np.array([[0.0, 0], [0, 4.5]]), radius_px=4)
    assert len(matches.found) == 2


def test_the_error_is_found_minus_true_with_ddof_one() -> None:
    true = np.array([[10.0, 10], [30, 30], [60, 60]])
    errors = np.array([[1.0, -2], [0, 0], [-1, 2]])
    matches = match(true + errors, true, radius_px=5)
    assert matches.std_px == pytest.approx((1, 2))
    figures = matches.figures(pixel_size_nm=50)
    assert figures["std_y_px"] == pytest.approx(1)
    assert figures["std_x_nm"] == pytest.approx(100)


def test_nothing_found_or_nothing_there_has_defined_figures() -> None:
    assert match(NONE, NONE, 1).f1 == 1
    assert match(NONE, np.zeros((3, 2)), 1).figures() == {
        "f1": 0, "precision": 1, "recall": 0, "std_y_px": None, "std_x_px": None,
    }  # fmt: skip
    assert match(np.zeros((3, 2)), NONE, 1).f1 == 0
    assert all(math.isnan(std) for std in match(np.ones((1, 2)), np.ones((1, 2)), 1).std_px)


def test_malformed_points_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found_yx has the shape \(3,\), expected \(n, 2\)"):
        match(np.zeros(3), NONE, 1)
    with pytest.raises(ValueError, match="true_yx"):
        match(NONE, np.full((1, 2), np.nan), 1)
    with pytest.raises(ValueError, match="radius_px is 0"):
        match(NONE, NONE, 0)


POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=4).map(
    lambda points: np.array(points, float).reshape(-1, 2)
)


@settings(max_examples=60, deadline=None)
@given(POINTS, POINTS, st.floats(0.5, 6))
def test_the_number_of_pairs_is_the_largest_possible(
    found: NDArray[np.float64], true: NDArray[np.float64], radius: float
) -> None:
    few, many = sorted((found, true), key=len)
    best = max(
        sum(math.dist(few[i], many[j]) <= radius for i, j in enumerate(order))
        for order in permutations(range(len(many)), len(few))
    )
    matches = match(found, true, radius)
    assert len(matches.found) == best
    assert len(set(matches.found.tolist())) == len(set(matches.true.tolist())) == best
    assert match(true, found, radius).f1 == matches.f1


def test_pooling_adds_counts_and_errors() -> None:
    one = match(np.array([[1.0, 1], [5, 5]]), np.array([[1.0, 2]]), 2)
    both = pooled([one, one])
    assert (both.found_count, both.true_count, both.f1) == (4, 2, one.f1)
    assert isinstance(both, Matches)
    with pytest.raises(ValueError, match="at least one"):
        pooled([])


def test_chance_finds_what_its_share_of_the_area_says() -> None:
    # One true point, one blind point: it hits with the probability of the disc's share of the picture.
    rate = chance_f1(1, np.array([[50.0, 50]]), 20, (100, 100), draws=4000)
    assert rate == pytest.approx(math.pi * 20**2 / 100**2, abs=0.02)
    assert chance_f1(0, np.array([[50.0, 50]]), 20, (100, 100)) == 0


def _blobs(centres: NDArray[np.float64], height: float, sigma_px: float, shape: tuple[int, int] = (120, 140)) -> Image:
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = sum(np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * sigma_px**2)) for cy, cx in centres)
    return np.asarray(0.3 + height * np.asarray(image), dtype=np.float32)


CENTRES = np.array([[30.2, 41.7], [80.0, 20.5], [60.6, 100.1], [95.3, 110.4]])


def test_the_response_to_a_blob_of_its_own_size_is_the_blobs_height() -> None:
    response = blob_response(_blobs(np.array([[60.0, 70.0]]), 0.2, 2.0), 2.0)
    assert response[60, 70] == pytest.approx(0.2, rel=0.02)
    assert response.argmax() == 60 * 140 + 70


def test_a_level_and_a_slope_are_no_blobs() -> None:
    slope = np.add.outer(0.01 * np.arange(60), 0.005 * np.arange(80)).astype(np.float32)
    assert np.abs(blob_response(slope, 2.0)[15:-15, 15:-15]).max() < 1e-5


@pytest.mark.parametrize("dark", [False, True])
def test_blobs_are_found_to_a_tenth_of_a_pixel(dark: bool) -> None:
    image = _blobs(CENTRES, -0.1 if dark else 0.1, 2.0)
    found = find_blobs(image, sigma_px=2.0, threshold=0.05, dark=dark)
    matches = match(found, CENTRES, 1.0)
    assert matches.f1 == 1
    assert np.abs(matches.error_px).max() < 0.1
    assert len(find_blobs(image, sigma_px=2.0, threshold=0.05, dark=not dark)) == 0


def test_nothing_is_looked_for_in_the_border() -> None:
    found = find_blobs(_blobs(CENTRES, 0.1, 2.0), sigma_px=2.0, threshold=0.05, border_px=35)
    assert match(found, CENTRES[2:3], 1.0).f1 == 1


def _empty(count: int, seed: int) -> list[Image]:
    rng = np.random.default_rng(seed)
    return [(0.5 + 0.02 * rng.standard_normal((256, 256))).astype(np.float32) for _ in range(count)]


def test_the_threshold_gives_its_false_alarm_rate_on_other_backgrounds_too() -> None:
    threshold = threshold_for(_empty(16, 1), 40, sigma_px=1.5)
    others = _empty(16, 2)
    false = sum(len(find_blobs(image, sigma_px=1.5, threshold=threshold)) for image in others)
    expected = 40e-6 * 16 * 256**2
    assert abs(false - expected) < 4 * expected**0.5


def test_a_background_too_small_for_the_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="give at least 100000 px"):
        threshold_for(_empty(1, 1), 10, sigma_px=2)
    assert threshold_for([np.zeros((256, 256), np.float32)] * 2, 10, sigma_px=2) == 0


def test_noise_has_no_false_features_and_invented_dots_are_counted() -> None:
    empty = _empty(4, 3)
    noise_alone = false_features_per_1e6_px(empty, sigma_px=1.5)
    assert noise_alone < 8
    empty[0][50:53, 60:63] += 0.3
    empty[2][150:153, 60:63] -= 0.3
    invented = false_features_per_1e6_px(empty, sigma_px=1.5) - noise_alone
    assert invented == pytest.approx(2e6 / (4 * 256**2), rel=0.01)


def test_what_nobody_could_see_is_no_feature() -> None:
    flat = np.full((128, 128), 0.5, np.float32)
    flat[60:63, 60:63] += 0.001
    assert false_features_per_1e6_px([flat], sigma_px=1.5) == 0
