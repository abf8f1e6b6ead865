"""Spikes in electron pictures of grains: a plain detector, the same for true and generated ones, and its figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter, maximum_filter

from models import pollen
from models.detection import Matches, match, pooled
from models.lens.data import PAPER_PIXEL_NM, Scene
from models.optics import Sensor

Image = NDArray[np.float32]
Labels = NDArray[np.uint8]
Points = NDArray[np.float64]

# A found spike may lie this far from the true one, on the paper's field of 1024 px.
MATCH_RADIUS_PX = 20.0
_CHANCE_DRAWS = 20

# Of the smoothing, about half a spike's width; and how far apart two spikes are at least.
_SCALE_UM = 0.70
_APART_UM = 2.0
# A spike sticks out of its grain: how far beyond the region it is still looked for.
_BEYOND_UM = 1.0
# Of the bump's curvature, as a share of full scale per _SCALE_UM^2: found on scenes of the training conditions.
_LEAST_CURVATURE = 0.05


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


def figures(
    pictures: Sequence[Image], labels: Sequence[Labels], scenes: Sequence[Scene], *, number: int, pixel_size_nm: float
) -> dict[str, float | None]:
    """How well the spikes of generated pictures agree with the true tips, all scenes together.

    Parameters
    ----------
    pictures, labels, scenes
        Generated electron pictures, generated labels, and what is true.
    number, pixel_size_nm
        The label of the spiny type, and the pixel.

    Returns
    -------
    f1, precision, recall; std_x_px, std_y_px of the paper's field, std_x_nm, std_y_nm; f1_of_chance: as many points
    strewn blindly over the same labels, mean of 20 draws.
    """
    matches = [
        _matched(picture, marked == number, scene, pixel_size_nm)
        for picture, marked, scene in zip(pictures, labels, scenes, strict=True)
    ]
    found = pooled(matches).figures(pixel_size_nm)
    for axis in "xy":
        nm = found[f"std_{axis}_nm"]
        found[f"std_{axis}_px"] = None if nm is None else nm / PAPER_PIXEL_NM
    blind = []
    for draw in range(_CHANCE_DRAWS):
        strewn = []
        for one, marked, scene in zip(matches, labels, scenes, strict=True):
            places = np.argwhere(marked == number)
            rng = np.random.default_rng([draw, one.found_count])
            chosen = places[rng.integers(0, len(places), one.found_count)] if len(places) else np.empty((0, 2))
            strewn.append(_match(chosen.astype(np.float64), scene, pixel_size_nm))
        blind.append(pooled(strewn).f1)
    return found | {"f1_of_chance": float(np.mean(blind))}


def visibility_figures(
    pictures: Sequence[Image], labels: Sequence[Labels], scenes: Sequence[Scene], *, number: int, pixel_size_nm: float
) -> dict[str, float]:
    """What could be seen at all; parameters as `figures`.

    Returns
    -------
    hidden_share: of the spikes no pixel of which reaches 2 sigma though a matched filter reaches 5; inferable_share:
    of those a matched filter finds at all; recall_of_hidden: how many of the hidden ones were found; f1_on_truth:
    what the detector reaches on the true pictures.
    """
    sensor = Sensor()
    hidden, inferable, hit, on_truth = [], [], [], []
    for picture, marked, scene in zip(pictures, labels, scenes, strict=True):
        if scene.grains is None or scene.light is None:
            raise ValueError(f"{scene.name} does not say its grains and its light; give drawn scenes")
        on_truth.append(_matched(scene.shadowed, scene.labels == number, scene, pixel_size_nm))
        seen = [
            pollen.visibility(
                grain,
                pixel_size_nm=pixel_size_nm,
                exposure=scene.light.exposure,
                veil=scene.light.veil,
                electrons=scene.light.photons * sensor.quantum_efficiency,
                read_noise_e=sensor.read_noise_e,
            )
            for grain in scene.grains
            if grain.spikes
        ]
        # In the order of `Scene.tips_px`.
        hidden += [one for grain in seen for one in grain.hidden]
        inferable += [snr >= 5 for grain in seen for snr in grain.snr]
        matches = _matched(picture, marked == number, scene, pixel_size_nm)
        hit += np.isin(np.arange(matches.true_count), matches.true).tolist()
    concealed = np.array(hidden, dtype=bool)
    return {
        "hidden_share": float(concealed.mean()),
        "inferable_share": float(np.mean(inferable)),
        "recall_of_hidden": float(np.array(hit)[concealed].mean()),
        "f1_on_truth": pooled(on_truth).f1,
    }


def _matched(picture: Image, region: NDArray[np.bool_], scene: Scene, pixel_size_nm: float) -> Matches:
    return _match(find_spikes(picture, region, pixel_size_nm=pixel_size_nm), scene, pixel_size_nm)


def _match(found_px: Points, scene: Scene, pixel_size_nm: float) -> Matches:
    if scene.tips_px is None:
        raise ValueError(f"{scene.name} does not say where its spikes are; give drawn scenes")
    return match(found_px, scene.tips_px, MATCH_RADIUS_PX * PAPER_PIXEL_NM / pixel_size_nm)


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
