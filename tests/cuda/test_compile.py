"""The kernels are compiled once for this GPU, and kept; what is missing or wrong is said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edge.errors import EngineError
from tests.cuda.standin import Standin

if TYPE_CHECKING:
    from edge.engine.cuda.thread import GpuThread

EM_CUDA = 190
CUDA_ERROR_OUT_OF_MEMORY, CUDA_ERROR_NO_BINARY_FOR_GPU = 2, 209


@pytest.fixture
def kernels(standin: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with an empty cache folder."""
    from edge.engine.cuda import kernels

    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    return kernels


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "one.cu"
    path.write_text('extern "C" __global__ void prepare_one(float* out) { *out = 1.0f; }\n')
    return path


def test_a_source_is_compiled_once_for_each_gpu_and_again_when_it_changes(kernels: Any, source: Path) -> None:
    cache = source.parent / "cache" / "kernels"
    cubin = kernels.compiled(source, "sm_87")
    assert cubin[:4] == b"\x7fELF"
    assert int.from_bytes(cubin[18:20], "little") == EM_CUDA
    (kept,) = cache.iterdir()
    assert kept.name.startswith("one-")
    assert kept.name.endswith(f"-sm_87-cuda{kernels._nvrtc_version()}.cubin")
    kept.write_bytes(b"kept")
    assert kernels.compiled(source, "sm_87") == b"kept"
    assert kernels.compiled(source, "sm_80") not in (b"kept", cubin)
    source.write_text(source.read_text().replace("1.0f", "2.0f"))
    assert kernels.compiled(source, "sm_87") not in (b"kept", cubin)
    assert len(list(cache.iterdir())) == 3


def test_a_cache_that_cannot_be_written_is_said_and_nothing_more(
    kernels: Any, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (source.parent / "cache").write_text("a file where a folder should be")
    with caplog.at_level(logging.WARNING):
        assert kernels.compiled(source, "sm_87")[:4] == b"\x7fELF"
    assert "cannot be kept" in caplog.text


def test_a_wrong_source_comes_back_with_the_compilers_words(kernels: Any, source: Path) -> None:
    source.write_text("this is no kernel")
    with pytest.raises(EngineError, match=r"NVRTC 1\d\.\d cannot compile one\.cu for sm_87: one\.cu\(1\): error"):
        kernels.compiled(source, "sm_87")


def test_a_gpu_newer_than_the_compiler_is_refused(kernels: Any, source: Path) -> None:
    with pytest.raises(EngineError, match=r"for sm_990: .*invalid value for --gpu-architecture.*the GPU's driver\?"):
        kernels.compiled(source, "sm_990")


@pytest.mark.parametrize(
    ("version", "package"), [(12060, "'nvidia-cuda-nvrtc-cu12'"), (13000, r"'nvidia-cuda-nvrtc==13\.\*'")]
)
def test_where_there_is_no_compiler_the_package_of_the_drivers_own_cuda_is_named(
    kernels: Any, source: Path, monkeypatch: pytest.MonkeyPatch, version: int, package: str
) -> None:
    def missing() -> None:
        raise RuntimeError('Failure finding "libnvrtc.so"')

    monkeypatch.setattr(kernels.nvrtc, "nvrtcVersion", missing)
    monkeypatch.setattr(kernels.driver, "cuDriverGetVersion", lambda: (0, version))
    cuda = f"CUDA {version // 1000}.{version % 1000 // 10}"
    words = rf"no compiler .*libnvrtc\.so.*of the driver's {cuda}: .*apt install cuda-nvrtc-12-6.*pip install {package}"
    with pytest.raises(EngineError, match=words):
        kernels.compiled(source, "sm_87")


def test_kept_kernels_that_do_not_load_are_compiled_anew_once(
    kernels: Any, source: Path, gpu: GpuThread, caplog: pytest.LogCaptureFixture
) -> None:
    cubin = kernels.compiled(source, "sm_87")
    (kept,) = (source.parent / "cache" / "kernels").iterdir()
    kept.write_bytes(cubin[:10])
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            gpu.run(gpu.run(lambda: kernels.Kernels(source)).close)
    assert kept.read_bytes() == cubin
    assert caplog.text.count("compiling anew") == 1
    assert caplog.text.count("compiled one.cu for sm_87") == 1


def test_a_driver_that_refuses_what_the_compiler_makes_is_told_the_right_one(
    kernels: Any, source: Path, gpu: GpuThread, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    standin.fail("cuModuleLoadDataEx", CUDA_ERROR_NO_BINARY_FOR_GPU, times=2)
    monkeypatch.setattr(kernels.driver, "cuDriverGetVersion", lambda: (0, 12060))
    with pytest.raises(
        EngineError, match=r"refuses .* NVRTC 1\d\.\d has compiled.*NO_BINARY.*CUDA 12\.6.*'nvidia-cuda-nvrtc-cu12'"
    ):
        gpu.run(lambda: kernels.Kernels(source))
    gpu.run(gpu.run(lambda: kernels.Kernels(source)).close)


def test_memory_that_is_full_is_no_reason_to_compile_anew(
    kernels: Any, source: Path, gpu: GpuThread, standin: Standin, caplog: pytest.LogCaptureFixture
) -> None:
    standin.fail("cuModuleLoadDataEx", CUDA_ERROR_OUT_OF_MEMORY)
    with pytest.raises(EngineError, match=r"one\.cu cannot be loaded: CUDA_ERROR_OUT_OF_MEMORY"):
        gpu.run(lambda: kernels.Kernels(source))
    assert "compiling anew" not in caplog.text


def test_a_kernel_that_is_not_there_is_refused(kernels: Any, source: Path, gpu: GpuThread) -> None:
    loaded = gpu.run(lambda: kernels.Kernels(source))
    with pytest.raises(EngineError, match="there is no kernel prepare_two: CUDA_ERROR_NOT_FOUND"):
        gpu.run(lambda: loaded.launcher("prepare_two", threads=(32, 1), over_px=(1, 1)))
    gpu.run(loaded.close)
    gpu.run(loaded.close)
