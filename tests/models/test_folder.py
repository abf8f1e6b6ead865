"""A folder of pairs gives crops of one place, or of two, and refuses another pixel."""

import os
from pathlib import Path

import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("cv2", reason="needs the extra [train]")

from models.errors import PairsError
from models.folder import PairsFolder, PairsSection
from tests.pairs import write_pairs

# Ramps: a pixel's value says where it is, and the truth is the image mirrored in value.
Y, X = np.mgrid[0:96, 0:96].astype(np.float32)
RAMP = 0.1 + (96 * Y + X) / 96**2 * 0.8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pairs = [(RAMP, 1 - RAMP)] * 2
    splits = {"train": pairs, "validation": pairs[:1], "test": pairs[:1]}
    return write_pairs(tmp_path_factory.mktemp("ramps") / "pairs", splits, 48.1)


def test_a_paired_crop_shows_one_place_and_an_unpaired_one_two(folder: Path) -> None:
    section = PairsSection(folder=folder, pixel_size_nm=48.1, rotations_deg=(0, 90))
    source = PairsFolder(section, crop_px=32)
    image, truth = source.crop(np.random.default_rng(1))
    assert image.shape == truth.shape == (32, 32)
    np.testing.assert_allclose(image, 1 - truth, atol=1e-4)
    image, truth = source.crop(np.random.default_rng(1), paired=False)
    assert np.abs(image - (1 - truth)).max() > 0.02
    assert len(source.validation) == 1


def test_the_same_state_gives_the_same_crop(folder: Path) -> None:
    source = PairsFolder(PairsSection(folder=folder, pixel_size_nm=48.1), crop_px=32)
    first, again = (source.crop(np.random.default_rng([1, 2, 3])) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_pairs_of_another_pixel_are_refused(folder: Path) -> None:
    near, far = (PairsSection(folder=folder, pixel_size_nm=nm) for nm in (48.9, 60.0))
    assert len(near.pairs("train")) == 2, "2 % is no other pixel"
    with pytest.raises(PairsError, match=r"pixels of 48\.1 nm, the recipe is for 60\.0 nm; .* --pixel-nm 60\.0"):
        far.pairs("train")
