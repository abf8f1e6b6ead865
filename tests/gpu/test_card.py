"""The CUDA loop on a real card: its contract, its memory, how fast its kernels are, and what a fault does to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge.errors import EngineError
from edge.frames import LAYOUTS
from tests.cuda import reference
from tests.cuda.loop_contract import LoopContract

if TYPE_CHECKING:
    from edge.engine.cuda.thread import GpuThread
    from tests.cuda.loop_contract import Build

pytestmark = pytest.mark.gpu

SIDE_PX = 8192  # larger than any cache
LEAST_SHARE = 0.5  # of the bandwidth of a copy within the card


class TestCudaLoopOnTheCard(LoopContract):
    """Real pycuda, cuda-bindings, NVRTC and driver."""

    def test_frames_replay_a_graph_and_the_cards_memory_stays_as_it_is(self, gpu: GpuThread, build: Build) -> None:
        import pycuda.driver as cuda

        loop, _ = build("mono16", bit_depth=12, shape=(512, 512), outputs=("enhanced", "colour"))
        pool = gpu.run(lambda: loop.allocate(4))
        assert loop.captured is True
        for seed, slot in enumerate(pool.slots):
            slot[...] = reference.random_frame("mono16", 512, 512, seed=seed) & 4095
        free = gpu.run(cuda.mem_get_info)[0]
        for _ in range(500):
            for slot in pool.slots:
                np.testing.assert_array_equal(gpu.run(lambda slot=slot: loop.infer(slot))["enhanced"], slot)  # type: ignore[misc]
        assert gpu.run(cuda.mem_get_info)[0] == free

    def test_memory_nobody_has_is_refused_in_words_and_the_card_stays_usable(self, gpu: GpuThread) -> None:
        from edge.engine.cuda.memory import DeviceMemory

        with pytest.raises(EngineError, match=r"out of memory\. \d+ of \d+ MB are free"):
            gpu.run(lambda: DeviceMemory().empty(1 << 50, "a test"))
        memory = DeviceMemory()
        gpu.run(lambda: memory.empty(1 << 20, "a test"))
        gpu.run(memory.close)

    @pytest.mark.parametrize("corrected", [False, True])
    @pytest.mark.parametrize("pixel_format", ["mono8", "mono10p", "mono12p", "mono16", "rgb8", "bayer_rg8"])
    def test_prepare_reaches_half_of_the_bandwidth_of_a_copy(
        self, gpu: GpuThread, record_property: Callable[[str, object], None], pixel_format: str, corrected: bool
    ) -> None:
        from edge.engine.cuda.kernels import Kernels

        pixels = SIDE_PX * SIDE_PX
        frame = pixels * LAYOUTS[pixel_format].bits // 8
        maps = 8 * pixels * corrected

        def inside(bench: _Bench) -> float:
            source, target = bench.memory.empty(frame, "frame"), bench.memory.empty(4 * pixels, "input")
            dark, flat = (bench.memory.empty(4 * pixels, "map") if corrected else 0 for _ in range(2))
            kernels = Kernels()
            bench.closing.append(kernels.close)
            launch = kernels.launcher(f"prepare_{pixel_format}", threads=(32, 8), over_px=(SIDE_PX, SIDE_PX))
            arguments = (source, frame // SIDE_PX, dark, flat, target, SIDE_PX, SIDE_PX, 1 / 255)
            return bench.share(frame + maps + 4 * pixels, lambda: launch(bench.stream.handle, *arguments))

        share = gpu.run(lambda: _measured(inside))
        record_property("share_of_copy_bandwidth", share)
        assert share >= LEAST_SHARE

    @pytest.mark.parametrize(("kind", "size"), [("grey8", 5), ("grey16", 6), ("rgb8", 15), ("rgb16", 18)])
    def test_deliver_reaches_half_of_the_bandwidth_of_a_copy(
        self, gpu: GpuThread, record_property: Callable[[str, object], None], kind: str, size: int
    ) -> None:
        from edge.engine.cuda.kernels import Kernels

        pixels = SIDE_PX * SIDE_PX

        def inside(bench: _Bench) -> float:
            planes = bench.memory.empty(12 * pixels, "planes")
            picture = bench.memory.empty(6 * pixels, "picture")
            kernels = Kernels()
            bench.closing.append(kernels.close)
            launch = kernels.launcher(f"deliver_{kind}", threads=(256, 1), over_px=(pixels, 1))
            return bench.share(size * pixels, lambda: launch(bench.stream.handle, planes, picture, pixels, 255))

        share = gpu.run(lambda: _measured(inside))
        record_property("share_of_copy_bandwidth", share)
        assert share >= LEAST_SHARE


class _Bench:
    """Times work on a stream of its own, by the card's clock."""

    def __init__(self) -> None:
        import pycuda.driver as cuda

        from edge.engine.cuda.memory import DeviceMemory

        self._cuda = cuda
        self.stream = cuda.Stream(1)
        self.memory = DeviceMemory()
        self.closing: list[Callable[[], None]] = [self.memory.close]

    def seconds(self, work: Callable[[], None], *, repeats: int = 20) -> float:
        """The least of five means: what else the machine does can only add."""
        work()
        start, end = self._cuda.Event(), self._cuda.Event()
        taken = []
        for _ in range(5):
            start.record(self.stream)
            for _ in range(repeats):
                work()
            end.record(self.stream)
            end.synchronize()
            taken.append(start.time_till(end) / 1e3 / repeats)
        return min(taken)

    def share(self, moved: int, work: Callable[[], None]) -> float:
        """Bytes a second of ``work``, which reads and writes ``moved`` of them, over those of a copy."""
        size = 4 * SIDE_PX * SIDE_PX
        a, b = self.memory.empty(size, "a copy"), self.memory.empty(size, "a copy")
        copy_s = self.seconds(lambda: self._cuda.memcpy_dtod_async(b, a, size, self.stream))
        return (moved / self.seconds(work)) / (2 * size / copy_s)


