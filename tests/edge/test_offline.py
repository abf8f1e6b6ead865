"""`superlens enhance`: each image becomes one file that says where it came from."""

from __future__ import annotations

import json
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


def test_a_finer_model_halves_the_pixel_size(
    tmp_path: Path, frames: np.ndarray, new_bundle: Callable[..., Path]
) -> None:
    Image.fromarray(frames[0]).save(tmp_path / "a.png")
    config = EngineConfig(model=str(new_bundle(scale=2)), hint="f32")
    (image,) = enhance([tmp_path / "a.png"], tmp_path / "out", config, pixel_size_nm=48.0)["images"]
    assert (image["shape_px"], image["pixel_size_nm"]) == ((128, 192), 24.0)
