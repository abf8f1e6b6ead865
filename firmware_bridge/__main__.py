"""`superlens-pzt`: look at the stage, move it, fire the trigger, simulate the controller."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import IO, Any, TypeVar

import click

from . import gcs
from .errors import FirmwareError, OutOfRangeError
from .pzt import PositionUm, PztStage, open_stage
from .simulator.commands import simulate
from .trigger import SimulatedTriggerLine, open_trigger

F = TypeVar("F", bound=Callable[..., Any])


class BadValueError(click.ClickException):
    """A value makes no sense."""

    exit_code = 2


class Commands(click.Group):
    """Turns the package's errors into one line and an exit code: 2 for a bad value, 1 for what failed."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except FirmwareError as exc:
            raise (BadValueError if isinstance(exc, OutOfRangeError) else click.ClickException)(str(exc)) from exc


def stage_options(command: F) -> F:
    """The options of every command that opens the stage."""
    for option in (
        click.option("--port", required=True, help="/dev/ttyUSB0, tcp://host:50000, or sim:"),
        click.option("--profile", type=click.Choice(list(gcs.PROFILES)), help="By default, what *IDN? says."),
        click.option("--baud", default=115200, show_default=True, help="Of a serial port."),
    ):
        command = option(command)
    return command


@click.group(cls=Commands)
@click.version_option(package_name="superlens")
@click.option("-v", "--verbose", is_flag=True, help="Log every byte on the wire.")
def main(verbose: bool) -> None:
    """The PZT stage and its controller, without the rest of the instrument."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(levelname)s %(message)s")


def _report(stage: PztStage) -> dict[str, Any]:
    return {
        "identity": stage.identity,
        "simulated": stage.simulated,
        "profile": stage.profile.name,
        "position_um": list(stage.position_um()),
        "target_um": list(stage.target_um()),
        "on_target": stage.on_target(),
        "servo_on": stage.servo_is_on(),
        "limits_um": [list(stage.limits_um.low), list(stage.limits_um.high)],
    }


def _print(report: dict[str, Any], as_json: IO[str] | None) -> None:
    if as_json is not None:
        as_json.write(json.dumps(report) + "\n")
        return
    if report["simulated"]:
        click.echo("SIMULATED")
    for key, value in report.items():
        click.echo(f"{key:12} {value}")


json_option = click.option(
    "--json", "as_json", type=click.File("w", atomic=True), metavar="FILE", help="Write JSON; - is standard output."
)


@main.command()
@stage_options
@json_option
def status(port: str, profile: str | None, baud: int, as_json: IO[str] | None) -> None:
    """Say what the controller says. Nothing moves."""
    with open_stage(port, profile=profile, baud=baud, enable_servo=False) as stage:
        _print(_report(stage), as_json)


@main.command()
@stage_options
@click.option("--x", type=float, help="um; by default where it is.")
@click.option("--y", type=float, help="um; by default where it is.")
@click.option("--z", type=float, help="um; by default where it is.")
@click.option("--enable-servo", is_flag=True, help="Close the servo loop first: the stage may jump, lift the sphere.")
@click.option("--timeout-s", type=click.FloatRange(min=0.0, min_open=True), default=5.0, show_default=True)
@json_option
def move(
    port: str,
    profile: str | None,
    baud: int,
    x: float | None,
    y: float | None,
    z: float | None,
    enable_servo: bool,
    timeout_s: float,
    as_json: IO[str] | None,
) -> None:
    """Move, wait until at rest, and say where it is."""
    wanted = {axis: at for axis, at in zip("xyz", (x, y, z), strict=True) if at is not None}
    if not wanted:
        raise click.UsageError("nothing to do: give --x, --y or --z in um")
    for at in wanted.values():
        gcs.format_number(at)  # NaN is refused before the port is opened
    with open_stage(port, profile=profile, baud=baud, enable_servo=enable_servo or None) as stage:
        stage.move_to(stage.target_um()._replace(**wanted), timeout_s=timeout_s)
        _print(_report(stage), as_json)


@main.command()
@click.option("--chip", type=click.IntRange(min=0), help="Of /dev/gpiochipN.")
@click.option("--pin", type=click.IntRange(min=0), help="Line of the chip.")
@click.option("--port", help="sim: fires a simulated line.")
@click.option("--pulses", type=click.IntRange(min=1), default=1, show_default=True)
def fire(chip: int | None, pin: int | None, port: str | None, pulses: int) -> None:
    """Fire the camera's trigger line."""
    if port is not None:
        if not port.startswith("sim:"):
            raise click.UsageError("only sim: has a trigger line of its own; a real one needs --chip and --pin")
        with open_stage(port) as stage:
            if stage.simulator is None:
                raise click.UsageError(f"{port} is not simulated")
            stage.simulator.on_pulse(lambda index, _, pose_um: click.echo(f"SIMULATED pulse {index} at {_um(pose_um)}"))
            _fire(SimulatedTriggerLine(stage.simulator), pulses)
    elif chip is None or pin is None:
        raise click.UsageError("give --chip and --pin, or --port sim:")
    else:
        _fire(open_trigger(chip=chip, pin=pin), pulses)


def _fire(line: Any, pulses: int) -> None:
    try:
        for _ in range(pulses):
            line.fire()
        click.echo(f"fired {line.fired}")
    finally:
        line.close()


def _um(position_um: PositionUm) -> str:
    return ", ".join(f"{um:.4f}" for um in position_um) + " um"


main.add_command(simulate)

if __name__ == "__main__":
    main(prog_name="superlens-pzt")
