"""Judges an optical-to-SEM network: against truth, input and histogram-matched Wiener, in focus and out of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import metrics
from models.classical import Best, best_matched, histogram_matched
from models.errors import RecipeError
from models.evaluate import Judgement, Picture, Subject
from models.pairs import read_pairs
from models.resolution import AGAINST_TRUTH, frc_resolution_nm
from models.sem import data
from models.sem.data import Pair
from models.sem.train import contextual

Image = NDArray[np.float32]

# How far the plane of focus stands off the specimen's middle; the published 0, 0.3, 0.6, 1 um and what lies between.
DEFOCUS_UM = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0)
# The range of defocus counts as long as the EPI keeps this share of its value in focus.
_KEPT = 0.7
_FIGURES = ("psnr_db", "ssim", "epi", "contextual")


def evaluate(subject: Subject, data: str, *, folder: Path | None, thorough: bool = False) -> Judgement:
    """Judge a network of system B (see `models.evaluate.evaluate`).

    "psnr_db", "ssim", "epi" and "contextual" (less is better) hold the means of input, output and the best classical
    result. Optical and electron pictures show different quantities, so the classical picture is given the grey values
    of its truth, and the input with them is a row of the table: oracles both. Classical methods get the true PSF, the
    illumination and the settings with the highest PSNR over the set.
    """
    pairs = _data_set(data, folder)
    outputs = [subject.shown(pair.image) for pair in pairs]
    classical = _classical(pairs, subject.halo_px, defocused=True)
    shown = {
        "input": [pair.image for pair in pairs],
        "input, matched": [histogram_matched(_flat(pair), pair.truth) for pair in pairs],
        f"{classical.method} {classical.setting_text}, matched": classical.images,
        "output": outputs,
    }
    table = {name: _judge(images, pairs, subject.halo_px) for name, images in shown.items()}
    rows = list(table.values())
    report: dict[str, Any] = {"images": len(pairs), "halo_px": subject.halo_px}
    for figure in _FIGURES:
        report[figure] = {
            "input": rows[0][figure], "output": rows[3][figure], "best_classical": rows[2][figure]
        }  # fmt: skip
    report["tables"] = {"methods": table, "families": _by_family(outputs, pairs, subject.halo_px)}
    report["notes"] = [
        "matched: given the grey values of the truth's own histogram, an oracle the network does without."
    ]
    if data == "synthetic:heldout":
        report |= _background(subject)
    if not thorough:
        return Judgement(report, [])
    report["tables"]["images"] = {
        f"{number} {pair.name}": _scores(image, pair, subject.halo_px)
        for number, (image, pair) in enumerate(zip(outputs, pairs, strict=True))
    }
    if data == "synthetic:heldout":
        report |= _through_focus(subject)
        report["tables"]["depth of field, um"] = {"EPI at 0.7 of its value in focus": report["depth_of_field_um"]}
    return Judgement(report, [_sheet(*row) for row in zip(pairs, classical.images, outputs, strict=True)])


def _data_set(name: str, folder: Path | None) -> Sequence[_Judged]:
    if name == "synthetic:heldout":
        return [_Judged.of(pair) for pair in data.heldout()]
    if folder is None and name in ("real:heldout", "pairs"):
        raise RecipeError(f"{name} needs a folder; give it with --data-dir")
    if name == "real:heldout":
        assert folder is not None  # noqa: S101  # see above
        return [_Judged.of(pair) for pair in data.real_heldout(folder)]
    if name == "pairs":
        assert folder is not None  # noqa: S101  # see above
        return [_Judged(pair.name, pair.image, pair.truth) for pair in read_pairs(folder, "test")]
    raise RecipeError(f"there is no data set {name!r}; choose synthetic:heldout, real:heldout or pairs")


class _Judged(NamedTuple):
    """A pair, and what is known about it: of a lab's own pairs neither light nor PSF."""

    name: str
    image: Image
    truth: Image
    light: Image | None = None
    psf: Image | None = None
    psf_defocused: Image | None = None

    @classmethod
    def of(cls, pair: Pair) -> _Judged:
        return cls(*pair)


def _flat(pair: _Judged) -> Image:
    if pair.light is None:
        return pair.image
    return np.asarray(pair.image / np.maximum(pair.light, 1e-3), dtype=np.float32)


def _classical(pairs: Sequence[_Judged], border_px: int, *, defocused: bool = False) -> Best:
    """`best_matched` of the pictures divided by the light, with the PSF in focus or the true one."""
    psfs = [pair.psf_defocused if defocused else pair.psf for pair in pairs]
    return best_matched([_flat(pair) for pair in pairs], [pair.truth for pair in pairs], psfs, border_px=border_px)


def _scores(image: Image, pair: _Judged, border_px: int) -> dict[str, float]:
    judges = (metrics.psnr_db, metrics.ssim, metrics.epi)
    figures = [float(judge(image, pair.truth, border_px=border_px)) for judge in judges]
    figures.append(contextual(*(metrics.inner(part, border_px) for part in (image, pair.truth))))
    return {name: round(figure, 4) for name, figure in zip(_FIGURES, figures, strict=True)}


