"""Image files in: one image, a folder of images, a TIFF stack or an .npz, as a stack of frames of one shape and format.

Nothing is converted silently. Integers stay counts; float images must lie in 0..1 and become 16-bit counts; colour is
refused unless its channels are equal.
"""

from __future__ import annotations

import json
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from edge.errors import ConfigError
from edge.frames import PixelFormat

ResultT = TypeVar("ResultT")

TIFF_SUFFIXES = (".tif", ".tiff")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", *TIFF_SUFFIXES)
_NM = {"nm": 1.0, "µm": 1e3, "um": 1e3, "mm": 1e6}
_MODES = ("L", "I;16", "I;16B", "I;16L", "RGB", "RGBA", "LA", "P", "F")
"""What Pillow may find in a file. In others (CMYK, YCbCr, Lab) a channel is not a level of light."""
_DAMAGED = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, IndexError, MemoryError),
    *(zlib.error, zipfile.BadZipFile, tifffile.TiffFileError, Image.DecompressionBombError),
)
"""What the readers raise on files that are damaged, cut off, or bombs."""
_SUPPORTED = f"supported are {', '.join(IMAGE_SUFFIXES)} and .npz, 8 or 16 bit or float 0..1, one channel"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a file says of itself: its pixel on the specimen (OME PhysicalSizeX), and in a file of ours whether it is
    simulated.
    """

    pixel_size_nm: float | None = None
    simulated: bool = False


@dataclass(frozen=True, slots=True)
class Stack:
    """Frames of one shape and format.

    ``read(i)`` gives frame ``i`` as a (height, width) array of counts and refuses one that does not fit. ``bit_depth``
    is that of the counts. ``passes`` counts the conversions a read costs (1 for float images). Who opens it closes it.
    """

    source: Path
    length: int
    shape: tuple[int, int]
    format: PixelFormat
    bit_depth: int
    passes: int
    read: Callable[[int], NDArray[Any]]
    close: Callable[[], None]
    origin: Origin


def open_stack(path: Path, *, bit_depth: int | None = None) -> Stack:
    """Open ``path`` as a stack.

    Parameters
    ----------
    bit_depth
        Of the counts, when it is less than the file's storage (12-bit data in 16-bit files); None: the dtype's own.

    Raises
    ------
    ConfigError
        Missing, empty, of an unsupported kind, colour, with NaN, outside 0..1, or with counts above the bit depth.
    """
    load, length, close = _loader(path)
    with ExitStack() as closing:
        closing.callback(close)
        stack = _checked_stack(path, load, length, close, bit_depth)
        stack.read(0)
        closing.pop_all()
    return stack


def _checked_stack(
    path: Path,
    load: Callable[[int], NDArray[Any]],
    length: int,
    close: Callable[[], None],
    bit_depth: int | None,
) -> Stack:
    first = load(0)
    passes = int(first.dtype.kind == "f")
    if first.dtype not in (np.uint8, np.uint16):
        first = _float_counts(first, path, 0)
    pixel_format: PixelFormat = "mono8" if first.dtype == np.uint8 else "mono16"
    storage_bits = 8 * first.dtype.itemsize
    depth = storage_bits if bit_depth is None else bit_depth
    if not 1 <= depth <= storage_bits:
        raise ConfigError(
            f"{path} has {storage_bits}-bit pixels, which cannot hold a bit depth of {depth}. "
            f"Leave --bit-depth out, or give 1 to {storage_bits}."
        )

    def read(index: int) -> NDArray[Any]:
        pixels = load(index)
        if pixels.dtype.kind == "f":
            pixels = _float_counts(pixels, path, index)
        if pixels.shape != first.shape or pixels.dtype != first.dtype:
            raise ConfigError(
                f"Frame {index} of {path} is {_describe(pixels)}, the first is {_describe(first)}. "
                "All frames of a replay have one shape and type; put the others elsewhere."
            )
        if depth < storage_bits and int(pixels.max()) >> depth:
            raise ConfigError(
                f"Frame {index} of {path} has counts up to {pixels.max()}, above the full scale {(1 << depth) - 1} of "
                f"bit depth {depth}. Give the camera's true --bit-depth, or leave it out."
            )
        return pixels

    height, width = first.shape
    return Stack(path, length, (height, width), pixel_format, depth, passes, read, close, _origin(path))


def _origin(path: Path) -> Origin:
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return Origin()

    def read() -> Origin:
        with tifffile.TiffFile(path) as file:
            if file.ome_metadata is None:
                return Origin()
            images = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
        image = images[0] if isinstance(images, list) else images
        size, unit = image["Pixels"].get("PhysicalSizeX"), image["Pixels"].get("PhysicalSizeXUnit", "µm")
        size_nm = None if size is None or unit not in _NM else float(size) * _NM[unit]
        words = image.get("Description", "")
        facts = json.loads(words) if isinstance(words, str) and words.startswith("{") else {}
        return Origin(size_nm, bool(facts.get("simulated")))

    return _translated(path, read)


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder, by name.

    Raises
    ------
    ConfigError
        There are none.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ConfigError(f"The folder {folder} holds no image; {_SUPPORTED}.")
    return files


def _loader(path: Path) -> tuple[Callable[[int], NDArray[Any]], int, Callable[[], None]]:
    """A function that loads frame i unchecked but with one channel, the number of frames, and what closes the file."""
    if not path.exists():
        raise ConfigError(f"There is no file or folder {path}. Check the path.")
    if path.is_dir():
        files = list_images(path)
        return lambda index: _one_channel(_read_file(files[index]), files[index]), len(files), _nothing_to_close
    suffix = path.suffix.lower()
    if suffix == ".npz":
        frames = _read_npz(path)
        return lambda index: frames[index], len(frames), _nothing_to_close
    if suffix in TIFF_SUFFIXES:
        file = _translated(path, lambda: tifffile.TiffFile(path))
        pages = _translated(path, lambda: file.pages[:])  # walks the chain of pages: a damaged file shows here
        return lambda index: _one_channel(_translated(path, pages[index].asarray), path), len(pages), file.close
    image = _one_channel(_read_file(path), path)
    return lambda index: image, 1, _nothing_to_close


def _nothing_to_close() -> None:
    """The file was read whole."""


def _read_npz(path: Path) -> NDArray[Any]:
    def load() -> dict[str, NDArray[Any]]:
        if not zipfile.is_zipfile(path):
            raise TypeError("it is no .npz archive")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    arrays = _translated(path, load)
    name = "images" if "images" in arrays else next(iter(arrays), "")
    if name != "images" and len(arrays) != 1:
        raise ConfigError(
            f"{path} holds the arrays {', '.join(arrays) or 'none'}: expected one array, or one called 'images'."
        )
    frames: NDArray[Any] = arrays[name]
    if not frames.size:
        raise ConfigError(f"The array {name!r} of {path} is empty.")
    if frames.ndim == 2:
        frames = frames[np.newaxis]
    if frames.ndim != 3 or not len(frames):
        raise ConfigError(f"The array {name!r} of {path} has shape {frames.shape}: expected (frames, height, width).")
    return frames


def _read_file(path: Path) -> NDArray[Any]:
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise ConfigError(f"{path} is of an unsupported kind; {_SUPPORTED}.")
    if suffix in TIFF_SUFFIXES:
        return _translated(path, lambda: np.asarray(tifffile.imread(path, key=0)))

    def load() -> NDArray[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice as large is an error
            with Image.open(path) as image:
                if image.mode not in _MODES:
                    raise ValueError(f"its pixels are {image.mode}, which is no grey level")
                return np.asarray(image.convert("RGB") if image.mode == "P" else image)

    return _translated(path, load)


def _translated(path: Path, load: Callable[[], ResultT]) -> ResultT:
    """Run a reader of a library; whatever it raises on a damaged file becomes one error of ours."""
    try:
        return load()
    except _DAMAGED as exc:
        raise ConfigError(f"{path} cannot be read as an image ({exc}); {_SUPPORTED}.") from exc


def _one_channel(pixels: NDArray[Any], path: Path) -> NDArray[Any]:
    if pixels.ndim == 3 and pixels.shape[2] in (2, 3, 4):
        colours = pixels[..., : min(3, pixels.shape[2])] if pixels.shape[2] > 2 else pixels[..., :1]
        if np.any(colours != colours[..., :1]):
            raise ConfigError(f"{path} is a colour image, the model takes one channel. Save it as greyscale first.")
        pixels = np.ascontiguousarray(colours[..., 0])
    if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16, np.float32, np.float64):
        raise ConfigError(f"{path} is {_describe(pixels)}; {_SUPPORTED}.")
    return pixels


def _float_counts(pixels: NDArray[Any], path: Path, index: int) -> NDArray[np.uint16]:
    if pixels.dtype.kind != "f":
        raise ConfigError(f"{path} is {_describe(pixels)}; {_SUPPORTED}.")
    low, high = float(pixels.min()), float(pixels.max())  # NaN spreads into both
    if not (low >= 0 and high <= 1):
        found = "has NaN pixels" if np.isnan(low) or np.isnan(high) else f"has values from {low:g} to {high:g}"
        raise ConfigError(f"Frame {index} of {path} {found}: float images must lie in 0..1. Rescale and save it again.")
    return np.asarray(np.rint(pixels * np.float32(65535)), np.uint16)


def _describe(pixels: NDArray[Any]) -> str:
    return f"{' x '.join(map(str, pixels.shape))} px of {pixels.dtype}"
