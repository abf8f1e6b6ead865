"""`superlens doctor`: what is installed, what is present, what is missing and how to get it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from serial.tools import list_ports

from edge import __version__
from edge.config import Config
from edge.engine import INSTALL, find_bundle
from edge.errors import ConfigError

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
_OPTIONAL = {
    "onnxruntime": INSTALL["onnxruntime"],
    "tensorrt": "comes with JetPack",
    "gpiozero": "pip install 'superlens[jetson]'",
    "torch": "pip install 'superlens[train]'  (training only)",
}


def examine() -> dict[str, Any]:
    """Look, and open nothing: no port, no camera, no engine."""
    return {
        "superlens": __version__,
        "python": sys.version.split()[0],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "processor": _processor(),
        "jetson": _first_line(Path("/etc/nv_tegra_release")) or "no",
        "nvidia_gpu": "present" if Path("/dev/nvidia0").exists() or Path("/dev/nvhost-gpu").exists() else "none",
        "packages": {name: _version(name) or "MISSING: pip install superlens" for name in _PACKAGES},
        "optional": {name: _version(name) or f"not installed: {how}" for name, how in _OPTIONAL.items()},
        "serial_ports": [f"{port.device}: {port.description}" for port in list_ports.comports()],
        "gpio_chips": sorted(str(path) for path in Path("/dev").glob("gpiochip*")),
        "video_devices": sorted(str(path) for path in Path("/dev").glob("video*")),
        "model": _default_model(),
        "disk_free_mb": shutil.disk_usage(Path.home()).free // 2**20,
    }


def required_versions() -> dict[str, str]:
    """Of the packages the appliance cannot do without; empty where one is missing."""
    return {name: _version(name) or "" for name in _PACKAGES}


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
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


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
