"""Finding small things and counting what was found: one-to-one matching, and a detector of a known false-alarm rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_laplace, label, maximum_filter
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

Image = NDArray[np.float32]
Points = NDArray[np.float64]

_RING = 4  # the dark ring of a bright blob ends within so many sigma


class Matches(NamedTuple):
    """Which found point is which true one.

    `found` and `true` are indices of equal length, pair by pair; `error_px` is (n, 2), found minus true, (y, x).
    `found_count` and `true_count` count all points, matched or not.
    """

    found: NDArray[np.intp]
    true: NDArray[np.intp]
    error_px: Points
    found_count: int
    true_count: int

    @property
    def precision(self) -> float:
        """Share of the found points that are true; 1 where nothing was found: nothing was invented either."""
        return len(self.found) / self.found_count if self.found_count else 1.0

    @property
    def recall(self) -> float:
        """Share of the true points that were found; 1 where there was nothing to find."""
        return len(self.true) / self.true_count if self.true_count else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 2 hits / (found + true); 1 where both are none."""
        total = self.found_count + self.true_count
        return 2 * len(self.found) / total if total else 1.0

    @property
    def std_px(self) -> tuple[float, float]:
        """Standard deviation (ddof 1) of the position error, (y, x); NaN of fewer than two pairs."""
        if len(self.found) < 2:
            return math.nan, math.nan
        y, x = self.error_px.std(axis=0, ddof=1)
        return float(y), float(x)

    def figures(self, pixel_size_nm: float | None = None) -> dict[str, float | None]:
        """f1, precision, recall, std_x_px, std_y_px (and std_x_nm, std_y_nm), JSON-ready: None is not measurable."""
        figures: dict[str, float | None] = {"f1": self.f1, "precision": self.precision, "recall": self.recall}
        units = {"px": 1.0} | ({} if pixel_size_nm is None else {"nm": pixel_size_nm})
        for unit, size in units.items():
            for axis, std in zip("yx", self.std_px, strict=True):
                figures[f"std_{axis}_{unit}"] = None if math.isnan(std) else std * size
        return figures


def match(found_yx: NDArray[np.floating], true_yx: NDArray[np.floating], radius_px: float) -> Matches:
    """Match found points with true ones, one to one.

    Of all assignments with no distance above `radius_px` those with the most pairs are taken, and of these the one
    with the smallest sum of distances (Hungarian method, Kuhn 1955).

    Parameters
    ----------
    found_yx, true_yx
        (n, 2) and (m, 2) positions (y, x) in px; n and m may be 0.
    radius_px
        How far a found point may lie from the true one.

    Raises
    ------
    ValueError
        A list is not (n, 2) and finite, or the radius is not positive.

    Examples
    --------
    >>> matches = match(np.array([[1.0, 1], [9, 9]]), np.array([[1.0, 2]]), radius_px=3)
    >>> matches.precision, matches.recall, matches.error_px.tolist()
    (0.5, 1.0, [[0.0, -1.0]])
    """
    found, true = _points(found_yx, "found_yx"), _points(true_yx, "true_yx")
    if not (math.isfinite(radius_px) and radius_px > 0):
        raise ValueError(f"radius_px is {radius_px}, expected more than 0; give the largest distance of a pair")
    distance = cdist(found, true)
    # One forbidden pair costs more than all permitted ones together, so the number of pairs comes first.
    forbidden = (min(distance.shape) + 1) * radius_px
    rows, columns = linear_sum_assignment(np.where(distance <= radius_px, distance, forbidden))
    near = distance[rows, columns] <= radius_px
    rows, columns = rows[near], columns[near]
    return Matches(rows, columns, found[rows] - true[columns], len(found), len(true))


def pooled(matches: list[Matches]) -> Matches:
    """The matches of several pictures as one set; the indices keep pointing into their own picture."""
    if not matches:
        raise ValueError("no matches to pool; give at least one picture's")
    return Matches(
        np.concatenate([one.found for one in matches]),
        np.concatenate([one.true for one in matches]),
        np.concatenate([one.error_px for one in matches]),
        sum(one.found_count for one in matches),
        sum(one.true_count for one in matches),
    )


def chance_f1(
    found_count: int, true_yx: NDArray[np.floating], radius_px: float, shape_px: tuple[int, int], *, draws: int = 20
) -> float:
    """The F1 of somebody who strews as many points blindly: mean of `draws` uniform draws, the same at every call."""
    rng = np.random.default_rng(found_count)
    scores = [match(rng.random((found_count, 2)) * shape_px, true_yx, radius_px).f1 for _ in range(draws)]
    return float(np.mean(scores))


def blob_response(image: Image, sigma_px: float) -> Image:
    """How much a picture looks like a Gaussian blob of this standard deviation, in units of the blob's height.

    -2 sigma^2 times the Laplacian of Gaussian (Lindeberg 1998): positive on bright blobs, blind to a level and to a
    slope. The matched filter of a small particle seen through a PSF about as wide, less its surroundings.
    """
    # Cut off at scipy's usual 4 sigma, the kernel would not be blind to a level.
    response = gaussian_laplace(image.astype(np.float64), sigma_px, mode="reflect", truncate=5.5)
    return np.asarray(-2 * sigma_px**2 * response, dtype=np.float32)


