"""The kernels, compiled for the host, against numpy; and for the GPUs they are meant for, without spills."""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.bench import missing
from tests.cuda import reference

SOURCE = Path(__file__).parents[2] / "edge" / "engine" / "cuda" / "kernels.cu"
# Sides that are no multiple of anything take the other way through the kernels.
SHAPES = [(16, 32), (17, 31), (1, 2), (33, 4), (9, 130)]
GUARD = 64

Launch = Callable[..., None]


class _HostKernel(ctypes.Structure):
    _fields_ = (
        ("parameters", ctypes.c_int),
        ("sizes", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("run", ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint))),
    )


@pytest.fixture(scope="module")
def launch(host_kernels: Path) -> Launch:
    """Run a kernel: its name, the letters of its arguments, the grid, the block, the arguments."""
    library = ctypes.CDLL(str(host_kernels))

    def run(name: str, letters: str, grid: tuple[int, int], block: tuple[int, int], *arguments: Any) -> None:
        packed = struct.pack(letters, *(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))
        shape = (ctypes.c_uint * 6)(*grid, 1, *block, 1)
        _HostKernel.in_dll(library, f"{name}__host").run(packed, shape)

    return run


def aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array as the loop has it, on a boundary of 256 bytes, of NaN or 0xCD, with `GUARD` bytes more behind it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.full(size + 256 + GUARD, 0xCD, np.uint8)
    start = -raw.ctypes.data % 256
    return raw[start : start + size + GUARD]


