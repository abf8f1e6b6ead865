"""What it means to judge a network: a function of one picture, a data set, a report with its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.recipe import Recipe
from models.systems import SYSTEMS, imported

Image = NDArray[np.float32]
Infer = Callable[[Image], Mapping[str, Image]]


class Subject(NamedTuple):
    """Whom we judge.

    `infer` maps one picture (h, w) in 0..1 to the outputs by name: (scale h, scale w), or with 3 channels last. It
    is told nothing else. `recipe` says what it was trained on.
    """

    name: str
    task: str
    infer: Infer
    scale: int
    halo_px: int
    pixel_size_nm: float
    outputs: tuple[str, ...]
    recipe: Recipe

    def shown(self, image: Image) -> Image:
        """The first output for a picture: the one that is shown."""
        return self.infer(image)[self.outputs[0]]


class Picture(NamedTuple):
    """A picture of the report: (h, w) or (h, w, 3) in 0..1."""

    title: str
    image: Image
    caption: str


class Judgement(NamedTuple):
    """A JSON-ready report, whose "tables" and "curves" are printed as they are, and the pictures that go with it."""

    report: dict[str, Any]
    pictures: list[Picture]


def evaluate(subject: Subject, data: str, *, folder: Path | None = None, thorough: bool = False) -> Judgement:
    """Judge a network of any system.

    Parameters
    ----------
    subject
        The network.
    data
        "synthetic:heldout", generated the same everywhere; "real:heldout", crops of a folder of real images seen
        through the same simulated optics; "pairs", the test split of a folder made by `superlens-train pairs`.
    folder
        The folder of the last two.
    thorough
        Robustness curves, resolution and pictures too: minutes instead of seconds.

    Raises
    ------
    RecipeError
        The system has no such data set, or the folder is missing or empty.
    """
    judge = imported(SYSTEMS[subject.task].evaluate)
    judgement: Judgement = judge(subject, data, folder=folder, thorough=thorough)
    head = {"model": subject.name, "task": subject.task, "data": data}
    return Judgement(head | judgement.report, judgement.pictures)


def text_report(report: Mapping[str, Any]) -> str:
    """The tables of a report for a terminal."""
    lines = [f"{report['model']} on {report['data']}"]
    for title, rows in report.get("tables", {}).items():
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        grid = [[title, *columns], *([name, *map(_cell, map(row.get, columns))] for name, row in rows.items())]
        widths = [max(len(line[place]) for line in grid) for place in range(len(grid[0]))]
        lines.append("")
        for first, *others in grid:
            cells = (f"{cell:>{width}s}" for cell, width in zip(others, widths[1:], strict=True))
            lines.append(f"{first:{widths[0]}s}  {'  '.join(cells)}")
    return "\n".join([*lines, "", *report.get("notes", ())])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
