"""The prepare stage in numpy: counts to network input and back. Every other form of it is held against this one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def full_scale(bit_depth: int) -> int:
    """The largest count a camera of that bit depth delivers."""
    return (1 << bit_depth) - 1


def to_network(
    pixels: NDArray[Any],
    out: NDArray[np.float32],
    *,
    bit_depth: int,
    dark: NDArray[np.float32] | None = None,
    flat: NDArray[np.float32] | None = None,
) -> None:
    """Write ``(counts - dark) / flat / full scale`` into ``out``, float32, 0..1 for counts within full scale.

    Parameters
    ----------
    pixels : (height, width) unsigned counts.
    out : same shape, float32, overwritten.
    dark : (height, width), counts. flat : (height, width), relative gain, positive.
    """
    scale = np.float32(1 / full_scale(bit_depth))
    if dark is None and flat is None:
        np.multiply(pixels, scale, out=out)
        return
    np.subtract(pixels, np.float32(0) if dark is None else dark, out=out, casting="unsafe")
    if flat is not None:
        np.divide(out, flat, out=out)
    np.multiply(out, scale, out=out)


def from_network(values: NDArray[np.float32], out: NDArray[Any], *, bit_depth: int) -> None:
    """Write 0..1 values as counts of the camera's full scale, rounded to even. ``values`` is used as scratch memory.

    The network's graph ends in a clamp to 0..1, so no count can exceed full scale.
    """
    np.multiply(values, np.float32(full_scale(bit_depth)), out=values)
    np.rint(values, out=values)
    np.copyto(out, values, casting="unsafe")
