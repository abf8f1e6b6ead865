"""What every implementation of a Protocol must do: one class each, run on simulators and on hardware alike.

A test module subclasses the contract and gives the fixture that makes the device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge.devices import Camera, Engine, Positioner, Trigger
from edge.engine.prepare import Counts, full_scale, one_channel
from edge.errors import CameraError, CameraTimeoutError, EngineError
from edge.frames import DTYPE, LAYOUTS, FramePool, PixelFormat, aligned_empty, slot_shape
from export.manifest import TensorSpec
from firmware_bridge.errors import RefusedError
from firmware_bridge.pzt import PositionUm


def pool_for(camera: Camera, slots: int = 3) -> FramePool:
    """A pool of plain memory for a camera under test."""
    shape = slot_shape(camera.format, camera.shape)
    return FramePool([aligned_empty(shape, DTYPE[camera.format]) for _ in range(slots)])


def random_slot(counts: Counts, *, seed: int = 0) -> NDArray[Any]:
    """A frame as a camera leaves it in a slot, with every count its bit depth has."""
    rng = np.random.default_rng(seed)
    layout = LAYOUTS[counts.pixel_format]
    if not layout.packed:
        return rng.integers(0, 1 << counts.bit_depth, counts.slot_shape).astype(layout.slot)
    return packed(rng.integers(0, 1 << counts.bit_depth, counts.shape_px), layout.bits)


def packed(counts: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Counts (h, w) as PFNC's packed rows, one bit after the other: the slow way, to be compared with."""
    stream = (counts[..., np.newaxis] >> np.arange(bits) & 1).astype(np.uint8).reshape(len(counts), -1)
    return np.packbits(stream, axis=1, bitorder="little")


class CameraContract:
    """Needs a fixture ``camera``: free-running, able to deliver at least five frames."""

    def test_it_fills_the_memory_it_is_given(self, camera: Camera) -> None:
        pool = pool_for(camera)
        camera.start(pool, exposure_s=0.005, triggered=False)
        frame = camera.next_frame(timeout_s=5)
        assert any(frame.pixels is slot for slot in pool.slots)
        assert frame.pixels.shape == slot_shape(camera.format, camera.shape)
        counts = one_channel(frame.pixels, camera.format, camera.shape[1])
        assert int(counts.max()) <= full_scale(camera.bit_depth)

    def test_frames_are_numbered_in_order_and_stamped_with_a_growing_time(self, camera: Camera) -> None:
        pool = pool_for(camera)
        camera.start(pool, exposure_s=0.005, triggered=False)
        seen = []
        for _ in range(5):
            frame = camera.next_frame(timeout_s=5)
            seen.append((frame.index, frame.t_exposure_end_ns))
            pool.release(frame.pixels)
        assert seen == sorted(set(seen))
        assert seen[0][0] == 0

    def test_a_pool_that_nobody_empties_is_a_timeout_and_loses_no_slot(self, camera: Camera) -> None:
        pool = pool_for(camera, slots=1)
        camera.start(pool, exposure_s=0.005, triggered=False)
        held = camera.next_frame(timeout_s=5)
        with pytest.raises(CameraTimeoutError, match="slots"):
            camera.next_frame(timeout_s=0.01)
        pool.release(held.pixels)
        assert pool.free == 1

    def test_a_camera_that_was_not_started_says_so(self, camera: Camera) -> None:
        with pytest.raises(CameraError, match="not started"):
            camera.next_frame(timeout_s=0.01)

    def test_it_starts_again_after_a_stop(self, camera: Camera) -> None:
        for _ in range(2):
            camera.start(pool_for(camera), exposure_s=0.005, triggered=False)
            assert camera.next_frame(timeout_s=5).index == 0
            camera.stop()

    def test_closing_twice_is_harmless(self, camera: Camera) -> None:
        camera.close()
        camera.close()


def _spec(name: str, channels: int = 1, dtype: Any = "float32") -> TensorSpec:
    return TensorSpec(name=name, shape=(1, channels, "height", "width"), dtype=dtype, range=(0, 1))


