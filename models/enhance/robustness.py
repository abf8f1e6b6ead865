"""What an enhancer does when conditions change: noise, focus, light, rotation, families it never saw."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import rotate

from models import metrics
from models.classical import METHODS, best
from models.enhance import data
from models.enhance.cases import Case, see
from models.evaluate import Subject
from models.families import FAMILIES
from models.samples import render

Image = NDArray[np.float32]

NOTE = (
    "Robustness: one specimen of each held-out family at NA 1.3, 2000 photons and exposure 0.85, in focus and unturned"
    " unless the curve says otherwise. Input and Wiener start from the picture divided by the true light; Wiener is"
    " told the true PSF, defocus included, and has the best setting of each point."
)
_SEED = 20_255
_SIDE_PX = 192
_SWEEPS: dict[str, tuple[float, ...]] = {
    "photons": (125, 250, 500, 1000, 2000, 4000, 8000, 16000, 32000),
    "defocus_um": (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0),
    "exposure": (0.1, 0.2, 0.4, 0.6, 0.8, 1.0),
    "rotation_deg": (0.0, 15.0, 30.0, 45.0, 60.0, 75.0, 90.0),
}
_STANDARD = {"photons": 2000.0, "defocus_um": 0.0, "exposure": 0.85, "rotation_deg": 0.0}
_FIGURES = {"psnr_corrected_db": metrics.psnr_corrected_db, "epi": metrics.epi}


def curves(subject: Subject) -> dict[str, dict[str, Any]]:
    """For every condition two curves (psnr_corrected_db, epi) with the series input, wiener and output."""
    report = {}
    for condition, values in _SWEEPS.items():
        series: dict[str, dict[str, list[float]]] = {
            figure: {"input": [], "wiener": [], "output": []} for figure in _FIGURES
        }
        for value in values:
            cases = list(_cases(subject.scale, data.HELDOUT.families, **{**_STANDARD, condition: value}))
            for name, scores in _judged(subject, cases).items():
                for figure, score in scores.items():
                    series[figure][name].append(score)
        x = {"name": condition, "values": list(values)}
        for figure, lines in series.items():
            report[f"{figure} against {condition}"] = {"x": x, "y": figure, "series": lines}
    return report


def families(subject: Subject) -> dict[str, dict[str, Any]]:
    """The corrected PSNR of input and output on every family that has structure, and whether training had it."""
    trained = getattr(subject.recipe, "data", None)
    seen = set(getattr(trained, "families", ()))
    table = {}
    for family in FAMILIES:
        if family != "empty":
            judged = _judged(subject, list(_cases(subject.scale, (family,) * 3, **_STANDARD)))
            table[family] = {
                "in training": "yes" if family in seen else "no",
                **{name: scores["psnr_corrected_db"] for name, scores in judged.items()},
            }
    return table


def _cases(
    scale: int, names: tuple[str, ...], *, photons: float, defocus_um: float, exposure: float, rotation_deg: float
) -> Iterator[Case]:
    """One specimen for each name, turned, then seen."""
    conditions = data.HELDOUT.model_copy(update={"scale": scale, "exposure": (exposure, exposure)})
    side, fine = _SIDE_PX * scale, 2  # turned on a finer grid, which is averaged: turning on the truth's would soften
    margin = side // 4  # a turned square fits into one of 1.42 sides
    for number, family in enumerate(names):
        shape = (fine * (side + 2 * margin),) * 2
        drawn = render(family, shape_px=shape, pixel_size_nm=conditions.truth_pixel_nm / fine, seed=_SEED + number)
        turned = rotate(drawn, rotation_deg, reshape=False, order=1, mode="nearest")
        inside = slice(fine * margin, -fine * margin)
        truth = turned[inside, inside].reshape(side, fine, side, fine).mean((1, 3)).astype(np.float32)
        yield see(family, truth, conditions, aperture=1.3, photons=photons, defocus_um=defocus_um, seed=_SEED + number)


def _judged(subject: Subject, cases: list[Case]) -> dict[str, dict[str, float]]:
    border_px = subject.halo_px * subject.scale
    flat = [case.start(flat=True) for case in cases]

    def score(image: Image, number: int) -> float:
        return metrics.psnr_corrected_db(image, cases[number].truth, border_px=border_px)

    wiener = best(METHODS["wiener"], flat, [case.psf_on_truth() for case in cases], score)
    shown = {"input": flat, "wiener": wiener.images, "output": [subject.shown(case.image) for case in cases]}
    return {
        name: {
            figure: round(
                float(np.mean([judge(i, c.truth, border_px=border_px) for i, c in zip(images, cases, strict=True)])), 4
            )
            for figure, judge in _FIGURES.items()
        }
        for name, images in shown.items()
    }
