"""docs/code-flow.md has the list of threads: each that the product starts is in it, by its name, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
NAMED_ELSEWHERE = {"main", "waitress"}
"""By Python, and by waitress."""


def thread_names(source: str) -> Iterator[str]:
    """What the threads of a file are called; in a name that is put together, a value in capitals. "" for no name."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        made = ast.unparse(call.func).rpartition(".")[2]
        if made not in ("Thread", "ThreadPoolExecutor"):
            continue
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        name = named.get("name") if made == "Thread" else named.get("thread_name_prefix", (*call.args, None, None)[1])
        parts = name.values if isinstance(name, ast.JoinedStr) else [name]
        yield "".join(map(_word, parts))


def _word(part: ast.expr | None) -> str:
    if isinstance(part, ast.FormattedValue):
        return ast.unparse(part.value).rpartition(".")[2].upper()
    return str(part.value) if isinstance(part, ast.Constant) else ""


def test_a_name_is_found_however_it_is_given() -> None:
    source = """
threading.Thread(target=f, name="one")
Thread(target=f, name=f"two {self.address}")
ThreadPoolExecutor(1, thread_name_prefix="three")
futures.ThreadPoolExecutor(1, "four")
Thread(target=f)
ThreadPoolExecutor(1)
"""
    assert list(thread_names(source)) == ["one", "two ADDRESS", "three", "four", "", ""]


def test_every_thread_is_in_the_list_and_the_list_has_no_other() -> None:
    found = {
        name
        for package in ("edge", "firmware_bridge", "models", "export")
        for path in (ROOT / package).rglob("*.py")
        for name in thread_names(path.read_text(encoding="utf-8"))
    }
    rows = (ROOT / "docs" / "code-flow.md").read_text(encoding="utf-8").partition("## Threads")[2].partition("## ")[0]
    first = [line.split("|")[1] for line in rows.splitlines() if line.startswith("| `")]
    listed = {name for cell in first for name in re.findall("`([^`]+)`", cell)}
    assert found | NAMED_ELSEWHERE == listed
