"""The thread that owns the GPU: order, errors, its end; and what it says where there is no GPU to own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edge.errors import EngineError
from tests.cuda.standin import Standin

if TYPE_CHECKING:
    from edge.engine.cuda.thread import GpuThread

ROOT = Path(__file__).parents[2]
INVALID_CONTEXT, OUT_OF_MEMORY = 201, 2


def python(code: str, *, standin: bool) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, on the stand-in or where there is no driver."""
    load = "from tests.cuda.standin import load\nstandin = load()\n" if standin else ""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", load + code], capture_output=True, text=True, check=False, env=environment, timeout=60
    )


def test_calls_run_in_order_in_one_thread_with_a_name(gpu: GpuThread) -> None:
    seen: list[tuple[int, str]] = []
    callers = [
        threading.Thread(target=lambda i=i: gpu.run(lambda: seen.append((i, threading.current_thread().name))))  # type: ignore[misc]
        for i in range(8)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(i for i, _ in seen) == list(range(8))
    assert {name for _, name in seen} == {"gpu"}
    assert gpu.run(lambda: 42) == 42
    assert gpu.run(lambda: gpu.run(lambda: 43)) == 43  # from inside, at once
    assert gpu.device_name == "CPU stand-in"


def test_the_context_is_current_there_and_nowhere_else(gpu: GpuThread) -> None:
    import pycuda.driver as cuda

    from edge.engine.cuda.thread import GpuThread as Owner
    from edge.engine.cuda.thread import explained

    assert gpu.run(Owner.current) is gpu
    assert gpu.run(lambda: cuda.Stream() is not None)
    with pytest.raises(EngineError, match=r"stream: .*invalid device context.*\. This is not the thread that owns"):
        with explained("no stream"):
            cuda.Stream()
    with pytest.raises(EngineError, match="not the thread that owns"):
        Owner.current()


def test_an_error_reaches_the_caller_with_its_traceback_but_without_what_its_frames_held(gpu: GpuThread) -> None:
    class Held:
        pass

    left: list[Any] = []

    def fails() -> None:
        held = Held()
        left.append(weakref.ref(held))
        raise ZeroDivisionError("a broken call")

    with pytest.raises(ZeroDivisionError, match="a broken call") as caught:
        gpu.run(fails)
    assert caught.traceback[-1].name == "fails"
    assert left[0]() is None
    assert gpu.run(lambda: 1) == 1


def test_after_closing_calls_are_refused_and_closing_twice_is_harmless(gpu: GpuThread, standin: Standin) -> None:
    ran: list[int] = []
    gpu.run(lambda: ran.append(1))
    gpu.close()
    gpu.close()
    with pytest.raises(EngineError, match="closed"):
        gpu.run(lambda: ran.append(2))
    gpu._thread.join(5)
    assert ran == [1]
    assert standin.live == 0


def test_a_driver_that_hangs_does_not_hang_the_one_who_closes(
    gpu: GpuThread, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edge.engine.cuda.thread.CLOSE_TIMEOUT_S", 0.05)
    hanging, entered = threading.Event(), threading.Event()
    waiting = threading.Thread(target=lambda: gpu.run(lambda: (entered.set(), hanging.wait(20))))
    waiting.start()
    assert entered.wait(5)
    gpu.close()
    assert "the GPU does not answer" in caplog.text
    hanging.set()
    waiting.join()


def test_a_call_that_hangs_ends_at_its_deadline_and_closing_does_not_wait_for_it_again(
    gpu: GpuThread, caplog: pytest.LogCaptureFixture
) -> None:
    hanging, done = threading.Event(), threading.Event()
    with pytest.raises(EngineError, match=r"has not answered for 0\.01 s, and is given up\. Restart superlens"):
        gpu.run(lambda: (hanging.wait(20), done.set()), timeout_s=0.01)
    ran: list[int] = []
    gpu.close(lambda: ran.append(1))
    gpu.close()
    assert (ran, done.is_set()) == ([], False)  # it came back while the GPU still hung
    assert "its thread is left behind" in caplog.text
    hanging.set()
    gpu._thread.join(5)
    assert ran == [1]  # what was asked for is done when the GPU comes back


def test_an_answer_within_the_deadline_is_given_back(gpu: GpuThread) -> None:
    assert gpu.run(lambda: 44, timeout_s=60) == 44
    with pytest.raises(TimeoutError, match="of the call itself"):
        gpu.run(lambda: (_ for _ in ()).throw(TimeoutError("of the call itself")), timeout_s=60)


def test_the_last_call_runs_once_and_its_error_reaches_the_one_who_closes(gpu: GpuThread) -> None:
    ran: list[str] = []

    def last() -> None:
        ran.append(threading.current_thread().name)
        raise ZeroDivisionError("the last call")

    with pytest.raises(ZeroDivisionError, match="the last call"):
        gpu.close(last)
    gpu.close(last)
    assert ran == ["gpu"]


def test_a_context_that_cannot_be_popped_does_not_abort_the_process(standin: Standin) -> None:
    done = python(
        "from edge.engine.cuda.thread import GpuThread\ngpu = GpuThread()\n"
        f"standin.fail('cuCtxPopCurrent', {INVALID_CONTEXT})\ngpu.close()\ngpu._thread.join(5)\nprint('alive')",
        standin=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alive\n"
    assert "the GPU's context is given up: cuCtxPopCurrent failed: invalid device context" in done.stderr


def test_a_process_that_forgets_to_close_still_ends(standin: Standin) -> None:
    done = python(
        "from edge.engine.cuda.thread import GpuThread\nimport pycuda.driver as cuda\ngpu = GpuThread()\n"
        "kept = gpu.run(lambda: gpu.lend(cuda.pagelocked_empty(64, 'u1')))\n",
        standin=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_where_there_is_no_driver_that_is_said(standin: Standin) -> None:
    """`standin` only for its reason to skip: pycuda is there."""
    done = python("from edge.engine.cuda.thread import GpuThread\nGpuThread()", standin=False)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("edge.errors.EngineError: pycuda cannot be loaded (")
    assert (
        'libcuda.so.1: install the driver, on a Jetson JetPack. Without a GPU, set [engine] backend = "openvino"'
        in last
    )


def test_where_pycuda_is_not_installed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.engine.cuda.thread import GpuThread

    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(EngineError, match=r"not installed\. Install it: .*pip install -e '\.\[jetson\]' in the"):
        GpuThread()


def test_whatever_goes_wrong_at_the_start_reaches_the_caller(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.engine.cuda import thread

    def fails(device: int) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(thread, "_open", fails)
    with pytest.raises(ZeroDivisionError):
        thread.GpuThread()


def test_a_driver_without_a_gpu_or_without_that_one_says_so(standin: Standin) -> None:
    from edge.engine.cuda.thread import GpuThread

    with pytest.raises(EngineError, match=r"There is no GPU 3: the CUDA driver has 1, counted from 0"):
        GpuThread(3)
    standin.device(count=0)
    with pytest.raises(EngineError, match=r"does not start: cuInit failed: no CUDA-capable device.*openvino"):
        GpuThread()


def test_a_gpu_that_cannot_map_or_gives_no_context_is_refused(standin: Standin) -> None:
    from edge.engine.cuda.thread import GpuThread

    standin.device(can_map=False)
    with pytest.raises(EngineError, match="CPU stand-in cannot read host memory in place"):
        GpuThread()
    standin.device()
    standin.fail("cuDevicePrimaryCtxRetain", OUT_OF_MEMORY)
    with pytest.raises(EngineError, match=r"gives no context: .*out of memory\. Close what else uses it"):
        GpuThread()
    assert standin.live == 0


def test_the_appliance_imports_neither_pycuda_nor_cuda_bindings_before_they_are_needed() -> None:
    code = (
        "import pkgutil, sys, importlib, edge\n"
        "for found in pkgutil.walk_packages(edge.__path__, 'edge.'):\n"
        "    if not found.name.startswith('edge.engine.cuda.') and found.name != 'edge.__main__':\n"
        "        importlib.import_module(found.name)\n"
        "import edge.engine.cuda.thread\n"
        "print([name for name in sys.modules if name.startswith(('pycuda', 'cuda.bindings'))])"
    )
    done = python(code, standin=False)
    assert done.stdout == "[]\n", done.stderr
