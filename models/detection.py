"""Finding small things and counting what was found: one-to-one matching, and a detector of a known false-alarm rate."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

Points = NDArray[np.float64]


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


def _points(values: NDArray[np.floating], name: str) -> Points:
    points = np.asarray(values, dtype=np.float64)
    if points.size == 0:
        return np.empty((0, 2))
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"{name} has the shape {points.shape}, expected (n, 2) finite positions (y, x) in px")
    return points
