"""The steps of `models.register`: pictures of edges and intensities, a grid search by FFT, Gauss-Newton refinement.

Registration by enhanced correlation coefficient (Evangelidis and Psarakis, IEEE TPAMI 30, 2008), with two
differences from OpenCV's: the transform may be a similarity, and each optical picture is compared with the best
linear combination of several SEM pictures (edges and intensities, at several blurs) instead of one picture. So the
contrast may be inverted, edges may be bright, and the blur of the optics need not be known. `edge_side` adds what it
takes for a detector at the side, whose light and shadow make an SEM image look displaced by pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
Matrix = NDArray[np.float64]
Model = Literal["shift", "similarity", "affine"]

LEAST_OVERLAP = 0.2  # of the smaller picture
_GRID_PX = 3.2  # by how much a step of the grid moves the border of the coarsest picture
_STARTS = 6
_POINTS = 200_000  # places at which the finest pictures are compared: more cost time and gain nothing

# What a Gauss-Newton step may do: each (2, 3) takes (u, v, 1) of the optical picture, u and v in -1..1, to a motion.
_ACROSS, _DOWN = [[0, 0, 1], [0, 0, 0]], [[0, 0, 0], [0, 0, 1]]
MOVES: dict[Model, NDArray[np.float32]] = {
    "shift": np.array([_ACROSS, _DOWN], np.float32),
    "similarity": np.array([_ACROSS, _DOWN, [[1, 0, 0], [0, 1, 0]], [[0, -1, 0], [1, 0, 0]]], np.float32),
    "affine": np.eye(6, dtype=np.float32).reshape(6, 2, 3),
}


class Side(NamedTuple):
    """Pictures (n, h, w) of one image, of mean 0 and variance 1, and where they are valid.

    The first shows intensities, the last edges: at a coarse level, how dense the finest ones are. `known` (n, h, w)
    are pictures of the same side that may help the other one to explain these.
    """

    pictures: Image
    valid: Mask
    known: Image | None = None


class Fit(NamedTuple):
    """How well two sides fit when the (3, 3) matrix takes optical pixels (x, y, 1) to those of the SEM side.

    `score` is Fisher's transform of the correlation times the root of the share of the smaller side that overlaps,
    so that a small overlap must fit better. `weights` (optical pictures, SEM pictures) are the combinations that
    explain the optical pictures, the one numbered `best` best of all.
    """

    score: float
    matrix: Matrix
    weights: Image
    best: int


def divided_by_light(image: Image, valid: Mask) -> Image:
    """An image over the light of its surroundings: a vignette has no edges, but its slope would move theirs."""
    mean = max(float(image[valid].mean()), 1e-6)
    filled = np.where(valid, image, mean).astype(np.float32)
    coarse = cv2.resize(filled, (64, 64), interpolation=cv2.INTER_AREA)
    light = cv2.resize(cv2.GaussianBlur(coarse, (0, 0), 5, borderType=cv2.BORDER_REFLECT), filled.shape[::-1])
    return np.asarray(filled / (light + 0.05 * mean), dtype=np.float32)


def averaged(image: Image, valid: Mask, size_px: tuple[int, int]) -> tuple[Image, Mask]:
    """Both on another grid of (height, width), averaged over the area of its pixels."""
    if size_px == image.shape:
        return image, valid
    small, share = (
        cv2.resize(part, size_px[::-1], interpolation=cv2.INTER_AREA) for part in (image, valid.astype(np.float32))
    )
    return np.asarray(small, np.float32), share > 0.999


def optical_side(image: Image, valid: Mask, halvings: int) -> Side:
    """What is explained: intensities and edges, 2^halvings times coarser, and the density of the finest edges."""
    return _side(image, valid, halvings, [(_band, 1.5), (_edges, 1.5)])


def sem_side(image: Image, valid: Mask, halvings: int) -> Side:
    """What explains it: the same, and at more blurs, as the optics' own blur is unknown."""
    return _side(image, valid, halvings, [(_band, 1.5), (_band, 3.0), (_band, 6.0), (_edges, 1.5), (_edges, 3.0)])


