"""Registration of a light micrograph and an SEM image of the same place (pure: arrays in, a transform out).

The two differ in contrast, often in its sign, and in resolution. A grid of scales and rotations, each with the best
shift by FFT correlation of edge pictures, gives starts, for from the identity alone no large rotation is found; each
is refined down a pyramid. Last comes what a detector at the side asks for: see `Registration.shade_px`.
`models.alignment` has the steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.alignment import (
    MOVES,
    Fit,
    Image,
    Mask,
    Matrix,
    Model,
    Side,
    averaged,
    divided_by_light,
    edge_side,
    optical_side,
    other_shift,
    refined,
    sem_side,
    starts,
    unit_square,
)
from models.errors import PairsError

LEAST_SCORE = 0.5
"""Between the scores of pairs of the same place and those of different places; tests measure both."""

_LEAST_SIDE_PX = 128
_COARSE_PX = 128  # shorter side of the coarsest pictures, to a factor of 1.4
_JUMPS = 4  # to a better place of a specimen that repeats itself
_DISAGREE_PX = 3.0  # regions of pictures that have no more in common than their kind say different things, or nothing
_LEAST_REGIONS = 3
_SHADED_PX = 0.3  # more than this is shading; the finer of two places that are nearer than this stands
_RIVAL = 0.97  # of the best score: two places that fit this equally cannot be told apart
_LEAST_LOCAL_SCORE = 0.25
_STEPS, _DAMPING = 4, 0.05  # of regions: what cannot be seen in one is not its misfit
_REGIONS = 4  # a side, for the residuals


@dataclass(frozen=True, slots=True)
class Registration:
    """Where the optical image lies on the SEM image.

    Parameters
    ----------
    matrix
        (2, 3): takes (x, y, 1) of an optical pixel to (x, y) of the SEM pixel that shows the same point. The middle
        of the top left pixel is (0, 0).
    score
        How well they fit: Fisher's transform of the correlation times the root of the share of the smaller image
        that overlaps. 0.5 is needed, 1 is good; None for landmarks.
    residuals_px
        What is left, in optical pixels: by how much each of a grid of regions would still have to move, or each
        landmark.
    shade_px
        (y, x) optical pixels by which the SEM image looks displaced and is not: a detector at the side makes the
        walls that face it bright and the others dark. `matrix` is free of it.
    """

    matrix: Matrix
    score: float | None
    residuals_px: tuple[float, ...]
    shade_px: tuple[float, float] = (0.0, 0.0)

    @property
    def scale(self) -> float:
        """SEM pixels per optical pixel."""
        return math.sqrt(abs(float(np.linalg.det(self.matrix[:, :2]))))

    @property
    def rotation_deg(self) -> float:
        """By how much the SEM image shows the specimen turned, -180 to 180; clockwise on the screen is positive."""
        (xx, xy, _), (yx, yy, _) = self.matrix
        return math.degrees(math.atan2(yx - xy, xx + yy))

    @property
    def shift_px(self) -> tuple[float, float]:
        """(y, x) of the SEM pixel that shows what the optical image's first pixel shows."""
        return float(self.matrix[1, 2]), float(self.matrix[0, 2])

    @property
    def residual_px(self) -> float:
        """Root mean square of `residuals_px`; 0 where there are none."""
        return math.sqrt(sum(value**2 for value in self.residuals_px) / max(1, len(self.residuals_px)))


class _Lit(NamedTuple):
    """An image, evenly lit, on the common pixel; `to` takes pixels of the original to its own."""

    image: Image
    valid: Mask
    to: Matrix


