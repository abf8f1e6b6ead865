"""How fine a picture is: Fourier ring correlation, decorrelation analysis, and the smallest gap between two lines.

Three questions that are not the same. FRC and decorrelation ask to which frequency a picture holds structure rather
than noise, and need no truth: a network that draws the same invention twice passes them both. FRC against the truth
(threshold 1/2) and the two-line gap ask whether the structure is what was there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import map_coordinates

from models.canvas import Canvas

Image = NDArray[np.float32]
Curve = NDArray[np.float64]

# Two noisy pictures agree to the limit where their correlation falls to 1/7; the average of both then correlates with
# the noiseless truth by sqrt(2/7 / (8/7)) = 1/2 (Rosenthal & Henderson 2003).
TWO_NOISY = 1 / 7
AGAINST_TRUTH = 1 / 2
# Rayleigh: two Airy patterns, the maximum of one on the first zero of the other, have a saddle of 0.735.
RAYLEIGH_DIP = 0.26

_APART_NM = 1200.0
_FIRST_RING = 3  # below it there are the window and the lamp
_FILTERS = 10  # high-pass filters of the decorrelation analysis, as published
_LEAST_DROP = 5e-4  # a smaller one after a peak is no peak, as published


class Rings(NamedTuple):
    """A correlation by spatial frequency, cycles per pixel (0.5 is the finest)."""

    frequency: Curve
    correlation: Curve


def fourier_ring_correlation(image: Image, other: Image) -> Rings:
    """Correlation of the spectra of two pictures on rings of equal frequency (Saxton & Baumeister 1982).

    Parameters
    ----------
    image, other
        (h, w), of the same shape, at least 32 px a side: two noisy exposures of one specimen, or a picture and the
        truth. A Hann window keeps the edges out.

    Raises
    ------
    ValueError
        The shapes differ or are too small.
    """
    if image.shape != other.shape or image.ndim != 2 or min(image.shape) < 32:
        raise ValueError(
            f"got {image.shape} and {other.shape} px; give two pictures of one shape, 32 px or more a side"
        )
    a, b = _spectrum(image), _spectrum(other)
    ring = _ring_numbers(image.shape, max(image.shape))
    cross, power_a, power_b = (
        np.bincount(ring, weights=values.ravel()) for values in ((a * b.conj()).real, np.abs(a) ** 2, np.abs(b) ** 2)
    )
    count = max(image.shape) // 2 + 1
    scale = np.sqrt(power_a * power_b)[:count]
    correlation = np.divide(cross[:count], scale, out=np.zeros(count), where=scale > 0)
    return Rings(np.arange(count) / max(image.shape), correlation)


def frc_resolution_nm(
    image: Image, other: Image, pixel_size_nm: float, *, threshold: float = TWO_NOISY
) -> float | None:
    """The period at which the ring correlation of two pictures falls to the threshold.

    Parameters
    ----------
    image, other
        As `fourier_ring_correlation`. Two noisy exposures want `TWO_NOISY`, a picture and the truth `AGAINST_TRUTH`.

    Returns
    -------
    nm; two pixels, the finest period there is, where the correlation stays above the threshold to the end; None where
    it never was above.
    """
    return _period_nm(fourier_ring_correlation(image, other), pixel_size_nm, threshold)


def one_image_frc_nm(image: Image, pixel_size_nm: float) -> float | None:
    """FRC resolution of a single picture, whose even and odd pixels serve as two exposures (Koho et al. 2019).

    The four pixels of every 2 x 2 block make two diagonal pairs; the correlation is the mean of both. Each pair is
    shifted by one pixel in both directions, which is taken back exactly by a phase, instead of the published fit.
    The noise of neighbouring pixels must be independent: for what a camera delivered, not for what was filtered.

    Returns
    -------
    nm, 4 pixels at the finest; None where nothing correlates. Structure finer than 4 pixels is folded into coarser
    rings and makes the figure optimistic by a few per cent.
    """
    height, width = (side // 2 * 2 for side in image.shape)
    image = image[:height, :width]
    curves = []
    for one, other, turn in (
        (image[::2, ::2], image[1::2, 1::2], 1),
        (image[::2, 1::2], image[1::2, ::2], -1),
    ):
        # A shift by half a pixel of the halved grid, in y and, forwards or backwards, in x.
        phase = np.exp(-1j * np.pi * (fft.fftfreq(height // 2)[:, None] + turn * fft.fftfreq(width // 2)))
        aligned = fft.ifft2(fft.fft2(other - other.mean()) * phase).real
        curves.append(fourier_ring_correlation(one - one.mean(), aligned.astype(np.float32)))
    mean = Rings(curves[0].frequency, (curves[0].correlation + curves[1].correlation) / 2)
    return _period_nm(mean, 2 * pixel_size_nm, TWO_NOISY)


def decorrelation_resolution_nm(image: Image, pixel_size_nm: float) -> float | None:
    """Resolution of a single picture by decorrelation analysis (Descloux, Grussmayer & Radenovic 2019).

    The spectrum is correlated with itself divided by its magnitude, within a circle of growing radius; the radius of
    the maximum is where structure ends and noise begins. High-pass filters suppress what is coarse; the largest
    radius of all counts, refined once around it.

    Returns
    -------
    nm (a period, two pixels at the finest); None where no curve has a maximum: the picture holds noise only.
    """
    spectrum = _spectrum(image)
    side = min(image.shape)
    ring = _ring_numbers(image.shape, 2 * side)  # radii in steps of 1/2 of the ring of a square picture
    radius_px = np.arange(ring.max() + 1) / (2 * side)
    magnitude = np.bincount(ring, weights=np.abs(spectrum).ravel())
    power = np.bincount(ring, weights=np.abs(spectrum).ravel() ** 2)
    count = np.bincount(ring).astype(float)
    finest = side + 1  # 0.5 cycles/px

    def peak(sigma_px: float | None) -> float:
        """Frequency of the maximum after removing a blur of sigma; 0 where there is none."""
        passed = 1 - np.exp(-2 * (np.pi * sigma_px * radius_px) ** 2) if sigma_px else np.ones_like(radius_px)
        total = np.sqrt((power * passed**2)[:finest].sum())
        curve = np.cumsum(magnitude * passed)[:finest] / (total * np.sqrt(np.maximum(np.cumsum(count)[:finest], 1)))
        return float(radius_px[_last_peak(curve)])

    first = peak(None)
    widest = 2 / (2 * first) if first else side / 4
    sigmas = np.geomspace(widest, 0.15, _FILTERS)
    peaks = [peak(sigma) for sigma in sigmas]
    top = int(np.argmax(peaks))
    refined = np.geomspace(sigmas[max(top - 1, 0)], sigmas[min(top + 1, _FILTERS - 1)], _FILTERS)
    limit = max([first, *peaks, *(peak(sigma) for sigma in refined)])
    return pixel_size_nm / limit if limit > 0 else None


class LinePairs(NamedTuple):
    """A specimen of equal line pairs: reflectivity (h, w), and where the lines' middles lie.

    `left_px` and `right_px` are (n, 2) middles (y, x) of the two lines of each pair, `along` is (n, 2), the unit
    vector along them. `length_px` is how far along the lines may be judged, `outside_px` how far from a pair's middle
    there is background.
    """

    reflectivity: Image
    left_px: Curve
    right_px: Curve
    along: Curve
    length_px: float
    outside_px: float


def line_pairs(
    gap_nm: float,
    *,
    width_nm: float = 100.0,
    length_nm: float = 1500.0,
    shape_px: tuple[int, int] = (256, 256),
    pixel_size_nm: float,
    levels: tuple[float, float] = (0.2, 0.8),
    supersample: int = 4,
) -> LinePairs:
    """Draw pairs of lines in many directions and at many fractions of a pixel.

    Parameters
    ----------
    gap_nm, width_nm, length_nm
        Clear space between the lines, and the lines. A length equal to the width makes two squares: particles.
    shape_px, pixel_size_nm
        The grid. Pairs stand 1.2 um apart, so that the blur of one does not reach the next.
    levels
        Reflectivity of background and lines.

    Raises
    ------
    ValueError
        The lines have no size, or not one pair fits.
    """
    if not (gap_nm >= 0 and width_nm > 0 and length_nm > 0 and pixel_size_nm > 0):
        raise ValueError(f"gap {gap_nm}, width {width_nm}, length {length_nm}, pixel {pixel_size_nm} nm: no such lines")
    canvas = Canvas((shape_px[0] * supersample, shape_px[1] * supersample), pixel_size_nm / supersample)
    cell_nm = max(length_nm, 2 * width_nm + gap_nm) + _APART_NM
    rows, columns = (int(size // cell_nm) for size in canvas.size_nm)
    if not rows * columns:
        raise ValueError(f"a picture of {shape_px} px of {pixel_size_nm:g} nm has no room for {cell_nm:.0f} nm")
    image = canvas.full(levels[0])
    left: list[Curve] = []
    right: list[Curve] = []
    directions: list[Curve] = []
    rng = np.random.default_rng(0)  # fixed: the same fractions of a pixel for every gap
    for number, (row, column) in enumerate(np.ndindex(rows, columns)):
        angle = np.pi * number / (rows * columns)
        middle = np.array([(row + 0.5) * cell_nm, (column + 0.5) * cell_nm]) + rng.uniform(-0.5, 0.5, 2) * pixel_size_nm
        along, across = np.array([math.sin(angle), math.cos(angle)]), np.array([math.cos(angle), -math.sin(angle)])
        for side, middles in ((-0.5, left), (0.5, right)):
            centre = middle + side * (gap_nm + width_nm) * across
            canvas.box(image, (centre[0], centre[1]), (width_nm / 2, length_nm / 2), levels[1], angle)
            middles.append(centre / pixel_size_nm - 0.5)
        directions.append(along)
    drawn = image.reshape(shape_px[0], supersample, shape_px[1], supersample).mean(axis=(1, 3), dtype=np.float32)
    outside_nm = gap_nm / 2 + width_nm + _APART_NM / 2
    return LinePairs(
        drawn,
        np.array(left),
        np.array(right),
        np.array(directions),
        length_px=0.6 * length_nm / pixel_size_nm,
        outside_px=outside_nm / pixel_size_nm,
    )


def dip(image: Image, pairs: LinePairs) -> float:
    """How deep the valley between two lines is: 1 is down to the background, 0 no valley, negative a ridge.

    1 - valley / mean of the two lines, all above the background on either side, read where they are known to be
    (nobody searches for extrema, which noise would provide), averaged along the lines and over the pairs. 0 where the
    lines do not stand out from the background.

    Parameters
    ----------
    image
        The picture of `pairs.reflectivity`, on the same grid or on one finer by a whole factor (scale).
    """
    scale = image.shape[0] / pairs.reflectivity.shape[0]
    along_px = np.linspace(-0.5, 0.5, 2 * math.ceil(pairs.length_px) + 1) * pairs.length_px
    middle = (pairs.left_px + pairs.right_px) / 2
    half = (pairs.right_px - pairs.left_px) / 2
    outside = half / np.linalg.norm(half, axis=1, keepdims=True) * pairs.outside_px

    def level(offset_px: Curve) -> float:
        """Mean along the lines, beside the middles of the pairs."""
        points = (middle + offset_px)[:, None, :] + along_px[None, :, None] * pairs.along[:, None, :]
        points = (points + 0.5) * scale - 0.5
        return float(map_coordinates(image, points.reshape(-1, 2).T, order=3, mode="nearest").mean())

    background = (level(-outside) + level(outside)) / 2
    lines = (level(-half) + level(half)) / 2 - background
    bright = pairs.reflectivity.mean() > np.median(pairs.reflectivity)
    if (lines if bright else -lines) <= 1e-6:
        return 0.0
    return 1 - (level(0 * half) - background) / lines


def resolved_gap_nm(dips: Mapping[float, float], *, least_dip: float = RAYLEIGH_DIP) -> float | None:
    """The smallest gap that is resolved, and with it all larger ones: Rayleigh's criterion, a dip of 26 %.

    Examples
    --------
    >>> resolved_gap_nm({50: 0.0, 100: 0.4, 150: 0.2, 200: 0.5, 250: 0.7})
    200
    """
    smallest = None
    for gap_nm in sorted(dips, reverse=True):
        if dips[gap_nm] < least_dip:
            break
        smallest = gap_nm
    return smallest


def _spectrum(image: Image) -> NDArray[np.complex128]:
    """The centred Fourier transform of a picture without its mean, faded out at its edges."""
    window = np.hanning(image.shape[0])[:, None] * np.hanning(image.shape[1])
    picture = image.astype(np.float64)
    spectrum: NDArray[np.complex128] = fft.fft2((picture - picture.mean()) * window)
    return spectrum


def _ring_numbers(shape_px: tuple[int, ...], rings_per_cycle: int) -> NDArray[np.intp]:
    """The ring that each element of a spectrum belongs to, flat: round(frequency x rings_per_cycle)."""
    frequency = np.hypot(fft.fftfreq(shape_px[0])[:, None], fft.fftfreq(shape_px[1]))
    ring: NDArray[np.intp] = np.rint(frequency * rings_per_cycle).astype(np.intp).ravel()
    return ring


def _period_nm(rings: Rings, pixel_size_nm: float, threshold: float) -> float | None:
    """Where a curve, smoothed over three rings, first falls to the threshold."""
    smooth = np.convolve(rings.correlation, np.full(3, 1 / 3), mode="valid")[_FIRST_RING - 1 :]
    frequency = rings.frequency[_FIRST_RING:-1]
    below = np.flatnonzero(smooth < threshold)
    if not below.size:
        return pixel_size_nm / float(rings.frequency[-1])
    if below[0] == 0:
        return None
    after = int(below[0])
    share = (smooth[after - 1] - threshold) / (smooth[after - 1] - smooth[after])
    return pixel_size_nm / float(frequency[after - 1] + share * (frequency[after] - frequency[after - 1]))


def _last_peak(curve: Curve) -> int:
    """The place of the curve's highest point after which it falls; 0 where it does nowhere."""
    end = len(curve)
    while end > 1:
        top = int(np.argmax(curve[:end]))
        if top < end - 1 and curve[top] - curve[top:end].min() >= _LEAST_DROP:
            return top
        end = top if top < end - 1 else end - 1
    return 0
