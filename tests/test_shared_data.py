"""Real images, where the checkout stands beside a `shared` folder that holds some. The one skip that CI allows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tifffile

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"there is no {DATA.name} folder beside this checkout")


def superlens(*arguments: object) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "edge", *map(str, arguments)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_real_sem_image_is_enhanced_into_a_tiff_with_metadata(tmp_path: Path) -> None:
    result = superlens("enhance", DATA / "litho-sem" / "test1.jpg", "--out", tmp_path / "out", "--json", "-")
    (image,) = result["images"]
    assert image["pixel_size"] == "pixel size unknown"
    with tifffile.TiffFile(image["enhanced"]) as file:
        assert file.asarray().shape == (2168, 2048)
        assert "enhance-rt" in file.ome_metadata


def test_all_hundred_frames_of_a_real_time_lapse_are_enhanced() -> None:
    source = DATA / "shading" / "timelapse_brightfield.npz"
    figures = superlens("run", "--camera", f"replay:{source}", "--frames", 100, "--no-web", "--json", "-")
    assert (figures["frames"], figures["dropped"], figures["simulated"]) == (100, 0, False)


@pytest.mark.parametrize("source", ["microscope-tiles", "shading/wsi_brain.npz", "litho-sem/test_analysis_lines.jpg"])
def test_every_other_real_image_passes_through_the_live_loop(source: str) -> None:
    figures = superlens("run", "--camera", f"replay:{DATA / source}", "--frames", 15, "--no-web", "--json", "-")
    assert figures["frames"] == 15
