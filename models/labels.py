"""Label maps: closed outlines by edge detection, and from a person which class each of them is.

Outlines are Canny's edges (IEEE TPAMI 8, 1986); a region they enclose gets the class of the rough polygon or mask
that covers most of it, so that a person's strokes need not follow the outline.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import PngImagePlugin, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import PairsError

Image = NDArray[np.float32]
Labels = NDArray[np.uint8]

_LEAST_SHARE = 0.5  # of a region, that a person's stroke must cover


class _Polygon(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    kind: str = Field(alias="class")
    points_yx: tuple[tuple[float, float], ...] = Field(min_length=3)


class Polygons(BaseModel):
    """What a polygon file holds: {"classes": [...], "polygons": [{"class": ..., "points_yx": [[y, x], ...]}]}."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[str, ...] = Field(min_length=1, max_length=255)
    polygons: tuple[_Polygon, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _classes_exist(self) -> Polygons:
        unknown = sorted({polygon.kind for polygon in self.polygons} - set(self.classes))
        if unknown or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes {list(self.classes)}: {unknown or 'a name'} is missing or there twice")
        return self


def read_strokes(path: Path, shape_px: tuple[int, int]) -> tuple[Labels, tuple[str, ...]]:
    """Where a person has marked which class, from a polygon file (.json) or a mask (an image, value = class).

    Returns
    -------
    (height, width), 0 for nothing and else the number of the class; and the names of the classes. A mask without
    names gets "class-1", "class-2" ...

    Raises
    ------
    PairsError
        The file is neither, lies outside the image or has another size, marks nothing, or marks one class only.
    """
    if path.suffix.lower() == ".json":
        strokes, classes = _drawn(path, shape_px)
    else:
        strokes, classes = read_labels(path, shape_px)
    used = set(np.unique(strokes).tolist()) - {0}
    if not used:
        raise PairsError(f"{path} marks nothing: every pixel is background; mark some of each class")
    if len(used) < 2:
        raise PairsError(
            f"{path} marks one class only ({classes[used.pop() - 1]}), expected two or more: there is nothing to tell"
            " apart; mark some of another"
        )
    return strokes, classes


def _drawn(path: Path, shape_px: tuple[int, int]) -> tuple[Labels, tuple[str, ...]]:
    try:
        file = Polygons.model_validate_json(path.read_bytes())
    except OSError as exc:
        raise PairsError(f"{path} cannot be read ({exc.strerror}); give a polygon file or a mask") from exc
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        raise PairsError(
            f"{path} is no polygon file: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}; expected"
            ' {"classes": [...], "polygons": [{"class": ..., "points_yx": [[y, x], ...]}]}'
        ) from exc
    strokes = np.zeros(shape_px, np.uint8)
    for number, polygon in enumerate(file.polygons):
        points = np.array(polygon.points_yx)
        if (points < -0.5).any() or (points > np.array(shape_px) - 0.5).any():
            raise PairsError(
                f"polygon {number} ({polygon.kind}) of {path} leaves the image of {shape_px[0]} x {shape_px[1]} px;"
                " give the polygons of this image, in its own pixels, y first"
            )
        cv2.fillPoly(strokes, [np.round(points[:, ::-1]).astype(np.int32)], file.classes.index(polygon.kind) + 1)
    return strokes, file.classes


def label_map(image: Image, strokes: Labels, *, blur_px: float = 2.0) -> Labels:
    """Give every closed region of an image the class that a person's strokes cover most of it with.

    Parameters
    ----------
    image
        (height, width) of 0 to 1: the SEM image.
    strokes
        The same size: 0 for nothing, else the number of a class.
    blur_px
        Standard deviation of the blur before edges are looked for: more for a noisier image.

    Returns
    -------
    (height, width), 0 for background.

    Raises
    ------
    PairsError
        The sizes differ, or a class gets no region: its outlines are open, or the strokes miss them.
    """
    if image.shape != strokes.shape:
        raise PairsError(f"the image is {image.shape} px and its strokes {strokes.shape}, expected the same size")
    edges = _edges(image, blur_px)
    count, regions = cv2.connectedComponents((edges == 0).astype(np.uint8), connectivity=4)
    classes = int(strokes.max()) + 1
    table = np.bincount(regions.ravel() * classes + strokes.ravel(), minlength=count * classes).reshape(count, classes)
    winner = 1 + np.argmax(table[:, 1:], axis=1)
    won = table[np.arange(count), winner] > _LEAST_SHARE * table.sum(axis=1)
    won[0] = False  # the edges themselves
    labels = np.where(won, winner, 0).astype(np.uint8)[regions]
    for number in np.unique(strokes[strokes > 0]):
        if not (labels == number).any():
            raise PairsError(
                f"no closed outline lies under the strokes of class {number}: the edges there are open, or the strokes"
                " cover less than half of what they enclose; draw more generously, or try another --blur-px"
            )
    return _without_edges(labels, edges)


def _edges(image: Image, blur_px: float) -> Labels:
    """Canny's edges with Otsu's threshold on the gradient, gaps of a pixel or two closed."""
    low, high = np.percentile(image, (0.5, 99.5))
    smooth = cv2.GaussianBlur(np.clip((image - low) / max(float(high - low), 1e-6), 0, 1), (0, 0), blur_px)
    dx, dy = (cv2.Sobel(np.round(2000 * smooth).astype(np.int16), cv2.CV_16S, *axis) for axis in ((1, 0), (0, 1)))
    steep = np.hypot(dx.astype(np.float32), dy.astype(np.float32))
    scale = 255 / max(float(steep.max()), 1e-6)
    otsu, _ = cv2.threshold((steep * scale).astype(np.uint8), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    edges = cv2.Canny(dx, dy, 0.4 * otsu / scale, otsu / scale, L2gradient=True)
    return np.asarray(cv2.morphologyEx(edges, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8)), np.uint8)


def _without_edges(labels: Labels, edges: Labels) -> Labels:
    """An edge belongs to the class next to it, where there is one on either side."""
    near = cv2.morphologyEx(labels, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    return np.where((edges > 0) & (labels == 0), near, labels).astype(np.uint8)


def write_labels(path: Path, labels: Labels, classes: tuple[str, ...]) -> None:
    """Write a label map as a PNG that carries the names of its classes.

    Raises
    ------
    PairsError
        The file exists, is no .png, or cannot be written.
    """
    if path.suffix.lower() != ".png" or path.exists():
        raise PairsError(f"{path} is no new .png file; label maps are never overwritten")
    info = PngImagePlugin.PngInfo()
    info.add_text("classes", json.dumps(classes))
    temporary = path.with_name(f".{path.name}.part")
    try:
        Picture.fromarray(labels).save(temporary, format="PNG", pnginfo=info)
        temporary.rename(path)
    except OSError as exc:
        raise PairsError(f"{path} could not be written ({exc}); nothing was left behind") from exc
    finally:
        temporary.unlink(missing_ok=True)


def read_labels(path: Path, shape_px: tuple[int, ...]) -> tuple[Labels, tuple[str, ...]]:
    """Read a label map or a mask; names it does not carry are "class-1", "class-2" ...

    Raises
    ------
    PairsError
        The file is no 8-bit grey or palette image of this size.
    """
    try:
        with Picture.open(path) as picture:
            mode, text = picture.mode, picture.info.get("classes")
            labels = np.asarray(picture).astype(np.uint8)
    except (UnidentifiedImageError, OSError, ValueError) as exc:
        raise PairsError(f"{path} cannot be read as an image ({exc}); give a PNG whose values are classes") from exc
    if mode not in {"L", "P", "1"}:
        raise PairsError(f"{path} is a picture of mode {mode}, expected 8-bit grey or palette whose values are classes")
    if labels.shape != shape_px:
        raise PairsError(
            f"{path} is {labels.shape[0]} x {labels.shape[1]} px, expected {shape_px[0]} x {shape_px[1]} like its image"
        )
    count = int(labels.max())
    try:
        classes = tuple(map(str, json.loads(text))) if text else tuple(f"class-{n}" for n in range(1, count + 1))
    except json.JSONDecodeError as exc:
        raise PairsError(f"{path} names its classes with {text!r}, expected a JSON list; make it anew") from exc
    if len(classes) < count:
        raise PairsError(f"{path} names {len(classes)} classes but has the value {count}; make it anew")
    return labels, classes
