"""Judges any enhancer against the truth, the input and the classical methods at their best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import metrics
from models.classical import Best, best, enlarged, methods
from models.detection import false_features_per_1e6_px
from models.enhance import by_size, robustness, sharpness
from models.enhance.cases import Case, empty, load_cases
from models.evaluate import Judgement, Picture, Subject

Image = NDArray[np.float32]

_FIGURES = {
    "psnr_db": metrics.psnr_db,
    "psnr_corrected_db": metrics.psnr_corrected_db,
    "ssim": metrics.ssim,
    "epi": metrics.epi,
}
_GAP_PX = 6  # white between two parts of a picture
_FEATURE_SIGMA_PX = 1.5  # of the camera's pixels: about the smallest blob that a picture can hold


def evaluate(subject: Subject, data_set: str, *, folder: Path | None = None, thorough: bool = False) -> Judgement:
    """Judge an enhancer (see `models.evaluate.evaluate`).

    `psnr_db`, `psnr_corrected_db`, `ssim` and `epi` hold the means of input, output and the best classical method;
    the table "methods" holds all of them, each with the setting that is best for this set. For `psnr_corrected_db`
    classical methods, and the input, start from the picture divided by the true illumination; the network never sees
    it. `psnr_db` is raw: nobody is helped. A border of halo_px is left out, for every method alike.
    """
    cases = load_cases(data_set, folder=folder, scale=subject.scale)
    report, classical, outputs = judge(subject, cases)
    top = max(classical, key=lambda method: method.score)
    notes = [
        "psnr_db is raw. psnr_corrected_db gives every method the best gain, offset and flat-field, so it shows"
        " deblurring and not brightening; classical methods then start from the picture divided by the true light,"
        " and their ssim and epi are those of that result. Unsharp masking aside they are told the true PSF; settings"
        " are those that are best for this set.",
    ]
    if data_set == "pairs":
        notes.append(
            "A lab's own pairs: neither PSF nor light is known, so no method that needs the PSF takes part, and"
            " nothing is divided by the light."
        )
    pictures: list[Picture] = []
    if data_set == "synthetic:heldout":
        report |= _background(subject)
        report["by_size"] = by_size.judge(subject)
        report["tables"]["object size"] = by_size.table(report["by_size"])
        notes.append(by_size.NOTE)
    if thorough:
        report["tables"]["images"] = _per_image(cases, top, outputs, subject.halo_px)
        report["tables"]["resolution, nm"] = sharpness.table(subject, cases, top)
        notes.append(sharpness.NOTE)
        pictures = [_sheet(*row) for row in zip(cases, top.images, outputs, strict=True)]
    if thorough and data_set == "synthetic:heldout":
        report["two_line_gap_nm"] = sharpness.two_line_gap(subject, top)
        report["tables"]["two-line gap, nm"] = {"smallest resolved": report["two_line_gap_nm"]}
        report["curves"] = robustness.curves(subject)
        report["tables"]["families, seen in training or not"] = robustness.families(subject)
        notes.append(robustness.NOTE)
    return Judgement(report | {"notes": notes}, pictures)


def judge(subject: Subject, cases: Sequence[Case]) -> tuple[dict[str, Any], list[Best], list[Image]]:
    """The figures on some cases, each classical method at its corrected best, and the subject's outputs."""
    border_px = subject.halo_px * subject.scale
    outputs = [subject.shown(case.image) for case in cases]
    flat = [case.start(flat=True) for case in cases]
    raw = [case.start(flat=False) for case in cases]
    psfs = [case.psf_on_truth() for case in cases]

    def score(figure: str, images: Sequence[Image]) -> float:
        return round(float(np.mean([_score(figure, i, c, border_px) for i, c in zip(images, cases, strict=True)])), 4)

    table: dict[str, dict[str, float]] = {
        "input": {figure: score(figure, raw) for figure in _FIGURES}
        | {"psnr_corrected_db": score("psnr_corrected_db", flat)},
        "output": {figure: score(figure, outputs) for figure in _FIGURES},
    }
    settings: dict[str, dict[str, str]] = {}
    found: list[Best] = []
    for method in methods(psf_known=all(psf is not None for psf in psfs)):
        fair = best(
            method, flat, psfs, lambda image, number: _score("psnr_corrected_db", image, cases[number], border_px)
        )
        # Where veil and light are left in, smoothing gains nothing: the search is short from there.
        start = {**method.start, "weight": 0.0} if method.start else None
        plain = best(
            method, raw, psfs, lambda image, number: _score("psnr_db", image, cases[number], border_px), start=start
        )
        table[method.name] = {"psnr_db": round(plain.score, 4)} | {
            figure: score(figure, fair.images) for figure in ("psnr_corrected_db", "ssim", "epi")
        }
        settings[method.name] = {"psnr_db": plain.setting_text, "psnr_corrected_db": fair.setting_text}
        found.append(fair)
    report: dict[str, Any] = {"images": len(cases), "halo_px": subject.halo_px}
    for figure in _FIGURES:
        classical = max(table[one.method][figure] for one in found)
        report[figure] = {
            "input": table["input"][figure], "output": table["output"][figure], "best_classical": classical
        }  # fmt: skip
    gains = {
        f"over {name}": {
            figure: round(table["output"][figure] - row[figure], 4) for figure in ("psnr_db", "psnr_corrected_db")
        }
        for name, row in table.items()
        if name != "output"
    }
    families = {
        family: {
            figure: round(float(np.mean([_score(figure, outputs[i], cases[i], border_px) for i in members])), 4)
            for figure in _FIGURES
        }
        for family, members in _families(cases).items()
    }
    report["tables"] = {
        "methods": table, "gain of the output, dB": gains, "output by family": families, "settings": settings
    }  # fmt: skip
    return report, found, outputs


