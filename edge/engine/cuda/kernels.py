"""The kernels of kernels.cu: compiled on the device for the GPU that is there, kept, and launched by name.

The source ships, not machine code: a cubin fits one compute capability, and a driver refuses PTX newer than itself.
NVRTC compiles it, because that is one library of CUDA's runtime packages (pip has it too); nvcc is a toolkit that wants
a host compiler beside it.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import platformdirs
import pycuda.driver as cuda
from cuda.bindings import driver, nvrtc

from edge.engine.cuda.thread import checked
from edge.errors import EngineError
from export.files import write_atomically

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cu")

OPTIONS = ("--std=c++17", "--fmad=false")
"""No fused multiply-add: the results are numpy's, bit by bit, and these kernels wait for memory anyway."""


_ADDRESS, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
ARGUMENTS: Mapping[str, tuple[Any, ...]] = {
    "prepare": (_ADDRESS, _INT, _ADDRESS, _ADDRESS, _ADDRESS, _INT, _INT, _FLOAT),
    "deliver": (_ADDRESS, _ADDRESS, _INT, _FLOAT),
}
"""Of the kernels, by the first word of their names."""

_UNFIT = (
    driver.CUresult.CUDA_ERROR_INVALID_IMAGE,
    driver.CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU,
    driver.CUresult.CUDA_ERROR_INVALID_SOURCE,
)
"""What a driver answers to machine code that is damaged, or not for it. Each may come of a file kept too long."""

PER_THREAD = 4
"""Pixels a thread takes."""


class Kernels:
    """The functions of one source file, loaded into the current context.

    cuda-bindings launches them: whatever pycuda launches, it first hands to a driver function that CUDA has given up.

    Raises
    ------
    EngineError
        There is no compiler, it does not know this GPU, or the driver refuses what it makes; or the source is wrong.
    """

    def __init__(self, source: Path = SOURCE) -> None:
        major, minor = cuda.Context.get_device().compute_capability()
        architecture = f"sm_{major}{minor}"
        loaded = driver.cuModuleLoadData(compiled(source, architecture))
        if loaded[0] in _UNFIT:  # a file that was cut off, or another driver than that of its day
            log.warning("the compiled kernels of %s are refused (%s): compiling anew", source.name, loaded[0].name)
            loaded = driver.cuModuleLoadData(compiled(source, architecture, anew=True))
        if loaded[0] in _UNFIT:
            raise EngineError(
                f"The GPU's driver refuses the kernels of {source.name} that NVRTC {_nvrtc_version()} has compiled "
                f"({loaded[0].name}). An NVRTC newer than the driver makes such. {_remedy()}"
            )
        self._module = checked(loaded, f"the kernels of {source.name} cannot be loaded")

    def launcher(self, name: str, *, threads: tuple[int, int], over_px: tuple[int, int]) -> Callable[..., None]:
        """A function of (stream, *arguments) that launches kernel ``name``, four pixels a thread.

        ``threads`` of a block and the pixels it covers, ``over_px``, are (along a row, rows).
        """
        function = checked(driver.cuModuleGetFunction(self._module, name.encode()), f"there is no kernel {name}")
        types = ARGUMENTS[name.partition("_")[0]]
        grid = (-(-over_px[0] // (PER_THREAD * threads[0])), -(-over_px[1] // threads[1]), 1)

        def launch(stream: int, *arguments: float) -> None:
            checked(
                driver.cuLaunchKernel(function, *grid, *threads, 1, 0, stream, (arguments, types), 0),
                f"kernel {name} cannot be launched",
            )

        return launch

    def close(self) -> None:
        """Unload them; to be called when they have run. May be called twice."""
        if self._module is not None:
            module, self._module = self._module, None
            checked(driver.cuModuleUnload(module), "the kernels cannot be unloaded")


def compiled(source: Path, architecture: str, *, anew: bool = False) -> bytes:
    """The cubin of ``source`` for ``architecture`` ("sm_87"), compiled at its first use on this machine.

    It is kept in the service's cache folder where systemd gives one, else the user's, under a name that changes with
    the source, its options, the architecture and the compiler. Where it cannot be written, each start compiles anew,
    which takes about a second. ``anew`` replaces the one that is kept.
    """
    version = _nvrtc_version()
    text = source.read_bytes()
    key = hashlib.sha256(b"\0".join([text, *map(str.encode, OPTIONS)])).hexdigest()[:16]
    service = os.environ.get("CACHE_DIRECTORY")
    cache = Path(service.split(":")[0]) if service else platformdirs.user_cache_path("superlens", appauthor=False)
    folder = cache / "kernels"
    path = folder / f"{source.stem}-{key}-{architecture}-cuda{version}.cubin"
    if path.is_file() and not anew:
        return path.read_bytes()
    cubin = _compile(text, source.name, architecture, version)
    log.info("compiled %s for %s with NVRTC %s", source.name, architecture, version)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, cubin)
    except OSError as exc:
        log.warning("the compiled kernels cannot be kept (%s): every start compiles them", exc)
    return cubin


def _nvrtc_version() -> str:
    try:
        _, major, minor = nvrtc.nvrtcVersion()
    except RuntimeError as exc:  # cuda-bindings looks for the library at the first call
        raise EngineError(f"There is no compiler for the GPU's kernels, libnvrtc.so. {_remedy()} ({exc})") from exc
    return f"{major}.{minor}"


def _remedy() -> str:
    """How to get the compiler of the driver's own CUDA: a driver may refuse what that of a later one makes."""
    version = checked(driver.cuDriverGetVersion(), "the driver does not say its version")  # 1000 major + 10 minor
    major = version // 1000
    package = f"nvidia-cuda-nvrtc-cu{major}" if major < 13 else f"nvidia-cuda-nvrtc=={major}.*"
    return (
        f"Install that of the driver's CUDA {major}.{version % 1000 // 10}: on a Jetson 'apt install cuda-nvrtc-12-6' "
        f"(JetPack 6) or 'cuda-nvrtc-13-0' (JetPack 7), elsewhere pip install '{package}'."
    )


def _compile(text: bytes, name: str, architecture: str, version: str) -> bytes:
    program = _nvrtc(nvrtc.nvrtcCreateProgram(text, name.encode(), 0, [], []), "NVRTC does not start")
    try:
        options = [option.encode() for option in (f"--gpu-architecture={architecture}", *OPTIONS)]
        (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            words = bytearray(_nvrtc(nvrtc.nvrtcGetProgramLogSize(program), "NVRTC has no log"))
            _nvrtc(nvrtc.nvrtcGetProgramLog(program, words), "NVRTC has no log")
            raise EngineError(
                f"NVRTC {version} cannot compile {name} for {architecture}: {words.rstrip(bytes(1)).decode().strip()}. "
                "Is this the CUDA that came with the GPU's driver?"
            )
        cubin = bytearray(_nvrtc(nvrtc.nvrtcGetCUBINSize(program), "NVRTC gives no cubin"))
        _nvrtc(nvrtc.nvrtcGetCUBIN(program, cubin), "NVRTC gives no cubin")
        return bytes(cubin)
    finally:
        _nvrtc(nvrtc.nvrtcDestroyProgram(program), "NVRTC does not end")


def _nvrtc(result: tuple[Any, ...], doing: str) -> Any:
    error, *values = result
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise EngineError(f"{doing}: {error.name}")
    return values[0] if values else None
