"""A plain detector of spikes in electron pictures of grains, the same for true and generated ones (numpy only)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter, maximum_filter

Image = NDArray[np.float32]
Points = NDArray[np.float64]

# Of the smoothing, about half a spike's width; and how far apart two spikes are at least.
_SCALE_UM = 0.40
_APART_UM = 2.0
# A spike sticks out of its grain: how far beyond the region it is still looked for.
_BEYOND_UM = 1.0
# Of the bump's curvature, as a share of full scale per _SCALE_UM^2: found on scenes of the training conditions.
_LEAST_CURVATURE = 0.04


def find_spikes(
    image: Image, region: NDArray[np.bool_], *, pixel_size_nm: float, least: float = _LEAST_CURVATURE
) -> Points:
    """The spikes of the spiny grains in a picture.

    A spike is a bright bump: after a Gaussian, a local maximum of the smaller of the two principal curvatures (of
    the Hessian; Lindeberg 1998), which is small along lines and edges, the grains' bright rims among them.

    Parameters
    ----------
    image
        (height, width) in 0..1, bright spikes.
    region
        (height, width): where spiny grains are.
    pixel_size_nm
        Of the image.
    least
        The curvature from which a bump counts.

    Returns
    -------
    (n, 2) positions (y, x) in px, refined below the pixel by a parabola.
    """
    pixel_um = pixel_size_nm / 1e3
    sigma = _SCALE_UM / pixel_um
    padded = np.pad(image.astype(np.float64), 4, mode="edge")
    yy, xx, yx = (
        sigma**2 * gaussian_filter(padded, sigma, order=order)[4:-4, 4:-4] for order in ((2, 0), (0, 2), (1, 1))
    )
    # Minus the larger eigenvalue: positive only where the picture bends down in every direction.
    bump = -(yy + xx) / 2 - np.sqrt(((yy - xx) / 2) ** 2 + yx**2)
    reach = round(_APART_UM / pixel_um)
    disc = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= reach
    near = binary_dilation(region, iterations=round(_BEYOND_UM / pixel_um))
    peaks = np.argwhere((bump == maximum_filter(bump, footprint=disc)) & (bump >= least) & near)
    return np.array([_refined(bump, y, x) for y, x in peaks]).reshape(-1, 2)


def _refined(bump: NDArray[np.float64], y: int, x: int) -> tuple[float, float]:
    """The top of the parabolas through a maximum and its neighbours along y and x."""
    place = []
    for value, axis in ((y, 0), (x, 1)):
        if not 0 < value < bump.shape[axis] - 1:
            place.append(float(value))
            continue
        line = bump[y - 1 : y + 2, x] if axis == 0 else bump[y, x - 1 : x + 2]
        bend = line[0] - 2 * line[1] + line[2]
        place.append(value + (float((line[0] - line[2]) / (2 * bend)) if bend < 0 else 0.0))
    return place[0], place[1]