def _judge(images: Sequence[Image], pairs: Sequence[_Judged], border_px: int) -> dict[str, float]:
    scores = [_scores(image, pair, border_px) for image, pair in zip(images, pairs, strict=True)]
    return {figure: round(float(np.mean([row[figure] for row in scores])), 4) for figure in _FIGURES}


def _by_family(images: Sequence[Image], pairs: Sequence[_Judged], border_px: int) -> dict[str, dict[str, float]]:
    both = sorted(zip(images, pairs, strict=True), key=lambda one: _family(one[1]))
    table = {}
    for family, members in groupby(both, key=lambda one: _family(one[1])):
        made, theirs = zip(*members, strict=True)
        table[family] = _judge(made, theirs, border_px)
    return table


def _family(pair: _Judged) -> str:
    return pair.name.split()[0]


def _background(subject: Subject) -> dict[str, Any]:
    """What appears on empty fields: standard deviation over the picture, mean over pictures."""
    empty = data.background()
    inside = [
        [float(metrics.inner(picture, subject.halo_px).std()) for picture in (pair.image, subject.shown(pair.image))]
        for pair in empty
    ]
    seen, made = np.mean(inside, axis=0)
    return {"background_std": {"input": round(float(seen), 4), "output": round(float(made), 4)}}


def _through_focus(subject: Subject) -> dict[str, Any]:
    """Figures of one and the same specimens with the plane of focus further and further off.

    The classical picture comes in two forms: with the PSF in focus, and told the true defocus. For either the setting
    is chosen again at every plane, and the one with the longer range is held against the network.
    """
    names = ("input", "wiener", "wiener, told the defocus", "output")
    figures = ("psnr_db", "epi", "resolution_nm")
    curves: dict[str, dict[str, list[Any]]] = {figure: {name: [] for name in names} for figure in figures}
    for focus_um in DEFOCUS_UM:
        pairs = [_Judged.of(pair) for pair in data.heldout(focus_um=focus_um)]
        shown = (
            [histogram_matched(_flat(pair), pair.truth) for pair in pairs],
            _classical(pairs, subject.halo_px).images,
            _classical(pairs, subject.halo_px, defocused=True).images,
            [subject.shown(pair.image) for pair in pairs],
        )
        for name, images in zip(names, shown, strict=True):
            scores = _judge(images, pairs, subject.halo_px)
            for figure in ("psnr_db", "epi"):
                curves[figure][name].append(scores[figure])
            curves["resolution_nm"][name].append(_resolution_nm(images, pairs, subject))
    ranges = {name: range_um(curves["epi"][name]) for name in names}
    classical = max(ranges["wiener"], ranges["wiener, told the defocus"])
    x = {"name": "defocus_um", "values": list(DEFOCUS_UM)}
    return {
        "depth_of_field_um": {
            "input": ranges["input"],
            "output": ranges["output"],
            "best_classical": classical,
            "ratio": round(ranges["output"] / classical, 2),
        },
        "curves": {
            f"{figure} against defocus": {"x": x, "y": figure, "series": series} for figure, series in curves.items()
        },
    }


def _resolution_nm(images: Sequence[Image], pairs: Sequence[_Judged], subject: Subject) -> float | None:
    """Median period down to which pictures agree with their truths by half; None where most never do."""
    periods = []
    for image, pair in zip(images, pairs, strict=True):
        inside, truth = (metrics.inner(part, subject.halo_px) for part in (image, pair.truth))
        period = frc_resolution_nm(inside, truth, subject.pixel_size_nm, threshold=AGAINST_TRUTH)
        periods.append(math.inf if period is None else period)
    median = float(np.median(periods))
    return round(median, 1) if math.isfinite(median) else None


def range_um(epi: Sequence[float], defocus_um: Sequence[float] = DEFOCUS_UM) -> float:
    """How far from focus the EPI stays at 0.7 of its value in focus or more; at most the last defocus judged.

    Examples
    --------
    >>> range_um([0.5, 0.4, 0.3, 0.1], [0.0, 0.3, 0.6, 1.0])
    0.45
    """
    least = _KEPT * epi[0]
    for index in range(1, len(epi)):
        if epi[index] < least:
            share = (epi[index - 1] - least) / (epi[index - 1] - epi[index])
            return round(defocus_um[index - 1] + share * (defocus_um[index] - defocus_um[index - 1]), 3)
    return defocus_um[-1]


def _sheet(pair: _Judged, classical: Image, output: Image) -> Picture:
    parts = [pair.image, np.clip(classical, 0, 1), output, pair.truth, np.minimum(np.abs(output - pair.truth) * 2, 1)]
    sheet = np.concatenate(parts, axis=1).astype(np.float32)
    return Picture(pair.name, sheet, "input, best classical, output, truth, difference (black 0, white 0.5 or more)")