def find_blobs(image: Image, *, sigma_px: float, threshold: float, border_px: int = 0, dark: bool = False) -> Points:
    """Places where a picture looks most like a blob.

    Parameters
    ----------
    sigma_px
        As `blob_response`; of two candidates nearer than this the stronger one counts.
    threshold
        Least response, in units of the picture: see `threshold_for`.
    border_px
        Nothing is looked for that near to the edge.
    dark
        Whether blobs are darker than their surroundings.

    Returns
    -------
    (n, 2) positions (y, x) in px, to a fraction of a pixel by a parabola in each direction.
    """
    response = blob_response(-image if dark else image, sigma_px)
    peaks = _peaks(response, sigma_px, border_px)
    return _refined(response, peaks[response[peaks[:, 0], peaks[:, 1]] > threshold])


def threshold_for(
    backgrounds: Sequence[Image],
    false_per_1e6_px: float,
    *,
    sigma_px: float,
    border_px: int = 0,
    dark: bool = False,
) -> float:
    """The threshold at which empty pictures give this many blobs per million pixels: a fixed false-alarm rate.

    Raises
    ------
    ValueError
        The pictures are too few to tell: less than one false alarm would be expected in them.
    """
    strengths, area_px = _strengths(backgrounds, sigma_px, border_px, dark)
    allowed = int(false_per_1e6_px * area_px / 1e6)
    if allowed < 1:
        raise ValueError(
            f"{area_px} px of background are expected to hold {false_per_1e6_px * area_px / 1e6:.2g} false blobs, too"
            f" few to set a threshold by; give at least {math.ceil(1e6 / false_per_1e6_px)} px"
        )
    strengths = np.sort(strengths)[::-1]
    return max(float(strengths[allowed]), 0.0) if allowed < len(strengths) else 0.0


def false_features_per_1e6_px(
    backgrounds: Sequence[Image], *, sigma_px: float, least: float = 0.02, border_px: int = 0
) -> float:
    """Blobs, bright or dark, that somebody would take for features in pictures of nothing, per million pixels.

    A feature stands out from its picture's own noise by five robust standard deviations of the response (1.4826 times
    the median absolute deviation), and is higher than `least`, below which nobody sees it.
    """
    count = area_px = 0
    for image in backgrounds:
        response = blob_response(image, sigma_px)
        inside = response[border_px : image.shape[0] - border_px, border_px : image.shape[1] - border_px]
        noise = 1.4826 * float(np.median(np.abs(inside - np.median(inside))))
        peaks = _peaks(np.abs(response), sigma_px, border_px)
        strengths = np.abs(response)[peaks[:, 0], peaks[:, 1]]
        order = np.argsort(-strengths)
        peaks = peaks[order[strengths[order] > max(5 * noise, least)]]
        # A blob has a ring of the other sign around it, which is no feature of its own.
        while len(peaks):
            count += 1
            peaks = peaks[np.hypot(*(peaks - peaks[0]).T) > _RING * sigma_px]
        area_px += inside.size
    return 1e6 * count / area_px


def _strengths(images: Sequence[Image], sigma_px: float, border_px: int, dark: bool) -> tuple[NDArray[np.float32], int]:
    """The responses of all candidates in some pictures, and the area that was searched."""
    strengths = []
    area_px = 0
    for image in images:
        response = blob_response(-image if dark else image, sigma_px)
        peaks = _peaks(response, sigma_px, border_px)
        strengths.append(response[peaks[:, 0], peaks[:, 1]])
        area_px += (image.shape[0] - 2 * border_px) * (image.shape[1] - 2 * border_px)
    return np.concatenate(strengths), area_px


def _peaks(response: Image, sigma_px: float, border_px: int) -> NDArray[np.intp]:
    """(n, 2) pixels that are the highest within sigma, at least `border_px` and one pixel inside."""
    reach = max(math.ceil(sigma_px), 1)
    top = (response == maximum_filter(response, 2 * reach + 1, mode="nearest")) & (response > 0)
    edge = max(border_px, 1)
    # Neighbours of equal height are one peak: the first of them stands for all.
    labels, _ = label(top[edge:-edge, edge:-edge], np.ones((3, 3)))
    places = np.argwhere(labels) + edge
    _, first = np.unique(labels[labels > 0], return_index=True)
    return places[first]


def _refined(response: Image, peaks: NDArray[np.intp]) -> Points:
    """Each peak moved to the top of the parabola through it and its neighbours, by half a pixel at most."""
    places = peaks.astype(np.float64)
    for axis, step in enumerate(((1, 0), (0, 1))):
        before, here, after = (
            response[peaks[:, 0] + sign * step[0], peaks[:, 1] + sign * step[1]].astype(np.float64)
            for sign in (-1, 0, 1)
        )
        bend = before - 2 * here + after
        shift = np.divide(before - after, 2 * bend, out=np.zeros_like(bend), where=bend < 0)
        places[:, axis] += np.clip(shift, -0.5, 0.5)
    return places


def _points(values: NDArray[np.floating], name: str) -> Points:
    points = np.asarray(values, dtype=np.float64)
    if points.size == 0:
        return np.empty((0, 2))
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"{name} has the shape {points.shape}, expected (n, 2) finite positions (y, x) in px")
    return points
