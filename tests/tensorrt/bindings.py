"""TensorRT's real Python bindings of three releases, without TensorRT, and the list of what we use of them.

``python tests/tensorrt/bindings.py install`` puts the bindings under ``build/tensorrt`` (three small wheels, a few
seconds) with libraries that compute nothing; ``... list`` writes `names.json` anew from them and from our code.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HOME = ROOT / "build" / "tensorrt" / f"py{sys.version_info.major}.{sys.version_info.minor}"  # each has its wheels
LIST = Path(__file__).with_name("names.json")
OURS = ("export/bindings.py", "export/build_engine.py", "edge/engine/tensorrt.py")
"""The files that speak to TensorRT."""
RELEASES = {
    "10.3.0": "tensorrt_cu12_bindings",
    "10.16.1.11": "tensorrt_cu12_bindings",
    "11.4.0.106": "tensorrt_cu13_bindings",
}
_PARTS = {"NVINFER": "libnvinfer", "PARSER": "libnvonnxparser", "PLUGIN": "libnvinfer_plugin"}

Names = dict[str, dict[str, list[str]]]
"""``{"Class.member": {release: signatures}}``; one entry "all" where the releases agree."""


def install(home: Path = HOME) -> None:
    """Fetch what is not there yet; safe to call again."""
    for release, package in RELEASES.items():
        folder = home / release
        if not (folder / "tensorrt.py").is_file():
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
            subprocess.run([*pip, f"{package}=={release}"], check=True)
            # What the package `tensorrt` itself does; that one would fetch the libraries, gigabytes.
            (folder / "tensorrt.py").write_text(
                "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
            )
        major = release.partition(".")[0]
        for part, name in _PARTS.items():
            build_library(part, home / f"lib{major}" / f"{name}.so.{major}")


def build_library(part: str, path: Path) -> Path:
    """One part of `shim.c` under its SONAME."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", f"-D{part}", f"-Wl,-soname,{path.name}"]
    subprocess.run([*compiler, str(Path(__file__).with_name("shim.c")), "-o", str(path)], check=True)
    return path


def environment(release: str, home: Path = HOME) -> dict[str, str]:
    """In which `import tensorrt` is the real bindings of a release."""
    paths = os.pathsep.join([str(home / release), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "LD_LIBRARY_PATH": str(home / f"lib{release.partition('.')[0]}")}


def real_names(home: Path = HOME) -> dict[str, dict[str, list[str]]]:
    """``{release: {"Class.member": signatures}}`` of everything there is."""
    dumped = {}
    for release in RELEASES:
        run = [sys.executable, __file__, "dump"]
        done = subprocess.run(run, env=environment(release, home), check=True, capture_output=True, text=True)
        dumped[release] = json.loads(done.stdout)
    return dumped


def used_names() -> tuple[set[str], set[str]]:
    """What our files say: names that begin at the module (``BuilderFlag.TF32``), and attributes of anything."""
    rooted, attributes = set[str](), set[str]()
    for file in OURS:
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                for base in filter(None, map(_rooted, node.bases)):
                    methods = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
                    rooted |= {f"{base}.{name}" for name in methods}
            elif isinstance(node, ast.Attribute):
                attributes.add(node.attr)
                if name := _rooted(node):
                    rooted.add(name)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
                place, name = node.args[0], node.args[1]
                if isinstance(name, ast.Constant) and (owner := _rooted(place)):
                    rooted.add(f"{owner}.{name.value}")
    return rooted, attributes


def _rooted(node: ast.expr) -> str | None:
    """``trt.A.B`` as "A.B"."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed(parts)) if isinstance(node, ast.Name) and node.id == "trt" and parts else None


def list_names(dumped: dict[str, dict[str, list[str]]]) -> Names:
    """What our code names at the module, and of every class that it can come by the members it has an attribute for.

    The second part may hold a name too many (``name`` of a class whose name we never ask), but none too few.
    """
    rooted, attributes = used_names()
    members = set[str]().union(*dumped.values())
    enums = {name.partition(".")[0] for names in dumped.values() for name, text in names.items() if text[0][0] == "="}
    wanted, reached = rooted & members | {"__version__"}, {name.partition(".")[0] for name in rooted}
    while True:
        wanted |= {
            name
            for name in members
            for owner, _, member in [name.partition(".")]
            if owner in reached - enums and member in attributes and (member != "__init__" or owner in rooted)
        }
        gives = [
            text.rpartition("->")[2] for names in dumped.values() for name in wanted for text in names.get(name, ())
        ]
        more = {word for text in gives for word in re.findall(r"\w+", text) if word in members} - reached
        if not more:
            return {name: _by_release(name, dumped) for name in sorted(wanted)}
        reached |= more


def _by_release(name: str, dumped: dict[str, dict[str, list[str]]]) -> dict[str, list[str]]:
    found = {release: names[name] for release, names in dumped.items() if name in names}
    values = list(found.values())
    same = len(found) == len(dumped) and all(value == values[0] for value in values)
    return {"all": values[0]} if same else found


def dump() -> dict[str, list[str]]:
    """Every name of the bindings that are importable here, each with its signatures."""
    import tensorrt_bindings

    module = tensorrt_bindings.tensorrt
    names = {"__version__": [type(tensorrt_bindings.__version__).__name__]}
    for name, value in vars(module).items():
        if name.startswith("__"):
            continue
        names[name] = ["class"] if inspect.isclass(value) else [str(value)]
        if inspect.isclass(value):
            names |= {f"{name}.{member}": signatures for member, signatures in _members(value)}
    return names


def _members(cls: Any) -> Iterator[tuple[str, list[str]]]:
    for member in dir(cls):
        if member.startswith("_") and member != "__init__":
            continue
        value = getattr(cls, member)
        if member in getattr(cls, "__members__", {}):
            yield member, [f"= {int(value)}"]
        elif isinstance(value, property):
            returns = (value.fget.__doc__ or "").strip().split("\n")[0].partition("->")[2]
            yield member, [_plain(f"{member} ->{returns}{'' if value.fset else ', read only'}")]
        elif isinstance(value, type(cls)) or not callable(value):
            yield member, [_plain(str(value))]
        else:
            lines = (value.__doc__ or "").split("\n")
            numbered = [line.partition(". ")[2] for line in lines if re.match(rf"\d+\. {member}\(", line)]
            yield member, [_plain(line) for line in numbered or lines[:1]]


def _plain(signature: str) -> str:
    """One spelling for all releases of pybind11."""
    for old, new in (
        (r"tensorrt_bindings\.tensorrt\.", ""),
        (r"typing\.SupportsInt", "int"),
        (r"typing\.SupportsFloat", "float"),
        (r"(typing_extensions|collections\.abc)\.Buffer|\bbuffer\b", "Buffer"),
        (r"\bList\[", "list["),
        (r"nvonnxparser::I?|nvinfer1::", ""),
        (r"<(\w+)\.(\w+): -?\d+>", r"\1.\2"),
    ):
        signature = re.sub(old, new, signature)
    return signature.strip()


if __name__ == "__main__":
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command == "install":
        try:
            install()
        except (OSError, subprocess.CalledProcessError) as exc:
            print(f"TensorRT's bindings are not installed, their tests cannot run: {exc}", file=sys.stderr)  # noqa: T201
            sys.exit(os.environ.get("CI") == "true")  # elsewhere the tests are skipped and say why
    elif command == "dump":
        json.dump(dump(), sys.stdout)
    elif command == "list":
        install()
        lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in list_names(real_names()).items()]
        LIST.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    else:
        raise SystemExit(__doc__)
