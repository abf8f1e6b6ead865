"""The numpy reference of the prepare stage: packed rows, mosaics and colours, slow ways beside it to compare with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.engine.prepare import Counts, one_channel
from edge.errors import ConfigError
from edge.frames import LAYOUTS, PixelFormat, pack, unpacked
from tests.contracts import packed, random_slot

LETTERS = {"rg": ("rg", "gb"), "gr": ("gr", "bg"), "gb": ("gb", "rg"), "bg": ("bg", "gr")}
BAYER: tuple[PixelFormat, ...] = ("bayer_rg8", "bayer_gr8", "bayer_gb8", "bayer_bg8")


def colours(pattern: str, shape: tuple[int, int]) -> np.ndarray:
    """The letter of each site."""
    y, x = np.indices(shape)
    return np.array([[*row] for row in LETTERS[pattern]])[y % 2, x % 2]


def prepared(counts: Counts, slot: np.ndarray) -> np.ndarray:
    out = np.empty(counts.shape_px, np.float32)
    counts.to_network(slot, out)
    return out


@given(
    bits=st.sampled_from([10, 12]), height=st.integers(1, 5), width=st.integers(1, 40), seed=st.integers(0, 2**32 - 1)
)
def test_counts_are_packed_bit_by_bit_and_unpacked_as_they_were(bits: int, height: int, width: int, seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 1 << bits, (height, width), np.uint16)
    layout, rows = LAYOUTS["mono10p" if bits == 10 else "mono12p"], packed(counts, bits)
    np.testing.assert_array_equal(unpacked(rows, width, layout), counts)
    again = np.full_like(rows, 0xA5)  # what the slot held before
    pack(counts, layout, again)
    np.testing.assert_array_equal(again, rows)


def test_packed_bytes_mean_what_the_naming_convention_says() -> None:
    """PFNC 2.4, Mono10p and Mono12p."""
    row = np.array([[0x21, 0x43, 0x65, 0x87, 0xA9, 0xCB]], np.uint8)
    ten = [0x321, 0x43 >> 2 | 0x5 << 6, 0x65 >> 4 | 0x07 << 4, 0x87 >> 6 | 0xA9 << 2]
    np.testing.assert_array_equal(unpacked(row[:, :5], 4, LAYOUTS["mono10p"]), [ten])
    np.testing.assert_array_equal(unpacked(row, 4, LAYOUTS["mono12p"]), [[0x321, 0x654, 0x987, 0xCBA]])


@pytest.mark.parametrize("pixel_format", LAYOUTS)
def test_full_scale_of_every_format_is_one(pixel_format: PixelFormat) -> None:
    counts = Counts((16, 18), pixel_format, LAYOUTS[pixel_format].depth)
    slot = np.full(counts.slot_shape, np.iinfo(counts.dtype).max, counts.dtype)
    np.testing.assert_allclose(prepared(counts, slot), 1, rtol=1e-6)


@pytest.mark.parametrize("shape", [(16, 16), (17, 19), (2, 2), (1, 3)])
@pytest.mark.parametrize("pixel_format", BAYER)
def test_green_is_that_of_the_site_or_the_mean_of_the_neighbours_inside(
    pixel_format: PixelFormat, shape: tuple[int, int]
) -> None:
    mosaic = random_slot(Counts(shape, pixel_format, 8))
    letters = colours(pixel_format[6:8], shape)
    found = one_channel(mosaic, pixel_format, shape[1])
    for y, x in np.ndindex(shape):
        near = [(y, x)] if letters[y, x] == "g" else [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [mosaic[at] for at in near if 0 <= at[0] < shape[0] and 0 <= at[1] < shape[1]]
        assert found[y, x] == pytest.approx(np.mean(inside), rel=1e-6)


@pytest.mark.parametrize("pixel_format", BAYER)
def test_red_and_blue_light_do_not_reach_the_network(pixel_format: PixelFormat) -> None:
    letters = colours(pixel_format[6:8], (8, 12))
    frame = np.where(letters == "g", 100, np.where(letters == "r", 250, 7)).astype(np.uint8)
    assert (one_channel(frame, pixel_format, 12) == 100).all()
    assert (one_channel(np.full((8, 12, 3), (250, 100, 7), np.uint8), "rgb8", 12) == 100).all()


@pytest.mark.parametrize("pixel_format", LAYOUTS)
def test_dark_goes_before_flat_and_scale(pixel_format: PixelFormat) -> None:
    rng = np.random.default_rng(1)
    depth = LAYOUTS[pixel_format].depth
    dark = rng.uniform(0, 0.05 * (1 << depth), (16, 18)).astype(np.float32)
    flat = rng.uniform(0.5, 1.5, (16, 18)).astype(np.float32)
    counts = Counts((16, 18), pixel_format, depth, dark, flat)
    slot = random_slot(counts)
    expected = (one_channel(slot, pixel_format, 18).astype(float) - dark) / flat / ((1 << depth) - 1)
    np.testing.assert_allclose(prepared(counts, slot), expected, atol=1e-6)
    for only in (Counts((16, 18), pixel_format, depth, dark), Counts((16, 18), pixel_format, depth, None, flat)):
        assert np.abs(prepared(only, slot) - expected).max() > 1e-3


def test_the_frame_is_not_changed() -> None:
    for pixel_format, layout in LAYOUTS.items():
        counts = Counts((16, 18), pixel_format, layout.depth, dark=np.full((16, 18), 3, np.float32))
        slot = random_slot(counts)
        before = slot.copy()
        prepared(counts, slot)
        np.testing.assert_array_equal(slot, before)


@pytest.mark.parametrize("pixel_format", LAYOUTS)
def test_the_picture_of_a_slot_is_what_the_network_is_given_in_counts(pixel_format: PixelFormat) -> None:
    counts = Counts((16, 18), pixel_format, LAYOUTS[pixel_format].depth)
    slot = random_slot(counts)
    shown = counts.picture(slot)
    assert (shown.shape, shown.dtype) == ((16, 18), counts.result_dtype)
    assert np.abs(shown - prepared(counts, slot) * counts.full_scale).max() <= 0.5 + 1e-2
    assert np.shares_memory(shown, slot) == (pixel_format in ("mono8", "mono16", "rgb8"))


ONES = np.ones((16, 18), np.float32)


def spoilt(value: float) -> np.ndarray:
    values = ONES.copy()
    values[3, 4] = value
    return values


@pytest.mark.parametrize(
    ("given_as", "values", "words"),
    [
        ("dark", ONES.astype(np.float64), r"dark is float64 of \(16, 18\) px, expected float32 of \(16, 18\) px"),
        ("flat", ONES[:8, :8], r"flat is float32 of \(8, 8\) px, expected float32 of \(16, 18\) px"),
        ("dark", spoilt(np.nan), "dark has 1 pixels that are not finite. Take"),
        ("flat", spoilt(np.inf), "flat has 1 pixels that are not finite or not above 0"),
        ("flat", 0 * ONES, "flat has 288 pixels"),
        ("flat", spoilt(-0.1), "flat has 1 pixels"),
    ],
    ids=["float64", "smaller", "nan", "infinite", "zeros", "negative"],
)
def test_a_dark_or_flat_that_would_spoil_the_pictures_is_refused(given_as: str, values: np.ndarray, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Counts((16, 18), "mono8", 8, **{given_as: values})


def test_a_dark_may_be_below_zero_and_of_a_tile_nothing_is_known_yet() -> None:
    Counts((16, 18), "mono8", 8, dark=spoilt(-2.0))  # a mean of frames with an offset taken off
    Counts((16, 18), "mono8", 8, dark=spoilt(np.nan), flat=0 * ONES, tiles=True)
