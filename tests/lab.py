"""A small lab: one specimen seen by both instruments, written as the files a lab has."""

import functools
import json
import math
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw

from models.electrons import Beam, form_sem
from models.optics import Optics, Sensor
from models.relief import render_relief, see

Image = NDArray[np.float32]
Matrix = NDArray[np.float64]

OPTICAL_NM = Optics().pixel_size_nm
BAR_PX = 40


class Specimen(NamedTuple):
    """What each instrument would see without noise, on one grid of `OPTICAL_NM`, larger than a field."""

    optical: Image
    sem: Image


class Lab(NamedTuple):
    """Files, and the truth: `matrix` (3, 3) takes (x, y, 1) of the mosaic to the SEM image."""

    mosaic: Path
    sem: Path
    sem_nm: float
    matrix: Matrix


@functools.lru_cache(maxsize=2)
def specimen(family: str, seed: int = 1, *, side_px: int, side_shading: float = 0.0) -> Specimen:
    """`side_shading` is the gain of a detector at the side, 0 for one above, that sees all sides alike."""
    fine = 2  # walls are steep: the electron picture is formed on a finer grid
    shape = (fine * side_px, fine * side_px)
    relief = render_relief(family, shape_px=shape, pixel_size_nm=OPTICAL_NM / fine, seed=seed, height_um=0.2)
    sem = form_sem(relief, OPTICAL_NM / fine, beam=Beam(detector_gain=side_shading), bin_px=fine)
    return Specimen(see(relief.binned(fine), Optics(), pixel_size_nm=OPTICAL_NM), sem)


def similarity(scale: float, rotation_deg: float, shift_px: tuple[float, float], side_px: int) -> Matrix:
    """About the middle of a square field; the shift is (y, x)."""
    turn, middle = math.radians(rotation_deg), np.full(2, (side_px - 1) / 2)
    linear = scale * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return np.vstack([np.column_stack([linear, middle + shift_px[::-1] - linear @ middle]), [0, 0, 1]])


def optical_view(seen: Specimen, side_px: int, rng: np.random.Generator, photons: float = 2000) -> Image:
    """The middle of a specimen, with a vignette off its centre, a veil, and noise."""
    margin = (seen.optical.shape[0] - side_px) // 2
    window = slice(margin, margin + side_px)
    centre = (0.57 * side_px, 0.5 * side_px)
    light = Optics().field_light((side_px, side_px), OPTICAL_NM * 256 / side_px, centre)
    irradiance = 0.85 * light * (0.7 * seen.optical[window, window] + 0.3)
    return np.clip(Sensor().expose(irradiance, photons=photons, rng=rng), 0, 1)


def sem_view(
    seen: Specimen, matrix: Matrix, side_px: int, rng: np.random.Generator, *, inverted: bool = False, dose: float = 100
) -> Image:
    """What the SEM sees where `matrix` puts the optical view's pixels, with shot noise."""
    margin = (seen.sem.shape[0] - side_px) // 2
    from_canvas = matrix @ np.array([[1, 0, -margin], [0, 1, -margin], [0, 0, 1.0]])
    scale = math.sqrt(np.linalg.det(matrix[:2, :2]))
    sem = 1 - seen.sem if inverted else seen.sem
    if scale < 1:
        sem = cv2.GaussianBlur(sem, (0, 0), math.sqrt((1 / scale**2 - 1) / 12))
    size = (side_px, side_px)
    clean = cv2.warpAffine(sem, from_canvas[:2], size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    return np.clip(rng.poisson(np.maximum(clean, 0) * dose) / dose, 0, 1).astype(np.float32)


def error_px(matrix: Matrix, found: Matrix, side_px: int) -> float:
    """The largest distance over four corners and the centre of the optical field."""
    last = side_px - 1
    points = np.array([[0, 0], [last, 0], [0, last], [last, last], [last / 2, last / 2]])
    homogeneous = np.column_stack([points, np.ones(len(points))]).T
    return float(np.hypot(*((matrix[:2] - found[:2]) @ homogeneous)).max())


def write_lab(
    folder: Path,
    family: str = "bars",
    *,
    side_px: int = 800,
    scale: float = 1.2,
    seed: int = 1,
    pixel_nm: float = OPTICAL_NM,
) -> Lab:
    """A mosaic and an SEM image with a data bar, as TIFFs that say their pixels (Zeiss's tag for the SEM image).

    `pixel_nm` is what the files say: another than the optics' is the same scene of a larger specimen.
    """
    rng = np.random.default_rng(seed)
    seen = specimen(family, seed, side_px=side_px + 440)
    # The SEM's magnification is 2 % off what its file says, as they are.
    matrix = similarity(1.02 * scale, 6.0, (12.0, -9.0), side_px)
    sem_nm = pixel_nm / scale
    mosaic = np.round(65535 * optical_view(seen, side_px, rng)).astype(np.uint16)
    tifffile.imwrite(folder / "mosaic.tif", mosaic, resolution=(1e7 / pixel_nm,) * 2, resolutionunit="CENTIMETER")
    picture = Picture.fromarray(np.round(255 * sem_view(seen, matrix, side_px, rng)).astype(np.uint8))
    bar = side_px - BAR_PX
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, bar, side_px, side_px), fill=0)
    draw.text((20, bar + 12), "EHT 10.00 kV   WD 4.1 mm   Mag 2.50 K X", fill=255)
    tag = f"\r\n0\r\nAP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size = {sem_nm:.4f} nm\r\n".encode()
    tifffile.imwrite(folder / "sem.tif", np.asarray(picture), extratags=[(34118, "s", 0, tag, True)])
    return Lab(folder / "mosaic.tif", folder / "sem.tif", sem_nm, matrix)


def write_marks(path: Path, lab: Lab, family: str, *, side_px: int = 800, seed: int = 1) -> Path:
    """Rough marks on the SEM image of `write_lab`, as a person draws them: a wide box round each larger body."""
    canvas, margin = side_px + 440, 220
    relief = render_relief(family, shape_px=(canvas, canvas), pixel_size_nm=OPTICAL_NM, seed=seed, height_um=0.2)
    ground = np.median(relief.height_um)
    from_canvas = lab.matrix @ np.array([[1, 0, -margin], [0, 1, -margin], [0, 0, 1.0]])
    bodies = (np.abs(relief.height_um - ground) > 0.02).astype(np.uint8)
    seen = cv2.warpAffine(bodies, from_canvas[:2], (side_px, side_px), flags=cv2.INTER_NEAREST)
    polygons = []
    for outline in cv2.findContours(seen, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
        middle, sides, turn = cv2.minAreaRect(outline)
        box = cv2.boxPoints((middle, (sides[0] + 3, sides[1] + 3), turn))[:, ::-1]
        inside = box.min() > 0 and box[:, 1].max() < side_px - 1 and box[:, 0].max() < side_px - BAR_PX
        if inside and min(sides) > 8:
            kind = "spiny" if max(sides) > 1.5 * min(sides) else "smooth"
            polygons.append({"class": kind, "points_yx": box.tolist()})
    path.write_text(json.dumps({"classes": ["spiny", "smooth"], "polygons": polygons}))
    return path