class EngineContract:
    """Needs a fixture ``load``: ``load(bundle, **arguments)`` gives an engine.

    ``bundle`` is what the network does: ``gain`` it multiplies by, ``outputs`` it has of ``enhanced``, ``inverted`` and
    ``colour``, ``scale`` by which it repeats pixels.
    """

    @pytest.mark.parametrize(
        ("pixel_format", "bit_depth"), [("mono8", 8), ("mono16", 16), ("mono16", 12), ("mono8", 7)]
    )
    def test_counts_come_back_as_they_went_in_through_an_identity(
        self, load: Callable[..., Engine], pixel_format: str, bit_depth: int
    ) -> None:
        engine = load(pixel_format=pixel_format, bit_depth=bit_depth, hint="f32", frame_shape_px=(31, 47))
        pool = engine.allocate(2)
        for seed in range(3):
            slot = pool.acquire(timeout_s=0)
            slot[:] = np.random.default_rng(seed).integers(0, 1 << bit_depth, (31, 47))
            (output,) = engine.infer(slot).values()
            np.testing.assert_array_equal(output, slot)
            assert output.dtype == slot.dtype
            pool.release(slot)

    def test_the_clamp_of_the_graph_is_full_scale(self, load: Callable[..., Engine]) -> None:
        engine = load({"gain": 2.0}, hint="f32")
        slot = engine.allocate(1).acquire(timeout_s=0)
        slot[:] = 200
        (output,) = engine.infer(slot).values()
        assert output.min() == output.max() == 255

    def test_it_reads_the_slot_and_not_a_copy_of_an_earlier_one(self, load: Callable[..., Engine]) -> None:
        engine = load(hint="f32")
        slot = engine.allocate(1).acquire(timeout_s=0)
        for level in (10, 20):
            slot[:] = level
            (output,) = engine.infer(slot).values()
            assert output.max() == level

    @pytest.mark.parametrize("names", [("enhanced",), ("enhanced", "colour", "inverted"), ("inverted", "enhanced")])
    def test_outputs_are_named_and_ordered_as_in_the_manifest(
        self, load: Callable[..., Engine], names: tuple[str, ...]
    ) -> None:
        engine = load({"outputs": names}, hint="f32")
        slot = engine.allocate(1).acquire(timeout_s=0)
        slot[:] = 50
        outputs = engine.infer(slot)
        assert tuple(outputs) == engine.manifest.output_names == names
        assert outputs["enhanced"].mean() == 50
        assert outputs.get("inverted", np.array(205)).mean() == 205

    @pytest.mark.parametrize("scale", [1, 2])
    @pytest.mark.parametrize(("pixel_format", "bit_depth"), [("mono8", 8), ("mono16", 12)])
    def test_colour_is_height_width_three_in_one_piece(
        self, load: Callable[..., Engine], pixel_format: str, bit_depth: int, scale: int
    ) -> None:
        bundle = {"outputs": ("enhanced", "colour"), "scale": scale}
        engine = load(bundle, pixel_format=pixel_format, bit_depth=bit_depth, hint="f32", frame_shape_px=(31, 47))
        slot = engine.allocate(1).acquire(timeout_s=0)
        slot[:] = np.random.default_rng(4).integers(0, 1 << bit_depth, (31, 47))
        large = slot.repeat(scale, 0).repeat(scale, 1)
        outputs = engine.infer(slot)
        np.testing.assert_array_equal(outputs["enhanced"], large)
        colour = outputs["colour"]
        assert colour.flags.c_contiguous
        assert colour.dtype == slot.dtype
        np.testing.assert_array_equal(colour, np.dstack([large, 0 * large, full_scale(bit_depth) - large]))

    def test_dark_and_flat_are_applied_as_the_reference_says(self, load: Callable[..., Engine]) -> None:
        rng = np.random.default_rng(1)
        dark = rng.uniform(0, 20, (32, 48)).astype(np.float32)
        flat = rng.uniform(0.5, 1.5, (32, 48)).astype(np.float32)
        engine = load(hint="f32", dark=dark, flat=flat, frame_shape_px=(32, 48))
        slot = engine.allocate(1).acquire(timeout_s=0)
        slot[:] = rng.integers(30, 120, slot.shape)
        expected = np.clip((slot - dark) / flat, 0, 255)
        (output,) = engine.infer(slot).values()
        assert np.abs(output - expected).max() <= 0.5 + 255e-4

    @pytest.mark.parametrize("corrected", [False, True])
    @pytest.mark.parametrize("pixel_format", LAYOUTS)
    def test_every_format_is_prepared_as_the_reference_says(
        self, load: Callable[..., Engine], pixel_format: PixelFormat, corrected: bool
    ) -> None:
        rng = np.random.default_rng(2)
        shape, depth = (21, 43), LAYOUTS[pixel_format].depth
        limit = full_scale(depth)
        dark = rng.uniform(0, 0.1 * limit, shape).astype(np.float32) if corrected else None
        flat = rng.uniform(0.5, 1.5, shape).astype(np.float32) if corrected else None
        counts = Counts(shape, pixel_format, depth, dark, flat)
        engine = load(
            frame_shape_px=shape, pixel_format=pixel_format, bit_depth=depth, hint="f32", dark=dark, flat=flat
        )
        pool, reference = engine.allocate(2), np.empty(shape, np.float32)
        for seed in range(3):
            slot = pool.acquire(timeout_s=0)
            slot[:] = random_slot(counts, seed=seed)
            counts.to_network(slot, reference)
            (output,) = engine.infer(slot).values()
            assert output.dtype == LAYOUTS[pixel_format].result
            assert np.abs(output - reference.clip(0, 1) * limit).max() <= 0.5 + 1e-4 * limit
            pool.release(slot)

    @pytest.mark.parametrize(
        ("told", "words"),
        [
            ({"inputs": (_spec("frame"),)}, "has the tensors enhanced, image, its manifest enhanced, frame"),
            ({"outputs": (_spec("sharp"),)}, "has the tensors enhanced, image, its manifest image, sharp"),
            ({"outputs": (_spec("enhanced"), _spec("more"))}, "its manifest enhanced, image, more"),
            ({"inputs": (_spec("image", 3),)}, r"image of .* 1 x 1 x .*says 1 x 3 x 32 x 48"),
            ({"scale": 2}, r"enhanced of .* 1 x 1 x 32 x 48 for frames of 32 x 48 px.*says 1 x 1 x 64 x 96"),
            ({"outputs": (_spec("enhanced", 3),)}, r"enhanced of .* 1 x 1 x .*says 1 x 3 x 32 x 48"),
            ({"outputs": (_spec("enhanced", dtype="uint8"),)}, r"enhanced of .* is float32, its manifest says uint8"),
        ],
    )
    def test_a_manifest_and_a_file_that_disagree_are_refused_when_the_engine_is_made(
        self, load: Callable[..., Engine], told: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(EngineError, match=rf"{words}.*superlens-export convert"):
            load({"told": told}, frame_shape_px=(32, 48))

    @pytest.mark.parametrize("pixel_format", ["mono8", "mono12p"])
    def test_a_frame_that_is_no_slot_of_it_is_refused_also_after_closing(
        self, load: Callable[..., Engine], pixel_format: PixelFormat
    ) -> None:
        engine = load(pixel_format=pixel_format, bit_depth=LAYOUTS[pixel_format].depth)
        slot = engine.allocate(2).slots[1]
        for foreign in (slot.copy(), np.zeros((8, 8), slot.dtype)):
            with pytest.raises(EngineError, match="no slot of"):
                engine.infer(foreign)
        engine.infer(slot)
        engine.close()
        with pytest.raises(EngineError, match="close"):
            engine.infer(slot)

    def test_closing_twice_is_harmless(self, load: Callable[..., Engine]) -> None:
        engine = load()
        engine.close()
        engine.close()


class TriggerContract:
    """Needs fixtures ``trigger`` and ``pulses``: the list that the other end of the line grows by one a pulse."""

    def test_one_fire_is_one_pulse_and_it_was_sent_when_fire_returns(
        self, trigger: Trigger, pulses: list[object]
    ) -> None:
        for expected in (1, 2, 3):
            trigger.fire()
            assert len(pulses) == expected

    def test_closing_twice_is_harmless(self, trigger: Trigger) -> None:
        trigger.close()
        trigger.close()


class PositionerContract:
    """Needs a fixture ``stage``: ready to move, with at least 2 um of room around the middle of its limits."""

    def test_it_is_at_rest_near_its_target_when_a_move_returns(self, stage: Positioner) -> None:
        target_um = stage.limits_um.centre
        assert stage.move_to(target_um) == pytest.approx(target_um, abs=0.05)
        assert stage.position_um() == pytest.approx(target_um, abs=0.05)

    def test_a_target_out_of_range_is_refused_and_nothing_moves(self, stage: Positioner) -> None:
        before_um = stage.move_to(stage.limits_um.centre)
        beyond_um = stage.limits_um.high._replace(x=stage.limits_um.high.x + 1)
        for target_um in (
            beyond_um,
            PositionUm(float("nan"), *before_um[1:]),
            PositionUm(float("inf"), *before_um[1:]),
        ):
            with pytest.raises(RefusedError):
                stage.move_to(target_um)
        assert stage.position_um() == pytest.approx(before_um, abs=0.05)

    def test_no_move_of_a_series_begins_once_the_series_has_ended(self, stage: Positioner) -> None:
        before_um, ended = stage.move_to(stage.limits_um.centre), threading.Event()
        ended.set()
        with pytest.raises(RefusedError):
            stage.move_to(before_um._replace(x=before_um.x + 1), unless=ended)
        assert stage.position_um() == pytest.approx(before_um, abs=0.05)

    def test_it_holds_after_a_stop_and_moves_again_when_asked(self, stage: Positioner) -> None:
        here_um = stage.move_to(stage.limits_um.centre)
        stage.stop()
        assert stage.position_um() == pytest.approx(here_um, abs=0.05)
        assert stage.move_to(here_um._replace(x=here_um.x + 1)).x == pytest.approx(here_um.x + 1, abs=0.05)

    def test_parking_brings_z_to_its_minimum(self, stage: Positioner) -> None:
        stage.move_to(stage.limits_um.centre)
        stage.park()
        assert stage.position_um().z == pytest.approx(stage.limits_um.low.z, abs=0.05)

    def test_closing_twice_is_harmless(self, stage: Positioner) -> None:
        stage.close()
        stage.close()
