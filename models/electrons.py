"""Image formation in a scanning electron microscope: secondary electrons from relief and material (numpy only).

After Reimer, Scanning Electron Microscopy (2nd ed. 1998): secondary yield and tilt, ch. 4.2; edge effect, diffusion
and detector-side contrast, ch. 6.2; shot noise, ch. 4.2.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import OpticsError
from models.optics import blur
from models.relief import Relief, binned

Image = NDArray[np.float32]

_COMPASS = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))
_REACH_PX = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Beam:
    """The beam, the detector and the amplifier; the defaults show relief more than material, as most pictures do.

    Parameters
    ----------
    yield_light, yield_heavy
        Secondary electrons per primary at normal incidence.
    tilt_light, tilt_heavy
        Exponent n of delta = delta0 / cos(theta)^n.
    tilt_limit_deg
        Steeper walls emit no more than this one.
    edge_nm, edge_gain
        How far from an edge electrons still leave through its wall too, and by how much that raises the yield: not the
        few nm of their escape depth, but what those reach that diffusing primaries release on their way out.
    wall_nm
        Standard deviation of the slope of a "vertical" wall.
    detector_deg, detector_gain
        Azimuth of the detector (0 is +x, 90 is up in the picture), and a in 1 + a n.d: high where the detector takes
        few of the electrons that leave to its far side.
    spot_nm
        Standard deviation of the beam and the volume it excites.
    black, white
        Yields that the amplifier shows as 0 and 1.
    dose_e
        Primary electrons per pixel, for the noise.
    """

    yield_light: float = 0.08
    yield_heavy: float = 0.12
    tilt_light: float = 1.2
    tilt_heavy: float = 0.8
    tilt_limit_deg: float = 78.0
    edge_nm: float = 80.0
    edge_gain: float = 1.0
    wall_nm: float = 30.0
    detector_deg: float = 135.0
    detector_gain: float = 0.8
    spot_nm: float = 35.0
    black: float = 0.04
    white: float = 0.4
    dose_e: float = 400.0

    def __post_init__(self) -> None:
        if not (0 < self.yield_light and 0 < self.yield_heavy and 0 <= self.black < self.white and self.dose_e > 0):
            raise OpticsError(
                f"yields {self.yield_light}, {self.yield_heavy}, black {self.black}, white {self.white} and dose"
                f" {self.dose_e} e-: expected all positive and black below white"
            )
        if not (0 < self.tilt_limit_deg < 90 and 0 <= self.detector_gain < 1):
            raise OpticsError(
                f"tilt limit is {self.tilt_limit_deg} degrees and detector gain {self.detector_gain}, expected 0 to"
                " below 90 and 0 to below 1"
            )


def form_sem(
    relief: Relief,
    pixel_size_nm: float,
    *,
    beam: Beam | None = None,
    bin_px: int = 1,
    rng: np.random.Generator | None = None,
) -> Image:
    """The secondary-electron picture of a specimen with height.

    Parameters
    ----------
    relief
        The specimen, on a grid fine enough for its walls (20 nm or so).
    pixel_size_nm
        Pixel of that grid.
    beam
        None is `Beam()`.
    bin_px
        Pixels of the grid per side of a pixel of the picture.
    rng
        Where the shot noise comes from; None is the clean picture, which is what truth means here.

    Returns
    -------
    (height / bin_px, width / bin_px) float32, 0 to 1; the amplifier saturates at both ends.
    """
    beam = Beam() if beam is None else beam
    if not (math.isfinite(pixel_size_nm) and pixel_size_nm > 0):
        raise OpticsError(f"pixel size is {pixel_size_nm} nm, expected more than 0; give the pixel on the specimen")
    surface = _smooth(relief.height_um * np.float32(1e3 / pixel_size_nm), beam.wall_nm / pixel_size_nm)  # in pixels
    slope_y, slope_x = np.gradient(surface)
    cos = 1 / np.sqrt(1 + slope_y**2 + slope_x**2)
    delta = secondary_yield(cos, relief.material, beam)
    # An edge stands out of its surroundings: electrons made within reach of the wall leave through it as well.
    stands_out = np.maximum(surface - _smooth(surface, beam.edge_nm / pixel_size_nm), 0)
    delta = delta * (1 + beam.edge_gain * (1 - np.exp(-2 * stands_out * pixel_size_nm / beam.edge_nm)))
    # n.d with the detector low at the side; rows count downwards.
    towards = math.radians(beam.detector_deg)
    facing = (-slope_x * math.cos(towards) + slope_y * math.sin(towards)) * cos
    delta = delta * (1 + beam.detector_gain * facing) * sky(surface)
    signal = binned(_smooth(delta.astype(np.float32), beam.spot_nm / pixel_size_nm), bin_px)
    if rng is not None:
        signal = (rng.poisson(np.maximum(signal, 0) * beam.dose_e) / beam.dose_e).astype(np.float32)
    shown = (signal - beam.black) / (beam.white - beam.black)
    return np.asarray(np.clip(shown, 0, 1), dtype=np.float32)


def secondary_yield(cos_tilt: Image, material: Image, beam: Beam) -> Image:
    """delta0 / cos(theta)^n, delta0 and n between light and heavy by material (Reimer, eq. 4.19).

    Examples
    --------
    >>> gold, flat = np.ones(1, np.float32), np.ones(1, np.float32)
    >>> round(float(secondary_yield(flat, gold, Beam())[0]), 3)
    0.12
    """
    delta_0 = beam.yield_light + (beam.yield_heavy - beam.yield_light) * material
    exponent = beam.tilt_light + (beam.tilt_heavy - beam.tilt_light) * material
    least = math.cos(math.radians(beam.tilt_limit_deg))
    return np.asarray(delta_0 * np.maximum(cos_tilt, least) ** -exponent, dtype=np.float32)


def sky(surface_px: Image) -> Image:
    """Share of the emitted electrons that no neighbour stops: 1 in the open, less at the foot of a wall.

    Emission goes as the cosine of the angle to the normal, so that a horizon at elevation e lets cos(e)^2 pass;
    the mean over eight directions, looking 16 pixels far. Heights are in pixels.
    """
    height, width = surface_px.shape
    far = _REACH_PX[-1]
    padded = np.pad(surface_px, far, mode="edge")
    seen = np.zeros_like(surface_px)
    for dy, dx in _COMPASS:
        horizon = np.zeros_like(surface_px)
        for step in _REACH_PX:
            y, x = far + step * dy, far + step * dx
            rise = padded[y : y + height, x : x + width] - surface_px
            np.maximum(horizon, rise / np.float32(step * math.hypot(dy, dx)), out=horizon)
        seen += 1 / (1 + horizon**2)
    return np.asarray(seen / np.float32(len(_COMPASS)), dtype=np.float32)


def _smooth(image: Image, sigma_px: float) -> Image:
    """Gaussian blur, mirrored at the edge."""
    half = min(math.ceil(3 * sigma_px), min(image.shape))
    if half == 0:
        return image
    profile = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma_px) ** 2)
    kernel = np.outer(profile, profile)
    return blur(image, (kernel / kernel.sum()).astype(np.float32))
