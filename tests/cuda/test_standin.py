"""The stand-in keeps the rules that programs break: without this, a green test of the loop would say little."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from packaging.requirements import Requirement

from tests.cuda.networks import SOURCE, TYPES, checked

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from edge.engine.cuda.thread import GpuThread


@pytest.fixture
def scale(gpu: GpuThread) -> Any:
    """Launch ``out = in * 2 + 0`` over mapped floats on a stream."""
    from cuda.bindings import driver

    from edge.engine.cuda.kernels import compiled

    module = gpu.run(lambda: checked(driver.cuModuleLoadData(compiled(SOURCE, "sm_87")), ""))
    function = gpu.run(lambda: checked(driver.cuModuleGetFunction(module, b"network"), ""))

    def launch(stream: Any, source: int, target: int, count: int) -> None:
        values = (source, target, count, 1, 2.0, 0.0)
        checked(driver.cuLaunchKernel(function, 1, 1, 1, count, 1, 1, 0, stream.handle, (values, TYPES), 0), "")

    yield launch
    gpu.run(lambda: checked(driver.cuModuleUnload(module), ""))


def mapped(count: int) -> tuple[np.ndarray, int]:
    import pycuda.driver as cuda

    block = cuda.pagelocked_empty(count, np.float32, mem_flags=cuda.host_alloc_flags.DEVICEMAP)
    return block, int(block.base.get_device_pointer())


def test_a_result_is_poison_until_somebody_waits_for_its_stream_or_event(gpu: GpuThread, scale: Any) -> None:
    import pycuda.driver as cuda

    def inside() -> None:
        (source, a), (target, b) = mapped(4), mapped(4)
        poison = target.copy()
        assert (poison.view(np.uint8) == 0xCD).all()
        stream, other, event = cuda.Stream(1), cuda.Stream(1), cuda.Event()
        source[:] = 1, 2, 3, 4
        scale(stream, a, b, 4)
        event.record(stream)
        other.synchronize()
        np.testing.assert_array_equal(target.view(np.uint8), poison.view(np.uint8))
        event.synchronize()
        np.testing.assert_array_equal(target, [2, 4, 6, 8])
        scale(stream, b, a, 4)
        stream.synchronize()
        np.testing.assert_array_equal(source, [4, 8, 12, 16])

    gpu.run(inside)


def test_a_graph_reads_its_memory_when_it_runs_and_may_outlive_its_recording(gpu: GpuThread, scale: Any) -> None:
    import pycuda.driver as cuda

    from edge.engine.cuda.graph import Graph

    def inside() -> None:
        (source, a), (target, b) = mapped(2), mapped(2)
        stream = cuda.Stream(1)
        graph = Graph(stream, lambda: scale(stream, a, b, 2))
        for level in (3, 9):
            source[:] = level
            graph.launch()
            stream.synchronize()
            assert (target == 2 * level).all()
        graph.close()
        graph.close()

    gpu.run(inside)


def test_only_mapped_memory_has_a_device_pointer_and_no_copy_leaves_an_allocation(gpu: GpuThread) -> None:
    import pycuda.driver as cuda

    def inside() -> None:
        with pytest.raises(cuda.LogicError, match="invalid argument"):
            cuda.pagelocked_empty(4, np.uint8).base.get_device_pointer()
        memory = cuda.mem_alloc(16)
        with pytest.raises(cuda.LogicError, match="invalid argument"):
            cuda.memcpy_htod(memory, np.zeros(17, np.uint8))
        memory.free()

    gpu.run(inside)


def test_a_kernel_is_refused_where_the_cubin_has_none_of_that_name_or_the_arguments_do_not_fit(gpu: GpuThread) -> None:
    import pycuda.driver as cuda

    from edge.engine.cuda.kernels import compiled

    def inside() -> None:
        module = cuda.module_from_buffer(compiled(SOURCE, "sm_87"))
        with pytest.raises(cuda.LogicError, match="named symbol not found"):
            module.get_function("prepare_mono8")  # in the host build, but not in this cubin
        function = module.get_function("wild")
        with pytest.raises(cuda.LogicError):
            function(np.uintp(0), np.int32(1), block=(1, 1, 1), grid=(1, 1))
        assert ctypes.sizeof(ctypes.c_void_p) == 8

    gpu.run(inside)


@pytest.mark.parametrize(("python", "majors"), [("3.10", {12}), ("3.12", {12, 13})])
def test_the_python_of_jetpack_6_gets_the_bindings_of_its_cuda(python: str, majors: set[int]) -> None:
    """CUDA 13's would be the newest there, and their compiler's code is for a driver that JetPack 6 has not."""
    document = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    wanted = map(Requirement, document["project"]["optional-dependencies"]["jetson"])
    (bindings,) = (
        one
        for one in wanted
        if one.name == "cuda-bindings" and one.marker is not None and one.marker.evaluate({"python_version": python})
    )
    assert {major for major in range(11, 15) if bindings.specifier.contains(f"{major}.9")} == majors
