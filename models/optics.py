"""Image formation through a contact microsphere: PSF, field light, distortion, camera noise (numpy only).

Model: an incoherent image of the reflectivity through the on-axis point-spread function of the sphere, with the
light fall-off and the distortion of a skew-ray trace. Scalar Debye integral, aberration of a ball lens in contact
with the specimen: W(theta) = 2 R n_s cos(theta_1) - n_m |q - V| (Born & Wolf, Principles of Optics, ch. 8.8 for the
integral). Geometrically the object-side aperture is at most the medium's index: finer detail than that is outside
this model, and can only be declared (`effective_na`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import OpticsError
from models.sphere import PSF_RADIUS_UM, radial_psf, trace_field

Image = NDArray[np.float32]

# Here the geometric edge of an NA 1.6 pupil, z NA / n_m, is 1.8 um from the axis: PSF_RADIUS_UM still holds it.
MAX_DEFOCUS_UM = 1.5

# What each parameter may be, and why not more: (lowest, highest, unit).
_LIMITS = {
    "sphere_diameter_um": (2.0, 500.0, "um"),
    "sphere_index": (1.3, 4.0, ""),
    "medium_index": (1.0, 2.5, ""),
    "wavelength_nm": (200.0, 2000.0, "nm"),
    "objective_na": (0.01, 1.6, ""),
    "objective_magnification": (1.0, 200.0, "x"),
    "camera_pixel_um": (0.5, 50.0, "um"),
    "focus_magnification": (1.0, 40.0, "x"),
    "effective_na": (0.05, 4.0, ""),
}


@dataclass(frozen=True)
class Optics:
    """A sphere in contact with the specimen, seen by an objective and a camera; refused when unphysical.

    Parameters
    ----------
    sphere_diameter_um, sphere_index, medium_index, wavelength_nm
        The sphere, what it is immersed in, and the light's peak.
    objective_na, objective_magnification, camera_pixel_um
        The microscope that looks at the sphere's virtual image.
    focus_magnification
        Magnification of the virtual image the microscope is focused on: the focus plane chosen sets it.
    effective_na
        None: the traced PSF. A number: an Airy pattern of that aperture, FWHM 0.51 wavelength / NA, declared
        and recorded (about 1.3 to 1.9 is physical).

    Raises
    ------
    OpticsError
        A parameter is outside its limits, or the sphere forms no virtual image in this medium.

    Examples
    --------
    >>> optics = Optics()
    >>> round(optics.pixel_size_nm, 1), round(optics.focal_length_um, 1), round(optics.paraxial_magnification, 1)
    (48.1, 47.5, 2.5)
    """

    sphere_diameter_um: float = 57.0
    sphere_index: float = 1.9
    medium_index: float = 1.33
    wavelength_nm: float = 550.0
    objective_na: float = 0.55
    objective_magnification: float = 50.0
    camera_pixel_um: float = 6.5
    focus_magnification: float = 2.70
    effective_na: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name == "effective_na":
                continue
            low, high, unit = _LIMITS[field.name]
            if not low <= value <= high:  # also false for NaN
                raise OpticsError(f"{field.name} is {value} {unit}, expected {low:g} to {high:g}; correct it")
        if not 1 < self.relative_index < 2:
            raise OpticsError(
                f"sphere_index / medium_index is {self.relative_index:.2f}, expected more than 1 and less than 2:"
                " a sphere in contact forms a virtual image only there; change the sphere or the medium"
            )

    @property
    def relative_index(self) -> float:
        """Index of the sphere over that of the medium."""
        return self.sphere_index / self.medium_index

    @property
    def pixel_size_nm(self) -> float:
        """Camera pixel in the plane of the specimen, nm."""
        return 1e3 * self.camera_pixel_um / (self.objective_magnification * self.focus_magnification)

    @property
    def focal_length_um(self) -> float:
        """Focal length from the sphere's centre, um: n'R / [2(n' - 1)]."""
        n = self.relative_index
        return n * self.sphere_diameter_um / 2 / (2 * (n - 1))

    @property
    def paraxial_magnification(self) -> float:
        """Magnification of a specimen in contact for rays near the axis: n' / (2 - n')."""
        return self.relative_index / (2 - self.relative_index)

    @property
    def psf_fwhm_nm(self) -> float:
        """Full width at half maximum of the point-spread function, nm."""
        radius_um, intensity = radial_psf(self)
        half = int(np.argmax(intensity < 0.5))
        # np.interp wants ascending abscissae: the first half of the main lobe falls, so walk it backwards.
        return 2e3 * float(np.interp(0.5, intensity[half::-1], radius_um[half::-1]))

    def psf(self, pixel_size_nm: float | None = None, *, defocus_um: float = 0.0) -> Image:
        """The point-spread function on a pixel grid.

        Parameters
        ----------
        pixel_size_nm
            Pixel of the grid; None is the camera's.
        defocus_um
            How much further from the sphere than the plane in focus the point lies; -1.5 to 1.5.

        Returns
        -------
        Odd square of float32 that sums to 1, radius 2 um.

        Raises
        ------
        OpticsError
            The pixel is coarser than half the PSF's width: the samples would miss it. Or the point is so far out
            of focus that its light would not fit into the radius.

        Notes
        -----
        The traced PSF gets the exact phase z (n_m cos(theta) - n_m) / wavelength over its object-side angles. It is
        not symmetric in z, because the sphere's aberration is not zero: light above and below focus bends apart. A
        declared `effective_na` may exceed n_m, where there are no angles and waves are evanescent: it states a
        bandwidth, so it gets the paraxial W = -z rho^2 / (2 n_m wavelength) at every aperture (Born & Wolf, ch.
        8.8.2), which is symmetric in z, continuous through NA = n_m, and has a depth of field of n_m wavelength /
        NA^2: 0.33 um at NA 1.49, which is objective_na x focus_magnification.
        """
        pixel_um = self._pixel_um(pixel_size_nm)
        if 1e3 * pixel_um > self.psf_fwhm_nm / 2:
            raise OpticsError(
                f"pixel size is {1e3 * pixel_um:.0f} nm, expected at most {self.psf_fwhm_nm / 2:.0f} nm, half the"
                " width of the PSF; use a finer pixel"
            )
        if not abs(defocus_um) <= MAX_DEFOCUS_UM:  # also true for NaN
            raise OpticsError(
                f"defocus is {defocus_um} um, expected -{MAX_DEFOCUS_UM} to {MAX_DEFOCUS_UM} um: beyond that the PSF"
                f" is wider than its {PSF_RADIUS_UM} um radius; move the focus plane or lower the specimen"
            )
        radius_um, intensity = radial_psf(self, float(defocus_um))
        half = math.floor(PSF_RADIUS_UM / pixel_um)
        axis_um = np.arange(-half, half + 1) * pixel_um
        kernel = np.interp(np.hypot(axis_um[:, None], axis_um), radius_um, intensity, right=0.0)
        return np.asarray(kernel / kernel.sum(), dtype=np.float32)

    def field_light(
        self,
        shape_px: tuple[int, int],
        pixel_size_nm: float | None = None,
        centre_px: tuple[float, float] | None = None,
    ) -> Image:
        """Relative light over a frame, 1 on the optical axis.

        Parameters
        ----------
        shape_px
            (height, width) of the frame.
        pixel_size_nm
            Pixel in the specimen's plane; None is the camera's.
        centre_px
            (y, x) of the optical axis; None is the middle of the frame.
        """
        light = trace_field(self).light
        radius_um = self._object_radius_um(shape_px, pixel_size_nm, centre_px)
        return np.interp(radius_um, trace_field(self).height_um, light).astype(np.float32)

    def distortion_map(
        self,
        shape_px: tuple[int, int],
        pixel_size_nm: float | None = None,
        centre_px: tuple[float, float] | None = None,
    ) -> Image:
        """Which point of the specimen each pixel of the frame sees, for `warp`.

        Parameters as `field_light`.

        Returns
        -------
        (2, height, width) float32: (y, x) in pixels of an undistorted frame with the same centre.
        """
        y, x = _offsets(shape_px, centre_px)
        radius_um = np.hypot(y, x) * self._pixel_um(pixel_size_nm)
        seen_um = self._object_radius_um(shape_px, pixel_size_nm, centre_px)
        ratio = np.divide(seen_um, radius_um, out=np.ones_like(radius_um), where=radius_um > 0)
        cy, cx = _centre(shape_px, centre_px)
        return np.stack([y * ratio + cy, x * ratio + cx]).astype(np.float32)

    def distortion(self, radius_um: float | NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Relative change of magnification at a radius on the specimen: +0.03 is 3 % pincushion."""
        field = trace_field(self)
        return np.asarray(np.interp(radius_um, field.height_um, field.distortion))

    def _pixel_um(self, pixel_size_nm: float | None) -> float:
        size_nm = self.pixel_size_nm if pixel_size_nm is None else pixel_size_nm
        if not (math.isfinite(size_nm) and size_nm > 0):
            raise OpticsError(f"pixel size is {size_nm} nm, expected more than 0; give the pixel on the specimen")
        return size_nm / 1e3

    def _object_radius_um(
        self, shape_px: tuple[int, int], pixel_size_nm: float | None, centre_px: tuple[float, float] | None
    ) -> NDArray[np.float64]:
        """The radius on the specimen that each pixel sees: the inverse of r -> r (1 + distortion(r))."""
        y, x = _offsets(shape_px, centre_px)
        image_um = np.hypot(y, x) * self._pixel_um(pixel_size_nm)
        field = trace_field(self)
        imaged_um = field.height_um * (1 + field.distortion)
        # Beyond the traced field there is no light, so any continuation will do: the last ratio.
        inside = np.interp(image_um, imaged_um, field.height_um)
        last = field.height_um[-1] / imaged_um[-1]
        return np.where(image_um > imaged_um[-1], image_um * last, inside)


@dataclass(frozen=True)
class Sensor:
    """An sCMOS camera's noise (PCO.edge 5.5: quantum efficiency 0.6, 1.1 e- read noise, 30 ke- full well)."""

    quantum_efficiency: float = 0.6
    read_noise_e: float = 1.1
    full_well_e: float = 30_000.0

    def expose(self, irradiance: Image, *, photons: float, rng: np.random.Generator) -> Image:
        """One noisy exposure, in units of `irradiance`.

        Parameters
        ----------
        irradiance
            (height, width), 0 or more; 1 is the brightest the scene is meant to be.
        photons
            Photons that reach a pixel of irradiance 1 during the exposure.
        rng
            Where the noise comes from.

        Returns
        -------
        float32 electrons / (photons x quantum efficiency): around `irradiance`, saturated at the full well.
        """
        gain_e = photons * self.quantum_efficiency
        electrons = rng.poisson(np.maximum(irradiance, 0) * gain_e).astype(np.float32)
        electrons += self.read_noise_e * rng.standard_normal(irradiance.shape, dtype=np.float32)
        return np.asarray(np.minimum(electrons, self.full_well_e) / gain_e, dtype=np.float32)


def form_image(
    reflectivity: Image,
    optics: Optics,
    *,
    pixel_size_nm: float | None = None,
    centre_px: tuple[float, float] | None = None,
    veil: float = 0.0,
    distorted: bool = False,
) -> Image:
    """The irradiance a camera receives from a specimen: blurred, veiled, lit and (on request) distorted.

    Parameters
    ----------
    reflectivity
        (height, width), 0 to 1, area-averaged onto the camera's pixels.
    optics, pixel_size_nm, centre_px
        As in `Optics.field_light`.
    veil
        Share of the light that never saw the specimen (stray reflections), 0 to below 1: lowers contrast.
    distorted
        Whether the sphere's pincushion distortion is applied.

    Returns
    -------
    (height, width) float32, 0 to 1: light x [(1 - veil) x blurred + veil].
    """
    if not 0 <= veil < 1:
        raise OpticsError(f"veil is {veil}, expected 0 to below 1: it is a share of the light")
    image = blur(reflectivity, optics.psf(pixel_size_nm))
    if distorted:
        image = warp(image, optics.distortion_map(image.shape[:2], pixel_size_nm, centre_px))
    light = optics.field_light(image.shape[:2], pixel_size_nm, centre_px)
    return light * (np.float32(1 - veil) * image + np.float32(veil))


def blur(image: Image, kernel: Image) -> Image:
    """Convolve with an odd kernel that sums to 1, by FFT; the surroundings are the image mirrored at its edge.

    Parameters
    ----------
    image
        (height, width); sides at least the kernel's radius.
    kernel
        (2k + 1, 2k + 1).

    Examples
    --------
    >>> flat = np.full((40, 50), 0.25, np.float32)
    >>> bool(np.allclose(blur(flat, Optics().psf(120.0)), flat, atol=1e-6))
    True
    """
    half = kernel.shape[0] // 2
    if kernel.shape != (2 * half + 1, 2 * half + 1) or min(image.shape) < half:
        raise OpticsError(
            f"cannot blur an image of {image.shape} px with a kernel of {kernel.shape} px: the kernel must be an"
            " odd square and its radius no longer than the image's sides"
        )
    padded = np.pad(image, half, mode="symmetric")
    shape = [_fast_length(side) for side in padded.shape]
    spectrum = np.fft.rfft2(padded, s=shape) * np.fft.rfft2(kernel, s=shape)
    full = np.fft.irfft2(spectrum, s=shape)
    # Linear convolution delays by `half`, the padding by another `half`.
    return full[2 * half : 2 * half + image.shape[0], 2 * half : 2 * half + image.shape[1]].astype(np.float32)


def warp(image: Image, coordinates_px: Image) -> Image:
    """Sample an image at (2, height, width) coordinates (y, x), bilinear; outside stands the nearest edge."""
    y = np.clip(coordinates_px[0], 0, image.shape[0] - 1)
    x = np.clip(coordinates_px[1], 0, image.shape[1] - 1)
    y0 = np.minimum(y.astype(np.intp), image.shape[0] - 2)
    x0 = np.minimum(x.astype(np.intp), image.shape[1] - 2)
    fy, fx = (y - y0).astype(np.float32), (x - x0).astype(np.float32)
    top = image[y0, x0] * (1 - fx) + image[y0, x0 + 1] * fx
    bottom = image[y0 + 1, x0] * (1 - fx) + image[y0 + 1, x0 + 1] * fx
    return np.asarray(top * (1 - fy) + bottom * fy, dtype=np.float32)


def _fast_length(n: int) -> int:
    """The next length with no prime factor above 5: FFTs of such lengths are fast."""
    while True:
        rest = n
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return n
        n += 1


def _centre(shape_px: tuple[int, int], centre_px: tuple[float, float] | None) -> tuple[float, float]:
    return centre_px if centre_px is not None else ((shape_px[0] - 1) / 2, (shape_px[1] - 1) / 2)


def _offsets(
    shape_px: tuple[int, int], centre_px: tuple[float, float] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    cy, cx = _centre(shape_px, centre_px)
    return np.arange(float(shape_px[0]))[:, None] - cy, np.arange(float(shape_px[1]))[None, :] - cx
