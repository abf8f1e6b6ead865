"""Tiles: they fit together unseen, or are refused with the reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from scipy import ndimage

from edge.config import Config
from edge.daemon import Daemon
from edge.devices import Engine
from edge.engine import find_bundle, load_engine
from edge.engine.openvino import OpenVinoLight
from edge.engine.prepare import Counts
from edge.engine.tiling import TiledEngine, load_tiled, spans
from edge.errors import ConfigError, EngineError
from edge.frames import LAYOUTS, PixelFormat
from export.files import sha256_of
from export.manifest import Bundle, load_bundle, read_manifest, write_manifest
from tests.contracts import random_slot

FULL_SCALE = 65535


def picture(shape: tuple[int, int], *, seed: int = 0) -> np.ndarray:
    """Blobs of every brightness on a slope, so that each tile has a mean of its own; 16 bit."""
    blobs = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1.5) * 4 - 1.5
    sloped = np.clip(blobs, 0, 1) * np.linspace(0.2, 1, shape[1])
    return (sloped * FULL_SCALE).astype(np.uint16)


def run(engine: Engine, frame: np.ndarray) -> dict[str, np.ndarray]:
    slot = engine.allocate(1).acquire(timeout_s=0)
    slot[:] = frame
    return {name: output.copy() for name, output in engine.infer(slot).items()}


def arguments(frame: np.ndarray) -> dict[str, Any]:
    return {"frame_shape_px": frame.shape, "pixel_format": "mono16", "bit_depth": 16, "hint": "f32"}


def load_cut(
    bundle: Bundle,
    *,
    frame_shape_px: tuple[int, int],
    pixel_format: PixelFormat,
    bit_depth: int,
    dark: np.ndarray | None = None,
    flat: np.ndarray | None = None,
    **how: Any,
) -> Engine:
    return load_tiled(bundle, Counts(frame_shape_px, pixel_format, bit_depth, dark, flat), **how)


def difference(model: str, frame: np.ndarray, *, tile_px: int, backend: Any = "openvino") -> float:
    """The largest of any pixel of any output, of full scale; the frame's border is in it."""
    bundle = find_bundle(model)
    whole = run(load_engine(bundle, **arguments(frame), backend=backend), frame)
    engine = load_cut(bundle, **arguments(frame), backend=backend, tile_px=tile_px)
    assert isinstance(engine, TiledEngine)
    tiled = run(engine, frame)
    assert tiled.keys() == whole.keys()
    return max(np.abs(tiled[name] - whole[name].astype(float)).max() for name in whole) / FULL_SCALE


@given(
    length=st.integers(1, 900),
    margin=st.sampled_from([8, 16, 64]),
    room=st.integers(2, 12),
    odd=st.integers(0, 7),
    step=st.sampled_from([8, 24]),
)
def test_an_axis_is_cut_into_equal_overlapping_spans_that_keep_every_pixel_once(
    length: int, margin: int, room: int, odd: int, step: int
) -> None:
    tile = 2 * margin + room * step + odd
    cuts = spans(length, tile_px=tile, margin_px=margin, step_px=step)
    assert [pixel for cut in cuts for pixel in range(cut.first, cut.end)] == list(range(length))
    assert len({cut.stop - cut.start for cut in cuts}) == 1
    assert cuts[0].stop - cuts[0].start <= tile
    for cut in cuts:
        assert cut.start % step == 0
        assert (length - cut.stop) % step == 0
        assert cut.start == 0 or cut.first - cut.start >= margin
        assert cut.stop == length or cut.stop - cut.end >= margin


@pytest.mark.parametrize(
    ("model", "shape"),
    [("enhance-rt", (301, 240)), ("enhance-rt-x2", (250, 243)), ("srcnn", (171, 260)), ("sem-lite", (190, 301))],
)
def test_tiles_are_put_together_to_what_the_whole_frame_gives(model: str, shape: tuple[int, int]) -> None:
    assert difference(model, picture(shape), tile_px=200) <= 1e-4


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(height=st.integers(16, 330), width=st.integers(225, 400), tile_px=st.integers(160, 224), seed=st.integers(0, 9))
def test_frames_of_any_size_and_tiles_of_any_size_show_no_seam(
    height: int, width: int, tile_px: int, seed: int
) -> None:
    assert difference("enhance-rt", picture((height, width), seed=seed), tile_px=tile_px) <= 1e-4


def test_a_network_without_frame_wide_means_is_tiled_by_any_back_end() -> None:
    assert difference("srcnn", picture((90, 140)), tile_px=64, backend="onnxruntime") <= 1e-4


