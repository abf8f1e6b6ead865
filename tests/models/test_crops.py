"""Crops of registered images: which are kept, why others are not, and in which split each goes."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if os.environ.get("CI") != "true":
    pytest.importorskip("cv2", reason="needs the extra [train]")

import cv2

from models.crops import Layer, cut
from models.errors import PairsError
from models.pairs import SPLITS, FittedImage
from models.samples import render

SHAPE = (330, 420)
WRITTEN = "under what the microscope wrote on the SEM image"
OUTSIDE = "outside the overlap, or where the mosaic has a gap"


def fitted(name: str = "sem.tif") -> FittedImage:
    return FittedImage(
        file=name,
        pixel_size_nm=48,
        matrix=((1, 0, 0), (0, 1, 0)),
        scale=1,
        scale_expected=1,
        rotation_deg=0,
        shift_px=(0, 0),
        score=1.0,
        residual_px=0.1,
    )


def picture(noise: float = 0.01) -> np.ndarray:
    drawn = cv2.GaussianBlur(render("leaves", shape_px=SHAPE, pixel_size_nm=48.1, seed=3), (0, 0), 1.5)
    return np.clip(drawn + np.random.default_rng(0).normal(0, noise, SHAPE), 0, 1).astype(np.float32)


def layer(image: np.ndarray, *, inside: np.ndarray | None = None, readable: np.ndarray | None = None) -> Layer:
    everywhere = np.ones(SHAPE, bool)
    inside = everywhere if inside is None else inside
    return Layer(fitted(), image, inside, inside if readable is None else readable, None)


def test_every_usable_place_is_kept_and_none_overlaps() -> None:
    image = picture()
    crops, rejected = cut(image, np.ones(SHAPE, bool), [layer(image)], 96, 8, 2.0)
    assert len(crops) == 3 * 4
    assert rejected == []
    for one in crops:
        for other in crops:
            assert one is other or np.abs(np.subtract(one.corner_px, other.corner_px)).max() >= 96 + 8


def test_each_split_is_one_region() -> None:
    image = picture()
    crops, _ = cut(image, np.ones(SHAPE, bool), [layer(image)], 96, 8, 2.0)
    columns = {split: [crop.corner_px[1] for crop in crops if crop.split == split] for split in SPLITS}
    assert all(columns.values())
    assert max(columns["train"]) <= min(columns["validation"]) <= max(columns["validation"]) <= min(columns["test"])


def test_what_the_microscope_wrote_over_is_left_out_with_that_reason() -> None:
    image = picture()
    readable = np.ones(SHAPE, bool)
    readable[100:140, 100:300] = False
    crops, rejected = cut(image, np.ones(SHAPE, bool), [layer(image, readable=readable)], 96, 8, 2.0)
    assert {one.reason for one in rejected} == {WRITTEN}
    for crop in crops:
        y, x = crop.corner_px
        assert readable[y : y + 96, x : x + 96].all()


def test_what_lies_outside_the_overlap_is_left_out_with_that_reason() -> None:
    image, inside = picture(), np.ones(SHAPE, bool)
    inside[:, 250:] = False
    shown = np.ones(SHAPE, bool)
    shown[:30, :30] = False
    crops, rejected = cut(image, shown, [layer(image, inside=inside)], 64, 0, 2.0)
    assert {one.reason for one in rejected} == {OUTSIDE}
    assert all(crop.corner_px[1] + 64 <= 250 for crop in crops)


def test_a_place_without_content_is_left_out() -> None:
    image = picture()
    sem = image.copy()
    sem[:, 208:] = 0.3 + np.random.default_rng(1).normal(0, 0.05, (SHAPE[0], SHAPE[1] - 208))
    _, rejected = cut(image, np.ones(SHAPE, bool), [layer(sem)], 96, 8, 2.0)
    assert {one.reason for one in rejected} == {"empty: nothing but noise in the SEM image"}
    assert all(one.corner_px[1] >= 200 for one in rejected)


def test_crops_that_still_lie_apart_are_left_out_and_shading_is_not_lying_apart() -> None:
    image = picture(0.0)
    moved = np.roll(image, (3, 3), axis=(0, 1))
    everywhere = np.ones(SHAPE, bool)
    with pytest.raises(PairsError, match="left out: the two images still lie more than 2 px apart"):
        cut(image, everywhere, [layer(moved)], 96, 8, 2.0)
    crops, rejected = cut(image, everywhere, [layer(moved)._replace(shade_px=(3.0, 3.0))], 96, 8, 2.0)
    assert rejected == []
    assert max(crop.residual_px or 0 for crop in crops) < 0.5


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_one_place_in_several_sem_images_is_in_one_split(seed: int) -> None:
    image = picture(0.0)
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(2):
        mask = np.ones(SHAPE, bool)
        y, x = int(rng.integers(0, 250)), int(rng.integers(0, 340))
        mask[y : y + 60, x : x + 60] = False
        masks.append(mask)
    layers = [
        Layer(fitted(name), image, np.ones(SHAPE, bool), mask, None)
        for name, mask in zip(("a.tif", "b.tif"), masks, strict=True)
    ]
    crops, _ = cut(image, np.ones(SHAPE, bool), layers, 96, 8, 2.0)
    places = {crop.corner_px: crop.split for crop in crops}
    assert all(places[crop.corner_px] == crop.split for crop in crops)
    assert len({(crop.split, crop.name) for crop in crops}) == len(crops)


def test_too_few_places_are_refused() -> None:
    image = picture()
    with pytest.raises(PairsError, match="only 1 crops of 300 px are usable, expected at least 3"):
        cut(image, np.ones(SHAPE, bool), [layer(image)], 300, 0, 2.0)
