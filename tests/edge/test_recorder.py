"""What a scan leaves on the disk: whole files, honest about what is missing and what is simulated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from edge.errors import ConfigError, EdgeError
from edge.frames import Frame, Tile
from edge.recorder import ScanRecorder
from edge.scan import ScanPlan
from edge.stitch import camera_from_stage
from firmware_bridge.pzt import PositionUm

PIXEL_NM = 100.0
FACTS = {"model": "gain", "simulated": ["camera", "stage"]}


@pytest.fixture
def plan() -> ScanPlan:
    return ScanPlan(region_um=(9, 5), centre_um=PositionUm(50, 50, 5), tile_um=4.0, overlap=0.25)


def recorder(folder: Path, plan: ScanPlan, **options: Any) -> ScanRecorder:
    return ScanRecorder(
        folder,
        plan,
        side_px=40,
        pixel_size_nm=PIXEL_NM,
        a_px_per_um=camera_from_stage(PIXEL_NM),
        **{"centre_px": None, "output": "enhanced", "words": "enhanced by gain, not raw data", **options},
        facts=FACTS,
    )


def scene(x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
    """A sample, in stage axes."""
    return 120 + 100 * np.sin(x_um) * np.cos(y_um / 2)


def take(plan: ScanPlan, index: int, error_um: float = 0.0) -> tuple[Frame, Tile]:
    """The frame a microscope would take at point ``index``: pixel offset u sees the sample at u / A - p."""
    point = list(plan.points())[index]
    p = point.target_um
    offset_um = (np.arange(64) - 31.5) * PIXEL_NM / 1e3
    pixels = np.rint(scene(offset_um[None, :] - p.x, offset_um[:, None] - p.y)).astype(np.uint8)
    frame = Frame(pixels, index, 0, p, true_position_um=p._replace(x=p.x + error_um))
    return frame, Tile({"enhanced": 255 - pixels}, index, p)


def test_a_whole_scan_is_tiles_an_index_and_a_mosaic_that_fits(tmp_path: Path, plan: ScanPlan) -> None:
    sink = recorder(tmp_path / "scan", plan)
    for index in range(plan.tiles):
        sink.write(*take(plan, index, error_um=0.003))
    sink.close()
    index = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert index["complete"] is True
    assert index["missing"] == {}
    assert sink.rms_position_um == pytest.approx(0.003)
    assert len(list((tmp_path / "scan" / "raw").iterdir())) == plan.tiles
    mosaic = tifffile.imread(sink.mosaic_path)
    assert mosaic.shape[0] == 2
    raw, enhanced = mosaic.astype(int)
    # Every tile agrees with the sample, so the mosaic does too; its middle is the plan's centre.
    height, width = raw.shape
    y_um, x_um = ((np.arange(n) - (n - 1) / 2) * PIXEL_NM / 1e3 for n in (height, width))
    assert np.abs(raw - scene(x_um[None, :] - 50, y_um[:, None] - 50)).max() < 12
    assert np.abs(raw + enhanced - 255).max() <= 1


def in_colour(tile: Tile) -> Tile:
    """The tile with another output: red as it is, no green, blue inverted."""
    grey = tile.outputs["enhanced"]
    return replace(tile, outputs={**tile.outputs, "map": np.dstack([grey, 0 * grey, 255 - grey])})


def test_a_scan_in_colour_is_a_mosaic_of_two_images_that_lie_on_each_other(tmp_path: Path, plan: ScanPlan) -> None:
    sink = recorder(tmp_path / "scan", plan, output="map", distortion=((0.0, 0.0), (3.0, 0.02)))
    grey = recorder(tmp_path / "grey", plan, distortion=((0.0, 0.0), (3.0, 0.02)))
    for index in range(plan.tiles):
        frame, tile = take(plan, index)
        sink.write(frame, in_colour(tile))
        grey.write(frame, tile)
    sink.close()
    grey.close()
    raw, enhanced = tifffile.imread(grey.mosaic_path)
    with tifffile.TiffFile(sink.mosaic_path) as file:
        first, colour = (series.asarray() for series in file.series)
    np.testing.assert_array_equal(first, raw)
    assert colour.shape == (*raw.shape, 3)
    np.testing.assert_array_equal(colour[..., 0], enhanced)
    assert not colour[..., 1].any()
    assert tifffile.imread(tmp_path / "scan" / "enhanced" / "tile_000_000.ome.tif").shape == (40, 40, 3)
    assert json.loads((tmp_path / "scan" / "scan.json").read_text())["facts"]["output"] == "map"


def test_a_finer_output_stands_at_the_same_place_with_half_the_pixel_size(tmp_path: Path, plan: ScanPlan) -> None:
    sink = recorder(tmp_path / "scan", plan, scale=2, centre_px=(30.0, 33.0))
    for index in range(plan.tiles):
        frame, tile = take(plan, index)
        sink.write(frame, replace(tile, outputs={"enhanced": frame.pixels.repeat(2, 0).repeat(2, 1)}))
    sink.close()
    with tifffile.TiffFile(sink.mosaic_path) as file:
        raw, enhanced = (series.asarray().astype(int) for series in file.series)
        images = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    assert [image["Pixels"]["PhysicalSizeX"] for image in images] == pytest.approx([0.1, 0.05])
    assert np.abs(np.subtract(enhanced.shape, np.multiply(2, raw.shape))).max() <= 1
    height, width = np.minimum(enhanced.shape, np.multiply(2, raw.shape)) // 2
    assert np.abs(enhanced[: 2 * height : 2, : 2 * width : 2] - raw[:height, :width]).max() < 12
    tiles = [tmp_path / "scan" / kind / "tile_000_001.ome.tif" for kind in ("raw", "enhanced")]
    small, large = map(tifffile.imread, tiles)
    np.testing.assert_array_equal(large, small.repeat(2, 0).repeat(2, 1))
    places = []
    for path in tiles:
        with tifffile.TiffFile(path) as file:
            places.append(tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]["Plane"])
    assert places[0] == places[1]


def test_every_file_says_its_pixel_size_its_origin_and_that_it_is_simulated(tmp_path: Path, plan: ScanPlan) -> None:
    sink = recorder(tmp_path / "scan", plan)
    sink.write(*take(plan, 0))
    sink.close()
    for path in (tmp_path / "scan" / "enhanced" / "tile_000_000.ome.tif", sink.mosaic_path):
        with tifffile.TiffFile(path) as file:
            xml = file.ome_metadata
        assert 'PhysicalSizeX="0.1"' in xml
        assert "simulated" in xml
        assert "not raw data" in xml


def test_the_plane_position_is_the_mosaics_and_not_the_stages(tmp_path: Path, plan: ScanPlan) -> None:
    sink = recorder(tmp_path / "scan", plan)
    sink.write(*take(plan, 0))
    sink.close()
    first = next(iter(plan.points())).target_um
    with tifffile.TiffFile(tmp_path / "scan" / "raw" / "tile_000_000.ome.tif") as file:
        planes = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]["Plane"]
    plane = planes[0] if isinstance(planes, list) else planes
    assert plane["PositionX"] == pytest.approx(-(first.x - 50), abs=1e-6)
    assert plane["PositionY"] == pytest.approx(-(first.y - 50), abs=1e-6)


def test_a_scan_that_was_cut_off_says_so_and_keeps_its_tiles(tmp_path: Path, plan: ScanPlan) -> None:
    sink = recorder(tmp_path / "scan", plan)
    before = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert before["complete"] is False
    sink.write(*take(plan, 0))
    sink.skip(1, "no trigger pulse came")
    sink.close()
    sink.close()
    after = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert after["complete"] is False
    assert after["missing"]["1"] == "no trigger pulse came"
    assert "ended before" in after["missing"]["2"]
    assert len(after["missing"]) == plan.tiles - 1
    assert (tmp_path / "scan" / "mosaic.ome.tif").exists()


def test_a_folder_that_holds_something_is_refused(tmp_path: Path, plan: ScanPlan) -> None:
    (tmp_path / "precious.tif").write_bytes(b"data")
    with pytest.raises(ConfigError, match="not empty"):
        recorder(tmp_path, plan)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.tif"]


def test_no_half_written_file_stays_when_the_disk_refuses(
    tmp_path: Path, plan: ScanPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = recorder(tmp_path / "scan", plan)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tifffile, "TiffWriter", full)
    with pytest.raises(EdgeError, match=r"No space.*Free some space"):
        sink.write(*take(plan, 0))
    assert list((tmp_path / "scan" / "raw").iterdir()) == []


def test_when_the_mosaic_does_not_fit_the_disk_the_tiles_are_still_on_record(
    tmp_path: Path, plan: ScanPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = recorder(tmp_path / "scan", plan)
    sink.write(*take(plan, 0))
    sink.write(*take(plan, 1))
    writer = tifffile.TiffWriter

    def full_but_for_raw_tiles(path: Path, *args: object, **kwargs: object) -> tifffile.TiffWriter:
        if "raw" not in path.parts:
            raise OSError(28, "No space left on device")
        return writer(path, *args, **kwargs)

    monkeypatch.setattr(tifffile, "TiffWriter", full_but_for_raw_tiles)
    with pytest.raises(EdgeError, match="No space"):
        sink.write(*take(plan, 2))
    with pytest.raises(EdgeError, match="No space"):
        sink.close()
    index = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert [tile["index"] for tile in index["tiles"]] == [0, 1]
    assert (index["complete"], index["mosaic"]) == (False, None)
    names = [sorted(file.name for file in (tmp_path / "scan" / kind).iterdir()) for kind in ("raw", "enhanced")]
    assert names[0] == names[1] == [tile["file"] for tile in index["tiles"]]