def _score(figure: str, image: Image, case: Case, border_px: int) -> float:
    return float(_FIGURES[figure](image, case.truth, border_px=border_px))


def _families(cases: Sequence[Case]) -> dict[str, list[int]]:
    """The numbers of the cases of each family, which is the first word of their names."""
    families: dict[str, list[int]] = {}
    for number, case in enumerate(cases):
        families.setdefault(case.name.split()[0], []).append(number)
    return families


def _background(subject: Subject) -> dict[str, Any]:
    """What appears where there is nothing: standard deviation with and without the smooth part, and features.

    The standard deviation with the smooth part holds the vignette; a feature is what `false_features_per_1e6_px` calls
    one, at the scale of the smallest blob.
    """
    border_px = subject.halo_px * subject.scale
    cases = empty(subject.scale)
    shown = {
        "input": [enlarged(case.image, subject.scale) for case in cases],
        "output": [subject.shown(case.image) for case in cases],
    }
    names = ("background_std", "background_detail_std", "false_features_per_1e6_px")
    report: dict[str, dict[str, float]] = {name: {} for name in names}
    for name, images in shown.items():
        inside = [metrics.inner(image, border_px) for image in images]
        report["background_std"][name] = round(float(np.mean([image.std() for image in inside])), 5)
        details = [image - metrics.smooth(image) for image in inside]
        report["background_detail_std"][name] = round(float(np.mean([detail.std() for detail in details])), 5)
        features = false_features_per_1e6_px(details, sigma_px=_FEATURE_SIGMA_PX * subject.scale)
        report["false_features_per_1e6_px"][name] = round(features * subject.scale**2, 2)  # of the camera
    return report


def _per_image(
    cases: Sequence[Case], classical: Best, outputs: Sequence[Image], halo_px: int
) -> dict[str, dict[str, float]]:
    table = {}
    for number, (case, restored, output) in enumerate(zip(cases, classical.images, outputs, strict=True)):
        border_px = halo_px * case.scale
        corrected = {
            "input": case.start(flat=True),
            classical.method: restored,
            "output": output,
        }
        row = {
            f"psnr_corrected_db {name}": _score("psnr_corrected_db", image, case, border_px)
            for name, image in corrected.items()
        }
        row |= {f"{figure} output": _score(figure, output, case, border_px) for figure in ("psnr_db", "ssim", "epi")}
        table[f"{number} {case.name}"] = {name: round(value, 4) for name, value in row.items()}
    return table


def _sheet(case: Case, classical: Image, output: Image) -> Picture:
    """Input, best classical, output, truth and the output's difference, side by side."""
    corrected = metrics.corrected(classical, case.truth)
    difference = np.abs(output - case.truth) * 2
    parts = [enlarged(case.image, case.scale), corrected, output, case.truth, difference]
    gap = np.ones((case.truth.shape[0], _GAP_PX), np.float32)
    shown = [side for part in parts for side in (gap, np.clip(part, 0, 1).astype(np.float32))]
    sheet = np.concatenate(shown[1:], axis=1)
    return Picture(
        case.name,
        sheet,
        "input, best classical (with the oracle's gain, offset and flat-field), output, truth, and the difference of"
        " output and truth (black 0, white 0.5 or more)",
    )
