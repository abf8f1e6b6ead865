"""The manifest: the whole contract between training and the appliance (pydantic and stdlib only)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from export.errors import ManifestError, PrecisionError
from export.files import sha256_of, write_atomically

Precision = Literal["fp32", "fp16", "int8", "int8_fp16"]
Task = Literal["enhance", "sem", "neural-lens"]
Form = Literal["merged", "staged"]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# A bundle's files lie beside its bundle.json: a name with a folder in it could point anywhere.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
# Becomes part of file names, of a header and of a label on the page.
TensorName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

BUNDLE_FILE = "bundle.json"
FIRST_ONNXRUNTIME_WITH_INT8 = (1, 31)
PIXEL_SIZE_TOLERANCE = 0.1
"""How far a picture's pixel may be from the one the model was trained for before the result means nothing."""


class _Record(BaseModel):
    # allow_inf_nan=False: JSON has no NaN, and a figure that is not a number is not a figure.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_RecordT = TypeVar("_RecordT", bound=_Record)


class TensorSpec(_Record):
    """One input or output of the graph.

    A named side of `shape` ("height", "width") is free; an output side may be a multiple ("2*height").
    `range` is what the values mean: model input is counts / full scale, so (0, 1).
    """

    name: TensorName
    shape: tuple[int | str, ...]
    dtype: Literal["float32", "float16", "uint8", "uint16"]
    range: tuple[float, float]

    @property
    def channels(self) -> int:
        """1 is grey, 3 are red, green and blue."""
        return int(self.shape[1])


class Gate(_Record):
    """What a file of less than FP32 precision had to pass: pictures that its scales were not measured on.

    `psnr_db` is that of each output to FP32's; `loss_db` is how much PSNR against the truth FP32 has more, of the
    output that loses most, and None where the pictures have no truth. `calibration` and `scheme` say how INT8 scales
    were measured and what stayed in float.
    """

    data: str
    images: int = Field(ge=1)
    psnr_db: dict[TensorName, float]
    loss_db: float | None = None
    calibration: str | None = None
    scheme: str | None = None


class Verification(_Record):
    """How far this file is from what is named in `against`, over the pictures of the check.

    `psnr_db` has peak 1; `max_abs_error` is a fraction of full scale. `gate` is there for less than FP32.
    """

    against: str
    max_abs_error: float = Field(ge=0)
    psnr_db: float
    ssim: float = Field(ge=-1, le=1)
    shapes_px: tuple[tuple[int, int], ...]
    gate: Gate | None = None


class BuiltWith(_Record):
    """What a device-bound engine was built with: it runs nowhere else."""

    tensorrt: str
    cuda: str
    gpu: str
    compute_capability: str
    l4t: str | None = None


