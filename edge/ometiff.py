"""OME-TIFF out: written whole or not at all, with what made it and whether it was simulated in every file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from edge.errors import EdgeError


def write_ome_tiff(
    path: Path,
    pixels: NDArray[Any],
    *,
    channels: tuple[str, ...],
    pixel_size_nm: float | None,
    facts: Mapping[str, Any],
    position_um: tuple[float, float] | None = None,
) -> None:
    """Write (channels, height, width) or (height, width) counts.

    Parameters
    ----------
    channels
        What each channel is, in words; an enhanced one says that it is not raw data.
    pixel_size_nm
        Written as PhysicalSizeX/Y in um; None writes none, because a reader would take a made-up 1 for a measurement.
    facts
        Provenance, kept as JSON in the description and as a map annotation.
    position_um
        (x, y) of the image in the mosaic's frame, as Plane PositionX/Y.
    """
    stack = pixels[np.newaxis] if pixels.ndim == 2 else pixels
    metadata: dict[str, Any] = {
        "axes": "CYX",
        "Channel": {"Name": list(channels)},
        "Description": json.dumps(facts, default=str),
        "MapAnnotation": {key: json.dumps(value, default=str) for key, value in facts.items()},
    }
    if pixel_size_nm is not None:
        metadata |= {
            "PhysicalSizeX": pixel_size_nm / 1e3,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": pixel_size_nm / 1e3,
            "PhysicalSizeYUnit": "µm",
        }
    if position_um is not None:
        count = len(stack)
        metadata["Plane"] = {
            "PositionX": [position_um[0]] * count,
            "PositionXUnit": ["µm"] * count,
            "PositionY": [position_um[1]] * count,
            "PositionYUnit": ["µm"] * count,
        }

    def write(temporary: Path) -> None:
        tifffile.imwrite(temporary, stack, ome=True, photometric="minisblack", metadata=metadata)

    _atomically(path, write)


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