def edge_side(image: Image, valid: Mask) -> Side:
    """What tells where an image lies even when a detector at the side shades the other: its edges, the rest known.

    Shading adds a slope of the specimen to the SEM image, and a picture plus its slope is that picture displaced. So
    intensities and slopes must not move anything: they are `known`, and what they say of the edges is taken off.
    What is left is explained by the light that all edges have in an SEM, whichever way they face.
    """
    kinds = [(_edges, 1.5), *((kind, sigma_px) for kind in (_band, _across, _down) for sigma_px in (1.5, 3.0, 6.0))]
    pictures, inner, _ = _side(image, valid, 0, kinds)
    known, inside = pictures[1:], pictures[:, inner]
    explained = _product(inside[1:], inside)
    explained[:, 1:] += 1e-5 * max(1, inside.shape[1]) * np.eye(len(known))
    left = pictures[0] - np.tensordot(np.linalg.solve(explained[:, 1:], explained[:, 0]).astype(np.float32), known, 1)
    return Side(left[None] / (left[inner].std() + 1e-9 if inner.any() else 1), inner, known)


def _side(
    image: Image, valid: Mask, halvings: int, kinds: Sequence[tuple[Callable[[Image, float], Image], float]]
) -> Side:
    n = 2**halvings
    size_px = (image.shape[0] // n, image.shape[1] // n)
    whole = slice(0, size_px[0] * n), slice(0, size_px[1] * n)
    small, small_valid = averaged(image[whole], valid[whole], size_px)
    pictures = [kind(small, sigma_px) for kind, sigma_px in kinds]
    if halvings:
        # Where text has gone grey, the density of its edges is what is left of it.
        density, _ = averaged(_edges(image, 1.5)[whole], valid[whole], size_px)
        pictures.append(density - cv2.GaussianBlur(density, (0, 0), 12))
    # Without a margin, where the filters saw what is not the specimen.
    inner = cv2.erode(np.pad(small_valid, 1).astype(np.uint8), np.ones((9, 9), np.uint8))[1:-1, 1:-1] > 0
    shown = np.zeros((len(pictures), *size_px), np.float32)
    for picture, out in zip(pictures, shown, strict=True):
        inside = picture[inner]
        if inside.size:
            inside = np.clip(inside, *np.percentile(inside[::7], (0.5, 99.5)))  # no speck of dust outweighs the rest
            out[inner] = (inside - inside.mean()) / (inside.std() + 1e-9)
    return Side(shown, inner)


def _edges(image: Image, sigma_px: float) -> Image:
    smooth = cv2.GaussianBlur(image, (0, 0), sigma_px)
    return np.asarray(cv2.magnitude(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)))


def _band(image: Image, sigma_px: float) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_px) - cv2.GaussianBlur(image, (0, 0), 12))


def _across(image: Image, sigma_px: float) -> Image:
    return np.asarray(cv2.Sobel(cv2.GaussianBlur(image, (0, 0), sigma_px), cv2.CV_32F, 1, 0))


def _down(image: Image, sigma_px: float) -> Image:
    return np.asarray(cv2.Sobel(cv2.GaussianBlur(image, (0, 0), sigma_px), cv2.CV_32F, 0, 1))


def starts(optical: Side, sem: Side, scales: tuple[float, float], rotation_deg: float) -> list[Matrix]:
    """The most promising scales, rotations and shifts of a grid, best first; see `Fit` for the matrices.

    At each scale and rotation the best shift is where the pictures of the two sides predict each other best, over
    their overlap only (masked correlation: Padfield, IEEE Trans. Image Process. 21, 2012).
    """
    # The smaller picture is turned, because the size of the FFT follows that of the turned one.
    swapped = optical.valid.size > sem.valid.size
    turned, still = (sem, optical) if swapped else (optical, sem)
    low, high = sorted(1 / scale for scale in scales) if swapped else scales
    half = min(turned.valid.shape) / 2
    spread, most = math.log(high / low), math.radians(rotation_deg)
    factors = np.geomspace(low, high, 1 + math.ceil(spread * half / _GRID_PX))
    angles = np.linspace(-most, most, 1 + 2 * math.ceil(most * half / _GRID_PX))
    correlation = _Correlation(_decorrelated(still), still.valid, math.ceil(math.hypot(*turned.valid.shape) * high))
    shown, found = _decorrelated(turned), []
    for factor in factors:
        for angle in angles:
            score, matrix = correlation.best_shift(shown, turned.valid, factor, angle)
            found.append((score, math.log(factor), angle, matrix))
    kept: list[tuple[float, float, float, Matrix]] = []
    for candidate in sorted(found, key=lambda one: -one[0]):
        if all(max(abs(candidate[1] - one[1]), abs(candidate[2] - one[2])) * half > 1.5 * _GRID_PX for one in kept):
            kept.append(candidate)
    return [np.asarray(np.linalg.inv(one[3]) if swapped else one[3]) for one in kept[:_STARTS]]


