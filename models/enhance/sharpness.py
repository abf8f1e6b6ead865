"""How fine an enhancer's pictures are: three measures of resolution, and the smallest gap of two lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import metrics
from models.classical import METHODS, Best
from models.enhance import data
from models.enhance.cases import Case, see
from models.evaluate import Subject
from models.optics import Sensor, blur
from models.resolution import (
    AGAINST_TRUTH,
    decorrelation_resolution_nm,
    dip,
    frc_resolution_nm,
    line_pairs,
    one_image_frc_nm,
    resolved_gap_nm,
)

Image = NDArray[np.float32]

NOTE = (
    "Resolution: medians over the pictures that could be measured; periods in nm, less is finer, two pixels is the end."
    " frc: of two exposures with other noise, where the correlation falls to 1/7 (the even and odd pixels of one"
    " picture, of a lab's own pairs). frc_truth: of the picture and the truth, where it falls to 1/2. decorrelation: of"
    " one picture. Only frc_truth and the two-line gap ask whether what is drawn is what was there: an invention"
    " that is drawn twice passes the others. The gap is the clear space between two lines of 100 nm from which on the"
    " dip between them is 26 % (Rayleigh), at 8000 photons."
)
_PHOTONS = 2000.0
_VEIL = 0.3
_LINE_PHOTONS = 8000.0
_GAPS_NM = tuple(range(50, 401, 10))


def table(subject: Subject, cases: Sequence[Case], classical: Best) -> dict[str, dict[str, float | None]]:
    """Rows input, best classical, output; columns frc, frc_truth, decorrelation, and how many pictures gave them."""
    border_px = subject.halo_px * subject.scale
    pixel_nm = subject.pixel_size_nm / subject.scale
    figures: dict[str, dict[str, list[float | None]]] = {}
    for number, case in enumerate(cases):
        first, second = (_exposed(case, [number, realisation]) for realisation in (1, 2))
        truth = metrics.inner(case.truth, border_px)
        for name, restore in _restorers(subject, classical):
            one = metrics.inner(restore(first), border_px)
            row = figures.setdefault(name, {"frc": [], "frc_truth": [], "decorrelation": []})
            if second is first:
                row["frc"].append(one_image_frc_nm(one, pixel_nm))
            else:
                row["frc"].append(frc_resolution_nm(one, metrics.inner(restore(second), border_px), pixel_nm))
            row["frc_truth"].append(frc_resolution_nm(one, truth, pixel_nm, threshold=AGAINST_TRUTH))
            row["decorrelation"].append(decorrelation_resolution_nm(one, pixel_nm))
    return {
        name: {column: value for figure, values in row.items() for column, value in _median(figure, values)}
        for name, row in figures.items()
    }


def two_line_gap(subject: Subject, classical: Best) -> dict[str, float | None]:
    """The smallest resolved gap of two lines, nm, of the input, the best classical method and the output.

    Means of the dips over the held-out apertures and over lines in all directions.
    """
    conditions = data.HELDOUT.model_copy(update={"scale": subject.scale})
    dips: dict[str, dict[float, float]] = {}
    for gap_nm in _GAPS_NM:
        pairs = line_pairs(
            gap_nm, shape_px=(256 * subject.scale,) * 2, pixel_size_nm=conditions.truth_pixel_nm
        )  # fmt: skip
        cases = [
            see("lines", pairs.reflectivity, conditions, aperture=aperture, photons=_LINE_PHOTONS, seed=int(gap_nm))
            for aperture in conditions.effective_na
        ]
        for name, restore in _restorers(subject, classical):
            dips.setdefault(name, {})[gap_nm] = float(np.mean([dip(restore(case), pairs) for case in cases]))
    return {name: resolved_gap_nm(by_gap) for name, by_gap in dips.items()}


def _restorers(subject: Subject, classical: Best) -> Iterable[tuple[str, Callable[[Case], Image]]]:
    method = METHODS[classical.method]
    return (
        ("input", lambda case: case.start(flat=True)),
        (
            "best_classical",
            lambda case: method.restore(case.start(flat=True), case.psf_on_truth(), **classical.setting),
        ),
        ("output", lambda case: subject.shown(case.image)),
    )


def _exposed(case: Case, seed: Sequence[int]) -> Case:
    """The case's specimen in its light once more, with other noise; the case itself where that is not known."""
    if case.psf is None or case.light is None:
        return case
    blurred = blur(case.truth, case.psf_on_truth())  # type: ignore[arg-type]  # there is a PSF, so also on the truth
    scale = case.scale
    areas = blurred.reshape(case.image.shape[0], scale, case.image.shape[1], scale).mean((1, 3))
    irradiance = (case.light * ((1 - _VEIL) * areas + _VEIL)).astype(np.float32)
    image = Sensor().expose(irradiance, photons=_PHOTONS, rng=np.random.default_rng(list(seed)))
    return case._replace(image=np.clip(image, 0, 1))


def _median(figure: str, values: Sequence[float | None]) -> Iterable[tuple[str, Any]]:
    """The median of those that could be measured, and of how many."""
    measured = [value for value in values if value is not None]
    yield figure, round(float(np.median(measured)), 1) if measured else None
    yield f"{figure} of", len(measured)