def test_a_tile_by_itself_would_be_in_another_light() -> None:
    """What the test above is worth: without the frame's own mean, the middle of a tile is visibly off."""
    frame = picture((240, 320))
    bundle = find_bundle("enhance-rt")
    whole = run(load_engine(bundle, **arguments(frame)), frame)["enhanced"].astype(float)
    tile = np.ascontiguousarray(frame[:, :200])
    alone = run(load_engine(bundle, **arguments(tile)), tile)["enhanced"]
    assert np.abs(alone - whole[:, :200])[:, 60:140].max() / FULL_SCALE > 5e-3


def test_the_light_of_a_frame_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, infer = [], OpenVinoLight.infer

    def counted(light: OpenVinoLight, pixels: np.ndarray) -> np.ndarray:
        shapes.append(pixels.shape)
        return infer(light, pixels)

    monkeypatch.setattr(OpenVinoLight, "infer", counted)
    frame = picture((240, 320))
    engine = load_cut(find_bundle("enhance-rt"), **arguments(frame), tile_px=200)
    run(engine, frame)
    assert isinstance(engine, TiledEngine)
    assert engine.tiles == 6
    assert shapes == [frame.shape]


def test_every_frame_of_a_series_has_its_own_light() -> None:
    dark, bright = picture((240, 320)) // 4, picture((240, 320), seed=1)
    bundle = find_bundle("enhance-rt")
    tiled, whole = load_cut(bundle, **arguments(dark), tile_px=200), load_engine(bundle, **arguments(dark))
    for frame in (dark, bright, dark):
        found, expected = run(tiled, frame)["enhanced"], run(whole, frame)["enhanced"]
        assert np.abs(found - expected.astype(float)).max() <= 1e-4 * FULL_SCALE


def test_colour_scale_and_several_outputs_go_through_tiles(new_bundle: Callable[..., Path]) -> None:
    bundle = load_bundle(new_bundle(outputs=("enhanced", "colour"), scale=2))
    frame = picture((90, 130))
    engine = load_cut(bundle, **arguments(frame), tile_px=56)
    for _ in range(2):
        outputs = run(engine, frame)
        large = frame.repeat(2, 0).repeat(2, 1)
        np.testing.assert_array_equal(outputs["enhanced"], large)
        np.testing.assert_array_equal(outputs["colour"], np.dstack([large, 0 * large, FULL_SCALE - large]))
    engine.close()
    engine.close()


