"""The detector finds drawn spikes, and none where there are none."""

import numpy as np
import pytest

from models.detection import match, pooled
from models.lens import data
from models.lens.spikes import find_spikes

PIXEL_NM = 332.0


def test_it_finds_the_spikes_of_true_electron_pictures() -> None:
    matches = []
    for scene in data.scenes(data.HELDOUT, count=5, side_px=256, seed=3):
        assert scene.tips_px is not None
        found = find_spikes(scene.shadowed, scene.labels == 1, pixel_size_nm=PIXEL_NM)
        matches.append(match(found, scene.tips_px, 5))
    together = pooled(matches)
    assert together.f1 >= 0.9
    assert max(together.std_px) < 1.0


def test_it_finds_a_bump_below_the_pixel() -> None:
    y, x = np.mgrid[:40, :40]
    image = (0.5 * np.exp(-((y - 20.3) ** 2 + (x - 17.6) ** 2) / 2)).astype(np.float32)
    ((at_y, at_x),) = find_spikes(image, np.ones((40, 40), bool), pixel_size_nm=PIXEL_NM)
    assert (at_y, at_x) == (pytest.approx(20.3, abs=0.1), pytest.approx(17.6, abs=0.1))


def test_lines_edges_and_flat_pictures_have_no_spikes() -> None:
    everywhere = np.ones((40, 40), bool)
    flat = np.full((40, 40), 0.4, np.float32)
    line, edge = flat.copy(), flat.copy()
    line[20], edge[20:] = 1, 1
    for picture in (flat, line, edge):
        assert len(find_spikes(picture, everywhere, pixel_size_nm=PIXEL_NM)) == 0


def test_it_looks_in_the_region_only() -> None:
    scene = data.scenes(data.HELDOUT, count=1, side_px=256, seed=3)[0]
    assert find_spikes(scene.shadowed, np.zeros((256, 256), bool), pixel_size_nm=PIXEL_NM).shape == (0, 2)