def _decorrelated(side: Side) -> Image:
    """Intensities and density of edges, mixed so that they have variance 1 and nothing in common.

    Between two sides the squares of all correlations of such pictures add up to how well one side can be predicted
    from the other, whichever of them shows what, and with which sign.
    """
    pictures = side.pictures[[0, -1]]
    inside = pictures[:, side.valid]
    covariance = _product(inside, inside) / max(1, inside.shape[1]) + 1e-3 * np.eye(len(pictures))
    return np.tensordot(np.linalg.inv(np.linalg.cholesky(covariance)), pictures, 1).astype(np.float32)


class _Correlation:
    """Fits pictures into still ones at any scale and rotation by FFT."""

    def __init__(self, pictures: Image, valid: Mask, reach_px: int) -> None:
        self._shape = [fft.next_fast_len(side + reach_px, real=True) for side in valid.shape]
        self._pictures, self._valid = self._spectrum(pictures), self._spectrum(valid.astype(np.float32))
        self._count = int(valid.sum())

    def _spectrum(self, pictures: Image) -> NDArray[np.complex64]:
        return np.asarray(fft.rfft2(pictures, s=self._shape))

    def surface(self, pictures: Image, valid: Image) -> Image:
        """Squares of all correlations times the share of the overlap, of every shift; left and up wrap around."""
        products = [self._pictures * one for one in self._spectrum(pictures).conj()]
        overlap = self._valid * self._spectrum(valid).conj()
        *tops, count = fft.irfft2(np.concatenate([*products, overlap[None]]), s=self._shape)
        most = min(float(valid.sum()), self._count)
        agreement = np.sum([top * top for top in tops], axis=0) / (np.maximum(count, 1) * most)
        return np.asarray(np.where(count > LEAST_OVERLAP * most, agreement, 0), np.float32)

    def best_shift(self, pictures: Image, valid: Mask, factor: float, angle: float) -> tuple[float, Matrix]:
        height, width = valid.shape
        turn = factor * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        corners = turn @ np.array([[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1]])
        low = corners.min(axis=1)
        size = [int(side) for side in np.ceil(corners.max(axis=1) - low) + 1]
        place = np.column_stack([turn, -low])
        shown = np.stack([cv2.warpAffine(picture, place, size) for picture in pictures])
        inside = cv2.warpAffine(valid.astype(np.float32), place, size, flags=cv2.INTER_NEAREST)
        surface = self.surface(shown.astype(np.float32), inside.astype(np.float32))
        y, x = self.unwrapped(int(np.argmax(surface)), size)
        return float(surface.max()), np.vstack([place + np.array([[0, 0, x], [0, 0, y]]), [0, 0, 1]])

    def unwrapped(self, index: int, size: Sequence[int]) -> tuple[int, int]:
        """(y, x) of a place of the surface, for pictures of `size` (width, height)."""
        y, x = divmod(index, self._shape[1])
        height, width = self._shape
        return y - height if y > height - size[1] else y, x - width if x > width - size[0] else x


def other_shift(optical: Side, sem: Side, fit: Fit) -> Matrix:
    """Where else, by a shift, the two fit best: a periodic specimen has many such places."""
    height, width = optical.valid.shape
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    seen = np.stack([cv2.warpAffine(picture, fit.matrix[:2], (width, height), flags=flags) for picture in sem.pictures])
    valid = cv2.warpAffine(sem.valid.astype(np.float32), fit.matrix[:2], (width, height), flags=flags)
    # What the SEM side says the optical picture looks like: these two are alike also where contrast is inverted.
    expected = np.tensordot(fit.weights[fit.best], seen, 1) * (valid > 0.999)
    correlation = _Correlation(expected[None].astype(np.float32), valid > 0.999, max(height, width))
    surface = correlation.surface(optical.pictures[fit.best][None], optical.valid.astype(np.float32))
    peaks = np.where(surface >= cv2.dilate(surface, np.ones((5, 5), np.uint8)), surface, 0)
    peaks[np.ix_((-2, -1, 0, 1, 2), (-2, -1, 0, 1, 2))] = 0  # the fit itself
    y_px, x_px = correlation.unwrapped(int(np.argmax(peaks)), (width, height))
    return np.asarray(fit.matrix @ np.array([[1, 0, x_px], [0, 1, y_px], [0, 0, 1]], np.float64))


