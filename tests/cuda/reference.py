"""The prepare stage in numpy for every pixel format: what the kernels are held against. And frames of each format."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BITS = {"mono8": 8, "mono10p": 10, "mono12p": 12, "mono16": 16, "rgb8": 8} | {
    f"bayer_{pattern}8": 8 for pattern in ("rg", "gr", "gb", "bg")
}
"""The bit depth of each format's counts."""

CROSS = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])


def pack(counts: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Counts (h, w) as PFNC's packed rows: a stream of bits, least significant first."""
    stream = (counts[..., np.newaxis] >> np.arange(bits) & 1).astype(np.uint8).reshape(len(counts), -1)
    return np.packbits(stream, axis=1, bitorder="little")


def unpack(rows: NDArray[np.uint8], width: int, bits: int) -> NDArray[np.int64]:
    """The way back, (h, width)."""
    stream = np.unpackbits(rows, axis=1, bitorder="little")[:, : width * bits].reshape(len(rows), width, bits)
    return (stream.astype(np.int64) << np.arange(bits)).sum(axis=2)


def grey(frame: NDArray[Any], pixel_format: str, width: int) -> NDArray[np.float32]:
    """One channel in counts, (h, width): of colour the green."""
    if pixel_format.endswith("p"):
        return unpack(frame, width, BITS[pixel_format]).astype(np.float32)
    if pixel_format == "rgb8":
        return frame[..., 1].astype(np.float32)
    if not pixel_format.startswith("bayer"):
        return frame.astype(np.float32)
    y, x = np.indices(frame.shape)
    green = (x + y) % 2 == (0 if pixel_format[6] == "g" else 1)
    # At the other sites: the mean of those of their four neighbours, all green, that are inside the frame.
    sums = ndimage.convolve(frame.astype(np.float32), CROSS.astype(np.float32), mode="constant")
    sites = ndimage.convolve(np.ones(frame.shape, np.float32), CROSS.astype(np.float32), mode="constant")
    return np.where(green, frame, sums / sites).astype(np.float32)


def prepare(
    frame: NDArray[Any],
    pixel_format: str,
    width: int,
    *,
    full_scale: int,
    dark: NDArray[np.float32] | None = None,
    flat: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """(counts - dark) / flat / full scale, (h, width)."""
    counts = grey(frame, pixel_format, width)
    counts = counts if dark is None else counts - dark
    counts = counts if flat is None else counts / flat
    return counts * np.float32(1 / full_scale)


def deliver(planes: NDArray[np.float32], dtype: Any, *, full_scale: int) -> NDArray[Any]:
    """Planes (c, h, w) of 0..1 as counts (h, w) or (h, w, 3): half to even, NaN is 0, nothing leaves the range."""
    counts = np.rint(np.clip(np.nan_to_num(planes * np.float32(full_scale), nan=0.0), 0, full_scale))
    return (
        np.moveaxis(counts, 0, 2).squeeze(axis=2).astype(dtype)
        if len(planes) == 1
        else np.moveaxis(counts, 0, 2).astype(dtype)
    )


def random_frame(pixel_format: str, height: int, width: int, *, seed: int = 0) -> NDArray[Any]:
    """A frame as a camera of this format leaves it in a slot."""
    rng = np.random.default_rng(seed)
    bits = BITS[pixel_format]
    if pixel_format == "rgb8":
        return rng.integers(0, 256, (height, width, 3), np.uint8)
    counts = rng.integers(0, 1 << bits, (height, width), np.uint16)
    if pixel_format.endswith("p"):
        return pack(counts, bits)
    return counts if pixel_format == "mono16" else counts.astype(np.uint8)