def test_of_colour_frames_tiles_are_cut_as_well(identity_bundle: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    engine = load_cut(
        load_bundle(identity_bundle), frame_shape_px=(60, 90), pixel_format="rgb8", bit_depth=8, hint="f32", tile_px=48
    )
    np.testing.assert_array_equal(run(engine, frame)["enhanced"], frame[..., 1])


def test_a_frame_that_fits_is_not_cut(identity_bundle: Path) -> None:
    frame = picture((48, 48))
    assert not isinstance(load_cut(load_bundle(identity_bundle), **arguments(frame), tile_px=48), TiledEngine)


def test_a_neural_lens_is_refused_because_it_sees_the_whole_picture(lens_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"depends on the whole picture.*is a neural lens.*--tile-px"):
        load_cut(load_bundle(lens_bundle), **arguments(picture((96, 160))), tile_px=96)


def test_the_frames_light_needs_openvino() -> None:
    with pytest.raises(ConfigError, match=r"mean of the whole frame.*not 'onnxruntime'"):
        load_cut(find_bundle("enhance-rt"), **arguments(picture((96, 360))), tile_px=200, backend="onnxruntime")


@pytest.mark.parametrize("corrected", ["neither", "dark", "flat", "both"])
@pytest.mark.parametrize(
    ("model", "backend"), [("enhance-rt", "openvino"), ("srcnn", "openvino"), ("srcnn", "onnxruntime")]
)
def test_dark_and_flat_are_those_of_the_place(model: str, backend: Any, corrected: str) -> None:
    frame, rng = picture((201, 260)), np.random.default_rng(5)
    dark = rng.uniform(0, 0.1 * FULL_SCALE, frame.shape).astype(np.float32) if corrected in ("dark", "both") else None
    flat = rng.uniform(0.6, 1.4, frame.shape).astype(np.float32) if corrected in ("flat", "both") else None
    given = {**arguments(frame), "dark": dark, "flat": flat, "backend": backend}
    whole = run(load_engine(find_bundle(model), **given), frame)["enhanced"].astype(float)
    engine = load_cut(find_bundle(model), **given, tile_px=200)
    assert isinstance(engine, TiledEngine)
    for _ in range(2):  # the first tile of the second frame has its own part again, not the last one's
        assert np.abs(run(engine, frame)["enhanced"] - whole).max() / FULL_SCALE <= 1e-4
    if corrected != "neither":
        plain = run(load_engine(find_bundle(model), **arguments(frame), backend=backend), frame)["enhanced"]
        assert np.abs(plain - whole).max() / FULL_SCALE > 1e-2


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("pixel_format", LAYOUTS)
def test_frames_of_every_format_are_cut(pixel_format: PixelFormat, corrected: bool) -> None:
    shape, depth, rng = (187, 263), LAYOUTS[pixel_format].depth, np.random.default_rng(6)
    dark = rng.uniform(0, 0.1 * (1 << depth), shape).astype(np.float32) if corrected else None
    flat = rng.uniform(0.6, 1.4, shape).astype(np.float32) if corrected else None
    frame = random_slot(Counts(shape, pixel_format, depth))
    given: dict[str, Any] = {"frame_shape_px": shape, "pixel_format": pixel_format, "bit_depth": depth, "hint": "f32"}
    for model in ("srcnn", "enhance-rt"):
        engines = [load(find_bundle(model), **given, dark=dark, flat=flat) for load in (load_engine, tiled)]
        whole, cut = (run(engine, frame)["enhanced"].astype(float) for engine in engines)
        # Counts are whole numbers: of 8 bits, one is more than 1e-4 of full scale, where both stand at a half.
        allowed = max(1.0, 1e-4 * ((1 << depth) - 1))
        assert np.abs(cut - whole).max() <= allowed
        assert (cut != whole).mean() < 0.01


def tiled(bundle: Bundle, **given: Any) -> Engine:
    engine = load_cut(bundle, **given, tile_px=184)
    assert isinstance(engine, TiledEngine)
    assert engine.copies_per_frame == 2
    return engine


def test_a_gpu_cannot_change_dark_and_flat_between_tiles() -> None:
    frame = picture((90, 140))
    given = {**arguments(frame), "dark": np.zeros(frame.shape, np.float32), "backend": "tensorrt"}
    with pytest.raises(ConfigError, match=r"into the GPU's memory once.*--tile-px"):
        load_cut(find_bundle("srcnn"), **given, tile_px=64)


@pytest.mark.parametrize(("model", "copies"), [("srcnn", 2), ("neural-lens-mini", 0)])
def test_a_live_view_of_large_frames_is_tiled_where_the_model_can_be(
    model: str, copies: int, small_specimen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.engine.tiling.TILE_PX", 128)
    config = Config.model_validate(
        {
            "camera": {"shape_px": (256, 512), "fps": 200},
            "engine": {"model": model, "hint": "f32"},
            "specimen": {"path": str(small_specimen), "pixel_size_nm": find_bundle(model).manifest().pixel_size_nm},
            "sphere": {"field_um": None},
        }
    )
    daemon = Daemon(config)
    try:
        daemon.start_live(frames=2)
        daemon.wait(until_job_ends=True)
        status = daemon.board.status()
        assert (status.flow.frames, status.flow.copies_per_frame, status.flow.passes_per_frame) == (2, copies, 0)
        preview = daemon.board.preview()
        assert preview is not None
        assert simplejpeg.decode_jpeg_header(preview.jpeg)[:2] == (256, 2 * 512)
    finally:
        daemon.close()


def test_a_tile_that_would_be_thrown_away_whole_is_refused_with_the_least_one() -> None:
    frame = picture((160, 360))
    with pytest.raises(ConfigError, match=r"64 px along each seam.*at least 144 px"):
        load_cut(find_bundle("enhance-rt"), **arguments(frame), tile_px=143)
    assert difference("enhance-rt", frame, tile_px=144) <= 1e-4


def test_attention_over_the_whole_frame_is_refused(identity_bundle: Path, tmp_path: Path) -> None:
    """A mean that is used at full size, as in squeeze and excite: there is no small picture to hand to the tiles."""
    folder = shutil.copytree(identity_bundle, tmp_path / "attention")
    path = folder / "gain_fp32.onnx"
    model = onnx.load(str(path))
    nodes = [helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3]), *model.graph.node]
    nodes[1].input[1] = "mean"
    nodes[3] = helper.make_node("Identity", ["small"], ["enhanced"])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(path))
    manifest = read_manifest(folder / "fp32.json").model_copy(update={"sha256": sha256_of(path)})
    write_manifest(manifest, folder / "fp32.json")
    with pytest.raises(ConfigError, match="depends on the whole picture"):
        load_cut(load_bundle(folder), **arguments(picture((90, 130))), tile_px=64)


def test_a_frame_that_is_no_slot_of_it_is_refused_also_after_closing() -> None:
    frame = picture((300, 200))
    engine = load_cut(find_bundle("srcnn"), **arguments(frame), tile_px=128)
    slot = engine.allocate(1).slots[0]
    with pytest.raises(EngineError, match="no slot of"):
        engine.infer(frame)
    engine.close()
    with pytest.raises(EngineError, match="no slot of"):
        engine.infer(slot)