class Manifest(_Record):
    """What one model file is, what goes in, what comes out, and how well it was checked.

    `halo_px` is how far a pixel's result reaches into its surroundings (tiles overlap by it, and image
    metrics leave it out); the sides of the input are at least `min_side_px` and multiples of `side_multiple_px`;
    `pixel_size_nm` is the sample-plane pixel the network was trained for; `checkpoint_sha256` names the weights the
    file was made from. `form` is that of a neural lens: all its networks for every picture, or those of the types that
    are there; other networks have one only. The first of `outputs` is the one shown; each has 1 or 3 channels.
    """

    schema_version: Literal[1] = 1
    name: str
    task: Task
    file: FileName
    sha256: Sha256
    format: Literal["onnx", "tensorrt"]
    precision: Precision
    form: Form = "merged"
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    scale: int = Field(ge=1, le=4)
    halo_px: int = Field(ge=0)
    min_side_px: int = Field(ge=1)
    side_multiple_px: int = Field(default=1, ge=1)
    pixel_size_nm: float = Field(gt=0)
    training_data: str
    checkpoint_sha256: Sha256
    verify: Verification
    built_with: BuiltWith | None = None

    @model_validator(mode="after")
    def _device_bound_formats_say_their_device(self) -> Manifest:
        if (self.format == "tensorrt") != (self.built_with is not None):
            raise ValueError(
                f"format {self.format!r} with built_with {self.built_with!r}: a tensorrt engine, and only it,"
                " records what it was built with"
            )
        return self

    @model_validator(mode="after")
    def _outputs_are_pictures_with_names_of_their_own(self) -> Manifest:
        names = [spec.name for spec in self.outputs]
        if len(set(names)) < len(names):
            raise ValueError(f"outputs {', '.join(names)}: two have the same name")
        for spec in self.outputs:
            if len(spec.shape) != 4 or spec.shape[0] != 1 or spec.shape[1] not in (1, 3):
                raise ValueError(
                    f"output {spec.name!r} has the shape {spec.shape}, expected (1, 1 or 3, height, width)"
                )
        return self

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, the one shown first."""
        return tuple(spec.name for spec in self.outputs)

    def pixel_fits(self, pixel_size_nm: float | None) -> bool:
        """Whether pictures with that pixel are ones it was trained for; of an unknown pixel nothing can be said."""
        return pixel_size_nm is None or abs(pixel_size_nm / self.pixel_size_nm - 1) <= PIXEL_SIZE_TOLERANCE


class BundleIndex(_Record):
    """The contents of bundle.json: which manifest describes which precision, and the files beside them."""

    schema_version: Literal[1] = 1
    name: str
    task: Task
    precisions: dict[Precision, FileName] = Field(min_length=1)
    weights: FileName = "weights.safetensors"
    card: FileName = "README.md"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder with one model in one or more precisions; made by `load_bundle`."""

    folder: Path
    index: BundleIndex

    @property
    def name(self) -> str:
        """The model's name, as shown on the page."""
        return self.index.name

    @property
    def task(self) -> Task:
        """What the model does."""
        return self.index.task

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions that are here, in the order of bundle.json."""
        return tuple(self.index.precisions)

    def manifest(self, precision: Precision = "fp32") -> Manifest:
        """The manifest of one precision.

        Raises
        ------
        ManifestError
            The precision is not in the bundle, or its manifest is absent, malformed or of another precision.
        """
        try:
            file = self.index.precisions[precision]
        except KeyError:
            raise ManifestError(
                f"{self.folder} has no precision {precision!r}, only {', '.join(self.precisions)};"
                f" choose one of these, or rebuild it: {self._rebuild}"
            ) from None
        manifest = read_manifest(self.folder / file)
        if (manifest.precision, manifest.name, manifest.task) != (precision, self.name, self.task):
            raise ManifestError(
                f"{self.folder / file} describes {manifest.name} ({manifest.task}) in {manifest.precision},"
                f" but {BUNDLE_FILE} lists it as {self.name} ({self.task}) in {precision};"
                f" rebuild it: {self._rebuild}"
            )
        return manifest

    def model_path(self, precision: Precision = "fp32") -> Path:
        """The model file of one precision, after its SHA-256 was found to be the manifest's.

        Raises
        ------
        ManifestError
            As `manifest`; or the file is absent or has another hash: the message names the command that
            rebuilds it.
        """
        manifest = self.manifest(precision)
        path = self.folder / manifest.file
        if not path.is_file():
            raise ManifestError(f"{path} is missing; rebuild it: {self._rebuild}")
        found = sha256_of(path)
        if found != manifest.sha256:
            raise ManifestError(
                f"{path} has SHA-256 {found[:12]}…, its manifest says {manifest.sha256[:12]}…:"
                f" the file was changed or is damaged; rebuild it: {self._rebuild}"
            )
        return path

    @property
    def _rebuild(self) -> str:
        return f"superlens-export convert {self.folder / self.index.weights} --out {self.folder}"


def load_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Read the index of a bundle folder; hashes are checked by `Bundle.model_path`.

    Raises
    ------
    ManifestError
        The folder or its bundle.json is absent or malformed.
    """
    folder = Path(folder)
    path = folder / BUNDLE_FILE
    if not path.is_file():
        raise ManifestError(
            f"{folder} is not a model bundle ({BUNDLE_FILE} is not there);"
            f" give a folder made by: superlens-export convert CHECKPOINT --out {folder}"
        )
    return Bundle(folder, _read(path, BundleIndex))


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read and check one manifest; ManifestError says which key is wrong and why."""
    return _read(Path(path), Manifest)


def write_manifest(record: Manifest | BundleIndex, path: str | os.PathLike[str]) -> None:
    """Write a manifest or a bundle index so that a reader sees the old file or the new one, never half."""
    text = json.dumps(record.model_dump(mode="json", exclude_none=True), indent=2) + "\n"
    write_atomically(Path(path), text.encode())


def check_onnxruntime(precision: Precision, version: str) -> None:
    """Refuse INT8 on a release of ONNX Runtime that computes it wrongly; `version` is its `__version__`.

    Raises
    ------
    PrecisionError
        The release is older than 1.31, which truncates FP16 in QuantizeLinear instead of rounding.

    Examples
    --------
    >>> check_onnxruntime("int8", "1.31.0")
    >>> check_onnxruntime("fp16", "1.23.2")
    """
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if precision.startswith("int8") and numbers < FIRST_ONNXRUNTIME_WITH_INT8:
        wanted = ".".join(map(str, FIRST_ONNXRUNTIME_WITH_INT8))
        raise PrecisionError(
            f"ONNX Runtime {version} computes {precision} wrongly (it truncates FP16 where it should round), expected"
            f" {wanted} or later; use the precision fp32 there, or the engine openvino for int8"
        )


def _read(path: Path, kind: type[_RecordT]) -> _RecordT:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as exc:
        raise ManifestError(
            f"{path} cannot be read ({exc.strerror});"
            f" rebuild the bundle: superlens-export convert CHECKPOINT --out {path.parent}"
        ) from exc
    except ValidationError as exc:
        wrong = "; ".join(
            f"{'.'.join(map(str, error['loc'])) or 'the file'}: {error['msg']}"
            for error in exc.errors(include_url=False)
        )
        raise ManifestError(
            f"{path} is no {kind.__name__} of schema version 1: {wrong};"
            f" rebuild the bundle: superlens-export convert CHECKPOINT --out {path.parent}"
        ) from exc
