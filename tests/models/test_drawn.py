"""The middles of real images stand for specimens, each under the number its folder gives it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.drawn import SpecimenConditions, middles
from models.errors import RecipeError


def write(path: Path, shape_px: tuple[int, int]) -> None:
    """An image whose grey is the row."""
    rows = np.broadcast_to(np.arange(shape_px[0], dtype=np.uint8)[:, None], shape_px)
    Image.fromarray(np.ascontiguousarray(rows)).save(path)


def test_the_middle_of_every_large_image_is_taken_and_keeps_its_number(tmp_path: Path) -> None:
    write(tmp_path / "a.png", (60, 40))
    write(tmp_path / "b.png", (20, 90))
    write(tmp_path / "c.TIF", (32, 32))
    (tmp_path / "notes.txt").write_text("no image")
    found = middles(tmp_path, side_px=32)
    assert [(number, name, image.shape) for number, name, image in found] == [(0, "a", (32, 32)), (2, "c", (32, 32))]
    np.testing.assert_allclose(found[0].image[:, 0] * 255, np.arange(14, 46), atol=1e-3)


def test_a_folder_without_a_large_image_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.png", (60, 40))
    with pytest.raises(RecipeError, match="has no image of at least 48 x 48 px; give a folder with some"):
        middles(tmp_path, side_px=48)


def test_families_that_nobody_draws_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no specimen family unicorn; choose from grating,"):
        SpecimenConditions(families=("dots", "unicorn"), effective_na=(1.0,), photons=(500,), axis_offset_um=((0, 1),))
