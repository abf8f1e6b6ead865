"""Judges any enhancer against the truth, the input and the best classical methods."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.filters import unsharp_mask
from skimage.restoration import richardson_lucy

from models import metrics
from models.enhance import data
from models.enhance.data import Pair
from models.errors import RecipeError

Image = NDArray[np.float32]
Infer = Callable[[Image], Image]

_FIGURES = {
    "psnr_db": metrics.psnr_db,
    "psnr_corrected_db": metrics.psnr_corrected_db,
    "ssim": metrics.ssim,
    "epi": metrics.epi,
}


@dataclass(frozen=True)
class Method:
    """A classical method: its name, and one function per setting, given the picture and the true PSF."""

    name: str
    settings: dict[str, Callable[[Image, Image], Image]]


def unsharp(radius_px: float, amount: float) -> Callable[[Image, Image], Image]:
    """Unsharp masking; knows no PSF."""

    def sharpen(image: Image, psf: Image) -> Image:
        out = unsharp_mask(image, radius=radius_px, amount=amount, preserve_range=True)  # type: ignore[no-untyped-call]  # scikit-image has no types
        return np.asarray(out, dtype=np.float32)

    return sharpen


def wiener(noise: float) -> Callable[[Image, Image], Image]:
    """Wiener deconvolution with the true PSF; `noise` is the noise-to-signal power ratio at all frequencies."""

    def restore(image: Image, psf: Image) -> Image:
        margin = len(psf)
        padded = np.pad(image, margin, mode="symmetric")
        kernel = np.zeros(padded.shape)
        kernel[: len(psf), : len(psf)] = psf
        transfer = np.fft.rfft2(np.roll(kernel, (-(len(psf) // 2),) * 2, (0, 1)))
        spectrum = np.fft.rfft2(padded) * transfer.conj() / (np.abs(transfer) ** 2 + noise)
        return np.fft.irfft2(spectrum, s=padded.shape)[margin:-margin, margin:-margin].astype(np.float32)

    return restore


def lucy(iterations: int) -> Callable[[Image, Image], Image]:
    """Richardson-Lucy deconvolution with the true PSF."""

    def restore(image: Image, psf: Image) -> Image:
        margin = len(psf) // 2
        padded = np.pad(np.maximum(image, 1e-4), margin, mode="symmetric")
        out = richardson_lucy(padded, psf, num_iter=iterations, clip=False, filter_epsilon=1e-6)  # type: ignore[no-untyped-call]  # as above
        return np.asarray(out[margin:-margin, margin:-margin], dtype=np.float32)

    return restore


CLASSICAL = (
    Method(
        "unsharp",
        {
            f"radius_px={radius:g} amount={amount:g}": unsharp(radius, amount)
            for radius in (1, 2, 3, 4)
            for amount in (0.5, 1, 2, 3)
        },
    ),
    Method("wiener", {f"noise={10**power:.2g}": wiener(10**power) for power in np.arange(-3.5, -0.4, 0.25)}),
    Method("richardson-lucy-10", {"iterations=10": lucy(10)}),
)


def data_set(name: str, *, folder: Path | None = None) -> list[Pair]:
    """The pairs of a named data set.

    Parameters
    ----------
    name
        "synthetic:heldout", generated the same everywhere; or "real:heldout", crops of real images seen through
        the same simulated optics.
    folder
        The images of "real:heldout".

    Raises
    ------
    RecipeError
        There is no such data set, or no image in the folder.
    """
    if name == "synthetic:heldout":
        return data.heldout()
    if name != "real:heldout":
        raise RecipeError(f"there is no data set {name!r}; choose synthetic:heldout or real:heldout")
    if folder is None:
        raise RecipeError("real:heldout needs a folder of real images; give it with --data-dir")
    return data.real_heldout(folder)


def evaluate(infer: Infer, pairs: Sequence[Pair], *, halo_px: int) -> dict[str, Any]:
    """Judge an enhancer.

    Parameters
    ----------
    infer
        (h, w) float32 in 0..1 to the enhanced picture of the same shape. It is told nothing else.
    pairs
        What to judge it on.
    halo_px
        Border that is left out, for every method alike.

    Returns
    -------
    A JSON-ready report. `psnr_db` and `psnr_corrected_db` hold the means of input, output and the best
    classical method; `methods` holds all of them, each with the setting that is best for this set: classical
    methods are judged at their best. For `psnr_corrected_db` they, and the input, start from the picture
    divided by the true illumination; the network never sees it. `psnr_db` is raw: nobody is helped.
    """
    input_raw = _judge([pair.image for pair in pairs], pairs, halo_px)
    output = _judge([infer(pair.image) for pair in pairs], pairs, halo_px)
    flat = [_flat(pair) for pair in pairs]
    input_raw["psnr_corrected_db"] = _mean("psnr_corrected_db", flat, pairs, halo_px)
    methods: dict[str, dict[str, Any]] = {"input": input_raw, "output": output}
    for method in CLASSICAL:
        methods[method.name] = _best(method, flat, pairs, halo_px)
    classical = [methods[method.name] for method in CLASSICAL]
    report: dict[str, Any] = {"images": len(pairs), "halo_px": halo_px}
    for figure in _FIGURES:
        report[figure] = {"input": input_raw[figure], "output": output[figure]}
        if figure.startswith("psnr"):
            report[figure]["best_classical"] = max(row[figure] for row in classical)
    return report | {"methods": methods}


def by_family(infer: Infer, pairs: Sequence[Pair], *, halo_px: int) -> dict[str, dict[str, float]]:
    """The enhancer's figures for each family of the set, by the first word of the pairs' names."""
    families: dict[str, list[Pair]] = {}
    for pair in pairs:
        families.setdefault(re.split(r"\s", pair.name)[0], []).append(pair)
    return {
        family: _judge([infer(pair.image) for pair in members], members, halo_px)
        for family, members in families.items()
    }


def _flat(pair: Pair) -> Image:
    return np.asarray(pair.image / np.maximum(pair.light, 1e-3), dtype=np.float32)


def _best(method: Method, flat: Iterable[Image], pairs: Sequence[Pair], halo_px: int) -> dict[str, Any]:
    """A method's figures with the settings that suit the raw, and the corrected, comparison best."""
    flat = list(flat)
    raw: dict[str, Any] = {"psnr_db": -np.inf}
    fair: dict[str, Any] = {"psnr_corrected_db": -np.inf}
    for setting, restore in method.settings.items():
        raw_db = _mean("psnr_db", [restore(pair.image, pair.psf) for pair in pairs], pairs, halo_px)
        if raw_db > raw["psnr_db"]:
            raw = {"psnr_db": raw_db, "psnr_db_setting": setting}
        restored = [restore(image, pair.psf) for image, pair in zip(flat, pairs, strict=True)]
        fair_db = _mean("psnr_corrected_db", restored, pairs, halo_px)
        if fair_db > fair["psnr_corrected_db"]:
            fair = {"psnr_corrected_db": fair_db, "psnr_corrected_db_setting": setting}
            fair |= {figure: _mean(figure, restored, pairs, halo_px) for figure in ("ssim", "epi")}
    return raw | fair


def _judge(images: Sequence[Image], pairs: Sequence[Pair], halo_px: int) -> dict[str, float]:
    return {figure: _mean(figure, images, pairs, halo_px) for figure in _FIGURES}


def _mean(figure: str, images: Sequence[Image], pairs: Sequence[Pair], halo_px: int) -> float:
    judge = _FIGURES[figure]
    scores = [judge(image, pair.truth, border_px=halo_px) for image, pair in zip(images, pairs, strict=True)]
    return round(float(np.mean(scores)), 4)
