"""OME-TIFF out: written whole or not at all, with what made it and whether it was simulated in every file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray

from edge.errors import EdgeError
from export.manifest import Manifest


class Picture(NamedTuple):
    """One image of a file.

    Attributes
    ----------
    pixels
        Counts: (height, width), (channels, height, width), or in colour (height, width, 3), (channels, ..., 3).
    channels
        What each channel is, in words; an enhanced one says that it is not raw data.
    pixel_size_nm
        Written as PhysicalSizeX/Y in um; None writes none, because a reader would take a made-up 1 for a measurement.
    """

    pixels: NDArray[Any]
    channels: tuple[str, ...]
    pixel_size_nm: float | None


def enhanced_words(manifest: Manifest, output: str) -> str:
    """What a channel is called that the network made."""
    words = f"enhanced by {manifest.name}, not raw data"
    return words if len(manifest.outputs) == 1 else f"{output}, {words}"


def enhanced_kind(manifest: Manifest, output: str) -> str:
    """The part of a file's name that says what the network made."""
    return "enhanced" if len(manifest.outputs) == 1 else f"enhanced_{output}"


def write_ome_tiff(
    path: Path,
    pixels: NDArray[Any],
    *,
    channels: tuple[str, ...],
    pixel_size_nm: float | None,
    facts: Mapping[str, Any],
    position_um: tuple[float, float] | None = None,
) -> None:
    """Write one image; see :class:`Picture` for its parameters and :func:`write_ome_tiffs` for the others."""
    write_ome_tiffs(path, [Picture(pixels, channels, pixel_size_nm)], facts=facts, position_um=position_um)


def write_ome_tiffs(
    path: Path,
    pictures: Sequence[Picture],
    *,
    facts: Mapping[str, Any],
    position_um: tuple[float, float] | None = None,
) -> None:
    """Write images of any shapes into one file.

    Parameters
    ----------
    facts
        Provenance, kept as JSON in the description and as a map annotation of each image.
    position_um
        (x, y) of the images in the mosaic's frame, as Plane PositionX/Y.
    """

    def write(temporary: Path) -> None:
        with tifffile.TiffWriter(temporary, ome=True) as file:
            for picture in pictures:
                colour = picture.pixels.shape[-1] == 3  # no picture is three pixels wide
                stack = picture.pixels if picture.pixels.ndim == 3 + colour else picture.pixels[np.newaxis]
                file.write(
                    stack,
                    photometric="rgb" if colour else "minisblack",
                    metadata=_metadata(picture, "CYXS" if colour else "CYX", len(stack), facts, position_um),
                )

    _atomically(path, write)


def _metadata(
    picture: Picture, axes: str, planes: int, facts: Mapping[str, Any], position_um: tuple[float, float] | None
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "axes": axes,
        "Channel": {"Name": list(picture.channels)},
        "Description": json.dumps(facts, default=str),
        "MapAnnotation": {key: json.dumps(value, default=str) for key, value in facts.items()},
    }
    if picture.pixel_size_nm is not None:
        metadata |= {
            "PhysicalSizeX": picture.pixel_size_nm / 1e3,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": picture.pixel_size_nm / 1e3,
            "PhysicalSizeYUnit": "µm",
        }
    if position_um is not None:
        metadata["Plane"] = {
            "PositionX": [position_um[0]] * planes,
            "PositionXUnit": ["µm"] * planes,
            "PositionY": [position_um[1]] * planes,
            "PositionYUnit": ["µm"] * planes,
        }
    return metadata


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document, whole or not at all."""
    text = json.dumps(document, indent=2, default=str) + "\n"
    _atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, bring it to the disk, and put it in place in one step.

    Raises
    ------
    EdgeError
        The disk refuses; nothing half written stays.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        temporary = Path(name)
        try:
            write(temporary)
            os.fsync(descriptor)
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
    except OSError as exc:
        raise EdgeError(f"{path} could not be written: {exc}. Free some space, or choose another folder.") from exc
