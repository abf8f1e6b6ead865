"""Type stubs of TensorRT from the list of names, so that mypy checks our calls against each release."""

from __future__ import annotations

import re
from collections import defaultdict

from tests.tensorrt.bindings import Names

# What the list cannot say: shapes are tuples to whoever reads them, and a blob can be read as bytes.
_HEAD = """from typing import Any, overload

Dims = tuple[int, ...]
Buffer = bytes
"""
_EXTRA = {"IHostMemory": ["def __buffer__(self, flags: int, /) -> memoryview: ..."]}


def stub(names: Names, release: str) -> str:
    """The text of a ``tensorrt.pyi``."""
    owners: dict[str, list[str]] = defaultdict(list, {name: [*lines] for name, lines in _EXTRA.items()})
    top = []
    for name, by_release in names.items():
        signatures = by_release.get("all") or by_release.get(release, [])
        owner, _, member = name.rpartition(".")
        for signature in signatures:
            if signature == "class":
                owners[name] += []
            elif not owner:
                top.append(f"{name}: {signature.partition('.')[0]}")
            else:
                owners[owner] += ["@overload"] if len(signatures) > 1 else []
                owners[owner] += _member(owner, member, signature)
    said = " ".join([*top, *(line for lines in owners.values() for line in lines)])
    for word in set(re.findall(r"(?:: |-> )([A-Z]\w+)", said)) - {"Any", "Dims", "Buffer", "None"}:
        owners[word] += []  # a class whose members we never ask for
    classes = [
        f"class {owner}:\n" + "".join(f"    {line}\n" for line in lines or ["..."]) for owner, lines in owners.items()
    ]
    return "\n".join([_HEAD, *classes, *top, ""])


def _member(owner: str, member: str, signature: str) -> list[str]:
    if signature.startswith("= "):  # an enum's; pybind11's can be made an int, and are none
        return [f"{member}: {owner}", "def __int__(self) -> int: ..."]
    if signature.startswith("<class"):
        return [f"class {member}:", "    def __int__(self) -> int: ..."]
    if re.fullmatch(r"Severity\.\w+", signature):
        return [f"{member}: {owner}.Severity"]
    if "(" not in signature:
        returns = re.sub(r"^.*-> |, read only", "", signature)
        if signature.endswith("read only"):
            return ["@property", f"def {member}(self) -> {returns}: ..."]
        return [f"{member}: {returns}"]
    if "->" not in signature:
        return []  # not to be constructed
    signature = re.sub(r"self: \w+", "self", re.sub(r"= [^,)]+", "= ...", signature))
    return [f"def {signature}: ..."]
