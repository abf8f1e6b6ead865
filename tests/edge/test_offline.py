"""`superlens enhance`: each image becomes one file that says where it came from."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from edge.config import EngineConfig
from edge.errors import ConfigError
from edge.offline import enhance_files
from edge.ometiff import write_ome_tiff


@pytest.fixture
def engine(identity_bundle: Path) -> EngineConfig:
    return EngineConfig(model=str(identity_bundle), hint="f32")


def enhance(sources: list[Path], out: Path, engine: EngineConfig, **options) -> dict:
    return enhance_files(
        sources, out, engine, **{"bit_depth": None, "pixel_size_nm": None, "resample": False, **options}
    )


def test_images_of_different_sizes_and_types_in_a_folder_are_enhanced_one_by_one(
    tmp_path: Path, frames: np.ndarray, engine: EngineConfig
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(frames[0]).save(folder / "a.png")
    tifffile.imwrite(folder / "b.tif", frames[1][:40].astype(np.uint16) * 257)
    result = enhance([folder], tmp_path / "out", engine)
    assert [image["shape_px"] for image in result["images"]] == [(64, 96), (40, 96)]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "a_enhanced.ome.tif"), frames[0])
    sixteen = tifffile.imread(tmp_path / "out" / "b_enhanced.ome.tif")
    assert sixteen.dtype == np.uint16
    np.testing.assert_array_equal(sixteen, frames[1][:40].astype(np.uint16) * 257)


def test_a_stack_becomes_a_stack(tmp_path: Path, frames: np.ndarray, engine: EngineConfig) -> None:
    tifffile.imwrite(tmp_path / "stack.ome.tif", frames, photometric="minisblack")
    result = enhance([tmp_path / "stack.ome.tif"], tmp_path / "out", engine)
    assert result["images"][0]["frames"] == len(frames)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "stack_enhanced.ome.tif"), frames)


def test_the_file_says_its_source_its_model_and_its_pixel_size(
    tmp_path: Path, frames: np.ndarray, engine: EngineConfig
) -> None:
    Image.fromarray(frames[0]).save(tmp_path / "a.png")
    enhance([tmp_path / "a.png"], tmp_path / "out", engine, pixel_size_nm=50.0)
    with tifffile.TiffFile(tmp_path / "out" / "a_enhanced.ome.tif") as file:
        image = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    facts = json.loads(image["Description"])
    assert (facts["model"], facts["simulated"], facts["pixel_size_nm"]) == ("gain", False, 50.0)
    assert facts["source"].endswith("a.png")
    assert image["Pixels"]["PhysicalSizeX"] == pytest.approx(0.05)


def test_an_unknown_pixel_size_is_said_to_be_unknown_and_not_made_up(
    tmp_path: Path, frames: np.ndarray, engine: EngineConfig
) -> None:
    Image.fromarray(frames[0]).save(tmp_path / "a.png")
    (image,) = enhance([tmp_path / "a.png"], tmp_path / "out", engine)["images"]
    assert image["pixel_size"] == "pixel size unknown"
    with tifffile.TiffFile(tmp_path / "out" / "a_enhanced.ome.tif") as file:
        assert "PhysicalSizeX" not in file.ome_metadata


def test_resampling_brings_an_image_to_the_models_pixel(
    tmp_path: Path, frames: np.ndarray, engine: EngineConfig
) -> None:
    Image.fromarray(frames[0]).save(tmp_path / "a.png")
    enhance([tmp_path / "a.png"], tmp_path / "out", engine, pixel_size_nm=96.296, resample=True)
    assert tifffile.imread(tmp_path / "out" / "a_enhanced.ome.tif").shape == (128, 192)


def test_nothing_is_written_when_one_of_the_sources_is_wrong(
    tmp_path: Path, frames: np.ndarray, engine: EngineConfig
) -> None:
    Image.fromarray(frames[0]).save(tmp_path / "good.png")
    Image.fromarray(frames[0][:15]).save(tmp_path / "short.png")
    floats = np.zeros((3, 32, 32), np.float32)
    floats[2] = np.nan
    tifffile.imwrite(tmp_path / "late_nan.tif", floats, photometric="minisblack")
    for wrong in ("short.png", "late_nan.tif"):
        with pytest.raises(ConfigError):
            enhance([tmp_path / "good.png", tmp_path / wrong], tmp_path / "out", engine)
    assert not (tmp_path / "out").exists()


def test_what_was_simulated_stays_simulated_and_keeps_its_pixel_size(
    tmp_path: Path, frames: np.ndarray, engine: EngineConfig
) -> None:
    facts = {"simulated": ["camera", "stage"]}
    write_ome_tiff(tmp_path / "tile.ome.tif", frames[0], channels=("raw",), pixel_size_nm=48.148, facts=facts)
    (image,) = enhance([tmp_path / "tile.ome.tif"], tmp_path / "out", engine)["images"]
    assert image["simulated"] is True
    assert image["pixel_size_nm"] == pytest.approx(48.148)


@pytest.mark.parametrize("pixel_size_nm", [0.0, -3.0, float("nan"), float("inf")])
def test_a_pixel_size_that_is_none_is_refused(
    tmp_path: Path, frames: np.ndarray, engine: EngineConfig, pixel_size_nm: float
) -> None:
    Image.fromarray(frames[0]).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="positive number"):
        enhance([tmp_path / "a.png"], tmp_path / "out", engine, pixel_size_nm=pixel_size_nm, resample=True)


def test_a_result_that_exists_is_never_overwritten(tmp_path: Path, frames: np.ndarray, engine: EngineConfig) -> None:
    Image.fromarray(frames[0]).save(tmp_path / "a.png")
    enhance([tmp_path / "a.png"], tmp_path / "out", engine)
    with pytest.raises(ConfigError, match="exists"):
        enhance([tmp_path / "a.png"], tmp_path / "out", engine)
    with pytest.raises(ConfigError, match="two sources"):
        enhance([tmp_path / "a.png", tmp_path / "a.png"], tmp_path / "other", engine)


def test_a_model_of_several_outputs_makes_a_file_of_each(tmp_path: Path, frames: np.ndarray, lens_bundle: Path) -> None:
    tifffile.imwrite(tmp_path / "stack.tif", frames[:3], photometric="minisblack")
    config = EngineConfig(model=str(lens_bundle), hint="f32")
    (image,) = enhance([tmp_path / "stack.tif"], tmp_path / "out", config)["images"]
    assert image["enhanced"] == image["outputs"]["enhanced"]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "stack_enhanced_enhanced.ome.tif"), frames[:3])
    np.testing.assert_array_equal(tifffile.imread(image["outputs"]["inverted"]), 255 - frames[:3])
    colour = tifffile.imread(image["outputs"]["colour"])
    np.testing.assert_array_equal(colour, np.stack([frames[:3], 0 * frames[:3], 255 - frames[:3]], axis=-1))


def test_a_large_image_is_enhanced_in_tiles_as_it_would_be_in_one_piece(tmp_path: Path, frames: np.ndarray) -> None:
    image = np.tile(frames[0], (4, 3))
    image[:, 150:] //= 3
    Image.fromarray(image).save(tmp_path / "a.png")
    config = EngineConfig(model="enhance-rt", hint="f32")
    results = []
    for tile_px in (176, 300):
        enhance([tmp_path / "a.png"], tmp_path / str(tile_px), config, tile_px=tile_px)
        results.append(tifffile.imread(tmp_path / str(tile_px) / "a_enhanced.ome.tif").astype(int))
    assert results[0].shape == image.shape
    assert np.abs(results[0] - results[1]).max() <= 1  # a count, where 1e-4 of full scale crosses a half


def test_what_is_too_large_for_a_model_without_tiles_is_refused_before_anything_is_written(
    tmp_path: Path, frames: np.ndarray, lens_bundle: Path
) -> None:
    Image.fromarray(frames[0]).save(tmp_path / "fits.png")
    Image.fromarray(np.tile(frames[0], (1, 2))).save(tmp_path / "large.png")
    config = EngineConfig(model=str(lens_bundle), hint="f32")
    with pytest.raises(ConfigError, match=r"large.png is 64 x 192 px.*whole picture.*--tile-px"):
        enhance([tmp_path / "fits.png", tmp_path / "large.png"], tmp_path / "out", config, tile_px=96)
    assert not (tmp_path / "out").exists()


ENHANCE = """
import re, sys
from pathlib import Path
from edge.config import EngineConfig
from edge.offline import enhance_files

