"""Enhancing files: what `superlens enhance` does. The same engine as the live loop, one image at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge import __version__
from edge.config import EngineConfig
from edge.devices import Engine
from edge.engine import check_pixel_size, check_shape, find_bundle, manifest_of
from edge.engine.prepare import Counts
from edge.engine.tiling import TILE_PX, check_tiles, load_tiled
from edge.errors import ConfigError
from edge.frames import FramePool
from edge.images import IMAGE_SUFFIXES, Stack, list_images, open_stack
from edge.ometiff import enhanced_kind, enhanced_words, write_ome_tiff
from export.manifest import Bundle, Manifest


def enhance_files(
    sources: Sequence[Path],
    out: Path,
    engine: EngineConfig,
    *,
    bit_depth: int | None,
    pixel_size_nm: float | None,
    resample: bool,
    tile_px: int = TILE_PX,
) -> dict[str, Any]:
    """Enhance every image of ``sources`` (files, folders, stacks) into ``out/<name>_enhanced.ome.tif``.

    A model of several outputs makes a file of each, ``out/<name>_enhanced_<output>.ome.tif``. Every source is opened
    and every name checked before the first result is written. Images with a side above ``tile_px`` are enhanced in
    tiles of that side, without seams; see `edge.engine.tiling`.

    Returns
    -------
    What was written, per image, and what did it.

    Raises
    ------
    ConfigError
        A source cannot be read or does not fit the model, a result exists already, the pixel size is too far off, or
        an image is too large for a model that cannot be tiled.
    """
    bundle = find_bundle(engine.model)
    manifest = manifest_of(bundle, engine.precision)
    if pixel_size_nm is not None and not 0 < pixel_size_nm < np.inf:
        raise ConfigError(f"--pixel-size-nm is {pixel_size_nm:g}: expected a positive number of nm.")
    with ExitStack() as closing:
        tasks = []
        for path in _files(sources):
            stack = open_stack(path, bit_depth=bit_depth)
            closing.callback(stack.close)
            tasks.append(_task(stack, out, bundle, engine, pixel_size_nm, resample))
            _check_tiles(tasks[-1], bundle, engine, tile_px)
        targets = [target for task in tasks for target in task.targets.values()]
        for target in targets:
            if target.exists() or targets.count(target) > 1:
                raise ConfigError(f"{target} exists, or two sources would write it. Choose another --out.")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(f"The folder {out} cannot be made: {exc}. Choose another --out.") from exc
        return _run(tasks, bundle, manifest, engine, tile_px)


@dataclass(frozen=True, slots=True)
class _Task:
    stack: Stack
    targets: Mapping[str, Path]  # a file for each output
    shape: tuple[int, int]  # as the network sees it
    pixel_size_nm: float | None  # of the result


def _task(
    stack: Stack, out: Path, bundle: Bundle, engine: EngineConfig, given_nm: float | None, resample: bool
) -> _Task:
    """Check all that can be wrong with one source, every frame included, before anything is written."""
    manifest = manifest_of(bundle, engine.precision)
    size_nm = given_nm if given_nm is not None else stack.origin.pixel_size_nm
    zoom = 1.0
    if resample:
        if size_nm is None:
            raise ConfigError(f"--resample needs --pixel-size-nm: {stack.source} does not say its scale.")
        zoom = size_nm / manifest.pixel_size_nm
    else:
        remedy = "Add --resample to bring them to the model's, or correct --pixel-size-nm."
        check_pixel_size(bundle, engine.precision, size_nm, remedy=remedy)
    shape = (round(stack.shape[0] * zoom), round(stack.shape[1] * zoom))
    check_shape(manifest, shape, what=str(stack.source))
    for index in range(stack.length):
        stack.read(index)
    targets = {name: _target(out, stack, enhanced_kind(manifest, name)) for name in manifest.output_names}
    return _Task(stack, targets, shape, None if size_nm is None else size_nm / zoom / manifest.scale)


def _check_tiles(task: _Task, bundle: Bundle, engine: EngineConfig, tile_px: int) -> None:
    if max(task.shape) <= tile_px:
        return
    try:
        check_tiles(bundle, engine.precision, backend=engine.backend, tile_px=tile_px)
    except ConfigError as exc:
        height, width = task.shape
        raise ConfigError(
            f"{task.stack.source} is {height} x {width} px as the model sees it, above {tile_px} px along a side. {exc}"
        ) from exc


def _run(
    tasks: Sequence[_Task], bundle: Bundle, manifest: Manifest, engine: EngineConfig, tile_px: int
) -> dict[str, Any]:
    images = []
    loaded: tuple[tuple[Any, ...], Engine, FramePool] | None = None
    for task in tasks:
        stack = task.stack
        key = (task.shape, stack.format, stack.bit_depth)
        if loaded is None or loaded[0] != key:
            loaded = (key, *_load(bundle, engine, key, tile_px))
        _, runner, pool = loaded
        facts = {
            "kind": "enhanced",
            "source": str(stack.source),
            "simulated": stack.origin.simulated,
            "model": manifest.name,
            "model_sha256": manifest.sha256,
            "trained_on": manifest.training_data,
            "backend": runner.backend,
            "precision": runner.precision,
            "bit_depth": stack.bit_depth,
            "pixel_size_nm": task.pixel_size_nm if task.pixel_size_nm is not None else "unknown",
            "source_shape_px": stack.shape,
            "software": f"superlens {__version__}",
        }
        frames = [_enhance(runner, pool, stack.read(i), task.shape) for i in range(stack.length)]
        for output, target in task.targets.items():
            label = enhanced_words(manifest, output)
            names = (label,) if stack.length == 1 else tuple(f"{label}, frame {i}" for i in range(stack.length))
            write_ome_tiff(
                target,
                np.stack([frame[output] for frame in frames]),
                channels=names,
                pixel_size_nm=task.pixel_size_nm,
                facts={**facts, "output": output},
            )
        first = manifest.output_names[0]
        images.append(
            {
                "source": stack.source,
                "enhanced": task.targets[first],
                "outputs": task.targets,
                "frames": stack.length,
                "shape_px": frames[0][first].shape[:2],
                "pixel_size_nm": task.pixel_size_nm,
                "pixel_size": "known" if task.pixel_size_nm is not None else "pixel size unknown",
                "simulated": stack.origin.simulated,
            }
        )
    assert loaded is not None  # noqa: S101  an empty list of sources was refused
    return {
        "images": images,
        "model": manifest.name,
        "backend": loaded[1].backend,
        "precision": loaded[1].precision,
    }


def _files(sources: Sequence[Path]) -> Iterator[Path]:
    """Folders are opened up: their images may differ in size."""
    for source in sources:
        if source.is_dir():
            yield from list_images(source)
        else:
            yield source


def _target(out: Path, stack: Stack, kind: str) -> Path:
    stem = stack.source.name
    for suffix in (".ome.tif", ".ome.tiff", *IMAGE_SUFFIXES, ".npz"):
        if stem.lower().endswith(suffix):
            stem = stem[: -len(suffix)]
            break
    return out / f"{stem}_{kind}.ome.tif"


def _load(bundle: Bundle, engine: EngineConfig, key: tuple[Any, ...], tile_px: int) -> tuple[Engine, FramePool]:
    runner = load_tiled(
        bundle,
        Counts(*key),
        backend=engine.backend,
        precision=engine.precision,
        hint=engine.hint,
        tile_px=tile_px,
    )
    return runner, runner.allocate(1)


def _enhance(runner: Engine, pool: FramePool, pixels: NDArray[Any], shape: tuple[int, int]) -> dict[str, NDArray[Any]]:
    slot = pool.acquire(timeout_s=0)
    try:
        slot[:] = pixels if pixels.shape == shape else _resampled(pixels, shape)
        return {name: output.copy() for name, output in runner.infer(slot).items()}
    finally:
        pool.release(slot)


def _resampled(pixels: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Bicubic, with the area of a pixel averaged when it shrinks (Pillow's filter widens with the ratio)."""
    height, width = shape
    resized = Image.fromarray(pixels.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    # Bicubic overshoots at edges by a few percent; counts beyond the type's range do not exist.
    limits = np.iinfo(pixels.dtype)
    return np.asarray(np.rint(np.asarray(resized)).clip(limits.min, limits.max), pixels.dtype)
