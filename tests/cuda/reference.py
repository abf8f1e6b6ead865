"""What the kernels are held against: the product's prepare stage in numpy, and the way back with its limits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engine.prepare import Counts
from edge.frames import LAYOUTS
from tests.contracts import random_slot

BITS = {str(name): layout.depth for name, layout in LAYOUTS.items()}
"""The bit depth of each format's counts."""


def prepare(
    frame: NDArray[Any],
    pixel_format: Any,
    width: int,
    *,
    full_scale: int,
    dark: NDArray[np.float32] | None = None,
    flat: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """(counts - dark) / flat / full scale, (h, width)."""
    out = np.empty((len(frame), width), np.float32)
    Counts(out.shape, pixel_format, full_scale.bit_length(), dark, flat).to_network(frame, out)
    return out


def deliver(planes: NDArray[np.float32], dtype: Any, *, full_scale: int) -> NDArray[Any]:
    """Planes (c, h, w) of 0..1 as counts (h, w) or (h, w, 3): half to even, NaN is 0, nothing leaves the range."""
    counts = np.rint(np.clip(np.nan_to_num(planes * np.float32(full_scale), nan=0.0), 0, full_scale)).astype(dtype)
    return counts[0] if len(counts) == 1 else np.moveaxis(counts, 0, 2)


def random_frame(pixel_format: Any, height: int, width: int, *, seed: int = 0) -> NDArray[Any]:
    """A frame as a camera of this format leaves it in a slot."""
    return random_slot(Counts((height, width), pixel_format, BITS[pixel_format]), seed=seed)
