"""A folder of pairs is read whole, or refused with the command that makes one."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from models.errors import PairsError
from models.pairs import SPLITS, read_index, read_pairs


def folder(path: Path, *, side_px: int = 16, classes: tuple[str, ...] = ()) -> Path:
    rng = np.random.default_rng(0)
    crops = []
    for number, split in enumerate(SPLITS):
        (path / split).mkdir(parents=True)
        for part in ("optical", "sem"):
            counts = rng.integers(0, 65536, (side_px, side_px)).astype(np.uint16)
            tifffile.imwrite(path / split / f"000-{part}.tif", counts)
        if classes:
            tifffile.imwrite(path / split / "000-labels.tif", np.ones((side_px, side_px), np.uint8))
        crops.append({"name": "000", "split": split, "corner_px": [0, 20 * number], "sem": "sem.tif"})
    fit = {"file": "sem.tif", "pixel_size_nm": 40, "matrix": [[1, 0, 0], [0, 1, 0]], "scale": 1, "scale_expected": 1}
    fit |= {"rotation_deg": 0, "shift_px": [0, 0], "score": None, "residual_px": 0.1}
    index = {"pixel_size_nm": 48, "crop_px": side_px, "gap_px": 4, "optical": "mosaic.tif", "registrations": [fit]}
    (path / "pairs.json").write_text(json.dumps({**index, "crops": crops, "classes": classes}))
    return path


@pytest.mark.parametrize("classes", [(), ("spiny", "smooth")])
def test_pairs_come_as_shares_of_full_scale(tmp_path: Path, classes: tuple[str, ...]) -> None:
    made = folder(tmp_path / "pairs", classes=classes)
    for split in SPLITS:
        (pair,) = read_pairs(made, split)
        assert pair.name == f"{split}/000"
        np.testing.assert_allclose(pair.image, tifffile.imread(made / split / "000-optical.tif") / 65535, atol=1e-6)
        assert (pair.truth.dtype, pair.pixel_size_nm) == (np.float32, 48)
        assert (pair.labels is not None) == bool(classes)


def test_a_folder_without_an_index_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match=r"is no folder of pairs .* superlens-train pairs --optical"):
        read_index(tmp_path)


def test_a_damaged_index_says_what_is_wrong(tmp_path: Path) -> None:
    made = folder(tmp_path / "pairs")
    index = json.loads((made / "pairs.json").read_text())
    (made / "pairs.json").write_text(json.dumps({**index, "crop_px": 3, "colour": "red"}))
    with pytest.raises(PairsError, match="crop_px: Input should be greater than or equal to 16; colour: Extra inputs"):
        read_index(made)


def test_a_missing_and_a_foreign_crop_are_refused_by_name(tmp_path: Path) -> None:
    made = folder(tmp_path / "pairs")
    tifffile.imwrite(made / "train" / "000-sem.tif", np.zeros((8, 8), np.uint16))
    with pytest.raises(PairsError, match=r"000-sem.tif holds uint16 of \(8, 8\) px, expected uint16 of \(16, 16\)"):
        read_pairs(made, "train")
    (made / "test" / "000-optical.tif").unlink()
    with pytest.raises(PairsError, match=r"000-optical\.tif cannot be read"):
        read_pairs(made, "test")


def test_there_are_three_splits(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match="there is no split 'holdout'; choose one of train, validation, test"):
        read_pairs(folder(tmp_path / "pairs"), "holdout")  # type: ignore[arg-type]
