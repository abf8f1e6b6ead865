"""What the CUDA loop promises, on the stand-in (tests/cuda) and on a card (tests/gpu) alike."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge.engine.prepare import Counts
from edge.errors import EngineError
from tests.cuda import reference

if TYPE_CHECKING:
    from edge.engine.cuda.loop import CudaLoop
    from edge.engine.cuda.thread import GpuThread
    from tests.cuda.networks import GainNetwork

    Build = Callable[..., tuple[CudaLoop, GainNetwork]]

HEIGHT, WIDTH = 48, 64


class LoopContract:
    """Needs a fixture ``gpu``: the thread that owns the GPU."""

    @pytest.fixture
    def build(self, gpu: GpuThread) -> Iterator[Build]:
        """A loop over a `GainNetwork`; both are closed at the end."""
        from edge.engine.cuda.loop import CudaLoop
        from tests.cuda.networks import GainNetwork, manifest

        made: list[Any] = []

        def new(
            pixel_format: Any = "mono8",
            *,
            bit_depth: int = 8,
            shape: tuple[int, int] = (HEIGHT, WIDTH),
            outputs: Sequence[str] = ("enhanced",),
            graphs: bool = True,
            before: Callable[[], None] = lambda: None,
            **counts: Any,
        ) -> tuple[CudaLoop, GainNetwork]:
            def inside() -> tuple[CudaLoop, GainNetwork]:
                network = GainNetwork(shape, outputs)
                network.before = before
                made.append(network)
                camera = Counts(shape, pixel_format, bit_depth, **counts)
                made.append(CudaLoop(network, camera, manifest(outputs), graphs=graphs))
                return made[-1], network

            return gpu.run(inside)

        yield new
        while made and not gpu._closed:
            gpu.run(made.pop().close)

    @pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (17, 31)])
    @pytest.mark.parametrize("pixel_format", reference.BITS)
    def test_every_format_comes_back_as_the_reference_says(
        self, gpu: GpuThread, build: Build, pixel_format: str, shape: tuple[int, int]
    ) -> None:
        bits = 12 if pixel_format == "mono16" else reference.BITS[pixel_format]
        full_scale = (1 << bits) - 1
        loop, _ = build(pixel_format, bit_depth=bits, shape=shape, outputs=("enhanced", "inverted"))
        slot = gpu.run(lambda: loop.allocate(2)).acquire(timeout_s=0)
        frame = reference.random_frame(pixel_format, *shape)
        slot[...] = frame & full_scale if pixel_format == "mono16" else frame
        outputs = gpu.run(lambda: loop.infer(slot))
        values = reference.prepare(slot, pixel_format, shape[1], full_scale=full_scale)
        dtype = np.uint8 if bits == 8 else np.uint16
        wanted = reference.deliver(values[np.newaxis], dtype, full_scale=full_scale)
        np.testing.assert_array_equal(outputs["enhanced"], wanted)
        wanted = reference.deliver((1 - values)[np.newaxis], dtype, full_scale=full_scale)
        np.testing.assert_array_equal(outputs["inverted"], wanted)
        assert outputs["enhanced"].dtype == dtype

    def test_colour_is_height_width_three_in_one_piece_and_the_first_output_is_the_one_shown(
        self, gpu: GpuThread, build: Build
    ) -> None:
        loop, _ = build(outputs=("colour", "enhanced"))
        slot = gpu.run(lambda: loop.allocate(1)).acquire(timeout_s=0)
        slot[...] = reference.random_frame("mono8", HEIGHT, WIDTH)
        outputs = gpu.run(lambda: loop.infer(slot))
        assert list(outputs) == ["colour", "enhanced"]
        assert outputs["colour"].flags.c_contiguous
        np.testing.assert_array_equal(outputs["colour"], np.dstack([slot, 0 * slot, slot]))

    def test_dark_and_flat_are_applied(self, gpu: GpuThread, build: Build) -> None:
        rng = np.random.default_rng(3)
        dark, flat = (rng.uniform(*ends, (HEIGHT, WIDTH)).astype(np.float32) for ends in ((0, 20), (0.5, 1.5)))
        loop, _ = build(dark=dark, flat=flat)
        slot = gpu.run(lambda: loop.allocate(1)).acquire(timeout_s=0)
        slot[...] = reference.random_frame("mono8", HEIGHT, WIDTH)
        values = reference.prepare(slot, "mono8", WIDTH, full_scale=255, dark=dark, flat=flat)
        wanted = reference.deliver(values[np.newaxis], np.uint8, full_scale=255)
        np.testing.assert_array_equal(gpu.run(lambda: loop.infer(slot))["enhanced"], wanted)

    @pytest.mark.parametrize("graphs", [True, False])
    def test_every_slot_brings_its_own_frame_again_and_again(self, gpu: GpuThread, build: Build, graphs: bool) -> None:
        loop, network = build(graphs=graphs)
        pool = gpu.run(lambda: loop.allocate(3))
        assert loop.captured is graphs
        launched = network.enqueued
        for seed in range(9):
            slot = pool.acquire(timeout_s=0)
            slot[...] = reference.random_frame("mono8", HEIGHT, WIDTH, seed=seed)
            np.testing.assert_array_equal(gpu.run(lambda slot=slot: loop.infer(slot))["enhanced"], slot)  # type: ignore[misc]
            pool.release(slot)
        # A graph replays what was recorded: the network is not asked again.
        assert network.enqueued - launched == (0 if graphs else 9)

    def test_slots_begin_on_boundaries_and_are_cleared(self, gpu: GpuThread, build: Build) -> None:
        loop, _ = build(shape=(17, 31))
        pool = gpu.run(lambda: loop.allocate(4))
        assert all(slot.ctypes.data % 256 == 0 and not slot.any() for slot in pool.slots)
        assert len({slot.ctypes.data for slot in pool.slots}) == 4

    def test_a_frame_that_is_no_slot_is_refused_not_copied(self, gpu: GpuThread, build: Build) -> None:
        loop, _ = build()
        gpu.run(lambda: loop.allocate(1))
        with pytest.raises(EngineError, match="no slot of the engine"):
            gpu.run(lambda: loop.infer(np.zeros((HEIGHT, WIDTH), np.uint8)))

    def test_another_thread_may_not_use_it(self, gpu: GpuThread, build: Build) -> None:
        loop, _ = build()
        pool = gpu.run(lambda: loop.allocate(1))
        for call in (lambda: loop.infer(pool.slots[0]), lambda: loop.allocate(1), loop.close):
            with pytest.raises(EngineError, match=r"not the thread that owns the GPU.*GpuThread\.run"):
                call()
        gpu.run(lambda: loop.infer(pool.slots[0]))

    def test_frames_and_results_can_be_read_after_it_was_closed(self, gpu: GpuThread, build: Build) -> None:
        loop, _ = build()
        pool = gpu.run(lambda: loop.allocate(2))
        pool.slots[0][...] = 77
        outputs = dict(gpu.run(lambda: loop.infer(pool.slots[0])))
        gpu.run(loop.close)
        gpu.run(loop.close)
        assert (outputs["enhanced"] == 77).all()
        assert (pool.slots[0] == 77).all()
        with pytest.raises(EngineError, match="before close"):
            gpu.run(lambda: loop.infer(pool.slots[0]))

    def test_what_is_read_last_in_another_thread_is_freed_in_the_gpus(self, gpu: GpuThread, build: Build) -> None:
        loop, _ = build()
        held = [gpu.run(lambda: loop.allocate(1)).slots[0][3:, 5:]]
        gpu.run(loop.close)
        letting_go = threading.Thread(target=held.clear)
        letting_go.start()
        letting_go.join()
        gpu.run(lambda: None)  # whatever was handed over before has been done
