"""What a contact sphere does to light: its wave (point-spread function) and its rays (light, distortion)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from models.optics import Optics

PSF_RADIUS_UM = 2.0  # 95 % of the energy of the default PSF; the rest is a haze below 1e-4 a pixel


@dataclass(frozen=True, eq=False)
class Field:
    """What a skew-ray trace says against the height of the object point."""

    height_um: NDArray[np.float64]
    light: NDArray[np.float64]
    distortion: NDArray[np.float64]


@lru_cache(maxsize=256)
def radial_psf(optics: Optics, defocus_um: float = 0.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(radius_um, intensity / its largest) of the PSF: |integral A exp(2 pi i W) J0 rho d rho|^2.

    A point that lies `defocus_um` further from the sphere than the plane in focus adds the path n_m z cos(theta) to
    the traced wave. A declared aperture gets the parabola of that, -z rho^2 / (2 n_m): beyond n_m there is no angle.
    """
    wavelength_um = optics.wavelength_nm / 1e3
    if optics.effective_na is None:
        rho, amplitude, aberration = _pupil(optics)
        path = np.sqrt(np.maximum(optics.medium_index**2 - rho**2, 0)) - optics.medium_index
    else:
        rho = np.linspace(0, optics.effective_na, 400)
        amplitude, aberration = np.ones_like(rho), np.zeros_like(rho)
        path = -(rho**2) / (2 * optics.medium_index)
    aberration = aberration + defocus_um / wavelength_um * path
    weight = amplitude * rho * np.gradient(rho) * np.exp(2j * np.pi * aberration)
    radius_um = np.linspace(0, PSF_RADIUS_UM, 161)
    bessel = _j0(2 * np.pi / wavelength_um * np.outer(radius_um, rho))
    intensity = np.abs(bessel @ weight) ** 2
    return radius_um, intensity / intensity.max()


