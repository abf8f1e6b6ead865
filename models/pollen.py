"""Pollen-like grains with known types and spikes, as light and as electrons see them (numpy only).

The field is a torus: what leaves on one side comes back on the other, so that a scene translated by any distance is
a scene again. Grains lie on a flat substrate at height 0; everything is in focus, height acts through slopes alone.

Light: bright-field reflection that falls with the slope, as the objective of aperture 0.4 sees it. Electrons: the
secondary yield grows as 1 / cos^n of the tilt, the free end of a spike is bright, for electrons leave it on all sides
(Reimer, Scanning Electron Microscopy, 2nd ed., sections 4.2 and 6.1), and the substrate is darker where grains hide
part of the sky from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.errors import SpecimenError
from models.optics import Optics

Image = NDArray[np.float32]

# The types a grain may have; a further one needs its surface in `_surface`.
TYPES = ("spiny", "smooth", "porous")

# The neural lens looks through a 20x objective of NA 0.4 at green light (Grant-Jacob et al. 2019).
OBJECTIVE_NA = 0.4

_SUPERSAMPLE = 2
_SUBSTRATE_LIGHT = 0.68  # reflectivity of the bare slide
_SUBSTRATE_ELECTRONS = 0.30
_FLAT_LIGHT = 0.50  # share of a grain's light that does not depend on its slope
_YIELD_FLAT, _YIELD_POWER, _STEEPEST_DEG = 0.20, 0.75, 70.0
_APEX_GAIN, _APEX_UM = 0.6, 1.1
_AZIMUTHS, _REACH_UM = 12, 14.0
_CONE_STEPS, _TIP_SHARE = 18, 0.45


@dataclass(frozen=True)
class Spike:
    """A cone with a round tip on a ball: unit direction (z up, y, x), length from the ball's surface to the centre of
    the tip, radius at the foot.
    """

    direction: tuple[float, float, float]
    length_um: float
    base_um: float


@dataclass(frozen=True)
class Grain:
    """A ball of one type on the substrate; `pits` are the directions of a porous grain's hollows."""

    kind: str
    centre_um: tuple[float, float]
    radius_um: float
    albedo: float
    spikes: tuple[Spike, ...] = ()
    pits: tuple[tuple[float, float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in TYPES:
            raise SpecimenError(f"there is no grain type {self.kind!r}; choose one of {', '.join(TYPES)}")
        if not (self.radius_um > 0 and 0 < self.albedo <= 1):
            raise SpecimenError(
                f"a grain has radius {self.radius_um} um and albedo {self.albedo}, expected more than 0, at most 1"
            )

    @property
    def reach_um(self) -> float:
        """How far the grain extends from its centre."""
        return self.radius_um + max((spike.length_um for spike in self.spikes), default=0.0)

    def at(self, centre_um: tuple[float, float]) -> Grain:
        """The same grain elsewhere."""
        return replace(self, centre_um=centre_um)

    def tips_um(self) -> NDArray[np.float64]:
        """(spikes, 2) positions (y, x) of the tips, seen from above."""
        tips = [
            [c + (self.radius_um + s.length_um) * d for c, d in zip(self.centre_um, s.direction[1:], strict=True)]
            for s in self.spikes
        ]
        return np.array(tips).reshape(-1, 2)


class Rendering(NamedTuple):
    """A scene as pictures (height, width).

    `labels` is 0 on the substrate, else 1 + the index into the types asked for; `grains` 0 or 1 + the grain's
    index. `reflectivity` is without blur and noise; `on_black` and `shadowed` are the electron pictures without and
    with the substrate and its shadows; all in 0..1.
    """

    height_um: Image
    labels: NDArray[np.uint8]
    grains: NDArray[np.uint8]
    reflectivity: Image
    on_black: Image
    shadowed: Image


def directions(count: int, rng: np.random.Generator, *, lowest: float = -0.1) -> list[tuple[float, float, float]]:
    """Unit vectors (z, y, x) evenly strewn over the upper side: a jittered, turned Fibonacci lattice.

    `count` covers z from -1 to 1; only those with z >= `lowest` are returned.
    """
    index = np.arange(count) + 0.5
    z = 1 - 2 * index / count
    turn = math.pi * (1 + math.sqrt(5)) * index + rng.uniform(0, 2 * math.pi)
    flat = np.sqrt(1 - z**2)
    lattice = np.stack([z, flat * np.sin(turn), flat * np.cos(turn)], axis=1)
    # A random rotation (QR of a Gaussian matrix), so that no tip prefers the pole.
    rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    lattice = lattice @ rotation + rng.normal(0, 0.25 / math.sqrt(max(count, 1)), lattice.shape)
    lattice /= np.linalg.norm(lattice, axis=1, keepdims=True)
    return [(float(z), float(y), float(x)) for z, y, x in lattice if z >= lowest]


def place(
    radii_um: list[float], side_um: float, rng: np.random.Generator, *, gap_um: float = 0.3
) -> list[tuple[float, float]]:
    """Random places for discs on the torus that keep `gap_um` apart; a disc that finds none in 200 tries is left out.

    One (y, x) for each disc placed, in the order given, so the result may be shorter than `radii_um`.
    """
    placed: list[tuple[float, float, float]] = []
    for radius in radii_um:
        for _ in range(200):
            y, x = rng.uniform(0, side_um, 2)
            if all(_apart(y - v, x - u, side_um) >= radius + other + gap_um for v, u, other in placed):
                placed.append((y, x, radius))
                break
    return [(y, x) for y, x, _ in placed]


def _apart(dy: float, dx: float, side_um: float) -> float:
    return math.hypot(*(abs((d + side_um / 2) % side_um - side_um / 2) for d in (dy, dx)))


def tips_px(grains: list[Grain], shape_px: tuple[int, int], pixel_size_nm: float) -> NDArray[np.float64]:
    """(n, 2) positions (y, x) of all spike tips in px, 0 is the centre of the first pixel, wrapped into the field."""
    tips = np.concatenate([np.empty((0, 2)), *(grain.tips_um() for grain in grains)])
    return np.asarray((tips * 1e3 / pixel_size_nm) % shape_px - 0.5)


def render(
    grains: list[Grain], *, shape_px: tuple[int, int], pixel_size_nm: float, types: tuple[str, ...] = TYPES
) -> Rendering:
    """Draw a scene.

    Parameters
    ----------
    grains
        What lies there; where two overlap, the higher one is seen.
    shape_px, pixel_size_nm
        The field.
    types
        Which label a type gets: its index here + 1.

    Raises
    ------
    SpecimenError
        A grain's type is not among `types`, or there are more than 255 grains.
    """
    missing = {grain.kind for grain in grains} - set(types)
    if missing or len(grains) > 255:
        raise SpecimenError(
            f"cannot label {len(grains)} grains, some {', '.join(sorted(missing)) or 'of known types'}: expected at"
            f" most 255, of the types {', '.join(types)}"
        )
    relief = _relief(grains, shape_px, pixel_size_nm)
    cover = relief.owner > 0
    tilt = np.minimum(np.arctan(relief.slope()), math.radians(_STEEPEST_DEG))
    electrons = _YIELD_FLAT / np.cos(tilt) ** _YIELD_POWER + _APEX_GAIN * relief.apex
    on_black = _binned(np.minimum(electrons, 1) * cover)
    height = _binned(relief.height_um)
    sky = _open_sky(height, pixel_size_nm / 1e3)
    shadowed = on_black + (1 - _binned(cover)) * np.float32(_SUBSTRATE_ELECTRONS) * sky

    # A pixel belongs to what covers most of it; the substrate where nothing covers half.
    kinds = np.array([0, *(types.index(grain.kind) + 1 for grain in grains)], np.uint8)
    corners = relief.owner.reshape(shape_px[0], _SUPERSAMPLE, shape_px[1], _SUPERSAMPLE).transpose(0, 2, 1, 3)
    ordered = np.sort(corners.reshape(*shape_px, -1), axis=-1)
    index = ordered[..., ordered.shape[-1] // 2]
    light = _reflectivity(relief, grains)
    return Rendering(height, kinds[index], index, light, on_black, shadowed.astype(np.float32))


def see(reflectivity: Image, pixel_size_nm: float) -> Image:
    """The irradiance through the objective: the Airy pattern of NA 0.4 at 550 nm, FWHM 701 nm, on the torus."""
    kernel = Optics(effective_na=OBJECTIVE_NA).psf(pixel_size_nm)
    half = len(kernel) // 2
    padded = np.zeros(reflectivity.shape, np.float32)
    padded[: len(kernel), : len(kernel)] = kernel
    transfer = np.fft.rfft2(np.roll(padded, (-half, -half), (0, 1)))
    return np.fft.irfft2(np.fft.rfft2(reflectivity) * transfer, s=reflectivity.shape).astype(np.float32)


class Visibility(NamedTuple):
    """How visible spikes are, one entry a spike: contrast in the best pixel and matched-filter SNR, in sigma."""

    contrast: NDArray[np.float64]
    snr: NDArray[np.float64]

    @property
    def hidden(self) -> NDArray[np.bool_]:
        """Which spikes no pixel shows (below 2 sigma) although all pixels together would (SNR of 5 or more)."""
        return np.asarray((self.contrast < 2) & (self.snr >= 5))


def visibility(
    grain: Grain, *, pixel_size_nm: float, exposure: float, veil: float, electrons: float, read_noise_e: float
) -> Visibility:
    """Compare the true, noise-free pictures of a grain with and without each of its spikes.

    Parameters
    ----------
    grain
        Alone on the substrate.
    pixel_size_nm, exposure, veil
        Of the picture: irradiance = exposure x [(1 - veil) x blurred reflectivity + veil].
    electrons, read_noise_e
        What a pixel of irradiance 1 collects, and the camera's read noise. sigma^2 is the shot noise of the picture
        with the spike plus the read noise's square.

    Returns
    -------
    The largest difference of any pixel in sigma, and sqrt(sum (difference / sigma)^2): the signal-to-noise ratio of
    a matched filter, which knows the spike's shape and place (Turin 1960).
    """
    side = 2 * math.ceil(grain.reach_um * 1e3 / pixel_size_nm + 8)
    middle = side * pixel_size_nm / 2e3

    def picture(spikes: tuple[Spike, ...]) -> Image:
        alone = Grain(grain.kind, (middle, middle), grain.radius_um, grain.albedo, spikes)
        light = _reflectivity(_relief([alone], (side, side), pixel_size_nm), [alone])
        return exposure * ((1 - veil) * see(light, pixel_size_nm) + veil)

    whole = picture(grain.spikes)
    sigma = np.sqrt(whole * electrons + read_noise_e**2) / electrons
    contrast, snr = [], []
    for index in range(len(grain.spikes)):
        difference = np.abs(whole - picture(grain.spikes[:index] + grain.spikes[index + 1 :])) / sigma
        contrast.append(float(difference.max()))
        snr.append(float(np.sqrt((difference**2).sum())))
    return Visibility(np.array(contrast), np.array(snr))


class _Relief(NamedTuple):
    """The surface on the fine grid: height, nearness of an apex (see `_surface`), 1 + the index of the grain on top
    or 0.
    """

    height_um: Image
    apex: Image
    owner: NDArray[np.uint8]
    pixel_um: float

    def slope(self) -> Image:
        """The steepness dz / ds: central differences."""
        rise = (np.roll(self.height_um, -1, axis) - np.roll(self.height_um, 1, axis) for axis in (0, 1))
        return np.asarray(np.hypot(*rise) / np.float32(2 * self.pixel_um), dtype=np.float32)


def _reflectivity(relief: _Relief, grains: list[Grain]) -> Image:
    """Bright-field light, averaged over the pixels: slopes send it past the objective."""
    albedo = np.array([0.0, *(grain.albedo for grain in grains)], np.float32)[relief.owner]
    level = albedo * (_FLAT_LIGHT + (1 - _FLAT_LIGHT) / (1 + relief.slope() ** 2))
    return _binned(np.where(relief.owner > 0, level, np.float32(_SUBSTRATE_LIGHT)))


def _relief(grains: list[Grain], shape_px: tuple[int, int], pixel_size_nm: float) -> _Relief:
    pixel_um = pixel_size_nm / 1e3 / _SUPERSAMPLE
    rows, columns = (side * _SUPERSAMPLE for side in shape_px)
    height, apex = np.zeros((2, rows, columns), np.float32)
    owner = np.zeros((rows, columns), np.uint8)
    for number, grain in enumerate(grains, start=1):
        reach = grain.reach_um + 2 * pixel_um + 1
        (y, iy), (x, ix) = (
            _window(c, reach, pixel_um, n) for c, n in zip(grain.centre_um, (rows, columns), strict=True)
        )
        surface, nearness = _surface(grain, y[:, None], x[None, :])
        here = np.ix_(iy, ix)
        higher = surface > height[here]
        height[here] = np.where(higher, surface, height[here])
        apex[here] = np.where(higher, nearness, apex[here])
        owner[here] = np.where(higher, np.uint8(number), owner[here])
    return _Relief(height, apex, owner, pixel_um)


def _window(centre_um: float, reach_um: float, pixel_um: float, count: int) -> tuple[Image, NDArray[np.intp]]:
    """Distances from the centre, and the wrapped indices, of the pixels within reach; each pixel at most once."""
    first, last = (math.floor((centre_um + sign * reach_um) / pixel_um) for sign in (-1, 1))
    index = np.arange(first, min(last + 1, first + count))
    return ((index + 0.5) * pixel_um - centre_um).astype(np.float32), index % count


def _surface(grain: Grain, y: Image, x: Image) -> tuple[Image, Image]:
    """(height, nearness of an apex) over a patch whose origin is the grain's centre; 0 where the grain is not.

    Nearness is exp(-distance along the spike / depth over which electrons escape through a free end).
    """
    radius = grain.radius_um
    apex = np.zeros(np.broadcast_shapes(y.shape, x.shape), np.float32)
    out = _ball(y, x, radius, radius)
    for pit in grain.pits:
        # A hollow: the ball's surface pressed in by a smaller ball that sits on it.
        z0, y0, x0 = (radius * part for part in pit)
        size = 0.22 * radius
        hollow = 1 - ((y - y0) ** 2 + (x - x0) ** 2) / size**2
        out = np.where((hollow > 0) & (out > 0) & (z0 > 0), out - 0.5 * size * np.maximum(hollow, 0), out)
    for spike in grain.spikes:
        z0, y0, x0 = spike.direction
        for step in np.linspace(0, 1, _CONE_STEPS):
            along = 0.96 * radius + (0.04 * radius + spike.length_um) * step
            size = spike.base_um * (1 - (1 - _TIP_SHARE) * step)
            cy, cx = along * y0, along * x0
            rows, columns = np.abs(y[:, 0] - cy) < size, np.abs(x[0] - cx) < size
            here = np.ix_(rows, columns)
            bulge = _ball(y[rows] - np.float32(cy), x[:, columns] - np.float32(cx), size, radius + along * z0)
            higher = bulge > out[here]
            out[here] = np.where(higher, bulge, out[here])
            near = np.float32(math.exp(-(grain.radius_um + spike.length_um - along) / _APEX_UM))
            apex[here] = np.where(higher, near, apex[here])
    return np.maximum(out, 0), apex


def _ball(y: Image, x: Image, radius: float, centre_height: float) -> Image:
    """Height of a ball's upper side; 0 outside."""
    inside = np.float32(radius**2) - y**2 - x**2
    return np.where(inside > 0, np.sqrt(np.maximum(inside, 0)) + np.float32(centre_height), np.float32(0))


def _binned(image: NDArray[np.float32] | NDArray[np.bool_]) -> Image:
    rows, columns = (side // _SUPERSAMPLE for side in image.shape)
    parts = image.reshape(rows, _SUPERSAMPLE, columns, _SUPERSAMPLE)
    return np.asarray(parts.mean(axis=(1, 3)), dtype=np.float32)


def _open_sky(height_um: Image, pixel_um: float) -> Image:
    """Share of the electrons that escape: mean over azimuths of 1 - sin(elevation of the horizon)."""
    total = np.zeros_like(height_um)
    distances = np.unique(np.geomspace(1, _REACH_UM / pixel_um, 12).round().astype(int))
    for azimuth in np.arange(_AZIMUTHS) * (2 * math.pi / _AZIMUTHS):
        steepest = np.zeros_like(height_um)
        for distance in distances:
            dy, dx = round(distance * math.sin(azimuth)), round(distance * math.cos(azimuth))
            rise = np.roll(height_um, (-dy, -dx), (0, 1)) - height_um
            steepest = np.maximum(steepest, rise / np.float32(math.hypot(dy, dx) * pixel_um))
        total += 1 - steepest / np.sqrt(1 + steepest**2)
    return total / np.float32(_AZIMUTHS)
