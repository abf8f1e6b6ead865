"""The classical methods every network is held against, and the search for the setting that suits each best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter, map_coordinates, zoom
from skimage.exposure import match_histograms
from skimage.restoration import denoise_tv_chambolle

from models.metrics import psnr_db

Image = NDArray[np.float32]

_DARKEST = 1e-4  # Richardson-Lucy divides by the picture


def gauss_unsharp(image: Image, *, smooth_px: float, radius_px: float, amount: float) -> Image:
    """Unsharp masking of a picture smoothed by a Gaussian (standard deviations in px): s + amount (s - blurred s)."""
    smooth = gaussian_filter(image, smooth_px) if smooth_px else image
    return np.asarray(smooth + np.float32(amount) * (smooth - gaussian_filter(smooth, radius_px)), dtype=np.float32)


def wiener(image: Image, psf: Image, *, noise: float) -> Image:
    """Wiener deconvolution; `noise` is the noise-to-signal power ratio, the same at all frequencies.

    The surroundings are the picture mirrored at its edge.
    """
    padded, transfer, inside = _surrounded(image, psf, margin_px=len(psf))
    spectrum = fft.rfft2(padded) * transfer.conj() / (np.abs(transfer) ** 2 + np.float32(noise))
    return np.asarray(fft.irfft2(spectrum, s=padded.shape)[inside], dtype=np.float32)


def lucy(image: Image, psf: Image, *, iterations: float) -> Image:
    """Richardson-Lucy deconvolution (Richardson 1972, Lucy 1974) from a flat start; surroundings as `wiener`."""
    padded, transfer, inside = _surrounded(np.maximum(image, _DARKEST), psf, margin_px=len(psf) // 2)
    estimate = np.full_like(padded, padded.mean())
    for _ in range(int(iterations)):
        seen = fft.irfft2(fft.rfft2(estimate) * transfer, s=padded.shape)
        ratio = padded / np.maximum(seen, _DARKEST / 10)
        # What rounding makes negative would oscillate: a reflectivity is not.
        estimate *= np.maximum(fft.irfft2(fft.rfft2(ratio) * transfer.conj(), s=padded.shape), 0)
    return np.asarray(estimate[inside], dtype=np.float32)


def _surrounded(
    image: Image, psf: Image, *, margin_px: int
) -> tuple[Image, NDArray[np.complex64], tuple[slice, slice]]:
    """The picture in its mirrored surroundings, the PSF's transfer function there, and where the picture lies."""
    height, width = image.shape
    # At least the margin on every side, and a size whose FFT is fast.
    below, right = (fft.next_fast_len(side + 2 * margin_px, real=True) - side - margin_px for side in image.shape)
    padded = np.pad(image, ((margin_px, below), (margin_px, right)), mode="symmetric")
    kernel = np.zeros(padded.shape, np.float32)
    kernel[: len(psf), : len(psf)] = psf
    transfer = fft.rfft2(np.roll(kernel, (-(len(psf) // 2),) * 2, (0, 1)))
    return padded, transfer, (slice(margin_px, margin_px + height), slice(margin_px, margin_px + width))


def total_variation(image: Image, *, weight: float) -> Image:
    """The piecewise smooth picture nearest to this one (Chambolle 2004, by scikit-image); weight 0 changes nothing."""
    if weight == 0:
        return image
    # Its own stopping rule ends after a few steps on some pictures: 100 steps are within 0.02 dB of 500.
    smooth = denoise_tv_chambolle(image, weight=weight, eps=0, max_num_iter=100)  # type: ignore[no-untyped-call]  # scikit-image has no types
    return np.asarray(smooth, dtype=np.float32)


def enlarged(image: Image, scale: int) -> Image:
    """The picture on a grid that is finer by a whole factor: cubic interpolation, areas kept in register."""
    if scale == 1:
        return image
    return np.asarray(zoom(image, scale, order=3, mode="reflect", grid_mode=True), dtype=np.float32)


def enlarged_psf(psf: Image, scale: int) -> Image:
    """The PSF on that finer grid: odd again, and its sum 1 again."""
    reach = len(psf) // 2
    offsets_px = np.arange(-scale * reach, scale * reach + 1) / scale + reach
    fine = map_coordinates(psf, np.meshgrid(offsets_px, offsets_px, indexing="ij"), order=3)
    return np.asarray(fine / fine.sum(), dtype=np.float32)


def histogram_matched(image: Image, reference: Image) -> Image:
    """The picture with the grey values of another: the best anybody could have guessed of a monotonous brightness.

    An oracle. Used where output and input show different quantities, as an SEM image and an optical one do.
    """
    return np.asarray(match_histograms(image, reference), dtype=np.float32)


@dataclass(frozen=True)
class Method:
    """A classical method and the settings it may choose from.

    `sharpen(image, psf, **setting)` gives the sharpened picture; `grid` lists each parameter's values in ascending
    order. If a "weight" is among them, total variation of that weight follows. `start` is where the search for the
    best setting begins; None: all are tried.
    """

    name: str
    sharpen: Callable[..., Image]
    grid: Mapping[str, tuple[float, ...]]
    start: Mapping[str, float] | None = None
    needs_psf: bool = True

    def restore(self, image: Image, psf: Image | None, **setting: float) -> Image:
        """The restored picture with one value for each parameter of `grid`."""
        weight = setting.pop("weight", 0)
        return total_variation(self.sharpen(image, psf, **setting), weight=weight)


def _unsharp(image: Image, psf: Image | None, *, smooth_px: float = 0, radius_px: float, amount: float) -> Image:
    return gauss_unsharp(image, smooth_px=smooth_px, radius_px=radius_px, amount=amount)


def _powers(low: float, high: float) -> tuple[float, ...]:
    """Four a decade from 10^low to 10^high, to three digits."""
    return tuple(float(f"{10**power:.3g}") for power in np.arange(low, high + 0.1, 0.25))


_NOISES = _powers(-4.5, 0)
_WEIGHTS = (0.0, *_powers(-2.5, -0.25))

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "unsharp",
            _unsharp,
            {"radius_px": (1, 2, 3, 4, 8, 12), "amount": (0.25, 0.5, 1, 2, 3)},
            needs_psf=False,
        ),
        Method(
            "gauss-unsharp",
            _unsharp,
            {"smooth_px": (0.75, 1, 1.5, 2, 3), "radius_px": (2, 3, 4, 6, 8, 12), "amount": (1, 2, 3, 5)},
            needs_psf=False,
        ),
        Method("wiener", wiener, {"noise": _NOISES}),
        Method("richardson-lucy-10", lucy, {"iterations": (10,)}),
        Method("richardson-lucy-30", lucy, {"iterations": (30,)}),
        Method(
            "wiener-tv",
            wiener,
            {"noise": _NOISES, "weight": _WEIGHTS},
            start={"noise": 0.01, "weight": 0.0562},
        ),
        Method(
            "richardson-lucy-tv",
            lucy,
            {"iterations": (5, 10, 20, 30, 50, 80, 120), "weight": _WEIGHTS},
            start={"iterations": 50, "weight": 0.0562},
        ),
    )
}


class Best(NamedTuple):
    """A method with the setting that scored best, and what it made of the pictures."""

    method: str
    setting: dict[str, float]
    score: float
    images: list[Image]

    @property
    def setting_text(self) -> str:
        """The setting in words."""
        return " ".join(f"{name}={value:g}" for name, value in self.setting.items())


def methods(*, psf_known: bool) -> list[Method]:
    """The methods that can be used: all, or those that do without the PSF."""
    return [method for method in METHODS.values() if psf_known or not method.needs_psf]


def best(
    method: Method,
    images: Sequence[Image],
    psfs: Sequence[Image | None],
    score: Callable[[Image, int], float],
    *,
    start: Mapping[str, float] | None = None,
) -> Best:
    """The setting of a method with the highest mean score over a set: settings are chosen by oracle, per set.

    All settings are tried, except where a start is given because they are slow: then the search walks from there to
    the best neighbour on the grid until no neighbour is better.

    Parameters
    ----------
    images, psfs
        The pictures and the point-spread function of each; None where it is not known.
    score
        Maps a restored picture and its number in `images` to a figure; higher is better.
    start
        Where to start instead of `method.start`.

    Raises
    ------
    ValueError
        There is no picture, or the method needs a PSF that is not known.
    """
    if not images or len(images) != len(psfs):
        raise ValueError(f"got {len(images)} pictures and {len(psfs)} PSFs; give at least one, and as many of both")
    if method.needs_psf and any(psf is None for psf in psfs):
        raise ValueError(f"{method.name} needs the PSF of every picture; use methods(psf_known=False)")
    names = list(method.grid)
    tried: dict[tuple[int, ...], float] = {}
    sharpened: dict[tuple[float, ...], list[Image]] = {}  # by the setting without the weight: the slow part

    def setting(place: tuple[int, ...]) -> dict[str, float]:
        return {name: method.grid[name][index] for name, index in zip(names, place, strict=True)}

    def restored(place: tuple[int, ...]) -> list[Image]:
        if method.start is None:
            return [method.restore(image, psf, **setting(place)) for image, psf in zip(images, psfs, strict=True)]
        values = setting(place)
        weight = values.pop("weight", 0)
        key = tuple(values.values())
        if key not in sharpened:
            sharpened[key] = [method.sharpen(image, psf, **values) for image, psf in zip(images, psfs, strict=True)]
        return [total_variation(image, weight=weight) for image in sharpened[key]]

    def judged(place: tuple[int, ...]) -> float:
        if place not in tried:
            tried[place] = float(np.mean([score(image, number) for number, image in enumerate(restored(place))]))
        return tried[place]

    sizes = [len(values) for values in method.grid.values()]
    if method.start is None:
        top = max(product(*map(range, sizes)), key=judged)
        return Best(method.name, setting(top), judged(top), restored(top))
    first = start or method.start
    here = tuple(method.grid[name].index(first[name]) for name in names)
    while True:
        there = max([here, *_neighbours(here, sizes)], key=judged)
        if there == here:
            return Best(method.name, setting(here), judged(here), restored(here))
        here = there


def _neighbours(place: tuple[int, ...], sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """The places one step away along one axis."""
    return [
        (*place[:axis], place[axis] + step, *place[axis + 1 :])
        for axis, size in enumerate(sizes)
        for step in (-1, 1)
        if 0 <= place[axis] + step < size
    ]


def best_matched(
    images: Sequence[Image], truths: Sequence[Image], psfs: Sequence[Image | None], *, border_px: int = 0
) -> Best:
    """The best histogram-matched Wiener result, by PSNR; where a PSF is not known, of the methods that need none.

    What a classical method can do where the truth shows another quantity than the picture, as an SEM image does.
    """
    candidates = methods(psf_known=False) if any(psf is None for psf in psfs) else [METHODS["wiener"]]

    def score(image: Image, number: int) -> float:
        return psnr_db(histogram_matched(image, truths[number]), truths[number], border_px=border_px)

    top = max((best(method, images, psfs, score) for method in candidates), key=lambda one: one.score)
    return top._replace(
        images=[histogram_matched(image, truth) for image, truth in zip(top.images, truths, strict=True)]
    )
