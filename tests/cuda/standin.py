"""Builds and loads what lets real pycuda and cuda-bindings run without a GPU.

``python -m tests.cuda.standin`` builds pycuda once into the user's cache folder (75 s on two cores) and installs it.
`load` compiles the stand-in for NVIDIA's driver library (libcuda.c, a second) and loads it into this process.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs

PYCUDA = "2026.1"
# JetPack 6's: its NVRTC is 12.6, and 12.9 is the newest cuda-bindings of CUDA 12. They pass with 13.5 as well.
WHEELS = ("cuda-bindings==12.9.*", "nvidia-cuda-nvrtc-cu12==12.6.*")

HERE = Path(__file__).parent
CACHE = platformdirs.user_cache_path("superlens", appauthor=False) / "tests"


class Standin:
    """The loaded stand-in and its switches for tests."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.was_lost = False
        library.standin_calls.restype = library.standin_live.restype = ctypes.c_long
        library.standin_fail.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_long)

    def kernels(self, path: Path) -> None:
        """Modules loaded from now on run the host build in ``path``, made by `build_kernels`."""
        self._library.standin_kernels(str(path).encode())

    def calls(self, function: str) -> int:
        """How often a driver function was called, by its name without a version."""
        return int(self._library.standin_calls(function.encode()))

    def fail(self, function: str, error: int, *, after: int = 0, times: int = 1) -> None:
        """Let calls of a driver function answer ``error``, after so many others."""
        self._library.standin_fail(function.encode(), error, after, times)

    def lose(self, error: int) -> None:
        """From now on the context answers every call with ``error``: what lives cannot be given back any more."""
        self.was_lost = True
        self._library.standin_lose(error)

    def device(self, *, count: int = 1, can_map: bool = True) -> None:
        """What the driver says of its GPUs."""
        self._library.standin_device(count, can_map)

    @property
    def live(self) -> int:
        """Allocations, streams, graphs and retained contexts nobody has given back."""
        return int(self._library.standin_live())

    def reset(self) -> None:
        """Forget faults and everything that lives."""
        self.was_lost = False
        self._library.standin_reset()


def cuda_root() -> Path | None:
    """The CUDA toolkit: its headers are needed, not its libraries."""
    homes = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))]
    if (nvcc := shutil.which("nvcc")) is not None:
        homes.insert(0, Path(nvcc).resolve().parent.parent)
    return next((home.resolve() for home in homes if (home / "include" / "cuda.h").is_file()), None)


def missing() -> str | None:
    """Why the stand-in cannot be used here, or None."""
    if cuda_root() is None:
        return "no CUDA toolkit: its headers are needed, where nvcc is on PATH or in /usr/local/cuda"
    for compiler in ("gcc", "g++"):
        if shutil.which(compiler) is None:
            return f"no {compiler} on PATH"
    for package in ("pycuda", "cuda"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed; `make cuda-standin` builds it"
    return None


def load() -> Standin:
    """Compile the stand-in and make it this process's libcuda.so.1. Before anything imports pycuda."""
    if "pycuda._driver" in sys.modules:
        raise RuntimeError("pycuda is already on another libcuda.so.1")
    # pycuda's extension is linked against all of the driver: what is not in libcuda.c answers "not supported".
    extension = next(Path(_origin("pycuda")).parent.glob("_driver*.so"))
    wanted = set(re.findall(r" U (cu[A-Z]\w+)", _run("nm", "-D", "--undefined-only", str(extension))))
    source = (HERE / "libcuda.c").read_bytes()
    key = hashlib.sha256(b"\0".join([source, *map(str.encode, sorted(wanted)), str(cuda_root()).encode()]))
    path = CACHE / f"libcuda-{key.hexdigest()[:16]}.so"
    if not path.is_file():
        _into(path, lambda new: _compile_libcuda(new, wanted))
    # Global: pycuda's symbols and cuda-bindings' dlopen("libcuda.so.1") both find what is loaded under that name.
    return Standin(ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL))