source, out, tile_px = sys.argv[1:]
config = EngineConfig(model="enhance-rt", hint="f32")
options = {"bit_depth": None, "pixel_size_nm": None, "resample": False, "tile_px": int(tile_px)}
enhance_files([Path(source)], Path(out), config, **options)
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.slow
def test_a_large_image_costs_the_memory_of_its_tiles(tmp_path: Path) -> None:
    """7 million pixels: 0.8 GB in one piece, beside what Python and OpenVINO are."""
    shape = (2107, 3301)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8) // 2
    image[:, 1650:] += 100
    tifffile.imwrite(tmp_path / "a.tif", image)
    peak_mb, results = [], []
    for tile_px in (1024, 4096):
        out = tmp_path / str(tile_px)
        command = [sys.executable, "-c", ENHANCE, str(tmp_path / "a.tif"), str(out), str(tile_px)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
        peak_mb.append(int(done.stdout))
        results.append(tifffile.imread(out / "a_enhanced.ome.tif").astype(int))
    assert np.abs(results[0] - results[1]).max() <= 1
    assert peak_mb[0] < peak_mb[1] - 400, peak_mb


def test_a_finer_model_halves_the_pixel_size(
    tmp_path: Path, frames: np.ndarray, new_bundle: Callable[..., Path]
) -> None:
    Image.fromarray(frames[0]).save(tmp_path / "a.png")
    config = EngineConfig(model=str(new_bundle(scale=2)), hint="f32")
    (image,) = enhance([tmp_path / "a.png"], tmp_path / "out", config, pixel_size_nm=48.0)["images"]
    assert (image["shape_px"], image["pixel_size_nm"]) == ((128, 192), 24.0)
