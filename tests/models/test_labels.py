"""Rough marks of a person become label maps that follow the outlines."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from models.__main__ import main
from models.errors import PairsError
from models.labels import label_map, read_labels, read_strokes, write_labels

SHAPE = (240, 320)
GRAINS = [((60, 70), 34, 1), ((150, 110), 40, 2), ((90, 240), 45, 1)]


def scene(noise: float = 0.04) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    image, truth = np.full(SHAPE, 0.25), np.zeros(SHAPE, np.uint8)
    for (cy, cx), radius, kind in GRAINS:
        disc = np.hypot(y - cy, x - cx) < radius
        image[disc], truth[disc] = 0.6 + 0.1 * kind, kind
    image = cv2.GaussianBlur(image, (0, 0), 1.0) + np.random.default_rng(0).normal(0, noise, SHAPE)
    return np.clip(image, 0, 1).astype(np.float32), truth


def square(centre: tuple[int, int], half: int) -> list[list[int]]:
    (y, x) = centre
    return [[y - half, x - half], [y - half, x + half], [y + half, x + half], [y + half, x - half]]


def polygons(path: Path, kinds: tuple[str, ...] = ("smooth", "spiny", "smooth")) -> Path:
    marks = [
        {"class": kind, "points_yx": square(centre, round(0.9 * radius))}
        for (centre, radius, _), kind in zip(GRAINS, kinds, strict=True)
    ]
    path.write_text(json.dumps({"classes": ["smooth", "spiny"], "polygons": marks}))
    return path


def overlap(found: np.ndarray, truth: np.ndarray, kind: int) -> float:
    both = (found == kind) & (truth == kind)
    return float(both.sum() / ((found == kind) | (truth == kind)).sum())


@pytest.mark.parametrize("noise", [0.01, 0.06])
def test_square_marks_become_round_labels(tmp_path: Path, noise: float) -> None:
    image, truth = scene(noise)
    strokes, classes = read_strokes(polygons(tmp_path / "marks.json"), SHAPE)
    assert classes == ("smooth", "spiny")
    found = label_map(image, strokes)
    for kind in (1, 2):
        assert overlap(strokes, truth, kind) < 0.85
        assert overlap(found, truth, kind) > 0.93


def test_the_command_writes_a_map_that_carries_its_classes(tmp_path: Path) -> None:
    image, truth = scene()
    Image.fromarray(np.round(255 * image).astype(np.uint8)).save(tmp_path / "sem.png")
    call = ["labels", "--sem", tmp_path / "sem.png", "--classes", polygons(tmp_path / "marks.json")]
    done = CliRunner().invoke(main, [*map(str, call), "--out", str(tmp_path / "labels.png")])
    assert done.exit_code == 0, done.output
    assert "smooth" in done.output
    found, classes = read_labels(tmp_path / "labels.png", SHAPE)
    assert classes == ("smooth", "spiny")
    assert overlap(found, truth, 1) > 0.9
    again = CliRunner().invoke(main, [*map(str, call), "--out", str(tmp_path / "labels.png")])
    assert again.exit_code == 2
    assert "never overwritten" in again.output


def test_a_mask_file_does_as_well_as_polygons(tmp_path: Path) -> None:
    image, truth = scene()
    strokes, _ = read_strokes(polygons(tmp_path / "marks.json"), SHAPE)
    Image.fromarray(strokes).save(tmp_path / "mask.png")
    mask, classes = read_strokes(tmp_path / "mask.png", SHAPE)
    assert classes == ("class-1", "class-2")
    assert overlap(label_map(image, mask), truth, 2) > 0.93


def test_an_empty_mask_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(PairsError, match="marks nothing: every pixel is background"):
        read_strokes(tmp_path / "mask.png", SHAPE)


def test_labels_of_one_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match=r"marks one class only \(smooth\), expected two or more"):
        read_strokes(polygons(tmp_path / "marks.json", ("smooth",) * 3), SHAPE)


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((100, 90), np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(PairsError, match="is 100 x 90 px, expected 240 x 320"):
        read_strokes(tmp_path / "mask.png", SHAPE)
    with pytest.raises(PairsError, match="expected the same size"):
        label_map(scene()[0], np.ones((100, 90), np.uint8))


def test_a_polygon_outside_the_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match=r"polygon 1 \(spiny\) of .* leaves the image of 150 x 320 px"):
        read_strokes(polygons(tmp_path / "marks.json"), (150, 320))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "the file: Invalid JSON"),
        ('{"classes": ["a"], "polygons": []}', "polygons: Tuple should have at least 1 item"),
        ('{"classes": ["a"], "polygons": [{"class": "b", "points_yx": [[1,1],[2,2],[1,2]]}]}', r"\['b'\] is missing"),
        ('{"classes": ["a"], "polygons": [{"class": "a", "points_yx": [[1,1]]}]}', r"polygons\.0\.points_yx"),
    ],
)
def test_a_polygon_file_with_a_mistake_says_where(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "marks.json").write_text(text)
    with pytest.raises(PairsError, match=says):
        read_strokes(tmp_path / "marks.json", SHAPE)


def test_marks_where_no_outline_is_closed_are_refused() -> None:
    strokes = np.zeros(SHAPE, np.uint8)
    strokes[200:230, 200:300] = 1
    with pytest.raises(PairsError, match="no closed outline lies under the strokes of class 1"):
        label_map(scene()[0], strokes)


def test_a_colour_picture_is_no_label_map(tmp_path: Path) -> None:
    Image.new("RGB", (320, 240)).save(tmp_path / "mask.png")
    with pytest.raises(PairsError, match="mode RGB, expected 8-bit grey"):
        read_labels(tmp_path / "mask.png", SHAPE)
    (tmp_path / "bad.png").write_text("nothing")
    with pytest.raises(PairsError, match="cannot be read as an image"):
        read_labels(tmp_path / "bad.png", SHAPE)


def test_a_label_map_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match="could not be written"):
        write_labels(tmp_path / "nowhere" / "labels.png", np.ones((4, 4), np.uint8), ("a",))
    assert list(tmp_path.iterdir()) == []