def _compile_libcuda(path: Path, wanted: set[str]) -> None:
    flags = ["-fPIC", "-O1", "-Wall", "-Wextra", f"-I{cuda_root()}/include"]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "libcuda.o"
        _run("gcc", *flags, "-c", str(HERE / "libcuda.c"), "-o", str(made))
        defined = set(re.findall(r" T (cu[A-Z]\w+)", _run("nm", "--defined-only", str(made))))
        rest = Path(folder) / "rest.c"
        rest.write_text("".join(f"int {name}(void) {{ return 801; }}\n" for name in sorted(wanted - defined)))
        _run("gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", str(made), str(rest), "-o", str(path))


def build_kernels(*sources: Path) -> Path:
    """Compile .cu files for the host, with no instruction that rounds once where the GPU rounds twice."""
    names = [
        name
        for source in sources
        for name in re.findall(r"^(?:PREPARE|DELIVER|extern \"C\" __global__ void )\(?(\w+)", source.read_text(), re.M)
    ]
    text = '#include "launch.h"\n' + "".join(f'#include "{source.resolve()}"\n' for source in sources)
    text += "".join(f"HOST_KERNEL({name})\n" for name in names)
    flags = ["-std=c++17", "-O2", "-Wall", "-ffp-contract=off", "-shared", "-fPIC", f"-I{HERE}"]
    key = hashlib.sha256("\0".join([text, *(file.read_text() for file in (HERE / "launch.h", *sources))]).encode())
    path = CACHE / f"kernels-{key.hexdigest()[:16]}.so"
    if not path.is_file():
        _into(path, lambda new: _run("g++", *flags, "-x", "c++", "-", "-o", str(new), text=text))
    return path


def build_pycuda() -> None:
    """Build pycuda's wheel, unless it is kept from an earlier time, and install it with `WHEELS` into this Python."""
    root = cuda_root()
    if root is None or shutil.which("g++") is None:
        raise RuntimeError("no CUDA toolkit (nvcc on PATH or in /usr/local/cuda), or no g++")
    wheels = CACHE / f"pycuda-{PYCUDA}-{sys.implementation.cache_tag}-{root.name}"
    if not wheels.is_dir():
        _into(wheels, lambda new: _build_wheel(new, root))
    pip = (sys.executable, "-m", "pip", "install", "--quiet")
    _run(*pip, *map(str, wheels.glob("*.whl")), *WHEELS)


def _build_wheel(path: Path, root: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pip = (sys.executable, "-m", "pip", "--quiet")
        _run(*pip, "download", "--no-deps", "--no-binary=pycuda", "--dest", name, f"pycuda=={PYCUDA}")
        with tarfile.open(next(folder.glob("pycuda-*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        source = next(entry for entry in folder.glob("pycuda-*") if entry.is_dir())
        # The linker wants a file of that name; which functions there are is found out when the extension is loaded.
        _run("gcc", "-shared", "-fPIC", "-x", "c", "/dev/null", "-o", str(folder / "libcuda.so"))
        (source / "siteconf.py").write_text(
            f"CUDA_ROOT = {str(root)!r}\nCUDA_ENABLE_CURAND = False\nCUDADRV_LIB_DIR = [{name!r}]\n"
            'CXXFLAGS = ["-O0", "-g0"]\n'  # half the time to compile, and no test is about pycuda's speed
        )
        _run(*pip, "wheel", "--no-deps", "--wheel-dir", str(path), str(source))


def _into(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file or folder beside ``path`` and move it there: whole or not at all, whoever else does the same."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        new = Path(folder) / path.name
        make(new)
        if not path.exists():
            new.rename(path)


def _origin(package: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return spec.origin


def _run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    try:
        build_pycuda()
    except RuntimeError as exc:
        print(f"pycuda was not built, the tests of the CUDA loop cannot run: {exc}", file=sys.stderr)  # noqa: T201
        sys.exit(os.environ.get("CI") == "true")
