"""What the tests of the CUDA loop share: the host build of its kernels, the stand-in for the driver, its thread."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.bench import missing
from tests.cuda import standin as bench

if TYPE_CHECKING:
    from edge.engine.cuda.thread import GpuThread

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "edge" / "engine" / "cuda" / "kernels.cu", Path(__file__).with_name("network.cu"))


@pytest.fixture(scope="session")
def host_kernels() -> Path:
    """Every kernel, compiled for the host."""
    if shutil.which("g++") is None:
        missing("no g++ on PATH")
    return bench.build_kernels(*SOURCES)


@pytest.fixture(scope="session")
def nvcc() -> str:
    """The toolkit's compiler."""
    root = bench.cuda_root()
    if root is None:
        missing("no CUDA toolkit: nvcc is neither on PATH nor in /usr/local/cuda")
    return str(root / "bin" / "nvcc")


@pytest.fixture(scope="session")
def loaded_standin(host_kernels: Path) -> bench.Standin:
    """The stand-in, loaded; it stays in the process."""
    if (reason := bench.missing()) is not None:
        missing(reason)
    standin = bench.load()
    standin.kernels(host_kernels)
    return standin


@pytest.fixture
def standin(loaded_standin: bench.Standin) -> Iterator[bench.Standin]:
    """The stand-in, sound and empty."""
    loaded_standin.reset()
    yield loaded_standin
    loaded_standin.reset()


@pytest.fixture
def gpu(standin: bench.Standin) -> Iterator[GpuThread]:
    """The thread that owns the stand-in."""
    from edge.engine.cuda.thread import GpuThread

    thread = GpuThread()
    yield thread
    thread.close()
    thread._thread.join(5)
    assert not thread._thread.is_alive(), "frames of this test are still held"
    assert standin.live == 0 or standin.was_lost
