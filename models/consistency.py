"""How far a picture can be trusted, pixel by pixel: does it explain its input, and does it change when turned (numpy)?

Neither map needs the truth, so both can be computed for what a microscope shows now. A low value proves nothing: what
the optics do not transmit can be invented freely. A high one says that the network contradicts the light, or itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.errors import OpticsError
from models.optics import blur

Image = NDArray[np.float32]

_DEGREE = 4  # of the polynomials that stand for the light
_FIT_SIDE_PX = 160
_LEAST_NOISE = 1e-6


def reblur_residual(
    output: Image,
    image: Image,
    psf: Image,
    *,
    noise: Image | float | None = None,
    border_px: int = 0,
    smooth_px: float = 0.0,
) -> Image:
    """What of the input the output does not explain: the output through the optics again, less the input.

    The input is fitted by blurred output x gain + offset, both polynomials of degree 4 over the picture: the light
    and the veil that the output is free of. Twice, the second time without the pixels that fit worst, so that one
    invented feature does not bend the fit.

    Parameters
    ----------
    output
        (scale h, scale w) in 0..1: what the network made of `image`; scale is a whole number.
    image
        (h, w) in 0..1, as the camera delivered it.
    psf
        Odd square that sums to 1, on the pixels of `image`.
    noise
        Standard deviation of the noise, of each pixel or of all, in units of `image`: then the map is in multiples
        of it. `expected_noise` computes it from the photons.
    border_px
        So many pixels along the edge are no evidence: they are left out of the fit, and 0 in the map.
    smooth_px
        Average over a Gaussian of this standard deviation before comparing: noise averages out, what is invented does
        not. With `noise`, the map stays in multiples of what is left of it.

    Returns
    -------
    (h, w) float32, signed: positive where the output is brighter than the light allows.

    Raises
    ------
    OpticsError
        The pictures do not fit each other, or the border leaves nothing.

    Notes
    -----
    The residual of a faithful output is the noise: standard deviation 1 with `noise`. The error map of SQUIRREL
    (Culley et al. 2018) is the same idea with one gain and one offset, and a PSF that is estimated.
    """
    scale = output.shape[0] // image.shape[0]
    if scale < 1 or output.shape != (scale * image.shape[0], scale * image.shape[1]):
        raise OpticsError(f"the output has {output.shape} px, the input {image.shape}: expected a whole multiple of it")
    if min(image.shape) <= 2 * border_px + 2 * _DEGREE:
        raise OpticsError(
            f"an input of {image.shape} px has nothing inside a border of {border_px} px; use a larger one"
        )
    areas = output.reshape(image.shape[0], scale, image.shape[1], scale)
    seen = blur(areas.mean(axis=(1, 3)).astype(np.float32), psf)
    inside = np.zeros(image.shape, dtype=bool)
    inside[border_px : image.shape[0] - border_px, border_px : image.shape[1] - border_px] = True
    sigma = np.maximum(np.full(image.shape, 1 if noise is None else noise, dtype=np.float32), _LEAST_NOISE)
    residual = _fitted(seen, image, sigma, inside) - image
    outliers = np.abs(residual / sigma)
    kept = inside & (outliers <= np.quantile(outliers[inside], 0.9))
    final: Image = ((_fitted(seen, image, sigma, kept) - image) / sigma).astype(np.float32)
    if smooth_px:
        kernel = _gaussian(smooth_px)
        left = 1.0 if noise is None else float(np.sqrt((kernel**2).sum()))  # of white noise, after the average
        final = np.asarray(blur(final, kernel) / left, dtype=np.float32)
    return np.where(inside, final, np.float32(0))


def expected_noise(
    image: Image, *, photons: float, quantum_efficiency: float = 0.6, read_noise_e: float = 1.1
) -> Image:
    """The standard deviation of a camera's noise, (h, w), in units of the picture.

    Parameters
    ----------
    image
        (h, w) in 0..1; its own values stand for the noiseless ones.
    photons
        Photons that reach a pixel of value 1 (see `models.optics.Sensor.expose`).
    quantum_efficiency, read_noise_e
        Of the camera, as in `models.optics.Sensor`.
    """
    if not photons > 0:  # also true for NaN
        raise OpticsError(f"photons is {photons}, expected more than 0: without light there is no picture to judge")
    gain_e = photons * quantum_efficiency
    return np.asarray(np.sqrt(np.maximum(image, 0) * gain_e + read_noise_e**2) / gain_e, dtype=np.float32)


def spread(infer: Callable[[Image], Image], image: Image) -> Image:
    """How much the output depends on how the picture lies: standard deviation over 4 rotations, mirrored or not.

    Physics does not care; a network that is sure of what it draws does not either (Wang et al. 2019, test-time
    augmentation). Costs eight runs.

    Parameters
    ----------
    infer
        (h, w) to (scale h, scale w).
    image
        (h, w) in 0..1. A picture that is not square also goes in lying, (w, h): an engine built for one shape must be
        given squares.

    Returns
    -------
    (scale h, scale w) float32.
    """
    outputs = []
    for turns in range(4):
        for mirrored in (False, True):
            turned = np.rot90(image, turns)
            turned = turned[:, ::-1] if mirrored else turned
            # A copy, because an engine may write its next output over this one.
            output = np.array(infer(np.ascontiguousarray(turned)), dtype=np.float64)
            outputs.append(np.rot90(output[:, ::-1] if mirrored else output, -turns))
    return np.asarray(np.std(np.stack(outputs), axis=0), dtype=np.float32)


def _fitted(seen: Image, image: Image, sigma: Image, inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The nearest that `seen` comes to `image` by a smooth gain and a smooth offset, by least squares where inside."""
    y, x = (np.polynomial.legendre.legvander(np.linspace(-1, 1, side), _DEGREE) for side in image.shape)
    # So smooth a fit needs no more than some ten thousand pixels.
    step = max(min(image.shape) // _FIT_SIDE_PX, 1)
    part = (slice(None, None, step), slice(None, None, step))
    terms = [(i, j) for i in range(_DEGREE + 1) for j in range(_DEGREE + 1 - i)]
    light = np.stack([y[::step, i, None] * x[::step, j] for i, j in terms])
    columns = (np.concatenate([light * seen[part], light]) / sigma[part])[:, inside[part]]
    target = (image[part] / sigma[part])[inside[part]].astype(np.float64)
    # Normal equations, for speed; the cut-off settles what a flat picture leaves open (gain or offset).
    weights = np.linalg.pinv(columns @ columns.T, rcond=1e-9, hermitian=True) @ (columns @ target)
    square = np.zeros((2, _DEGREE + 1, _DEGREE + 1))
    for number, (i, j) in enumerate(terms):
        square[:, i, j] = weights[number], weights[len(terms) + number]
    gain, offset = y @ square @ x.T
    return np.asarray(gain * seen + offset)


def _gaussian(sigma_px: float) -> Image:
    reach = int(np.ceil(4 * sigma_px))
    profile = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma_px) ** 2)
    kernel = np.outer(profile, profile)
    return np.asarray(kernel / kernel.sum(), dtype=np.float32)
