"""How good a picture is: PSNR, SSIM, edge preservation, and the oracle correction that leaves only the deblurring."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

Image = NDArray[np.float32]

_NO_ERROR = 1e-20  # mean square error below which two pictures count as equal: 200 dB


def inner(image: Image, border_px: int) -> Image:
    """The picture without its border, which depends on what lies outside and is judged for nobody."""
    if min(image.shape) <= 2 * border_px:
        raise ValueError(
            f"a picture of {image.shape} px has nothing inside a border of {border_px} px; use a larger one"
        )
    return image[border_px : image.shape[0] - border_px, border_px : image.shape[1] - border_px]


def psnr_db(image: Image, truth: Image, *, border_px: int = 0) -> float:
    """Peak signal-to-noise ratio in dB, peak 1; at most 200.

    Examples
    --------
    >>> round(psnr_db(np.full((8, 8), 0.6, np.float32), np.full((8, 8), 0.5, np.float32)), 3)
    20.0
    """
    error = inner(image, border_px).astype(np.float64) - inner(truth, border_px)
    return -10 * math.log10(max(float(np.mean(error**2)), _NO_ERROR))


def ssim(image: Image, truth: Image, *, border_px: int = 0) -> float:
    """Structural similarity (Wang et al. 2004) with scikit-image's 7x7 window, data range 1."""
    similarity = structural_similarity(inner(image, border_px), inner(truth, border_px), data_range=1.0)  # type: ignore[no-untyped-call]  # scikit-image has no types
    return float(similarity)


def epi(image: Image, truth: Image, *, border_px: int = 0) -> float:
    """Edge preservation index (Sattar et al. 1997): correlation of mean-removed 3x3 Laplacians, ideally 1.

    0 where either picture has no edges at all.
    """
    a, b = (_laplacian(inner(picture, border_px)) for picture in (image, truth))
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 1e-12 else 0.0


def corrected(image: Image, truth: Image) -> Image:
    """The picture after the best gain, offset and flat-field that anybody could have found.

    Least squares of `truth` on `image` times a two-dimensional polynomial of degree 4 (the flat-field, whose
    constant term is the gain) plus an offset. An oracle, given to every method alike: what is left is structure,
    so a method gains by deblurring and not by brightening.
    """
    columns = np.concatenate([_flat_fields(image.shape) * image.ravel(), np.ones((1, image.size))])
    # Normal equations, for speed; the pseudo-inverse settles what a flat picture leaves open (gain or offset).
    inverse = np.linalg.pinv(columns @ columns.T, rcond=1e-10, hermitian=True)
    weights = inverse @ (columns @ truth.ravel().astype(np.float64))
    return np.asarray(weights @ columns, dtype=np.float32).reshape(image.shape)


def smooth(image: Image) -> Image:
    """The polynomial of degree 4 nearest to a picture: its light, if there is nothing in it."""
    columns = _flat_fields(image.shape)
    weights, *_ = np.linalg.lstsq(columns @ columns.T, columns @ image.ravel().astype(np.float64), rcond=None)
    return np.asarray(weights @ columns, dtype=np.float32).reshape(image.shape)


@lru_cache(maxsize=4)
def _flat_fields(shape: tuple[int, ...], degree: int = 4) -> NDArray[np.float64]:
    """(terms, pixels): y^i x^j with i + j up to `degree`, coordinates from -1 to 1."""
    y, x = np.linspace(-1, 1, shape[0])[:, None], np.linspace(-1, 1, shape[1])[None, :]
    return np.stack([(y**i * x**j).ravel() for i in range(degree + 1) for j in range(degree + 1 - i)])


def psnr_corrected_db(image: Image, truth: Image, *, border_px: int = 0) -> float:
    """PSNR of what lies inside the border, after `corrected`."""
    image, truth = inner(image, border_px), inner(truth, border_px)
    return psnr_db(corrected(image, truth), truth)


def _laplacian(image: Image) -> NDArray[np.float64]:
    """The 3x3 Laplacian with eight neighbours, where all of them exist."""
    picture = image.astype(np.float64)
    rows = picture[:-2] + picture[1:-1] + picture[2:]
    return np.asarray(9 * picture[1:-1, 1:-1] - (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]))
