"""The README is a test: what it tells people to type exists, and what it points to is there."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {
    "superlens": "edge.__main__",
    "superlens-pzt": "firmware_bridge.__main__",
    "superlens-train": "models.__main__",
    "superlens-export": "export.__main__",
}


def _commands(document: Path) -> Iterator[str]:
    """Lines of the document's shell blocks, continued lines joined, comments cut."""
    for block in re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.partition("  #")[0].strip().removeprefix("$ ").removeprefix(".venv/bin/")
            if command and not command.startswith("#"):
                yield command


COMMANDS = [(document.name, command) for document in DOCUMENTS for command in _commands(document)]


@pytest.mark.parametrize(("document", "command"), [c for c in COMMANDS if c[1].split()[0] in PROGRAMS])
def test_every_command_of_the_documents_is_one_the_program_takes(document: str, command: str) -> None:
    program, *arguments = shlex.split(command.partition(" | ")[0])
    found: click.Command = importlib.import_module(PROGRAMS[program]).main
    while isinstance(found, click.Group) and arguments:
        name = arguments.pop(0)
        if name.startswith("-"):
            return  # --help, --version
        assert name in found.commands, f"{document}: {command}"
        found = found.commands[name]
    found.make_context(program, arguments)  # parses and checks; runs nothing


@pytest.mark.parametrize(("document", "command"), [c for c in COMMANDS if c[1].startswith("make ")])
def test_every_make_target_of_the_documents_exists(document: str, command: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in shlex.split(command)[1:]:
        if "=" not in target:
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"{document}: {command}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_a_document_points_to_is_there(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_readme_shows_how_to_run_and_how_to_test() -> None:
    assert {"make run", "make test"} <= {command for name, command in COMMANDS if name == "README.md"}
