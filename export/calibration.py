"""The pictures that INT8 scales are measured on, those that the result is judged on, and the measuring."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from export.errors import CalibrationError
from export.manifest import PIXEL_SIZE_TOLERANCE, Manifest
from models.errors import ModelsError
from models.micrographs import IMAGE_SUFFIXES, read_micrograph
from models.pairs import PAIRS_FILE, read_index, read_pairs
from models.recipe import Recipe

Image = NDArray[np.float32]
Method = Literal["max", "percentile", "entropy"]
Progress = Callable[[str, int, int], None]

SYNTHETIC = "synthetic:calibration"
# Far from the seeds of the held-out sets, which count up from 20 251.
SEED = 31_415
MOST_PICTURES = 32  # of a folder, in each part
# From the 1st to the 99th percentile of the brightest-contrasted picture of a folder, of full scale: 5 counts of 8 bits
# are a dim specimen, less is what a camera's noise makes of a closed shutter.
LEAST_CONTRAST = 0.02
# Of 16 bits, by the brightest count of a folder: fewer than that are a 12-bit camera's counts, or a file's mistake.
LEAST_OF_16_BITS = 1 / 8
PERCENTILE = 99.99
_BINS = 2048
_SIDE_PX = 256


class Sample(NamedTuple):
    """A picture (h, w) in 0..1 as the network gets it, and what is known of the truth, by output."""

    image: Image
    truths: Mapping[str, Image]


class Pictures(NamedTuple):
    """`tuning` decides scales and what stays float; each of `heldout`, by the name of its data, judges the result."""

    tuning: list[Sample]
    heldout: dict[str, list[Sample]]

    @property
    def data(self) -> str:
        """What they are, in words."""
        return " and ".join(self.heldout)


def load(data: str, manifest: Manifest, recipe: Recipe, *, bit_depth: int | None = None) -> Pictures:
    """The pictures that `--calibration` names, and the synthetic ones, if the network has any.

    The synthetic ones are always there: scales that were measured on dim frames alone are right on these, and 40 dB off
    as soon as somebody turns up the light.

    Parameters
    ----------
    data
        "synthetic:calibration": specimens of the families that the network was trained on, drawn with other seeds;
        a folder made by `superlens-train pairs`, whose validation split judges; or any folder of images, the second
        half of which, by name, judges without a truth.
    bit_depth
        Of the counts of a folder of images, where it is less than the files' (12-bit counts in 16-bit files) and no
        superlens box wrote it there.

    Raises
    ------
    CalibrationError
        There is no such data, fewer than two pictures, nothing to see in them, or pictures that the network would not
        be given.
    """
    folder = Path(data)
    if data != SYNTHETIC and not folder.is_dir():
        raise CalibrationError(f"{data} is neither a folder nor {SYNTHETIC}; give one with --calibration")
    if bit_depth is not None and (data == SYNTHETIC or (folder / PAIRS_FILE).is_file()):
        raise CalibrationError(f"a bit depth of {bit_depth} says nothing of {data}, which has no counts; leave it out")
    try:
        drawn = _synthetic(recipe)
        if data == SYNTHETIC:
            if drawn is None:
                raise CalibrationError(
                    f"{recipe.name} was trained on a lab's own pairs, so there are no families for {SYNTHETIC}; give"
                    " the folder of pairs with --calibration"
                )
            return drawn
        paired = (folder / PAIRS_FILE).is_file()
        read = _pairs(folder, manifest) if paired else _images(folder, manifest, bit_depth)
    except ModelsError as exc:
        raise CalibrationError(str(exc)) from exc
    for part in (read.tuning, *read.heldout.values()):
        _check_contrast(folder, part)
    if drawn is None:
        return read
    return Pictures(read.tuning + drawn.tuning, read.heldout | drawn.heldout)


def _synthetic(recipe: Recipe) -> Pictures | None:
    """One round of every training family, or as many scenes of grains, then another; None where nothing is known."""
    samples = _drawn(recipe)
    half = len(samples) // 2
    return Pictures(samples[:half], {SYNTHETIC: samples[half:]}) if samples else None


def _drawn(recipe: Recipe) -> list[Sample]:
    conditions: Any = getattr(recipe, "data", None)
    if recipe.task == "neural-lens":
        from models.lens import data as lens
        from models.lens.evaluate import labels_picture

        if isinstance(conditions, lens.Conditions):
            scenes = lens.scenes(conditions, count=12, side_px=recipe.train.crop_px, seed=SEED)
            return [
                Sample(
                    scene.image,
                    {"shadowed": scene.shadowed, "magnified": scene.on_black, "map": labels_picture(scene.labels)},
                )
                for scene in scenes
            ]
    elif recipe.task == "sem":
        from models.sem import data as sem

        if isinstance(conditions, sem.Conditions):
            seen = sem.pairs(conditions, images_per_family=2, side_px=_SIDE_PX, seed=SEED)
            return [Sample(pair.image, {"sem": pair.truth}) for pair in seen]
    else:
        from models.enhance import data as enhance

        if isinstance(conditions, enhance.Conditions):
            drawn = enhance.pairs(conditions, images_per_family=2, side_px=_SIDE_PX, seed=SEED)
            return [Sample(pair.image, {"enhanced": pair.truth}) for pair in drawn]
    return []


def _pairs(folder: Path, manifest: Manifest) -> Pictures:
    _check_pixel(folder, read_index(folder).pixel_size_nm, manifest)
    shown = manifest.outputs[0].name
    parts = []
    for split in ("train", "validation"):
        pairs = _spread(read_pairs(folder, "train" if split == "train" else "validation"))
        for pair in pairs:
            _check_shape(folder / pair.name, pair.image.shape, manifest)
        parts.append([Sample(pair.image, {shown: pair.truth} if manifest.scale == 1 else {}) for pair in pairs])
    return Pictures(parts[0], {str(folder): parts[1]})


def _images(folder: Path, manifest: Manifest, bit_depth: int | None) -> Pictures:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if len(files) < 2:
        raise CalibrationError(
            f"{folder} has {len(files)} images (TIFF, PNG, JPEG or BMP), expected at least 2: one half decides the"
            " scales, the other judges them; put frames of your camera there"
        )
    samples, unsaid = [], []
    for file in _spread(files, 2 * MOST_PICTURES):
        read = read_micrograph(file, bit_depth=bit_depth)
        _check_channels(file)
        if read.kind not in (None, "raw"):
            raise CalibrationError(
                f"{file} is {read.kind}, not raw data, and the network is given raw frames; put these into a folder of"
                " their own"
            )
        if read.pages > 1:
            raise CalibrationError(f"{file} is a stack of {read.pages} pictures; save each frame as a file of its own")
        _check_shape(file, read.image.shape, manifest)
        _check_pixel(file, read.pixel_size_nm, manifest)
        samples.append(Sample(read.image, {}))
        if (read.storage_bits, read.bit_depth) == (16, None):
            unsaid.append(float(read.image.max()))
    if unsaid and max(unsaid) < LEAST_OF_16_BITS:
        raise CalibrationError(
            f"{folder}: the brightest count of its 16-bit files is {round(65535 * max(unsaid))} of 65535, as if a"
            " camera of fewer bits had made them; give its --bit-depth (12 for a 12-bit camera, 16 if they are that"
            " dark)"
        )
    half = len(samples) // 2
    return Pictures(samples[:half], {str(folder): samples[half:]})


def _check_contrast(folder: Path, samples: Sequence[Sample]) -> None:
    """Of single pictures nothing is asked: an empty field stands among the frames of any scan."""
    seen = (np.percentile(sample.image, (1, 99)) for sample in samples)
    most = max(float(high - low) for low, high in seen)
    if most < LEAST_CONTRAST:
        raise CalibrationError(
            f"{folder}: nothing is to be seen in {len(samples)} pictures of one half, the most contrast is {most:.3f}"
            f" of full scale, expected at least {LEAST_CONTRAST:g}; give frames of a specimen, in the light it is"
            " looked at"
        )


def _check_channels(file: Path) -> None:
    try:
        with Pillow.open(file) as picture:
            bands = len(picture.getbands())
    except (UnidentifiedImageError, OSError):
        return  # a TIFF of a kind that Pillow does not know: the reader says what is wrong with it, if anything is
    if bands > 1:
        raise CalibrationError(
            f"{file} has {bands} channels, the network is given 1; give frames as the camera delivers them, or convert"
            " them to grey"
        )


def _check_shape(file: Path, shape_px: tuple[int, ...], manifest: Manifest) -> None:
    step, least = manifest.side_multiple_px, manifest.min_side_px
    if min(shape_px) < least or any(side % step for side in shape_px):
        multiples = "" if step == 1 else f" that are multiples of {step} px"
        raise CalibrationError(
            f"{file} is of {' x '.join(map(str, shape_px))} px, {manifest.name} takes sides of at least {least} px"
            f"{multiples}; give frames of the camera it will see"
        )


def _check_pixel(file: Path, pixel_size_nm: float | None, manifest: Manifest) -> None:
    if not manifest.pixel_fits(pixel_size_nm):
        raise CalibrationError(
            f"{file} has pixels of {pixel_size_nm:g} nm, {manifest.name} was trained for {manifest.pixel_size_nm:g} nm"
            f" ({100 * PIXEL_SIZE_TOLERANCE:g} % off is the most it may be); give frames of the microscope it will see"
        )


def _spread(items: Sequence[Any], most: int = MOST_PICTURES) -> list[Any]:
    """At most so many, evenly spread over all."""
    places = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))
    return [items[place] for place in places]


def ranges(
    model: onnx.ModelProto, values: Sequence[str], images: Sequence[Image], method: Method, progress: Progress
) -> dict[str, float]:
    """The largest absolute value of each of `values` that INT8 shall tell apart from the next.

    Parameters
    ----------
    method
        "max": the largest seen. "percentile": the 99.99th, so that rare peaks do not take the levels from the rest.
        "entropy": where the distribution of 128 levels differs least from that of the values (Migacz 2017, "8-bit
        inference with TensorRT"; Kullback-Leibler divergence).
    """
    largest = np.zeros(len(values))
    run = _session(model, values, peaks=True)
    for number, image in enumerate(images):
        progress("measuring ranges", number, len(images))
        largest = np.maximum(largest, [float(peak) for peak in run(image)])
    progress("measuring ranges", len(images), len(images))
    if not np.isfinite(largest).all():
        raise CalibrationError(f"{values[int(np.argmin(np.isfinite(largest)))]} is not finite on these pictures")
    if method != "max":
        # A bin of no width would divide by zero: a value that is always 0 needs no levels.
        tops = np.maximum(largest, np.finfo(np.float32).tiny)
        counts = np.zeros((len(values), _BINS), np.int64)
        run = _session(model, values, peaks=False)
        for number, image in enumerate(images):
            progress("counting values", number, len(images))
            for row, top, found in zip(counts, tops, run(image), strict=True):
                row += np.histogram(np.abs(found), _BINS, (0, top))[0]
        progress("counting values", len(images), len(images))
        cut = _percentile if method == "percentile" else _least_divergence
        largest = tops * [cut(row) for row in counts]
    return dict(zip(values, map(float, largest), strict=True))


def _session(
    model: onnx.ModelProto, values: Sequence[str], *, peaks: bool
) -> Callable[[Image], Sequence[NDArray[np.float32]]]:
    """A function of a picture to those inner values, or to the peak of each."""
    import onnxruntime

    looked_at = onnx.ModelProto()
    looked_at.CopyFrom(model)
    del looked_at.graph.output[:]
    names = list(values)
    if peaks:
        names = [f"{value}/peak" for value in values]
        # Backwards: ONNX Runtime works towards the last node first, so each peak is taken, and its value let go, as
        # soon as it is there. The other way round all values of the network are held until its end.
        for value, peak in zip(reversed(values), reversed(names), strict=True):
            looked_at.graph.node.append(helper.make_node("Abs", [value], [f"{value}/abs"]))
            looked_at.graph.node.append(helper.make_node("ReduceMax", [f"{value}/abs"], [peak], keepdims=0))
    looked_at.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    with tempfile.TemporaryDirectory() as folder:
        # By way of a file: given bytes, the session keeps them, and these may be gigabytes.
        path = Path(folder) / "looked-at.onnx"
        path.write_bytes(looked_at.SerializeToString())
        del looked_at
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (input_name,) = [put.name for put in session.get_inputs()]

    def run(image: Image) -> Sequence[NDArray[np.float32]]:
        found: Sequence[NDArray[np.float32]] = session.run(names, {input_name: image[None, None]})
        return found

    return run


def _percentile(counts: NDArray[np.int64]) -> float:
    """The share of the bins below which that part of the values lies."""
    below = np.cumsum(counts) / max(int(counts.sum()), 1)
    return float(np.searchsorted(below, PERCENTILE / 100) + 1) / _BINS


def _least_divergence(counts: NDArray[np.int64], levels: int = 128) -> float:
    """The share of the bins to keep: what lies above is counted in the last one.

    The bin at 0 is not counted: half of what a ReLU makes is 0, and would outweigh all the rest.
    """
    counts = np.concatenate([counts[1:2], counts[1:]])
    best, kept = np.inf, _BINS
    for end in range(levels, _BINS + 1, levels // 8):
        wanted = counts[:end].astype(np.float64)
        wanted[-1] += counts[end:].sum()
        groups = np.arange(end) * levels // end
        filled = counts[:end] > 0
        sums = np.bincount(groups, counts[:end], levels)
        shares = np.bincount(groups, filled, levels)
        spread = np.where(filled, (sums / np.maximum(shares, 1))[groups], 0.0)
        both = (wanted > 0) & (spread > 0)
        if not both.any():
            continue
        p, q = wanted / wanted.sum(), spread / spread.sum()
        # What the levels cannot show at all counts as one value in all of them.
        q = np.where((wanted > 0) & (spread == 0), 1 / spread.sum(), q)
        divergence = float((p[wanted > 0] * np.log(p[wanted > 0] / q[wanted > 0])).sum())
        if divergence < best:
            best, kept = divergence, end
    return kept / _BINS
