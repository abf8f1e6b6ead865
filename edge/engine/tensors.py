"""Whether a model file has the tensors that its manifest says: one check for every back end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from edge.errors import EngineError
from export.manifest import Manifest

_REMEDY = "Make the bundle again with superlens-export convert."


class Tensor(NamedTuple):
    """What a back end says of an input or an output: numpy's name of its type, and its sides, None if not yet known."""

    dtype: str
    shape: tuple[int | None, ...]


def check_names(path: Path, manifest: Manifest, found: Iterable[str]) -> None:
    """Refuse a file whose inputs and outputs have other names than the manifest's.

    Raises
    ------
    EngineError
        With the names of both.
    """
    said = {spec.name for spec in (*manifest.inputs, *manifest.outputs)}
    if set(found) != said:
        raise EngineError(
            f"{path} has the tensors {', '.join(sorted(found))}, its manifest {', '.join(sorted(said))}. {_REMEDY}"
        )


def check_tensors(path: Path, manifest: Manifest, shape_px: tuple[int, ...], found: Mapping[str, Tensor]) -> None:
    """Refuse a file that is not what its manifest says, before a frame of ``shape_px`` (height, width) reaches it.

    A back end left alone with it gives pictures of another size or other channels, or fails at the first frame.
    ``found`` are the file's inputs and outputs, by name.

    Raises
    ------
    EngineError
        Other names, other sizes, or edges that are no float32; the message has what was found and what was expected.
    """
    check_names(path, manifest, found)
    height, width = shape_px
    scaled = (height * manifest.scale, width * manifest.scale)
    said = {spec.name: (spec.dtype, (1, spec.channels, height, width)) for spec in manifest.inputs}
    said |= {spec.name: (spec.dtype, (1, spec.channels, *scaled)) for spec in manifest.outputs}
    for name, (dtype, shape) in said.items():
        real = found[name]
        if not real.dtype == dtype == "float32":
            raise EngineError(
                f"The tensor {name} of {path} is {real.dtype}, its manifest says {dtype}; expected float32, as the "
                f"edges of every precision are. {_REMEDY}"
            )
        if len(real.shape) != len(shape) or any(a not in (None, b) for a, b in zip(real.shape, shape, strict=True)):
            raise EngineError(
                f"The tensor {name} of {path} is {_words(real.shape)} for frames of {height} x {width} px, its "
                f"manifest says {_words(shape)}. {_REMEDY}"
            )


def _words(shape: tuple[int | None, ...]) -> str:
    return " x ".join("?" if side is None else str(side) for side in shape)
