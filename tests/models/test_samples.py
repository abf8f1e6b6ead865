"""Specimens are reproducible reflectivity maps, and any image file with a known pixel can be one."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from models.errors import SpecimenError
from models.families import FAMILIES
from models.samples import Specimen, demo_specimen, load_specimen, render, resample

RAMP = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (32, 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_draws_reflectivities_that_depend_on_the_seed_only(family: str) -> None:
    image = render(family, shape_px=(70, 96), pixel_size_nm=48.1, seed=5)
    assert image.shape == (70, 96)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1
    np.testing.assert_array_equal(image, render(family, shape_px=(70, 96), pixel_size_nm=48.1, seed=5))
    assert not np.array_equal(image, render(family, shape_px=(70, 96), pixel_size_nm=48.1, seed=6))


@pytest.mark.parametrize("family", ["bars", "grating", "leaves", "lattice", "disc-tracks", "siemens"])
def test_a_specimen_is_the_same_thing_on_a_coarser_grid(family: str) -> None:
    fine = render(family, shape_px=(120, 120), pixel_size_nm=30, seed=2, supersample=4)
    coarse = render(family, shape_px=(60, 60), pixel_size_nm=60, seed=2, supersample=8)
    averaged = fine.reshape(60, 2, 60, 2).mean(axis=(1, 3))
    assert float(np.sqrt(np.mean((averaged - coarse) ** 2))) < 0.02


def test_an_unknown_family_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(SpecimenError, match="no specimen family 'unicorn'; choose one of grating"):
        render("unicorn", shape_px=(64, 64), pixel_size_nm=48.1, seed=0)


@pytest.mark.parametrize("pixel_size_nm", [0.0, -1.0, float("nan")])
def test_a_grid_that_cannot_be_is_refused(pixel_size_nm: float) -> None:
    with pytest.raises(SpecimenError, match="must be positive"):
        render("dots", shape_px=(64, 64), pixel_size_nm=pixel_size_nm, seed=0)


def test_the_demonstration_specimen_covers_the_travel_and_is_quick() -> None:
    start = time.process_time()
    image = demo_specimen()
    assert time.process_time() - start < 3  # 0.6 s of one quiet core
    assert image.shape == (2451, 2451)
    assert image.dtype == np.float32
    assert (image.min(), image.max()) >= (0, 0)
    assert image.max() <= 1
    centre = image[1059:1392, 1059:1392]
    assert centre.std() > 0.1  # the first look falls on something


def test_resampling_keeps_the_mean_for_any_ratio() -> None:
    image = np.random.default_rng(0).random((90, 120), dtype=np.float32)
    for pixel_nm in (10.0, 15.0, 30.0, 7.5):
        out = resample(Specimen(image, 10.0), pixel_nm)
        assert out.shape == (round(900 / pixel_nm), round(1200 / pixel_nm))
        assert out.mean() == pytest.approx(image.mean(), rel=1e-4)


def write_tiff(path: Path, **options: Any) -> Path:
    tifffile.imwrite(path, RAMP, **options)
    return path


def write_picture(path: Path, dpi: float | None) -> Path:
    Image.fromarray(RAMP).save(path, **({} if dpi is None else {"dpi": (dpi, dpi)}))
    return path


DPI_OF_50_NM = 25.4e6 / 50


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.ome.tif", {"metadata": {"PhysicalSizeX": 0.05, "PhysicalSizeY": 0.05}, "ome": True}),
        (
            "b.ome.tif",
            {
                "metadata": {
                    "PhysicalSizeX": 50,
                    "PhysicalSizeY": 50,
                    "PhysicalSizeXUnit": "nm",
                    "PhysicalSizeYUnit": "nm",
                },
                "ome": True,
            },
        ),
        ("c.tif", {"resolution": (200_000, 200_000), "resolutionunit": "CENTIMETER"}),
        ("d.tif", {"resolution": (20, 20), "imagej": True, "metadata": {"unit": "um"}}),
    ],
)
def test_the_pixel_size_is_read_from_a_tiff(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    specimen = load_specimen(write_tiff(tmp_path / name, **options))
    assert specimen.pixel_size_nm == pytest.approx(50, rel=1e-3)
    np.testing.assert_allclose(specimen.reflectivity, RAMP / 255, atol=1e-6)


def test_the_pixel_size_is_read_from_a_png(tmp_path: Path) -> None:
    specimen = load_specimen(write_picture(tmp_path / "a.png", DPI_OF_50_NM))
    assert specimen.pixel_size_nm == pytest.approx(50, rel=1e-3)


def test_a_declared_pixel_size_wins_over_the_files(tmp_path: Path) -> None:
    assert load_specimen(write_picture(tmp_path / "a.jpg", 72), 20.0).pixel_size_nm == 20.0


@pytest.mark.parametrize("dpi", [72, 600])
def test_the_resolution_of_a_screen_or_printer_is_no_pixel_size(tmp_path: Path, dpi: float) -> None:
    with pytest.raises(SpecimenError, match=r"expected 0\.05 to 10000 nm.*pixel_size_nm"):
        load_specimen(write_picture(tmp_path / "a.jpg", dpi))


def test_a_file_without_a_pixel_size_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SpecimenError, match=r"does not say the size.*give the size.*pixel_size_nm"):
        load_specimen(write_picture(tmp_path / "a.png", None))
    with pytest.raises(SpecimenError, match="does not say the size"):
        load_specimen(write_tiff(tmp_path / "a.tif"))


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", resolution=(200_000, 100_000), resolutionunit="CENTIMETER")
    with pytest.raises(SpecimenError, match="expected square ones"):
        load_specimen(path)


def test_sixteen_bit_and_colour_files_become_reflectivity(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "deep.tif", RAMP.astype(np.uint16) * 257)
    np.testing.assert_allclose(load_specimen(tmp_path / "deep.tif", 50.0).reflectivity, RAMP / 255, atol=1e-6)
    Image.fromarray(np.stack([RAMP, RAMP * 0, RAMP * 0], -1)).save(tmp_path / "red.png")
    np.testing.assert_allclose(load_specimen(tmp_path / "red.png", 50.0).reflectivity, RAMP / 765, atol=1e-6)


@pytest.mark.parametrize(
    "pixels", [np.full((20, 20), np.nan, np.float32), np.full((20, 20), 1.5, np.float32), RAMP.astype(np.int32)]
)
def test_values_that_are_no_reflectivity_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:  # type: ignore[type-arg]
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    with pytest.raises(SpecimenError, match=r"outside 0 to 1|expected unsigned integers"):
        load_specimen(tmp_path / "a.tif", 50.0)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.txt"])
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("this is no image")
    with pytest.raises(SpecimenError, match="cannot be read as"):
        load_specimen(tmp_path / name, 50.0)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecimenError, match="is not a file"):
        load_specimen(tmp_path / "nowhere.png", 50.0)
