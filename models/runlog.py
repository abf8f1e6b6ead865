"""What a training run tells about itself: log.csv, TensorBoard, and a sheet of samples at every validation."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from torch.utils.tensorboard import SummaryWriter

Image = NDArray[np.float32]


class RunLog:
    """Writes DIR/log.csv, DIR/tensorboard and DIR/samples; a context manager.

    Parameters
    ----------
    out
        The run's folder; it is made.
    resumed_at
        The step the run goes on from: later rows, of steps that will be taken again, are dropped. None: a new run.
    writes
        False in all processes but one.
    """

    def __init__(self, out: Path, *, resumed_at: int | None, writes: bool = True) -> None:
        self.summary = ""
        self._out = out
        self._writes = writes
        self._recent: defaultdict[str, list[float]] = defaultdict(list)
        self._figures: dict[str, float] = {}
        if not writes:
            return
        out.mkdir(parents=True, exist_ok=True)
        self._rows = _rows_until(out / "log.csv", resumed_at) if resumed_at is not None else []
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=resumed_at)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writes:
            self._board.close()

    def losses(self, losses: Mapping[str, float]) -> None:
        """What one step lost, averaged until the next row."""
        for name, value in losses.items():
            self._recent[name].append(value)

    def validation(self, step: int, figures: Mapping[str, float], sheet: Image) -> None:
        """Figures for the next row, and a picture."""
        self._figures = dict(figures)
        pixels = (np.clip(sheet, 0, 1) * 255 + 0.5).astype(np.uint8)
        (self._out / "samples").mkdir(exist_ok=True)
        Picture.fromarray(pixels).save(self._out / "samples" / f"{step:06d}.png")
        layout = "HWC" if pixels.ndim == 3 else "HW"
        self._board.add_image("samples", pixels, step, dataformats=layout)

    def row(self, step: int, learning_rate: float, time_s: float) -> None:
        """One row of the table and one point of every curve."""
        means = {name: float(np.mean(values)) for name, values in self._recent.items()}
        self._recent.clear()
        texts = [f"{name} {value:.4g}" for name, value in (means | self._figures).items()]
        self.summary = "  ".join(texts)
        if self._writes:
            row = {"step": step} | means | {f"validation_{name}": value for name, value in self._figures.items()}
            row |= {"learning_rate": learning_rate, "time_s": round(time_s, 1)}
            self._rows.append({name: f"{value:.6g}" for name, value in row.items()})
            _write(self._out / "log.csv", self._rows)
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, step)
        self._figures = {}


def _rows_until(path: Path, step: int) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file) if int(row["step"]) <= step]


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    """The whole table anew: a column may first appear with the first validation."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)
