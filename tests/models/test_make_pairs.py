"""From the files a lab has to a folder of pairs, or to one clear error and no folder."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("cv2", reason="needs the extra [train]")
    pytest.importorskip("torch", reason="needs the extra [train]")

import cv2
import tifffile
from click.testing import CliRunner, Result
from PIL import Image

from models import make_pairs as making
from models.__main__ import main
from models.pairs import SPLITS, read_index, read_pairs
from tests.lab import BAR_PX, OPTICAL_NM, Lab, Specimen, error_px, sem_view, similarity, write_lab

SIDE = 800


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return write_lab(tmp_path_factory.mktemp("lab"), side_px=SIDE)


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["pairs", *map(str, arguments)])


def refused(out: Path, *arguments: Any) -> str:
    """The error of a call that must leave nothing behind."""
    done = run("--out", out, *arguments)
    assert done.exit_code == 2, done.output
    assert not out.exists()
    assert not out.parent.exists() or not [
        path for path in out.parent.iterdir() if path.name.startswith(f".{out.name}")
    ]
    assert done.output.count("error:") == 1
    return done.output


@pytest.fixture(scope="module")
def made(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("made") / "pairs"
    done = run("--optical", lab.mosaic, "--sem", lab.sem, "--out", out, "--crop-px", 128, "--gap-px", 16, "--json", "-")
    assert done.exit_code == 0, done.output
    return out, json.loads(done.stdout)


def test_the_transform_is_found_and_reported(lab: Lab, made: tuple[Path, dict[str, Any]]) -> None:
    found = made[1]["registration"]
    assert error_px(lab.matrix, np.array(found["matrix"]), SIDE) < 0.5
    assert found["scale"] == pytest.approx(1.224, abs=1e-3)
    assert found["scale_expected"] == pytest.approx(1.2, abs=1e-3)
    assert found["rotation_deg"] == pytest.approx(6, abs=0.05)
    assert found["shift_px"] == pytest.approx([lab.matrix[1, 2], lab.matrix[0, 2]], abs=0.5)
    assert 0 < found["residual_px"] < 1
    assert made[1]["pixel_size_nm"] == pytest.approx(OPTICAL_NM, rel=1e-4)


def test_the_data_bar_is_found_and_no_crop_shows_it(lab: Lab, made: tuple[Path, dict[str, Any]]) -> None:
    ((top, left, bottom, right),) = made[1]["burned_in"]["sem.tif"]
    assert (left, bottom, right) == (0, SIDE, SIDE)
    assert SIDE - BAR_PX - 3 <= top <= SIDE - BAR_PX
    for crop in read_index(made[0]).crops:
        # No row of the bar lies within a crop: the bar's upper edge, seen in the mosaic, passes below it.
        corners = [(crop.corner_px[1] + dx, crop.corner_px[0] + dy) for dx in (0, 128) for dy in (0, 128)]
        rows = [(lab.matrix @ [x, y, 1])[1] for x, y in corners]
        assert max(rows) < SIDE - BAR_PX


def test_both_pictures_of_a_pair_show_the_same_place(lab: Lab, made: tuple[Path, dict[str, Any]]) -> None:
    mosaic = tifffile.imread(lab.mosaic).astype(np.float32) / 65535
    crops = {f"{crop.split}/{crop.name}": crop for crop in read_index(made[0]).crops}
    pairs = [pair for split in SPLITS for pair in read_pairs(made[0], split)]
    assert [pair.name for pair in pairs] == list(crops)
    assert sum(made[1]["counts"].values()) == len(pairs)
    for pair in pairs:
        y, x = crops[pair.name].corner_px
        np.testing.assert_allclose(pair.image, mosaic[y : y + 128, x : x + 128], atol=1e-4)
        assert pair.pixel_size_nm == pytest.approx(OPTICAL_NM, rel=1e-4)
        assert (pair.truth.min(), pair.truth.max()) >= (0, 0.2)
    residuals = [crop.residual_px for crop in crops.values() if crop.residual_px is not None]
    assert residuals
    assert max(residuals) < 1


def test_no_crop_of_one_split_touches_another(made: tuple[Path, dict[str, Any]]) -> None:
    crops = read_index(made[0]).crops
    for one in crops:
        for other in crops:
            if one is not other:
                apart = np.abs(np.subtract(one.corner_px, other.corner_px)).max()
                assert apart >= 128 + 16


def test_a_coarser_pixel_can_be_asked_for(lab: Lab, tmp_path: Path) -> None:
    out = tmp_path / "new" / "pairs"
    done = run(
        "--optical", lab.mosaic, "--sem", lab.sem, "--out", out, "--pixel-nm", 100, "--crop-px", 96, "--gap-px", 0
    )
    assert done.exit_code == 0, done.output
    (first, *_) = read_pairs(out, "train")
    assert first.pixel_size_nm == 100
    crop = read_index(out).crops[0]
    mosaic = tifffile.imread(lab.mosaic).astype(np.float32) / 65535
    f = 100 / OPTICAL_NM
    y, x = (round((corner + 20.5) * f - 0.5) for corner in crop.corner_px)
    assert first.image[20, 20] == pytest.approx(mosaic[y - 1 : y + 2, x - 1 : x + 2].mean(), abs=0.05)


def test_landmarks_stand_in_for_the_search(lab: Lab, tmp_path: Path) -> None:
    places = [(100, 100), (100, 650), (600, 150), (580, 620)]
    seen = [(lab.matrix @ [x, y, 1])[1::-1].round(1).tolist() for y, x in places]
    (tmp_path / "points.json").write_text(json.dumps({"optical_yx": places, "sem_yx": seen}))
    call = ["--optical", lab.mosaic, "--sem", lab.sem, "--landmarks", tmp_path / "points.json", "--crop-px", 128]
    done = run(*call, "--out", tmp_path / "pairs", "--json", "-")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["registration"]
    assert error_px(lab.matrix, np.array(found["matrix"]), SIDE) < 0.3
    assert found["score"] is None
    assert len(found["residuals_px"]) == 4
    (tmp_path / "points.json").write_text('{"optical_yx": [[1, 2]]}')
    assert "holds no landmarks" in refused(tmp_path / "other", *call)
    (tmp_path / "points.json").write_text('{"optical_yx": [[1, 2]], "sem_yx": [[3, 4]]}')
    assert "expected as many of both and at least 2 for a similarity" in refused(tmp_path / "other", *call)


def test_label_maps_travel_with_the_pairs(lab: Lab, tmp_path: Path) -> None:
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[:, : SIDE // 2], labels[:, SIDE // 2 :] = 1, 2
    Image.fromarray(labels).save(tmp_path / "labels.png")
    call = ["--optical", lab.mosaic, "--sem", lab.sem, "--crop-px", 128, "--labels", tmp_path / "labels.png"]
    assert run(*call, "--out", tmp_path / "pairs").exit_code == 0
    assert read_index(tmp_path / "pairs").classes == ("class-1", "class-2")
    crops = read_index(tmp_path / "pairs").crops
    pairs = {pair.name: pair for split in SPLITS for pair in read_pairs(tmp_path / "pairs", split)}
    for crop in crops:
        found = pairs[f"{crop.split}/{crop.name}"].labels
        x, _, _ = lab.matrix @ [crop.corner_px[1] + 64, crop.corner_px[0] + 64, 1]
        assert found is not None
        assert found[64, 64] == (1 if x < SIDE / 2 else 2)
    assert "2 files of label maps for 1 SEM images" in refused(
        tmp_path / "other", *call, "--labels", tmp_path / "labels.png"
    )


@pytest.mark.slow
def test_different_content_is_refused(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = write_lab(tmp_path / "other", "crystals", side_px=400, seed=3)
    assert "fit nowhere" in refused(tmp_path / "pairs", "--optical", lab.mosaic, "--sem", other.sem)


@pytest.mark.slow
def test_no_overlap_is_refused(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    far = write_lab(tmp_path / "far", "bars", side_px=400, seed=8)
    assert "do not overlap" in refused(tmp_path / "pairs", "--optical", lab.mosaic, "--sem", far.sem)


def test_a_wrong_pixel_size_is_told_from_other_content(lab: Lab, tmp_path: Path) -> None:
    text = refused(tmp_path / "pairs", "--optical", lab.mosaic, "--sem", lab.sem, "--sem-nm-per-px", lab.sem_nm * 1.9)
    assert "the size of a pixel is wrong: the images fit at 1.9" in text


def test_an_unknown_pixel_size_is_refused_with_the_option_that_gives_it(lab: Lab, tmp_path: Path) -> None:
    Image.fromarray(tifffile.imread(lab.sem)).save(tmp_path / "sem.png")
    assert "give it with --sem-nm-per-px" in refused(
        tmp_path / "pairs", "--optical", lab.mosaic, "--sem", tmp_path / "sem.png"
    )
    Image.fromarray(tifffile.imread(lab.sem)).save(tmp_path / "mosaic.png", dpi=(72, 72))
    assert "--optical-nm-per-px" in refused(tmp_path / "pairs", "--optical", tmp_path / "mosaic.png", "--sem", lab.sem)


def test_an_empty_image_is_refused(lab: Lab, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "empty.tif", np.full((400, 400), 90, np.uint8))
    call = ["--optical", lab.mosaic, "--sem", tmp_path / "empty.tif", "--sem-nm-per-px", 40]
    assert "SEM image is empty" in refused(tmp_path / "pairs", *call)


def test_too_few_crops_for_three_splits_are_refused_with_the_reasons(lab: Lab, tmp_path: Path) -> None:
    text = refused(tmp_path / "pairs", "--optical", lab.mosaic, "--sem", lab.sem, "--crop-px", 400)
    assert "crops of 400 px are usable, expected at least 3" in text
    assert "smaller than a crop of 1024 px" in refused(
        tmp_path / "pairs", "--optical", lab.mosaic, "--sem", lab.sem, "--crop-px", 1024
    )


def test_an_existing_folder_is_never_touched(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "mine").write_text("kept")
    done = run("--optical", lab.mosaic, "--sem", lab.sem, "--out", tmp_path / "pairs")
    assert done.exit_code == 2
    assert "exists already" in done.output
    assert (tmp_path / "pairs" / "mine").read_text() == "kept"


def test_a_full_disk_ends_in_words_and_leaves_nothing(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def write(path: Path, *_: Any, **__: Any) -> None:
        written.append(path)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_bytes(b"half")

    monkeypatch.setattr(making.tifffile, "imwrite", write)
    text = refused(tmp_path / "pairs", "--optical", lab.mosaic, "--sem", lab.sem, "--crop-px", 128)
    assert "the disk is full" in text
    assert len(written) == 5
    assert list(tmp_path.iterdir()) == []


REAL = Path(__file__).parents[3] / "shared" / "data" / "litho-sem" / "test1.jpg"


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason="there are no real images beside this checkout")
@pytest.mark.parametrize(("scale", "rotation_deg", "inverted"), [(0.9, -14.0, False), (1.12, 9.0, True)])
def test_a_real_image_warped_by_a_known_transform_is_found_to_half_a_pixel(
    tmp_path: Path, scale: float, rotation_deg: float, inverted: bool
) -> None:
    """What the issue shows: the command's own report, over the whole field, for a real SEM image and its warp."""
    side = 720
    with Image.open(REAL) as picture:
        half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    source = np.asarray(half, np.float32)[:1024, :1024] / 255
    rng = np.random.default_rng(0)
    seen = Specimen(cv2.GaussianBlur(source, (0, 0), 1.5), source)
    truth = similarity(scale, rotation_deg, (12.0, -9.0), side)
    margin = (1024 - side) // 2
    window = slice(margin, margin + side)
    mosaic = 0.1 + 0.8 * seen.optical[window, window] + rng.normal(0, 0.01, (side, side))
    sem = sem_view(seen, truth, side, rng, inverted=inverted, dose=400)
    for name, image in (("mosaic", mosaic), ("sem", sem)):
        Image.fromarray(np.round(255 * np.clip(image, 0.004, 1)).astype(np.uint8)).save(tmp_path / f"{name}.png")
    call = ["--optical", tmp_path / "mosaic.png", "--sem", tmp_path / "sem.png", "--out", tmp_path / "pairs"]
    sizes = ["--optical-nm-per-px", 10, "--sem-nm-per-px", 10, "--crop-px", 128, "--json", "-"]
    done = subprocess.run(
        [sys.executable, "-m", "models", "pairs", *map(str, call + sizes)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["registration"]
    assert error_px(truth, np.array(found["matrix"]), side) < 0.5
    assert found["scale"] == pytest.approx(scale, abs=2e-3)
    assert found["rotation_deg"] == pytest.approx(rotation_deg, abs=0.1)