def body(raw: NDArray[Any], shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    return raw[:-GUARD].view(dtype).reshape(shape)


def prepared(launch: Launch, frame: NDArray[Any], pixel_format: str, width: int, **options: Any) -> NDArray[np.float32]:
    height = len(frame)
    source = aligned(frame.shape, frame.dtype)
    body(source, frame.shape, frame.dtype)[:] = frame
    target = aligned((height, width), np.float32)
    dark, flat = (0 if options.get(key) is None else options[key] for key in ("dark", "flat"))
    scale = np.float32(1 / options["full_scale"])
    launch(
        f"prepare_{pixel_format}", "PiPPPiif", (-(-width // 128), -(-height // 8)), (32, 8),
        source, frame.strides[0], dark, flat, target, width, height, scale,
    )  # fmt: skip
    assert (target[-GUARD:] == 0xCD).all()
    return body(target, (height, width), np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pixel_format", reference.BITS)
def test_every_format_is_prepared_as_in_numpy(launch: Launch, pixel_format: str, shape: tuple[int, int]) -> None:
    frame = reference.random_frame(pixel_format, *shape)
    full_scale = (1 << reference.BITS[pixel_format]) - 1
    found = prepared(launch, frame, pixel_format, shape[1], full_scale=full_scale)
    wanted = reference.prepare(frame, pixel_format, shape[1], full_scale=full_scale)
    np.testing.assert_array_equal(found, wanted)
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("pixel_format", reference.BITS)
@pytest.mark.parametrize("with_flat", [False, True])
def test_dark_and_flat_are_applied_as_in_numpy(
    launch: Launch, pixel_format: str, shape: tuple[int, int], with_flat: bool
) -> None:
    rng = np.random.default_rng(2)
    frame = reference.random_frame(pixel_format, *shape)
    options = {
        "full_scale": (1 << reference.BITS[pixel_format]) - 1,
        "dark": rng.uniform(0, 9, shape).astype(np.float32),
        "flat": rng.uniform(0.5, 1.5, shape).astype(np.float32) if with_flat else None,
    }
    found = prepared(launch, frame, pixel_format, shape[1], **options)
    np.testing.assert_array_equal(found, reference.prepare(frame, pixel_format, shape[1], **options))


def test_packed_bytes_mean_what_the_naming_convention_says(launch: Launch) -> None:
    """PFNC 2.4, Mono10p and Mono12p: a pixel's bits go up from the lowest free one, into the next byte where needed."""
    row = np.array([[0x21, 0x43, 0x65, 0x87, 0xA9, 0xCB]], np.uint8)
    ten = [0x321, 0x43 >> 2 | 0x5 << 6, 0x65 >> 4 | 0x07 << 4, 0x87 >> 6 | 0xA9 << 2]
    twelve = [0x321, 0x654, 0x987, 0xCBA]
    np.testing.assert_array_equal(prepared(launch, row[:, :5], "mono10p", 4, full_scale=1), [ten])
    np.testing.assert_array_equal(prepared(launch, row, "mono12p", 4, full_scale=1), [twelve])


@pytest.mark.parametrize("pattern", ["rg", "gr", "gb", "bg"])
def test_red_and_blue_light_do_not_reach_the_network(launch: Launch, pattern: str) -> None:
    y, x = np.indices((8, 12))
    letters = np.array([[*pattern], [*{"rg": "gb", "gr": "bg", "gb": "rg", "bg": "gr"}[pattern]]])[y % 2, x % 2]
    frame = np.where(letters == "g", 100, np.where(letters == "r", 250, 7)).astype(np.uint8)
    assert (prepared(launch, frame, f"bayer_{pattern}8", 12, full_scale=1) == 100).all()
    colours = np.full((8, 12, 3), (250, 100, 7), np.uint8)
    assert (prepared(launch, colours, "rgb8", 12, full_scale=1) == 100).all()


def delivered(launch: Launch, planes: NDArray[np.float32], dtype: Any, full_scale: int) -> NDArray[Any]:
    channels, height, width = planes.shape
    shape = (height, width, 3) if channels == 3 else (height, width)
    source, target = aligned(planes.shape, np.float32), aligned(shape, dtype)
    body(source, planes.shape, np.float32)[:] = planes
    name = f"deliver_{'rgb' if channels == 3 else 'grey'}{8 * np.dtype(dtype).itemsize}"
    launch(name, "PPif", (-(-height * width // 1024), 1), (256, 1), source, target, height * width, full_scale)
    assert (target[-GUARD:] == 0xCD).all()
    return body(target, shape, dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("dtype", "full_scale"), [(np.uint8, 255), (np.uint16, 4095), (np.uint16, 65535)])
def test_results_become_counts_as_in_numpy(
    launch: Launch, shape: tuple[int, int], channels: int, dtype: Any, full_scale: int
) -> None:
    planes = np.random.default_rng(1).uniform(0, 1, (channels, *shape)).astype(np.float32)
    found = delivered(launch, planes, dtype, full_scale)
    np.testing.assert_array_equal(found, reference.deliver(planes, dtype, full_scale=full_scale))


@pytest.mark.parametrize("width", [4, 5])
def test_halves_go_to_the_even_count_and_what_is_no_count_to_the_nearest_one(launch: Launch, width: int) -> None:
    values = [0.5, 1.5, 2.5, 3.5, np.nan, -np.inf, np.inf, -1, 256, 1e30, -0.4, 254.6]
    planes = np.zeros((1, len(values), width), np.float32)
    planes[0] = np.array(values, np.float32)[:, np.newaxis] / np.float32(256)  # exact: a power of two
    found = delivered(launch, planes, np.uint16, 256)
    np.testing.assert_array_equal(found[:, width - 1], [0, 2, 2, 4, 0, 0, 256, 0, 256, 256, 0, 255])


@pytest.mark.parametrize("architecture", ["sm_87", "sm_110", "compute_90"])
def test_nvcc_compiles_every_kernel_without_spills(nvcc: str, tmp_path: Path, architecture: str) -> None:
    """sm_87 is Orin, sm_110 Thor; of compute_90, which no Jetson has, the portable code at least."""
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    if architecture.replace("sm_", "compute_") not in known:
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[3]
        missing(f"{architecture} is unknown to this nvcc ({version}); Thor's sm_110 needs CUDA 13")
    kind = "-ptx" if architecture.startswith("compute_") else "-cubin"
    command = [nvcc, kind, f"-arch={architecture}", "-std=c++17", "--fmad=false", "-Xptxas=-v,-Werror", str(SOURCE)]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out")], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    if kind == "-ptx":
        assert (tmp_path / "out").read_text().count(".visible .entry") == 13
        return
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert spills == [("0", "0", "0")] * 13, done.stderr
    assert re.findall(r"used (\d+) barriers", done.stderr) == ["0"] * 13
