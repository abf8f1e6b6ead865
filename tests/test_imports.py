"""The architecture is a test: the contracts of pyproject.toml hold, and the tables of drivers name what exists."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_import_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("package", ["edge", "firmware_bridge"])
def test_no_file_of_the_appliance_names_torch(package: str) -> None:
    """Not even inside a function: an import the linter would see only when it runs."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.partition(".")[0] in {"torch", "onnx"}], path


@pytest.mark.parametrize("table", ["edge.cameras:DRIVERS", "edge.engine:BACKENDS"])
def test_every_driver_of_a_table_exists(table: str) -> None:
    module, name = table.split(":")
    for where in getattr(importlib.import_module(module), name).values():
        file, attribute = where.split(":")
        assert hasattr(importlib.import_module(file), attribute)


def test_only_the_job_loop_catches_every_exception() -> None:
    wide = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in ("edge", "firmware_bridge", "models", "export")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception"))
        and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
    ]
    assert len(wide) == 1, wide
    assert wide[0].startswith("edge/daemon.py")
