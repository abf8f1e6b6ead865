"""The whole appliance with a camera of every pixel format: live view, snapshot, scan, and what a frame costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import tifffile

from edge.config import Config
from edge.daemon import Daemon
from edge.frames import LAYOUTS, PixelFormat
from edge.jobs import plan_scan
from models.optics import Optics
from tests.bundles import make_bundle

CONVERTED = ("mono10p", "mono12p", "bayer_rg8", "bayer_gr8", "bayer_gb8", "bayer_bg8")
"""What OpenVINO's graph cannot read itself costs one counted pass; nothing costs a copy."""
SIDES_PX = (127, 171)  # odd: the last bytes of a packed row, and the last site of a mosaic, are half used


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[PixelFormat], Daemon]]:
    """A box whose model changes nothing, over a specimen of blocks."""
    monkeypatch.setattr("edge.daemon.SNAPSHOT_TIMEOUT_S", 60.0)  # the first frame of a loaded machine takes its time
    blocks = np.random.default_rng(3).integers(20, 236, (64, 64), np.uint8)
    tifffile.imwrite(tmp_path / "blocks.tif", np.kron(blocks, np.ones((16, 16), np.uint8)))
    model = make_bundle(tmp_path / "identity")
    daemons: list[Daemon] = []

    def daemon(pixel_format: PixelFormat) -> Daemon:
        sections: dict[str, dict[str, Any]] = {
            "box": {"data_dir": str(tmp_path / "data")},
            "camera": {"shape_px": SIDES_PX, "fps": 200, "pixel_format": pixel_format},
            "engine": {"model": str(model), "hint": "f32"},
            "specimen": {"path": str(tmp_path / "blocks.tif"), "pixel_size_nm": Optics().pixel_size_nm},
            "sphere": {"field_um": 6.0},
        }
        daemons.append(Daemon(Config.model_validate(sections)))
        return daemons[-1]

    yield daemon
    for one in daemons:
        one.close()


def level(picture: np.ndarray, pixel_format: PixelFormat) -> float:
    """The mean, of full scale."""
    return float(picture.mean()) / ((1 << LAYOUTS[pixel_format].depth) - 1)


def compare(raw: np.ndarray, enhanced: np.ndarray, pixel_format: PixelFormat) -> None:
    """Counts of the camera on both sides, and the same: the model changes nothing, but may round a half otherwise."""
    layout = LAYOUTS[pixel_format]
    assert raw.dtype == enhanced.dtype == layout.result
    assert raw.ndim == enhanced.ndim == 2
    assert np.abs(raw.astype(int) - enhanced).max() <= (1 if pixel_format.startswith("bayer") else 0)
    assert raw.max() < 1 << layout.depth
    assert raw.std() > 0.02 * (1 << layout.depth)  # the blocks
    if layout.depth > 8:
        assert raw.max() > 255
    # Filters of a colour camera darken red and blue: at a wrong site the picture would be a chequerboard.
    grid = [[raw[y::2, x::2].mean() for x in (0, 1)] for y in (0, 1)]
    np.testing.assert_allclose(grid, raw.mean(), rtol=0.04)


@pytest.mark.parametrize("pixel_format", LAYOUTS)
def test_every_format_is_seen_saved_and_scanned_as_the_counts_that_the_network_is_given(
    pixel_format: PixelFormat, make: Callable[[PixelFormat], Daemon], tmp_path: Path
) -> None:
    daemon = make(pixel_format)
    plan = plan_scan(daemon.open(), region_um=(6, 4), overlap=0.15, settle_s=0)

    daemon.start_live()
    raw_file, enhanced_file = daemon.snapshot()
    daemon.stop()
    flow = daemon.board.status().flow
    assert (flow.copies_per_frame, flow.passes_per_frame) == (0, 1 if pixel_format in CONVERTED else 0)

    preview = daemon.board.preview()
    assert preview is not None
    shown = simplejpeg.decode_jpeg(preview.jpeg, colorspace="GRAY")[..., 0].astype(float)
    assert shown.shape == (SIDES_PX[0], 2 * SIDES_PX[1])
    inside = np.s_[30:-30, 50:-50]
    left, right = shown[:, : SIDES_PX[1]][inside], shown[:, SIDES_PX[1] :][inside]
    assert np.abs(left - right).mean() < 2
    assert left.std() > 5

    raw = tifffile.imread(raw_file)
    assert raw.shape == SIDES_PX
    compare(raw, tifffile.imread(enhanced_file), pixel_format)
    assert left.mean() / 255 == pytest.approx(level(raw[inside], pixel_format), abs=0.02)
    assert level(raw, pixel_format) == pytest.approx(_level_of_mono8(make), rel=0.03)
    with tifffile.TiffFile(raw_file) as file:
        assert f'"pixel_format": "{pixel_format}"' in (file.ome_metadata or "").replace("&quot;", '"')

    daemon.start_scan(plan, tmp_path / "scan")
    daemon.wait(until_job_ends=True)
    index = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert index["complete"]
    assert index["facts"]["pixel_format"] == pixel_format
    for tile in index["tiles"]:
        compare(
            *(tifffile.imread(tmp_path / "scan" / kind / tile["file"]) for kind in ("raw", "enhanced")), pixel_format
        )
    mosaic = tifffile.imread(tmp_path / "scan" / index["mosaic"])
    assert (len(mosaic), mosaic.dtype) == (2, LAYOUTS[pixel_format].result)
    flow = daemon.board.status().flow
    assert (flow.copies_per_frame, flow.passes_per_frame) == (0, 1 if pixel_format in CONVERTED else 0)


def _level_of_mono8(make: Callable[[PixelFormat], Daemon]) -> float:
    """Of a snapshot of the same place by a camera of 8 bits."""
    daemon = make("mono8")
    daemon.start_live()
    raw_file, _ = daemon.snapshot()
    daemon.stop()
    return level(tifffile.imread(raw_file), "mono8")