def register(
    optical: Image,
    sem: Image,
    *,
    optical_valid: Mask | None = None,
    sem_valid: Mask | None = None,
    expected_scale: float = 1.0,
    scales: tuple[float, float] = (0.75, 1.33),
    rotation_deg: float = 25.0,
    model: Model = "similarity",
) -> Registration:
    """Find where an optical image lies on an SEM image.

    Parameters
    ----------
    optical, sem
        (height, width) of any sizes, 0 or more.
    optical_valid, sem_valid
        True where the pixels show the specimen; None is everywhere.
    expected_scale
        SEM pixels per optical pixel, from the sizes of their pixels on the specimen.
    scales, rotation_deg
        What is searched: scale / expected_scale between these, and the rotation to either side.
    model
        "similarity" (scale, rotation, shift); "affine" refines shear too; "shift" refines no more than the shift
        (with scales (1, 1) and rotation 0 it is a correlation).

    Returns
    -------
    See `Registration`. Within 0.5 px where the detector shades all sides alike (measured on simulated pairs: 0.03 to
    0.11 px), also with inverted contrast. Under strong light from the side text and irregular shapes are still found
    to 0.5 px, but balls only to 1.5 px and parallel bars may be off by pixels: check the pairs, or give landmarks.

    Raises
    ------
    PairsError
        An image is too small or without content, the best place scores too little (different content, no
        overlap, a pixel size that is wrong), or two places fit equally well (a periodic specimen).
    """
    a = _evenly_lit(optical, optical_valid, min(1.0, expected_scale), "optical image")
    b = _evenly_lit(sem, sem_valid, min(1.0, 1 / expected_scale), "SEM image")
    halvings = round(math.log2(min(*a.image.shape, *b.image.shape) / _COARSE_PX))
    judged_at = min(1, halvings)
    fits: list[Fit] = []
    scores = []
    for depth in range(halvings, -1, -1):
        sides = optical_side(a.image, a.valid, depth), sem_side(b.image, b.valid, depth)
        if depth == halvings:
            tries = starts(*sides, scales, rotation_deg)
        else:
            tries = [_finer(fit.matrix) for fit in fits[: 3 if depth >= judged_at else 1]]
        fits = sorted((refined(*sides, start, model) for start in tries), key=_score, reverse=True)
        if depth == judged_at:
            for _ in range(_JUMPS):
                fits.append(refined(*sides, other_shift(*sides, fits[0]), model))
                if fits[-1].score <= fits[0].score:
                    break
                fits.sort(key=_score, reverse=True)
            rival = _rival(fits, sides[0])
            residuals_px = _residuals(*sides, fits[0].matrix, 2**depth / min(1.0, expected_scale))
        if depth <= judged_at:
            scores.append(fits[0].score)
    apart_px = math.sqrt(sum(value**2 for value in residuals_px) / max(1, len(residuals_px)))
    disagree = apart_px > _DISAGREE_PX or len(residuals_px) < _LEAST_REGIONS
    if max(scores) < LEAST_SCORE or (max(scores) < 2 * LEAST_SCORE and disagree):
        raise PairsError(
            f"the optical and the SEM image fit nowhere: the best place scores {max(scores):.2f}, expected at least"
            f" {LEAST_SCORE} and, below {2 * LEAST_SCORE:g}, regions that agree to {_DISAGREE_PX:g} px"
            f" ({len(residuals_px)} can be judged, to {apart_px:.1f} px); they show different content, do not overlap,"
            " or the size of a pixel is wrong (tried:"
            f" {scales[0]:g} to {scales[1]:g} times the expected scale, {rotation_deg:g} degrees to either side)"
        )
    if rival > _RIVAL * max(scores):
        raise PairsError(
            f"the optical and the SEM image fit equally well at two places (scores {max(scores):.3f} and {rival:.3f}):"
            " the specimen repeats itself; give landmarks"
        )
    found, shift_px = _unshaded(a, sides[1], fits[0].matrix, model)
    y_px, x_px = (float(value) / min(1.0, expected_scale) for value in shift_px[::-1])
    return Registration((np.linalg.inv(b.to) @ found @ a.to)[:2], max(scores), residuals_px, (y_px, x_px))


def _unshaded(optical: _Lit, sem: Side, matrix: Matrix, model: Model) -> tuple[Matrix, NDArray[np.float64]]:
    """The matrix that shading by a detector at the side does not move, and by how much (x, y) it had moved this one.

    It needs edges that are bright all round. Where there are none, and where there is no shading, what was found
    stands: it is the more precise one then.
    """
    # Steepness of an SEM image that is shaded is not what all its edges have in common: only its intensities are.
    fit = refined(edge_side(optical.image, optical.valid), Side(sem.pictures[:3], sem.valid), matrix, model)
    middle = np.array([(optical.image.shape[1] - 1) / 2, (optical.image.shape[0] - 1) / 2, 1])
    shift_px = (np.linalg.inv(fit.matrix) @ matrix @ middle - middle)[:2]
    if fit.score < LEAST_SCORE or float(np.hypot(*shift_px)) <= _SHADED_PX:
        return matrix, np.zeros(2)
    return fit.matrix, shift_px


def _score(fit: Fit) -> float:
    return fit.score


_FINER = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])


def _finer(matrix: Matrix) -> Matrix:
    return np.asarray(_FINER @ matrix @ np.linalg.inv(_FINER))


def _coarser(matrix: Matrix) -> Matrix:
    return np.asarray(np.linalg.inv(_FINER) @ matrix @ _FINER)


def _evenly_lit(image: Image, valid: Mask | None, factor: float, what: str) -> _Lit:
    valid = np.ones(image.shape, np.bool_) if valid is None else valid
    height, width = (max(1, round(side * factor)) for side in image.shape)
    if min(height, width) < _LEAST_SIDE_PX:
        raise PairsError(
            f"the {what} is {height} x {width} px on the common pixel, expected at least {_LEAST_SIDE_PX} x"
            f" {_LEAST_SIDE_PX}: there is too little to compare; give a larger field"
        )
    small, small_valid = averaged(image.astype(np.float32), valid, (height, width))
    if small_valid.sum() < _LEAST_SIDE_PX**2 or float(np.ptp(small[small_valid])) < 1e-6:
        raise PairsError(f"the {what} is empty: nothing but one value in its valid part; give another")
    fy, fx = height / image.shape[0], width / image.shape[1]
    to = np.array([[fx, 0, fx / 2 - 0.5], [0, fy, fy / 2 - 0.5], [0, 0, 1]])
    return _Lit(divided_by_light(small, small_valid), small_valid, to)