def _pupil(optics: Optics) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(rho, amplitude, aberration in waves) over the object-side aperture rho = n_m sin(theta)."""
    radius_um, n_s, n_m = optics.sphere_diameter_um / 2, optics.sphere_index, optics.medium_index
    theta = np.linspace(0, np.pi / 2 * 0.9999, 600)
    theta_1 = np.arcsin(np.sin(theta) / optics.relative_index)
    exit_angle = 2 * theta_1 - theta
    # q: where the ray leaves the sphere; V: the virtual image the microscope is focused on, behind the specimen.
    exit_x, exit_z = radius_um * np.sin(2 * theta_1), radius_um * np.cos(2 * theta_1)
    image_z = -radius_um * optics.focus_magnification
    path_um = 2 * radius_um * n_s * np.cos(theta_1) - n_m * np.hypot(exit_x, exit_z - image_z)
    cos, cos_1 = np.cos(theta), np.cos(theta_1)
    passed = _fresnel(cos, cos_1, n_m, n_s) * _fresnel(cos_1, cos, n_s, n_m)
    seen = n_m * np.abs(np.sin(exit_angle)) <= optics.objective_na
    amplitude = np.sqrt(passed * np.maximum(cos, 1e-4)) * seen
    return n_m * np.sin(theta), amplitude, (path_um - path_um[0]) / (optics.wavelength_nm / 1e3)


@lru_cache(maxsize=64)
def trace_field(optics: Optics) -> Field:
    """Light and distortion against object height: skew rays from the specimen's plane through the sphere.

    Each accepted ray leaves as if from a line; where these lines come closest is the image, and its
    distance from the axis the magnified height.
    """
    radius_um, ratio = optics.sphere_diameter_um / 2, optics.relative_index
    height_um = np.concatenate([[0.01], np.linspace(0, 0.63 * radius_um, 19)[1:]])
    side = np.linspace(-1, 1, 141)
    u, v = np.meshgrid(side, side[side >= 0], indexing="ij")  # the scene is symmetric in v
    inside = u**2 + v**2 < 0.9999
    ray = np.stack([u, v, np.sqrt(np.maximum(1 - u**2 - v**2, 0))], axis=-1)[inside]
    share = np.where(ray[:, 1] == 0, 0.5, 1.0)  # the mirror line counts once, the rest twice
    light, magnified = [], []
    for height in height_um:
        origin = np.array([height, 0.0, -radius_um])
        towards = ray @ origin
        depth = towards**2 - (origin @ origin - radius_um**2)
        entry = origin + np.maximum(-towards - np.sqrt(np.maximum(depth, 0)), 0)[:, None] * ray
        in_sphere, entered = _refract(ray, entry / radius_um, 1 / ratio)
        leave = entry - 2 * (entry * in_sphere).sum(-1, keepdims=True) * in_sphere
        out, left = _refract(in_sphere, -leave / radius_um, ratio)
        cos = [
            np.abs((a * b).sum(-1)) / radius_um
            for a, b in ((ray, entry), (in_sphere, entry), (in_sphere, leave), (out, leave))
        ]
        passed = _fresnel(cos[0], cos[1], optics.medium_index, optics.sphere_index)
        passed = passed * _fresnel(cos[2], cos[3], optics.sphere_index, optics.medium_index)
        seen = (depth > 0) & entered & left & (out[:, 2] > 0)
        seen &= optics.medium_index * np.hypot(out[:, 0], out[:, 1]) <= optics.objective_na
        light.append(float((passed * share)[seen].sum()))
        magnified.append(_image_height_um(leave[seen], out[seen], share[seen]) / height)
    relative = np.asarray(light) / light[0]
    distortion = np.asarray(magnified) / magnified[0] - 1
    # Towards the edge of the field only a sliver of rays is left and the fit means nothing: hold the curve there.
    last = int(np.argmax(relative < 0.45)) - 1 if (relative < 0.45).any() else len(relative) - 1
    distortion[last + 1 :] = distortion[last]
    height_um[0] = distortion[0] = 0.0
    return Field(height_um, relative, distortion)


def _image_height_um(point: NDArray[np.float64], direction: NDArray[np.float64], share: NDArray[np.float64]) -> float:
    """Height of the point where rays (seen from z = +infinity) come closest, least squares over both slopes."""
    if len(point) < 10:
        return math.nan
    slope = direction[:, :2] / direction[:, 2:]
    crossing = point[:, :2] - point[:, 2:] * slope  # where each ray pierces z = 0
    weight = share / share.sum()
    # In y the mirrored rays make both means zero; in x they are subtracted.
    mean_slope, mean_crossing = weight @ slope[:, 0], weight @ crossing[:, 0]
    covariance = weight @ (crossing * slope).sum(1) - mean_slope * mean_crossing
    variance = weight @ (slope**2).sum(1) - mean_slope**2
    return float(mean_crossing - covariance / variance * mean_slope)


def _refract(
    direction: NDArray[np.float64], normal: NDArray[np.float64], index_ratio: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Snell's law for unit vectors, the normal against the ray; also whether there is a refracted ray."""
    cos = -(direction * normal).sum(-1)
    root = 1 - index_ratio**2 * (1 - cos**2)
    bend = index_ratio * cos - np.sqrt(np.maximum(root, 0))
    return index_ratio * direction + bend[:, None] * normal, root >= 0


def _fresnel(
    cos_in: NDArray[np.float64], cos_out: NDArray[np.float64], n_in: float, n_out: float
) -> NDArray[np.float64]:
    """Transmitted share of unpolarised light."""
    s = (n_in * cos_in - n_out * cos_out) / (n_in * cos_in + n_out * cos_out)
    p = (n_out * cos_in - n_in * cos_out) / (n_out * cos_in + n_in * cos_out)
    return np.asarray(1 - (s**2 + p**2) / 2)


def _j0(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bessel J0 by its integral, mean of cos(x sin(phi)): the midpoint rule is exact to 1e-9 once 4 n > x + 20."""
    n = math.ceil((float(x.max()) + 20) / 4)
    total = np.zeros_like(x)
    for phi in (np.arange(n) + 0.5) * (np.pi / 2 / n):
        total += np.cos(x * math.sin(phi))
    return total / n
