"""What the commands of `superlens` share: their options, their errors as exit codes, and their results as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from edge.config import Config, load_config
from edge.errors import ConfigError, EdgeError
from firmware_bridge.errors import FirmwareError

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """One clear line on stderr and an exit code; never a traceback for what a user can mend."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except ConfigError as exc:
        click.echo(f"superlens: {exc}", err=True)
        sys.exit(2)
    except (EdgeError, FirmwareError) as exc:
        click.echo(f"superlens: {exc}", err=True)
        sys.exit(1)


def config_options(command: FunctionT) -> FunctionT:
    """The options every command shares that opens an instrument."""
    for option in reversed(
        (
            click.option(
                "--config", "config_path", type=click.Path(path_type=Path), help="TOML file; see check-config."
            ),
            click.option("--camera", help='"simulated" or "replay:PATH" (image, folder, TIFF stack or .npz).'),
            click.option("--model", help="Bundle folder, or the name of a bundle that ships with superlens."),
            click.option("--show", help="Which of the model's outputs is on view, and goes into a scan [its first]."),
            click.option("--fps", type=float, help="Frame rate of the simulated camera, or pacing of a replay."),
            click.option("--bit-depth", type=int, help="Bits the camera's counts have, if fewer than the file's."),
            click.option("--pixel-size-nm", type=float, help="Size of a pixel on the specimen."),
        )
    ):
        command = option(command)
    return command


def config_from(
    config_path: Path | None,
    camera: str | None,
    model: str | None,
    show: str | None,
    fps: float | None,
    bit_depth: int | None,
    pixel_size_nm: float | None,
    web: Mapping[str, Any] | None = None,
) -> Config:
    """The file of ``--config`` with the other options laid over it. Raises ConfigError as `load_config`."""
    driver, _, path = (camera or "").partition(":")
    if path and driver != "replay":
        raise ConfigError(f"--camera {camera}: only replay takes a path, as in replay:FILE.")
    return load_config(
        config_path,
        {
            "camera": {
                "driver": driver or None,
                "path": path or None,
                "fps": fps,
                "bit_depth": bit_depth,
                "pixel_size_nm": pixel_size_nm,
            },
            "engine": {"model": model, "show": show},
            "web": dict(web or {}),
        },
    )


def print_json(target: str | None, document: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Write the result where ``--json`` says: a file, or ``-`` for standard output."""
    if target is None:
        return
    text = json.dumps(document, indent=2, default=str)
    if target == "-":
        click.echo(text)
        return
    try:
        Path(target).write_text(text + "\n", encoding="utf-8")
    except OSError as exc:
        raise EdgeError(f"The result could not be written to {target}: {exc}.") from exc


def _writable(context: click.Context, parameter: click.Parameter, target: str | None) -> str | None:
    """Notice a result that could not be written before the work, not after it."""
    del context
    if target not in (None, "-") and not os.access(Path(target).parent, os.W_OK):
        raise click.BadParameter(f"the folder of {target} does not exist or is not writable", param=parameter)
    return target


json_option = click.option(
    "--json", "json_path", metavar="FILE", callback=_writable, help='Write the figures as JSON; "-" is stdout.'
)
