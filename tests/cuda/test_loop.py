"""The CUDA loop with real pycuda and cuda-bindings on the stand-in: its contract, and everything that can go wrong."""

from __future__ import annotations

import ctypes
import logging
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge.errors import EngineError
from tests.cuda import networks, reference
from tests.cuda.loop_contract import HEIGHT, WIDTH, LoopContract
from tests.cuda.standin import Standin

if TYPE_CHECKING:
    from edge.engine.cuda.thread import GpuThread
    from tests.cuda.loop_contract import Build

OUT_OF_MEMORY, NOT_SUPPORTED, ILLEGAL_ADDRESS, LAUNCH_FAILED = 2, 801, 700, 719


class TestCudaLoop(LoopContract):
    """On the stand-in."""

    def test_a_frame_costs_no_copy_no_allocation_and_one_launch(
        self, gpu: GpuThread, build: Build, standin: Standin
    ) -> None:
        loop, _ = build("mono16", bit_depth=12, outputs=("enhanced", "colour"))
        pool = gpu.run(lambda: loop.allocate(3))
        copies = ("cuMemcpyHtoD", "cuMemcpyDtoH", "cuMemcpyDtoD", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync")
        allocations = ("cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate", "cuEventCreate", "cuModuleLoadDataEx")
        names = (*copies, *allocations, "cuLaunchKernel", "cuGraphLaunch", "cuEventRecord", "cuEventSynchronize")
        before, live = {name: standin.calls(name) for name in names}, standin.live
        for slot in pool.slots * 10:
            gpu.run(lambda slot=slot: loop.infer(slot))  # type: ignore[misc]
        spent = {name: standin.calls(name) - before[name] for name in names}
        assert {name for name in names if spent[name]} == {"cuGraphLaunch", "cuEventRecord", "cuEventSynchronize"}
        assert spent["cuGraphLaunch"] == spent["cuEventRecord"] == spent["cuEventSynchronize"] == 30
        assert sum(spent[name] for name in copies) == loop.copies_per_frame == loop.passes_per_frame == 0
        assert standin.live == live

    def test_memory_is_allocated_once_and_all_of_it_given_back(
        self, gpu: GpuThread, build: Build, standin: Standin
    ) -> None:
        before = standin.live
        loop, network = build(dark=np.zeros((HEIGHT, WIDTH), np.float32))
        gpu.run(lambda: loop.allocate(4))
        assert standin.calls("cuMemHostAlloc") > 0
        gpu.run(loop.close)
        gpu.run(lambda: None)
        assert standin.live == before
        assert network.bound[0].keys() == {"image", "enhanced"}
        assert all(address % 256 == 0 for address in network.bound[0].values())

    def test_the_thread_ends_and_gives_the_context_back_when_the_last_frame_is_let_go(
        self, gpu: GpuThread, build: Build, standin: Standin
    ) -> None:
        loop, network = build()
        slot = gpu.run(lambda: loop.allocate(2)).slots[0]
        gpu.run(loop.close)
        gpu.run(network.close)
        gpu.close()
        assert gpu._thread.is_alive()
        slot[...] = 1
        del slot
        gpu._thread.join(5)
        assert not gpu._thread.is_alive()
        assert standin.live == 0

    @pytest.mark.parametrize("graphs", [True, False])
    def test_results_are_waited_for(self, gpu: GpuThread, build: Build, standin: Standin, graphs: bool) -> None:
        """The stand-in works when somebody waits, not before: take that away, and the results are old ones."""
        loop, _ = build(graphs=graphs)
        slot = gpu.run(lambda: loop.allocate(1)).slots[0]
        slot[...] = 9
        assert (gpu.run(lambda: loop.infer(slot))["enhanced"] == 9).all()
        slot[...] = 8
        done, loop._done = loop._done, _NeverAwaited()
        assert (gpu.run(lambda: loop.infer(slot))["enhanced"] == 9).all()
        loop._done = done
        assert (gpu.run(lambda: loop.infer(slot))["enhanced"] == 8).all()

    @pytest.mark.parametrize(
        ("call", "after"), [("cuMemAlloc", 0), ("cuMemAlloc", 1), ("cuMemAlloc", 2), ("cuMemHostAlloc", 0)]
    )
    def test_too_little_memory_is_said_and_leaves_nothing_behind(
        self, gpu: GpuThread, build: Build, standin: Standin, call: str, after: int
    ) -> None:
        live = standin.live
        # For device memory pycuda collects garbage and asks once more.
        standin.fail(call, OUT_OF_MEMORY, after=after, times=2 if call == "cuMemAlloc" else 1)
        with pytest.raises(EngineError, match=r"MB of .* out of memory\. \d+ of 8192 MB are free\. Close [^R]*$"):
            build(outputs=("enhanced", "colour"))
        gpu.run(lambda: None)
        assert standin.live == live
        loop, _ = build()
        gpu.run(lambda: loop.allocate(1))

    def test_too_little_memory_for_frames_leaves_the_loop_as_it_was(
        self, gpu: GpuThread, build: Build, standin: Standin
    ) -> None:
        loop, _ = build()
        standin.fail("cuMemHostAlloc", OUT_OF_MEMORY)
        with pytest.raises(EngineError, match="host memory cannot be locked and mapped"):
            gpu.run(lambda: loop.allocate(100))
        slot = gpu.run(lambda: loop.allocate(1)).slots[0]
        slot[...] = 5
        assert (gpu.run(lambda: loop.infer(slot))["enhanced"] == 5).all()

    @pytest.mark.parametrize(
        "call", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphUpload"]
    )
    def test_where_no_graph_can_be_made_frames_are_enqueued_and_that_is_said_once(
        self, gpu: GpuThread, build: Build, standin: Standin, caplog: pytest.LogCaptureFixture, call: str
    ) -> None:
        loop, network = build()
        standin.fail("cuGraphInstantiateWithFlags" if call == "cuGraphInstantiate" else call, NOT_SUPPORTED)
        with caplog.at_level(logging.WARNING):
            pool = gpu.run(lambda: loop.allocate(2))
            assert loop.captured is False
            gpu.run(lambda: loop.allocate(2))
        assert [record.message.partition(":")[0] for record in caplog.records] == [
            "no CUDA graphs, the launches of a frame are enqueued one by one"
        ]
        assert "CUDA_ERROR_NOT_SUPPORTED" in caplog.text
        launched = network.enqueued
        for seed, slot in enumerate(pool.slots):
            slot[...] = reference.random_frame("mono8", HEIGHT, WIDTH, seed=seed)
            np.testing.assert_array_equal(gpu.run(lambda slot=slot: loop.infer(slot))["enhanced"], slot)  # type: ignore[misc]
        assert network.enqueued == launched + 2

    @pytest.mark.parametrize("spoiler", ["refuses", "synchronises", "allocates", "pycuda"])
    def test_a_network_that_cannot_be_recorded_runs_without_a_graph(
        self, gpu: GpuThread, build: Build, standin: Standin, caplog: pytest.LogCaptureFixture, spoiler: str
    ) -> None:
        import pycuda.driver as cuda
        from cuda.bindings import driver

        calls = []

        def before() -> None:
            calls.append(1)
            if len(calls) != 3:  # the warm-up, the first slot's recording, the second slot's
                return
            if spoiler == "refuses":
                raise EngineError("execute_async_v3 returned False")
            if spoiler == "synchronises":
                driver.cuCtxSynchronize()
            elif spoiler == "allocates":
                driver.cuMemAlloc(64)
            else:
                cuda.mem_alloc(64)

        loop, _ = build(before=before)
        live = standin.live
        pool = gpu.run(lambda: loop.allocate(2))
        assert loop.captured is False
        assert len(caplog.records) == 1
        assert "is lost" not in caplog.text
        slot = pool.slots[1]
        slot[...] = 3
        assert (gpu.run(lambda: loop.infer(slot))["enhanced"] == 3).all()
        assert standin.live <= live + 2  # the frames, and the first slot's graph, which close() frees

    def test_a_graph_that_misses_a_launch_is_not_believed(
        self, gpu: GpuThread, build: Build, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As when a library launches on the default stream, of which a recording one knows nothing."""
        calls = []

        def before() -> None:
            calls.append(1)
            network.default_stream = len(calls) in (2, 3)  # after the warm-up: while the two slots are recorded

        loop, network = build(before=before, outputs=("enhanced", "colour"))
        pool = gpu.run(lambda: loop.allocate(2))
        assert loop.captured is False
        assert re.search(r"one by one: the replay of a frame is up to 2\d\d of 255 counts off", caplog.text)
        for level, slot in enumerate(pool.slots):
            assert not slot.any()
            slot[...] = level + 3
            assert (gpu.run(lambda slot=slot: loop.infer(slot))["enhanced"] == level + 3).all()  # type: ignore[misc]

    def test_the_graph_of_every_slot_is_proven(
        self, gpu: GpuThread, build: Build, caplog: pytest.LogCaptureFixture
    ) -> None:
        calls = []

        def before() -> None:
            calls.append(1)
            network.default_stream = len(calls) == 3  # while the second slot is recorded

        loop, network = build(before=before)
        pool = gpu.run(lambda: loop.allocate(2))
        assert loop.captured is False
        assert "counts off" in caplog.text
        slot = pool.slots[1]
        slot[...] = 3
        assert (gpu.run(lambda: loop.infer(slot))["enhanced"] == 3).all()

    def test_a_graph_is_not_believed_where_nothing_can_be_seen_of_it(
        self, gpu: GpuThread, build: Build, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Any two replays of a network look alike whose picture is always the same."""
        monkeypatch.setitem(networks.GAIN, "enhanced", (0.001, 0.5))
        loop, _ = build()
        gpu.run(lambda: loop.allocate(2))
        assert loop.captured is False
        assert "one by one: noise and black are 0 of 255 counts apart" in caplog.text

    def test_too_little_memory_for_a_graphs_launch_is_said_with_what_is_free(
        self, gpu: GpuThread, build: Build, standin: Standin
    ) -> None:
        loop, _ = build()
        slot = gpu.run(lambda: loop.allocate(1)).slots[0]
        standin.fail("cuGraphLaunch", OUT_OF_MEMORY)
        with pytest.raises(EngineError, match=r"CUDA_ERROR_OUT_OF_MEMORY\. \d+ of 8192 MB are free\. Close what else"):
            gpu.run(lambda: loop.infer(slot))

    def test_a_network_that_refuses_a_frame_is_an_error_not_an_old_result(self, gpu: GpuThread, build: Build) -> None:
        refusing = []

        def before() -> None:
            if refusing:
                raise EngineError("execute_async_v3 returned False")

        loop, _ = build(graphs=False, before=before)
        slot = gpu.run(lambda: loop.allocate(1)).slots[0]
        refusing.append(1)
        with pytest.raises(EngineError, match="returned False"):
            gpu.run(lambda: loop.infer(slot))
        refusing.clear()
        gpu.run(lambda: loop.infer(slot))

    @pytest.mark.parametrize("call", ["cuGraphLaunch", "cuEventRecord", "cuEventSynchronize", "cuLaunchKernel"])
    def test_every_refused_call_of_a_frame_is_an_error_and_the_next_frame_is_right(
        self, gpu: GpuThread, build: Build, standin: Standin, call: str
    ) -> None:
        loop, _ = build(graphs=call != "cuLaunchKernel")
        slot = gpu.run(lambda: loop.allocate(1)).slots[0]
        standin.fail(call, NOT_SUPPORTED)
        with pytest.raises(EngineError, match=r"(NOT_SUPPORTED|not supported)\.$"):  # and nothing of a lost GPU
            gpu.run(lambda: loop.infer(slot))
        slot[...] = 11
        assert (gpu.run(lambda: loop.infer(slot))["enhanced"] == 11).all()

    @pytest.mark.parametrize("graphs", [True, False])
    @pytest.mark.parametrize("error", [ILLEGAL_ADDRESS, LAUNCH_FAILED])
    def test_a_lost_gpu_is_said_with_what_to_do_and_can_still_be_closed(
        self, gpu: GpuThread, build: Build, standin: Standin, caplog: pytest.LogCaptureFixture, graphs: bool, error: int
    ) -> None:
        loop, _ = build(graphs=graphs)
        slot = gpu.run(lambda: loop.allocate(1)).slots[0]
        standin.lose(error)
        for _ in range(2):
            with pytest.raises(EngineError, match=r"The GPU is lost to this process\. Restart superlens"):
                gpu.run(lambda: loop.infer(slot))
        with pytest.raises(EngineError, match=r"Restart superlens"):
            gpu.run(lambda: loop.allocate(1))
        gpu.run(loop.close)
        assert "not given back" in caplog.text
        slot[...] = 1
        standin.lose(0)

    def test_a_kernel_that_writes_beside_its_memory_is_found(
        self, gpu: GpuThread, build: Build, standin: Standin
    ) -> None:
        """So the tests above would see it if one of the loop's own kernels did."""
        from cuda.bindings import driver

        from edge.engine.cuda.thread import checked

        loop, network = build(graphs=False)
        slot = gpu.run(lambda: loop.allocate(1)).slots[0]
        wild = gpu.run(lambda: checked(driver.cuModuleGetFunction(network._module, b"wild"), ""))
        types = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)

        def write(value: int, stream: int) -> None:
            arguments = (network.bound[0]["enhanced"], HEIGHT * WIDTH, value)
            checked(driver.cuLaunchKernel(wild, 1, 1, 1, 1, 1, 1, 0, stream, (arguments, types), 0), "")

        network.before = lambda: write(1, loop._stream.handle)
        with pytest.raises(EngineError, match="illegal memory access"):
            gpu.run(lambda: loop.infer(slot))
        standin.lose(0)
        gpu.run(lambda: write(int.from_bytes(b"\xcd" * 4, "little", signed=True), 0))  # as it was
        network.before = lambda: None
        gpu.run(lambda: loop.infer(slot))

    def test_twenty_thousand_frames_leave_nothing_behind(self, gpu: GpuThread, build: Build, standin: Standin) -> None:
        from edge.meter import rss_mb

        loop, _ = build(shape=(16, 16))
        slot = gpu.run(lambda: loop.allocate(1)).slots[0]

        def frames(count: int) -> None:
            for _ in range(count):
                loop.infer(slot)

        gpu.run(lambda: frames(2_000))
        live, before_mb = standin.live, rss_mb()
        gpu.run(lambda: frames(20_000))
        assert standin.live == live
        assert rss_mb() - before_mb < 2


class _NeverAwaited:
    def record(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...


def test_edges_that_are_not_float32_are_refused(gpu: GpuThread) -> None:
    from edge.engine.cuda.loop import CudaLoop
    from edge.engine.prepare import Counts
    from tests.cuda.networks import GainNetwork, manifest

    good = manifest()
    half = good.model_copy(update={"inputs": (good.inputs[0].model_copy(update={"dtype": "float16"}),)})
    two = good.model_copy(update={"inputs": good.inputs * 2})
    for record, words in ((half, "image is float16, expected float32"), (two, "takes 2 inputs")):
        network = gpu.run(lambda: GainNetwork((HEIGHT, WIDTH)))
        with pytest.raises(EngineError, match=words):
            gpu.run(lambda: CudaLoop(network, Counts((HEIGHT, WIDTH), "mono8", 8), record))  # noqa: B023
        assert not network.bound
        gpu.run(network.close)
