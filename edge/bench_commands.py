"""`superlens bench`: loop | engine | copy | bridge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.config import Config
from edge.errors import EdgeError
from edge.options import config_from, config_options, errors_as_exit_codes, json_option, print_json

if TYPE_CHECKING:
    from edge.engine import Backend
    from export.manifest import Precision


@click.group()
def bench() -> None:
    """Measure this machine."""


@bench.command()
@config_options
@click.option("--viewers", type=click.IntRange(0, 8), default=1, show_default=True, help="Browsers watching /video.")
@click.option(
    "--windows", type=click.IntRange(1, 15), default=5, show_default=True, help="Windows to take the median of."
)
@click.option(
    "--frames", type=click.IntRange(min=400), default=5000, show_default=True, help="Frames in all, at least."
)
@json_option
def loop(*, viewers: int, windows: int, frames: int, json_path: str | None, **options: Any) -> None:
    """The whole loop against the bare engine, in one run."""
    from edge.bench import bench_loop

    with errors_as_exit_codes():
        figures = bench_loop(config_from(**options), viewers=viewers, windows=windows, frames=frames)
        if json_path != "-":
            click.echo(json.dumps(figures, indent=2))
        print_json(json_path, figures)


@bench.command()
@click.option(
    "--model", "models", multiple=True, help="Bundle folder or name; may be given several times [enhance-rt]."
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(["openvino", "onnxruntime", "tensorrt"]),
    help="May be given several times [all that are installed].",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp32", "fp16", "int8", "int8_fp16"]),
    help="May be given several times [all that a back end has a use for].",
)
@click.option("--shape", "shape_px", type=click.IntRange(16, 8192), nargs=2, metavar="H W", help="Of the frames, px.")
@click.option("--windows", type=click.IntRange(1, 15), default=5, show_default=True, help="To take the median of.")
@json_option
def engine(
    *,
    models: tuple[str, ...],
    backends: tuple[Backend, ...],
    precisions: tuple[Precision, ...],
    shape_px: tuple[int, int] | None,
    windows: int,
    json_path: str | None,
) -> None:
    """Back ends and precisions side by side, each in turn with its reference."""
    from edge.bench_engine import bench_engine, print_rows

    with errors_as_exit_codes():
        rows, left_out = bench_engine(
            models or (Config().engine.model,),
            backends=backends,
            precisions=precisions,
            shape_px=shape_px,
            windows=windows,
        )
        for line in left_out:
            click.echo(f"left out: {line}", err=True)
        if not rows:
            raise EdgeError("Nothing of what was asked for can be measured here; see what was left out.")
        if json_path != "-":
            print_rows(rows)
        print_json(json_path, rows)


@bench.command()
@config_options
@click.option("--frames", type=click.IntRange(min=1), default=32, show_default=True, help="Of each camera.")
@json_option
def copy(*, frames: int, json_path: str | None, **options: Any) -> None:
    """How often the bytes of a frame are copied, per kind of camera."""
    from edge.bench_copy import SHAPE_PX, bench_copy

    with errors_as_exit_codes():
        config = config_from(**options)
        if "shape_px" not in config.camera.model_fields_set:  # a small frame is copied as often as a large one
            camera = config.camera.model_copy(update={"shape_px": SHAPE_PX})
            config = config.model_copy(update={"camera": camera})
        figures = bench_copy(config, frames=frames)
        if json_path != "-":
            for name, copies in figures.items():
                click.echo(f"{name}: {copies:g} copies per frame")
        print_json(json_path, figures)


@bench.command()
@click.option("--runs", type=click.IntRange(1, 15), default=3, show_default=True, help="To take the median of.")
@click.option("--peers", type=click.Path(path_type=Path), help="Environment with PIPython [.venv-peers].")
@json_option
def bridge(*, runs: int, peers: Path | None, json_path: str | None) -> None:
    """The stage's driver against PI's own client, over a simulated controller on an emulated serial line."""
    from edge.bench_bridge import PEERS, bench_bridge

    with errors_as_exit_codes():
        figures = bench_bridge(runs=runs, peers=peers or PEERS)
        if json_path != "-":
            click.echo(json.dumps(figures, indent=2))
        print_json(json_path, figures)
