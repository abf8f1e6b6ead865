"""Small particles by size: which are found, with how much of their contrast, and how near two may lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.canvas import Canvas
from models.classical import METHODS
from models.detection import Matches, Points, chance_f1, find_blobs, match, pooled, threshold_for
from models.enhance import data
from models.enhance.cases import Case, see
from models.evaluate import Subject
from models.resolution import dip, line_pairs, resolved_gap_nm

Image = NDArray[np.float32]
Restore = Callable[[Case], Image]

SIZES_NM = ((50, 60), (60, 100), (100, 300), (300, 600))
FALSE_PER_1E6_PX = 20.0
NOTE = (
    "By object size: bright particles (reflectivity 0.8 above the substrate's 0.05 to 0.15) at the held-out apertures,"
    f" 2000 and 8000 photons. F1 is that of a blob detector whose threshold gives {FALSE_PER_1E6_PX:g} false particles"
    " per 1e6 camera pixels of empty substrate, passed through the same method; its blob size, and the settings of the"
    " classical methods, are the best ones for each size. Contrast is the particles' height above their surroundings as"
    " a share of the true one. The gap is the clear space between two particles from which on the dip between them is"
    " 26 % or more (Rayleigh), at NA 1.3 and 8000 photons. Input and classical methods start from the picture divided"
    " by the true light."
)

_SEED = 20_254
_IMAGES = 12
_SIDE_PX = 256
_CELL_NM = 1540.0  # a particle per cell at most, so that none is in another's surroundings
_JITTER_NM = 290.0
_RISE = 0.8  # reflectivity of a particle above the substrate
_PHOTONS = (2000.0, 8000.0)
_LEAST = 0.005  # a blob lower than this is no find, however empty the substrate
_SIGMAS_PX = (1.0, 1.5, 2.5, 4.0)
_REACH_PX = 13  # how far from a particle its surroundings go
_GAP_SIDE_PX = 176
_GAPS_NM = tuple(range(0, 401, 25))
_OWN = ("precision", "recall", "std_x_nm", "std_y_nm", "f1_of_chance")
_CLASSICAL: dict[str, Mapping[str, float]] = {
    "wiener noise=0.00316": {"noise": 0.00316},
    "wiener noise=0.0316": {"noise": 0.0316},
    "wiener noise=0.178": {"noise": 0.178},
    "wiener-tv noise=0.01 weight=0.0316": {"noise": 0.01, "weight": 0.0316},
}


def judge(subject: Subject) -> dict[str, dict[str, Any]]:
    """Figures by size: f1, contrast and gap_nm of {input, best_classical, output}, each JSON-ready.

    Also of the output: `precision`, `recall`, `std_x_nm`, `std_y_nm` (None: fewer than two were found), and
    `f1_of_chance`, that of as many points strewn blindly.
    """
    conditions = data.HELDOUT.model_copy(update={"scale": subject.scale, "photons": _PHOTONS})
    border_px = max(subject.halo_px, _REACH_PX + 1) * subject.scale
    restorers = dict(_restorers(subject))
    substrates = [case for case, _ in particles(conditions, None)]
    thresholds = {
        name: _thresholds([restore(case) for case in substrates], border_px, subject.scale)
        for name, restore in restorers.items()
    }
    report = {}
    for low_nm, high_nm in SIZES_NM:
        cases = particles(conditions, (low_nm, high_nm))
        truths = [_inside(points, border_px, case.truth.shape) for case, points in cases]
        radius_px = max(3.0 * subject.scale, high_nm / 2 / conditions.truth_pixel_nm)
        core_px = max(1.5 * subject.scale, 0.3 * low_nm / conditions.truth_pixel_nm)
        found: dict[str, list[Matches]] = {}
        contrast: dict[str, float] = {}
        true = _rise([case.truth for case, _ in cases], truths, core_px, subject.scale)
        for name, restore in restorers.items():
            pictures = [restore(case) for case, _ in cases]
            found[name] = _detected(pictures, truths, thresholds[name], border_px, radius_px)
            contrast[name] = _rise(pictures, truths, core_px, subject.scale) / true
        f1 = {name: pooled(matches).f1 for name, matches in found.items()}
        gap_nm = _gaps(restorers, conditions, (low_nm * high_nm) ** 0.5)
        classical = max(_CLASSICAL, key=f1.__getitem__)
        chosen = {"input": "input", "best_classical": classical, "output": "output"}
        finest = min((gap_nm[name] for name in _CLASSICAL), key=lambda gap: np.inf if gap is None else gap)
        own = pooled(found["output"]).figures(conditions.truth_pixel_nm)
        own["f1_of_chance"] = _chance(found["output"], truths, border_px, cases[0][0].truth.shape, radius_px)
        report[f"{low_nm}-{high_nm} nm"] = {
            "particles": sum(map(len, truths)),
            "classical": classical,
            "f1": {row: round(f1[name], 4) for row, name in chosen.items()},
            "contrast": {row: round(contrast[name], 4) for row, name in chosen.items()},
            "gap_nm": {"input": gap_nm["input"], "best_classical": finest, "output": gap_nm["output"]},
        } | {name: value if value is None else round(value, 4) for name, value in own.items() if name in _OWN}
    return report


def table(report: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A report of `judge` as one table."""
    return {
        f"{size}, {figure}": dict(rows[figure]) | ({"chance": rows["f1_of_chance"]} if figure == "f1" else {})
        for size, rows in report.items()
        for figure in ("f1", "contrast", "gap_nm")
    }