def _measured(inside: Callable[[_Bench], float]) -> float:
    bench = _Bench()
    try:
        return inside(bench)
    finally:
        for close in reversed(bench.closing):
            close()


FAULT = """
import ctypes, sys
from cuda.bindings import driver
from edge.engine.cuda.loop import CudaLoop
from edge.engine.cuda.thread import GpuThread, checked
from edge.engine.prepare import Counts
from edge.errors import EngineError
from edge.frames import LAYOUTS
from tests.cuda.networks import GainNetwork, manifest
gpu = GpuThread()
network = gpu.run(lambda: GainNetwork((64, 64)))
loop = gpu.run(lambda: CudaLoop(network, Counts((64, 64), "mono8", 8), manifest(), graphs=False))
slot = gpu.run(lambda: loop.allocate(1)).slots[0]
wild = gpu.run(lambda: checked(driver.cuModuleGetFunction(network._module, b"wild"), ""))
stream = lambda: loop._stream.handle
arguments = ((16, 0, 1), (ctypes.c_void_p, ctypes.c_int, ctypes.c_int))
network.before = lambda: checked(driver.cuLaunchKernel(wild, 1, 1, 1, 1, 1, 1, 0, stream(), arguments, 0), "")
for _ in range(2):
    try:
        gpu.run(lambda: loop.infer(slot))
    except EngineError as exc:
        print(exc)
gpu.run(loop.close)
gpu.close()
"""


def test_a_fault_of_the_card_is_said_and_the_process_ends_the_clean_way(gpu: Any) -> None:
    """In a process of its own: a fault sticks to the context."""
    done = subprocess.run(
        [sys.executable, "-c", FAULT], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert all("The GPU is lost to this process. Restart superlens" in line for line in done.stdout.splitlines())
