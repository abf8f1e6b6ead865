"""What a command reports: lines for a person, or `--json FILE`: a whole file or none."""

from __future__ import annotations

import json
import os
import stat
from typing import IO, Any

import click


class JsonFile(click.File):
    """A file that appears only when it is complete. A device or a pipe is written to, never replaced by a file.

    click's atomic file renames a temporary one over the name; for root, and /dev/null, that is the end of /dev/null.
    """

    name = "file"

    def __init__(self) -> None:
        super().__init__("w", atomic=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Take its name, and refuse one that could not be written: before anything moves, not after it."""
        exists = isinstance(value, str) and os.path.exists(value)
        whole = not exists or stat.S_ISREG(os.stat(value).st_mode)
        if isinstance(value, str) and value != "-":
            place = (os.path.dirname(value) or ".") if whole else value
            if os.path.isdir(value) or not os.access(place, os.W_OK):
                self.fail(f"{value!r} cannot be written: expected a file in a folder that is yours to write to.")
        return super().convert(value, param, ctx) if whole else click.File("w").convert(value, param, ctx)


json_option = click.option(
    "--json", "as_json", type=JsonFile(), metavar="FILE", help="Write JSON; - is standard output."
)


def print_report(report: dict[str, Any], as_json: IO[str] | None) -> None:
    """Print a report line by line, SIMULATED first where it is; or as JSON into `as_json`."""
    if as_json is not None:
        as_json.write(json.dumps(report) + "\n")
        return
    if report["simulated"]:
        click.echo("SIMULATED")
    for key, value in report.items():
        click.echo(f"{key:12} {value}")
