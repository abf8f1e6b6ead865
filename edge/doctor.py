"""`superlens doctor`: what is installed, what is present, what is missing and how to get it."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from serial.tools import list_ports

from edge import __version__
from edge.config import Config
from edge.engine import INSTALL, Backend, find_bundle
from edge.errors import ConfigError
from edge.recorder import existing

_PACKAGES = (
    "numpy",
    "scipy",
    "pydantic",
    "flask",
    "waitress",
    "pyserial",
    "tifffile",
    "pillow",
    "simplejpeg",
    "openvino",
)
_JETSON = ".venv/bin/pip install -e '.[jetson]' in the checkout"
_OPTIONAL = {
    "onnxruntime": INSTALL["onnxruntime"],
    "tensorrt": "comes with JetPack; a virtual environment sees it if made with --system-site-packages",
    "pycuda": _JETSON,
    "cuda-bindings": _JETSON,
    "NVRTC": "apt install cuda-nvrtc-12-6 (JetPack 6) or cuda-nvrtc-13-0 (JetPack 7)",
    "gpiozero": _JETSON,
    "torch": ".venv/bin/pip install -e '.[train]' in the checkout  (training only)",
}
_NEEDED: dict[Backend, tuple[str, ...]] = {
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime",),
    "tensorrt": ("tensorrt", "pycuda", "cuda-bindings", "NVRTC"),
}
"""What each back end computes with: its figures mean little without these versions."""


class Package(NamedTuple):
    """A package or a library; ``version`` is None where it is not installed, ``how`` is how to get it.

    ``needed`` is whether the instrument cannot do without it, ``computes`` whether its engine computes with it.
    """

    name: str
    version: str | None
    how: str
    needed: bool
    computes: bool


def examine(data_dir: Path) -> dict[str, Any]:
    """Look, and open nothing: no port, no camera, no engine. ``data_dir`` is whose disk may be full."""
    return {
        "superlens": __version__,
        "python": sys.version.split()[0],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "processor": _processor(),
        "jetson": _first_line(Path("/etc/nv_tegra_release")) or "no",
        "nvidia_gpu": "present" if Path("/dev/nvidia0").exists() or Path("/dev/nvhost-gpu").exists() else "none",
        "packages": {name: _version(name) or "MISSING: make install, in the checkout" for name in _PACKAGES},
        "optional": {name: _version(name) or f"not installed: {how}" for name, how in _OPTIONAL.items()},
        "serial_ports": [f"{port.device}: {port.description}" for port in list_ports.comports()],
        "gpio_chips": sorted(str(path) for path in Path("/dev").glob("gpiochip*")),
        "video_devices": sorted(str(path) for path in Path("/dev").glob("video*")),
        "model": _default_model(),
        "disk_free_mb": {str(data_dir): shutil.disk_usage(existing(data_dir)).free // 2**20},
    }


def packages(backend: Backend) -> list[Package]:
    """All that the appliance can use, and which of it a configuration with this back end has to have."""
    computes = _NEEDED[backend]
    every = dict.fromkeys(_PACKAGES, "make install, in the checkout") | _OPTIONAL
    return [
        Package(name, _version(name), how, needed=name in (*_PACKAGES, *computes), computes=name in computes)
        for name, how in every.items()
    ]


def print_report(report: dict[str, Any]) -> None:
    """The report as a table on standard output."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in report.items():
        if isinstance(value, dict):
            for name, words in value.items():
                table.add_row(f"{key}: {name}", escape(str(words)))
        elif isinstance(value, list):
            table.add_row(key, escape("\n".join(map(str, value)) or "none"))
        else:
            table.add_row(key, escape(str(value)))
    Console().print(table)


def print_checks(report: dict[str, Any]) -> None:
    """What the self-test found, as a table on standard output."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for check in report["checks"]:
        table.add_row(check["name"], check["outcome"], escape(check["words"]))
    console = Console()
    console.print(table)
    console.print(f"{'All that is here works' if report['passed'] else 'FAILED'}. Report: {escape(report['report'])}")


def _version(package: str) -> str | None:
    """Of what is there; None where it is not installed, or cannot be loaded."""
    if package == "tensorrt":
        return _tensorrt()
    if package == "NVRTC":
        return _nvrtc()
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tensorrt() -> str | None:
    """As imported: JetPack's package may be there while this Python, or its libraries, are not the right ones."""
    try:
        return str(importlib.import_module("tensorrt").__version__)
    except (ImportError, OSError):
        return None


def _nvrtc() -> str | None:
    """The compiler of the GPU's kernels, a library that cuda-bindings looks for."""
    try:
        _, major, minor = importlib.import_module("cuda.bindings.nvrtc").nvrtcVersion()
    except (ImportError, RuntimeError):
        return None
    return f"{major}.{minor}"


def _processor() -> str:
    """Name and the instructions that decide the engine's arithmetic."""
    name, flags = "unknown", set[str]()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = set(value.split())
    fast = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx2", "asimd", "bf16") if flag in flags]
    return f"{name} ({', '.join(fast) or 'no vector extensions known here'})"


def _default_model() -> str:
    name = Config().engine.model
    try:
        bundle = find_bundle(name)
        path = bundle.model_path()
    except (ConfigError, ValueError) as exc:
        return f"PROBLEM: {exc}"
    return f"{name}: {path.name}, hash in order"


def _first_line(path: Path) -> str | None:
    return path.read_text().splitlines()[0] if path.exists() else None
