"""What lies between a blurred specimen and the file: light of the field, veil, noise, the converter's range."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from models.optics import Optics, Sensor

Image = NDArray[np.float32]

Span = Annotated[tuple[float, float], Field(min_length=2, max_length=2)]


class Exposure(BaseModel):
    """How a data set's pictures are lit and exposed. Lists are drawn from, spans are drawn within.

    `axis_offset_um` are spans of the distance from the picture's middle to the optical axis: where the vignette's
    centre lies. `photons` reach a pixel of irradiance 1; `exposure` is the irradiance of a white specimen on the
    axis; `light_slope` is the largest relative change of the lamp's light over the picture; `light_scale` stretches
    the field of the sphere; `veil` is the share of light that never saw the specimen: microsphere
    images are low in contrast.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    photons: tuple[float, ...] = Field(min_length=1)
    axis_offset_um: tuple[Span, ...] = Field(min_length=1)
    veil: Span = (0.2, 0.4)
    exposure: Span = (0.75, 0.95)
    light_slope: float = Field(default=0.15, ge=0, lt=1)
    light_scale: Span = (0.9, 1.1)
    pixel_size_nm: float = Field(default=Optics().pixel_size_nm, gt=0)

    def observe(self, blurred: Image, photons: float, rng: np.random.Generator) -> tuple[Image, Image]:
        """Light, veil, noise and the converter's range.

        Parameters
        ----------
        blurred
            (height, width): the specimen through the optics.
        photons
            Photons that reach a pixel of irradiance 1.
        rng
            Where light, veil and noise come from.

        Returns
        -------
        (image, light with exposure), both (height, width) float32; the image lies in 0..1.
        """
        optics = Optics()
        low, high = self.axis_offset_um[rng.integers(len(self.axis_offset_um))]
        angle, offset_um = rng.uniform(0, 2 * np.pi), rng.uniform(low, high)
        height, width = blurred.shape
        # Stretching the sphere's field is looking at it with another pixel.
        pixel_nm = self.pixel_size_nm / rng.uniform(*self.light_scale)
        offset_px = offset_um * 1e3 / self.pixel_size_nm
        centre_px = ((height - 1) / 2 + offset_px * np.sin(angle), (width - 1) / 2 + offset_px * np.cos(angle))
        light = optics.field_light((height, width), pixel_nm, centre_px)
        slope, turn = rng.uniform(0, self.light_slope), rng.uniform(0, 2 * np.pi)
        y, x = np.linspace(-0.5, 0.5, height)[:, None], np.linspace(-0.5, 0.5, width)[None, :]
        light = light * (1 + slope * (np.sin(turn) * y + np.cos(turn) * x)) * rng.uniform(*self.exposure)
        light = light.astype(np.float32)
        veil = np.float32(rng.uniform(*self.veil))
        image = Sensor().expose(light * ((1 - veil) * blurred + veil), photons=photons, rng=rng)
        return np.clip(image, 0, 1), light
