"""Microscopes' files: the makers' pixel sizes, and what their software wrote over the picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from edge.ometiff import write_ome_tiff
from models.errors import SpecimenError
from models.micrographs import Box, burned_in, outside, read_micrograph, recorded
from models.samples import render

RAMP = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (32, 1))
ZEISS = (
    "\r\n0\r\n1\r\nAP_WD\r\nWD = 4.1 mm\r\nAP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size = {}\r\nDP_ZOOM\r\nZoom = Off\r\n"
)
FEI = "[User]\r\nDate=01/02/2024\r\n[Scan]\r\nPixelWidth={0}\r\nPixelHeight={1}\r\n[Beam]\r\nHV=10000\r\n"


def write_sem(path: Path, tag: int, text: str) -> Path:
    tifffile.imwrite(
        path, RAMP, extratags=[(tag, "s", 0, text.encode("latin-1"), True)], resolution=(72, 72), resolutionunit="INCH"
    )
    return path


@pytest.mark.parametrize(("text", "size_nm"), [("2.233 nm", 2.233), ("0.05 µm", 50.0), ("1.5 pm", None)])
def test_zeiss_says_the_size_of_its_pixel(tmp_path: Path, text: str, size_nm: float | None) -> None:
    path = write_sem(tmp_path / "a.tif", 34118, ZEISS.format(text))
    if size_nm is None:  # a unit nobody uses: the resolution tag speaks, and 72 dpi is a screen's
        with pytest.raises(SpecimenError, match=r"expected 0\.05 to 10000 nm"):
            read_micrograph(path)
    else:
        assert read_micrograph(path).pixel_size_nm == pytest.approx(size_nm)


@pytest.mark.parametrize("tag", [34680, 34682])
def test_fei_says_the_size_of_its_pixel(tmp_path: Path, tag: int) -> None:
    path = write_sem(tmp_path / "a.tif", tag, FEI.format("3.372e-9", "3.372e-9"))
    assert read_micrograph(path).pixel_size_nm == pytest.approx(3.372)


def test_fei_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecimenError, match="expected square ones"):
        read_micrograph(write_sem(tmp_path / "a.tif", 34682, FEI.format("3e-9", "4e-9")))


def test_a_file_that_does_not_say_its_pixel_has_none(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    found = read_micrograph(tmp_path / "a.png")
    assert (found.pixel_size_nm, found.storage_bits, found.bit_depth) == (None, 8, None)
    np.testing.assert_allclose(found.image, RAMP / 255, atol=1e-6)
    assert read_micrograph(tmp_path / "a.png", 12.5).pixel_size_nm == 12.5


def test_full_scale_is_that_of_the_bit_depth_given_or_else_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RAMP.astype(np.uint16) * 16)
    for bit_depth, full in ((None, 65535), (16, 65535), (12, 4095)):
        found = read_micrograph(path, bit_depth=bit_depth)
        np.testing.assert_allclose(found.image, RAMP.astype(np.float32) * 16 / full, rtol=1e-6)
        assert (found.storage_bits, found.bit_depth) == (16, bit_depth)


@pytest.mark.parametrize(
    ("bit_depth", "complaint"),
    [
        (11, "has counts up to 4080, above the full scale 2047 of bit depth 11"),
        (17, "has 16-bit pixels, which cannot hold a bit depth of 17"),
        (0, "cannot hold a bit depth of 0"),
    ],
)
def test_a_bit_depth_that_cannot_be_is_refused(tmp_path: Path, bit_depth: int, complaint: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RAMP.astype(np.uint16) * 16)
    with pytest.raises(SpecimenError, match=complaint):
        read_micrograph(tmp_path / "a.tif", bit_depth=bit_depth)


def test_a_file_of_the_box_says_its_bit_depth(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.ome.tif"
    facts = {"bit_depth": 12, "camera": 'a "quoted" & <odd> one'}
    write_ome_tiff(path, RAMP.astype(np.uint16) * 16, channels=("raw",), pixel_size_nm=48.1, facts=facts)
    found = read_micrograph(path)
    np.testing.assert_allclose(found.image, RAMP.astype(np.float32) * 16 / 4095, rtol=1e-6)
    assert (found.bit_depth, found.pixel_size_nm) == (12, pytest.approx(48.1))
    assert read_micrograph(path, bit_depth=16).image.max() < 0.07, "whoever gives it knows better"


def test_a_file_of_the_box_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.ome.tif"
    write_ome_tiff(path, RAMP, channels=("enhanced",), pixel_size_nm=None, facts={"kind": "enhanced"})
    assert read_micrograph(path)[-2:] == ("enhanced", 1)


@pytest.mark.parametrize(
    ("shape", "options", "pages"),
    [
        ((32, 40), {}, 1),
        ((32, 40, 3), {"photometric": "rgb"}, 1),
        ((5, 32, 40), {"photometric": "minisblack"}, 5),
        ((5, 32, 40), {"imagej": True, "photometric": "minisblack"}, 5),
        ((2, 32, 40), {"ome": True, "photometric": "minisblack", "metadata": {"axes": "CYX"}}, 2),
    ],
)
def test_the_pictures_of_a_tiff_are_counted(
    tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any], pages: int
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, np.uint8), **options)
    assert read_micrograph(tmp_path / "a.tif").pages == pages


def test_a_thumbnail_is_no_page(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(RAMP)
        file.write(RAMP[::2, ::2])
    assert read_micrograph(tmp_path / "a.tif").pages == 1


def test_a_tiff_that_ends_early_is_an_error_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8), compression="zlib")
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(SpecimenError, match="cannot be read as a TIFF"):
        read_micrograph(path)


@pytest.mark.parametrize("words", ["{no JSON}", "[12]", '"12"', '{"bit_depth": "twelve"}', "a grating"])
def test_a_description_by_others_says_nothing(tmp_path: Path, words: str) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", RAMP, metadata={"axes": "YX", "Description": words})
    found = read_micrograph(tmp_path / "a.ome.tif")
    assert found.bit_depth is None
    np.testing.assert_allclose(found.image, RAMP / 255, atol=1e-6)


def sem(seed: int = 0, shape: tuple[int, int] = (400, 512)) -> np.ndarray:
    drawn = render("ic-metal", shape_px=shape, pixel_size_nm=48.1, seed=seed)
    return np.clip(0.3 + 0.4 * drawn + np.random.default_rng(seed).normal(0, 0.05, shape), 0, 1).astype(np.float32)


def written(image: np.ndarray, box: Box, background: float) -> np.ndarray:
    picture = Image.fromarray(np.round(255 * image).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    ink = 0 if background > 0.5 else 255
    draw.rectangle((box.left, box.top, box.right - 1, box.bottom - 1), fill=round(255 * background))
    draw.text((box.left + 12, box.top + 6), "10.00 kV  HV  500 nm", fill=ink)
    draw.line((box.left + 10, box.bottom - 5, box.left + 90, box.bottom - 5), fill=ink)
    return np.asarray(picture, np.float32) / 255


@settings(max_examples=15, deadline=None)
@given(height=st.integers(24, 60), background=st.sampled_from([0.0, 0.2, 1.0]), seed=st.integers(0, 99))
def test_a_data_bar_is_found_to_the_row(height: int, background: float, seed: int) -> None:
    bar = Box(400 - height, 0, 400, 512)
    (found,) = burned_in(written(sem(seed), bar, background))
    assert (found.left, found.bottom, found.right) == (0, 400, 512)
    assert bar.top - 3 <= found.top <= bar.top


def test_the_box_of_a_scale_bar_is_found_anywhere() -> None:
    box = Box(350, 380, 385, 505)
    (found,) = burned_in(written(sem(), box, 1.0))
    assert np.abs(np.subtract(found, box)).max() <= 3
    valid = outside([found], (400, 512))
    assert not valid[box.top : box.bottom, box.left : box.right].any()
    assert valid.mean() > 0.97


def test_a_data_bar_survives_jpeg(tmp_path: Path) -> None:
    Image.fromarray(np.round(255 * written(sem(), Box(360, 0, 400, 512), 0.0)).astype(np.uint8)).save(
        tmp_path / "a.jpg", quality=85
    )
    (found,) = burned_in(read_micrograph(tmp_path / "a.jpg", 5.0).image)
    assert 354 <= found.top <= 360


@pytest.mark.parametrize("family", ["siemens", "pollen", "text", "empty"])
def test_nothing_is_found_where_nothing_was_written(family: str) -> None:
    drawn = render(family, shape_px=(300, 300), pixel_size_nm=48.1, seed=1)
    assert burned_in(drawn) == []  # without noise nothing can be told
    noisy = np.clip(drawn + np.random.default_rng(0).normal(0, 0.04, drawn.shape), 0, 1).astype(np.float32)
    assert burned_in(noisy) == []


def test_a_saturated_particle_is_no_box() -> None:
    y, x = np.mgrid[0:400, 0:512]
    assert burned_in(np.where(np.hypot(y - 200, x - 200) < 60, 1, sem()).astype(np.float32)) == []


def test_where_no_tile_lies_a_mosaic_is_exactly_zero() -> None:
    mosaic = np.full((60, 80), 0.2, np.float32)
    mosaic[:, 50:] = 0
    mosaic[10, 10] = 0  # a dead pixel is no gap
    shown = recorded(mosaic)
    assert shown[:, :50].all()
    assert not shown[:, 51:].any()