def _rival(fits: Sequence[Fit], optical: Side) -> float:
    """Score of the best fit at another place than the first, 0 where there is none."""
    height, width = optical.valid.shape
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    best = fits[0].matrix[:2] @ corners
    others = [fit for fit in fits[1:] if np.hypot(*(fit.matrix[:2] @ corners - best)).max() > 2.5]
    return max(map(_score, others), default=0.0)


def _residuals(optical: Side, sem: Side, matrix: Matrix, pixel: float) -> tuple[float, ...]:
    """By how many pixels each region would still have to move, where there is something to see in it."""
    height, width = optical.valid.shape
    found = []
    for row in range(_REGIONS):
        for column in range(_REGIONS):
            region = np.zeros_like(optical.valid)
            rows = slice(row * height // _REGIONS, (row + 1) * height // _REGIONS)
            columns = slice(column * width // _REGIONS, (column + 1) * width // _REGIONS)
            region[rows, columns] = True
            fit = refined(
                Side(optical.pictures, optical.valid & region), sem, matrix, "shift", steps=_STEPS, damping=_DAMPING
            )
            if fit.score >= LEAST_SCORE:
                found.append(pixel * _moved_px(matrix, fit.matrix))
    return tuple(found)


def _moved_px(before: Matrix, after: Matrix) -> float:
    return float(np.hypot(*(np.linalg.inv(before) @ after)[:2, 2]))


def from_landmarks(
    optical_yx: Sequence[tuple[float, float]], sem_yx: Sequence[tuple[float, float]], *, model: Model = "similarity"
) -> Registration:
    """Fit a transform to points that a person has found in both images, by least squares.

    Parameters
    ----------
    optical_yx, sem_yx
        (y, x) in pixels, in the same order: 1 for a shift, 2 or more for a similarity, 3 or more for an affine one.

    Raises
    ------
    PairsError
        Too few points, not as many in both, or all on one spot (on one line for an affine transform).

    Examples
    --------
    >>> fit = from_landmarks([(0, 0), (0, 10), (10, 0)], [(5, 7), (5, 27), (25, 7)])
    >>> [round(value, 6) for value in (fit.scale, abs(fit.rotation_deg), *fit.shift_px, fit.residual_px)]
    [2.0, 0.0, 5.0, 7.0, 0.0]
    """
    moves = MOVES[model]
    a, b = (np.asarray(points, np.float64).reshape(-1, 2)[:, ::-1] for points in (optical_yx, sem_yx))
    if len(a) != len(b) or 2 * len(a) < len(moves) or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise PairsError(
            f"{len(a)} optical and {len(b)} SEM landmarks, expected as many of both and at least"
            f" {-(-len(moves) // 2)} for a {model}; add points"
        )
    middle, radius = a.mean(axis=0), float(np.abs(a - a.mean(axis=0)).max()) or 1.0
    places = np.column_stack([(a - middle) / radius, np.ones(len(a))])
    # A shift keeps the scale and rotation of the identity, so only what differs from it is fitted.
    start = a if model == "shift" else np.zeros_like(a)
    columns = np.einsum("nj,kij->nik", places, moves).reshape(2 * len(a), len(moves))
    found, _, rank, _ = np.linalg.lstsq(columns, (b - start).ravel(), rcond=1e-9)
    if rank < len(moves):
        raise PairsError(f"the landmarks lie too close to one spot or line to fit a {model}; spread them")
    moved = start + (columns @ found).reshape(-1, 2)
    matrix = np.einsum("k,kij->ij", found, moves) @ unit_square(middle, radius)
    matrix += np.eye(2, 3) if model == "shift" else 0
    scale = math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))
    left_px = np.hypot(*(moved - b).T) / max(scale, 1e-12)
    return Registration(matrix, None, tuple(map(float, left_px)))


def local_misfit_px(optical: Image, sem: Image, shade_px: tuple[float, float] = (0.0, 0.0)) -> float | None:
    """By how much an SEM crop would have to move to fit the optical crop on the same grid better.

    Parameters
    ----------
    optical, sem
        (height, width) of the same place, at least 32 px a side. Misfits of up to about 8 px are found.
    shade_px
        (y, x) by which shading makes the SEM crop look displaced, which is no misfit.

    Returns
    -------
    Pixels; None where the two have nothing to see in common.
    """
    valid = np.ones(optical.shape, np.bool_)
    a, b = divided_by_light(optical, valid), divided_by_light(sem, valid)
    looks = np.array([[1, 0, shade_px[1]], [0, 1, shade_px[0]], [0, 0, 1]], np.float64)
    fit: Fit | None = None
    for depth in (1, 0):
        start = _finer(fit.matrix) if fit is not None else _coarser(looks)
        sides = optical_side(a, valid, depth), sem_side(b, valid, depth)
        fit = refined(*sides, start, "shift", steps=_STEPS, damping=_DAMPING)
    return _moved_px(looks, fit.matrix) if fit is not None and fit.score >= _LEAST_LOCAL_SCORE else None