def refined(optical: Side, sem: Side, start: Matrix, model: Model, *, steps: int = 12, damping: float = 1e-6) -> Fit:
    """Climb from a matrix to the best one near it; returns the best fit on the way, of score 0 where nothing fits.

    Damping holds back motions that hardly change the picture, such as that along an edge which is all there is.
    """
    moves = MOVES[model]
    points = np.flatnonzero(optical.valid)
    if len(points) > _POINTS:
        points = np.sort(np.random.default_rng(0).choice(points, _POINTS, replace=False))
    wanted = optical.pictures.reshape(len(optical.pictures), -1)[:, points]
    known = np.ones((1, len(points)), np.float32)
    if optical.known is not None:
        known = np.concatenate([known, optical.known.reshape(len(optical.known), -1)[:, points]])
    best = Fit(0.0, start, np.zeros((len(wanted), len(sem.pictures)), np.float32), 0)
    if not len(points):
        return best
    y, x = np.divmod(points, optical.valid.shape[1])
    places = np.stack([x, y, np.ones_like(x)]).astype(np.float32)
    to_unit = unit_square(places[:2].mean(axis=1), max(optical.valid.shape) / 2)
    units = (to_unit @ places).astype(np.float32)
    slopes = np.stack(
        [
            [cv2.Sobel(picture, cv2.CV_32F, *axis, ksize=1, scale=0.5) for axis in ((1, 0), (0, 1))]
            for picture in sem.pictures
        ]
    )
    sem_valid = sem.valid.astype(np.float32)
    matrix = start
    for _ in range(steps):
        at = (matrix[:2] @ places).astype(np.float32)
        inside = _sampled(sem_valid, at) > 0.999
        most = min(len(points), len(points) / optical.valid.sum() * sem.valid.sum() / abs(np.linalg.det(matrix)))
        if inside.sum() < LEAST_OVERLAP / 2 * most:
            break
        at, target = at[:, inside], wanted[:, inside]
        basis = np.concatenate([np.stack([_sampled(picture, at) for picture in sem.pictures]), known[:, inside]])
        inner = _product(basis, basis)
        inner += 1e-5 * at.shape[1] * np.eye(len(inner))  # two blurs of a featureless picture are the same
        weights = np.linalg.solve(inner, _product(basis, target)).T.astype(np.float32)
        left = target - weights @ basis
        unexplained = (left**2).mean(axis=1) / np.maximum(target.var(axis=1), 1e-9)
        k = int(np.argmin(unexplained))
        correlation = math.sqrt(min(max(0.0, 1 - float(unexplained[k])), 0.999))
        weights = weights[:, : len(sem.pictures)]
        fit = Fit(math.atanh(correlation) * math.sqrt(min(1.0, inside.sum() / most)), matrix, weights, k)
        if fit.score > best.score:
            best = fit
        hessian, gradient = np.zeros((len(moves), len(moves))), np.zeros(len(moves))
        for rest, weight in zip(left, weights, strict=True):
            slope = [_sampled(part, at) for part in np.tensordot(weight, slopes, 1)]
            down = np.asarray(matrix[:2, :2].T @ np.stack(slope), np.float32)  # the chain rule: per optical pixel
            motion = np.einsum("kij,jn->kin", moves, units[:, inside], optimize=True)
            effect = motion[:, 0] * down[0] + motion[:, 1] * down[1]
            # The weights are fitted anew after every step: what they can take up is no motion.
            mixed = _product(effect, basis)
            noise = float(rest @ rest) + 1e-9
            hessian += (_product(effect, effect) - mixed @ np.linalg.solve(inner, mixed.T)) / noise
            gradient += _product(effect, rest[None])[:, 0] / noise
        hessian += (damping * np.trace(hessian) / len(moves) + 1e-12) * np.eye(len(moves))
        step = np.linalg.solve(hessian, gradient)
        if float(np.abs(step).sum()) > 12:
            break
        matrix = matrix @ (np.eye(3) + np.vstack([np.einsum("k,kij->ij", step, moves) @ to_unit, np.zeros(3)]))
        if float(np.abs(step).sum()) < 0.01:
            break
    return best


def unit_square(middle: NDArray[np.floating[Any]], radius: float) -> Matrix:
    """(3, 3): takes (x, y, 1) to (u, v, 1), 0 in the middle and 1 at the radius."""
    return np.array([[1 / radius, 0, -middle[0] / radius], [0, 1 / radius, -middle[1] / radius], [0, 0, 1]])


def _product(a: Image, b: Image) -> Matrix:
    return np.asarray(a @ b.T, dtype=np.float64)


def _sampled(picture: Image, at: Image) -> Image:
    """Values at (2, n) places (x, y), 0 outside; in rows, because OpenCV takes no picture wider than 32767."""
    n, columns = at.shape[1], 4096
    padded = np.full((2, -(-n // columns) * columns), -10, np.float32)
    padded[:, :n] = at
    x, y = padded.reshape(2, -1, columns)
    return np.asarray(cv2.remap(np.ascontiguousarray(picture), x, y, cv2.INTER_LINEAR), np.float32).ravel()[:n]