def particles(conditions: data.Conditions, size_nm: tuple[float, float] | None) -> list[tuple[Case, Points]]:
    """Pictures of particles of these diameters, and where they lie in px of the truth; None is bare substrate."""
    cases = []
    scale, pixel_nm, fine = conditions.scale, conditions.truth_pixel_nm, 4
    side = _SIDE_PX * scale
    for number in range(_IMAGES):
        rng = np.random.default_rng([_SEED, round(size_nm[0]) if size_nm else 0, number])
        substrate = rng.uniform(0.05, 0.15)
        canvas = Canvas((side * fine, side * fine), pixel_nm / fine)
        image, centres = canvas.full(substrate), []
        cells = int(canvas.size_nm[0] // _CELL_NM) if size_nm else 0
        for row, column in np.ndindex(cells, cells):
            # Some cells stay empty: a lattice would give the places away.
            if rng.random() < 0.6 and size_nm:
                y, x = (np.array([row, column]) + 0.5) * _CELL_NM + rng.uniform(-_JITTER_NM, _JITTER_NM, 2)
                canvas.disc(image, (y, x), rng.uniform(*size_nm) / 2, substrate + _RISE)
                centres.append((y / pixel_nm - 0.5, x / pixel_nm - 0.5))
        truth = image.reshape(side, fine, side, fine).mean((1, 3), dtype=np.float32)
        aperture = conditions.effective_na[number % len(conditions.effective_na)]
        photons = conditions.photons[number % len(conditions.photons)]
        case = see("particles", truth, conditions, aperture=aperture, photons=photons, seed=_SEED + number)
        cases.append((case, np.array(centres).reshape(-1, 2)))
    return cases


def _restorers(subject: Subject) -> Iterator[tuple[str, Restore]]:
    """Everything that competes, as functions of a case."""
    yield "input", lambda case: case.start(flat=True)
    yield "output", lambda case: subject.shown(case.image)
    for name, setting in _CLASSICAL.items():
        method = METHODS[name.split()[0]]
        yield (
            name,
            lambda case, method=method, setting=setting: method.restore(  # type: ignore[misc]  # bound now
                case.start(flat=True), case.psf_on_truth(), **setting
            ),
        )


def _thresholds(empty: Sequence[Image], border_px: int, scale: int) -> dict[float, float]:
    """The threshold of the fixed false-alarm rate for each blob size, in px of the truth."""
    rate = FALSE_PER_1E6_PX / scale**2
    return {
        sigma * scale: max(threshold_for(empty, rate, sigma_px=sigma * scale, border_px=border_px), _LEAST)
        for sigma in _SIGMAS_PX
    }


def _detected(
    pictures: Sequence[Image],
    truths: Sequence[Points],
    thresholds: Mapping[float, float],
    border_px: int,
    radius_px: float,
) -> list[Matches]:
    """The matches in each picture, with the blob size that suits all of them best."""
    found = []
    for sigma_px, threshold in thresholds.items():
        blobs = (
            find_blobs(picture, sigma_px=sigma_px, threshold=threshold, border_px=border_px) for picture in pictures
        )
        found.append([match(these, true, radius_px) for these, true in zip(blobs, truths, strict=True)])
    return max(found, key=lambda matches: pooled(matches).f1)


def _chance(
    found: Sequence[Matches], truths: Sequence[Points], border_px: int, shape_px: tuple[int, ...], radius_px: float
) -> float:
    inside = (shape_px[0] - 2 * border_px, shape_px[1] - 2 * border_px)
    scores = [
        chance_f1(one.found_count, true - border_px, radius_px, inside) for one, true in zip(found, truths, strict=True)
    ]
    return float(np.mean(scores))


def _inside(points: Points, border_px: int, shape_px: tuple[int, ...]) -> Points:
    """The points that lie inside the border."""
    kept = (points >= border_px) & (points <= np.array(shape_px) - 1 - border_px)
    return points[kept.all(axis=1)]


def _rise(pictures: Sequence[Image], truths: Sequence[Points], core_px: float, scale: int) -> float:
    """Mean over all particles: the mean of their middle above the median of a ring around them."""
    reach = _REACH_PX * scale
    grid = np.arange(-reach, reach + 1)
    rises = []
    for picture, points in zip(pictures, truths, strict=True):
        for point in points:
            y, x = np.rint(point).astype(int)
            window = picture[y - reach : y + reach + 1, x - reach : x + reach + 1]
            distance_px = np.hypot((grid + y - point[0])[:, None], grid + x - point[1])
            ring = window[(distance_px > 9.5 * scale) & (distance_px <= reach)]
            rises.append(window[distance_px <= core_px].mean() - np.median(ring))
    return float(np.mean(rises))


def _gaps(restorers: Mapping[str, Restore], conditions: data.Conditions, size_nm: float) -> dict[str, float | None]:
    """The smallest resolved gap between two particles, by method."""
    dips: dict[str, dict[float, float]] = {name: {} for name in restorers}
    shape_px, pixel_nm = (_GAP_SIDE_PX * conditions.scale,) * 2, conditions.truth_pixel_nm
    for gap_nm in _GAPS_NM:
        pairs = line_pairs(gap_nm, width_nm=size_nm, length_nm=size_nm, shape_px=shape_px, pixel_size_nm=pixel_nm)
        case = see("pairs", pairs.reflectivity, conditions, aperture=1.3, photons=_PHOTONS[-1], seed=_SEED)
        for name, restore in restorers.items():
            dips[name][gap_nm] = dip(restore(case), pairs)
    return {name: resolved_gap_nm(by_gap) for name, by_gap in dips.items()}
