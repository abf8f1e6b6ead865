"""The GPU of this machine, if it has one: `pytest -m gpu tests/gpu`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from edge.engine.cuda.thread import GpuThread
from edge.errors import EngineError


@pytest.fixture
def gpu() -> Iterator[GpuThread]:
    """The thread that owns the card."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pycuda, where there is no driver
            thread = GpuThread()
    except EngineError as exc:
        pytest.skip(str(exc))
    if thread.device_name == "CPU stand-in":
        thread.close()
        pytest.skip("this process runs on the stand-in of tests/cuda: run tests/gpu on its own")
    yield thread
    thread.close()
