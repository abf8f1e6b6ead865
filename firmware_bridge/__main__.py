"""`superlens-pzt`: look at the stage, move it, fire the trigger, watch the wire, simulate the controller."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import IO, Any, TypeVar

import click

from . import gcs
from .boards import BOARDS
from .errors import FirmwareError, OutOfRangeError, RefusedError
from .finite_option import FINITE, NOT_NEGATIVE, POSITIVE
from .focus_commands import contact, focus
from .json_option import json_option, print_report
from .pzt import PositionUm, PztStage, open_stage
from .simulator.commands import simulate
from .trigger import SimulatedTriggerLine, open_trigger

F = TypeVar("F", bound=Callable[..., Any])

# How far z may be measured from where it was sent to without being on its way.
STILL_UM = 0.02


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


def _open(**options: Any) -> PztStage:
    """The stage of a command; below `trace`, with its wire shown."""
    return open_stage(**options, trace=click.get_current_context().obj)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
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
        "velocity_um_s": list(stage.velocity_um_s()),
        "limits_um": [list(stage.limits_um.low), list(stage.limits_um.high)],
    }


@main.command()
@stage_options
@json_option
def status(port: str, profile: str | None, baud: int, as_json: IO[str] | None) -> None:
    """Say what the controller says. Nothing moves."""
    with _open(port=port, profile=profile, baud=baud, enable_servo=False) as stage:
        print_report(_report(stage), as_json)


class ByHand:
    """No interlock is at work in this command: what could touch or jump needs a person's word."""

    def __init__(self, *, nearer: bool, sphere_lifted: bool, z_sign: int) -> None:
        self.nearer, self.sphere_lifted, self._z_sign = nearer, sphere_lifted, z_sign

    def check_move(self, here_um: PositionUm, target_um: PositionUm) -> None:
        """See guard.MotionGuard."""
        towards_um = (target_um.z - here_um.z) * self._z_sign
        if not self.nearer and towards_um > STILL_UM:
            raise RefusedError(
                f"z from {here_um.z:.3f} to {target_um.z:g} um goes {towards_um:.3f} um nearer to the sphere, and "
                "nothing watches the contact here: lift the sphere, then say --nearer"
            )

    def check_servo(self) -> None:
        """See guard.MotionGuard."""
        if not self.sphere_lifted:
            raise RefusedError("closing the servo may make the stage jump: lift the sphere, then say --sphere-lifted")

    def check_velocity(self, velocity_um_s: float) -> None:
        """See guard.MotionGuard. This command sets none."""

    def polled(self) -> None:
        """See guard.MotionGuard. Nobody waits for it."""

    def lost(self, why: str) -> None:
        """See guard.MotionGuard. The stage says so itself."""

    def disarm(self, why: str) -> None:
        """See guard.MotionGuard. Nothing is armed here; the servo is to be closed anew, by its own option."""


@main.command()
@stage_options
@click.option("--x", type=FINITE, help="um; by default where it is.")
@click.option("--y", type=FINITE, help="um; by default where it is.")
@click.option("--z", type=FINITE, help="um; by default where it is.")
@click.option("--nearer", is_flag=True, help="z may go nearer to the sphere, which nothing watches here.")
@click.option("--z-sign", type=click.Choice(["1", "-1"]), default="1", show_default=True, help="1: +z is nearer.")
@click.option("--enable-servo", is_flag=True, help="Close the servo loop first: the stage may jump.")
@click.option("--sphere-lifted", is_flag=True, help="You have lifted the sphere: the servo may be closed.")
@click.option("--timeout-s", type=POSITIVE, default=5.0, show_default=True)
@json_option
def move(
    port: str,
    profile: str | None,
    baud: int,
    x: float | None,
    y: float | None,
    z: float | None,
    nearer: bool,
    z_sign: str,
    enable_servo: bool,
    sphere_lifted: bool,
    timeout_s: float,
    as_json: IO[str] | None,
) -> None:
    """Move, wait until at rest, and say where it is.

    A simulated stage needs none of --nearer, --enable-servo and --sphere-lifted.
    """
    wanted = {axis: at for axis, at in zip("xyz", (x, y, z), strict=True) if at is not None}
    if not wanted:
        raise click.UsageError("nothing to do: give --x, --y or --z in um")
    by_hand = ByHand(nearer=nearer, sphere_lifted=sphere_lifted, z_sign=int(z_sign))
    with _open(port=port, profile=profile, baud=baud, enable_servo=False, guard=by_hand) as stage:
        if stage.simulated:
            by_hand.nearer = by_hand.sphere_lifted = True
        if enable_servo or stage.simulated:
            stage.servo_on()
        stage.move_to(stage.target_um()._replace(**wanted), timeout_s=timeout_s)
        print_report(_report(stage), as_json)


@main.command()
@stage_options
@click.option("--sphere-lifted", is_flag=True, help="You have lifted the sphere; nothing watches the contact here.")
@click.option("--timeout-s", type=POSITIVE, default=60.0, show_default=True)
@json_option
def autozero(
    port: str, profile: str | None, baud: int, sphere_lifted: bool, timeout_s: float, as_json: IO[str] | None
) -> None:
    """Calibrate the sensors' zero. ALL AXES MOVE OVER THEIR WHOLE TRAVEL.

    Positions are others afterwards than before. A simulated stage needs no --sphere-lifted.
    """
    by_hand = ByHand(nearer=True, sphere_lifted=True, z_sign=1)
    with _open(port=port, profile=profile, baud=baud, enable_servo=False, guard=by_hand) as stage:
        if not (sphere_lifted or stage.simulated):
            raise RefusedError(
                "an autozero moves all axes over their whole travel: lift the sphere, then say --sphere-lifted"
            )
        stage.autozero(timeout_s=timeout_s)
        print_report(_report(stage), as_json)


@main.command()
@stage_options
@click.option("--duration-s", type=POSITIVE, default=1.0, show_default=True, help="How long to watch.")
@click.option("--samples", type=click.IntRange(min=3), default=100, show_default=True)
@json_option
def drift(port: str, profile: str | None, baud: int, duration_s: float, samples: int, as_json: IO[str] | None) -> None:
    """Watch the stage at rest: drift, noise (peak to peak), distance from its target. Nothing moves."""
    with _open(port=port, profile=profile, baud=baud, enable_servo=False) as stage:
        seen = stage.drift_um(duration_s=duration_s, samples=samples)
        report = {
            "identity": stage.identity,
            "simulated": stage.simulated,
            "servo_on": stage.servo_is_on(),
            "rate_um_s": list(seen.rate_um_s),
            "noise_pp_um": list(seen.noise_pp_um),
            "error_um": list(seen.error_um),
            "samples": seen.samples,
            "duration_s": seen.duration_s,
        }
        print_report(report, as_json)


@main.command()
@stage_options
@click.option("--interval-s", type=NOT_NEGATIVE, default=0.2, show_default=True, help="Between two looks.")
@click.option("--count", type=click.IntRange(min=1), help="Looks; by default until Ctrl-C.")
@click.option(
    "--json",
    "as_json",
    type=click.File("w", lazy=False),
    metavar="FILE",
    help="Write one JSON object a line, as they come; - is standard output.",
)
def monitor(
    port: str, profile: str | None, baud: int, interval_s: float, count: int | None, as_json: IO[str] | None
) -> None:
    """Show position, servo, on target and error, one line a look. Nothing moves; an error that is shown is cleared."""
    with _open(port=port, profile=profile, baud=baud, enable_servo=False) as stage:
        if stage.simulated and as_json is None:
            click.echo("SIMULATED")
        looks = 0
        try:
            while True:
                _look(stage, as_json)
                looks += 1
                if looks == count:
                    return
                time.sleep(interval_s)
        except KeyboardInterrupt:
            return


def _look(stage: PztStage, as_json: IO[str] | None) -> None:
    position_um, code = stage.position_um(), stage.error()
    servo_on, on_target = stage.servo_is_on(), stage.on_target()
    if as_json is not None:
        report = {
            "t_ns": time.monotonic_ns(),
            "simulated": stage.simulated,
            "position_um": list(position_um),
            "servo_on": servo_on,
            "on_target": on_target,
            "error": code,
        }
        click.echo(json.dumps(report), file=as_json)
        return
    states = ["servo on" if servo_on else "servo OFF", "on target" if on_target else "not on target"]
    click.echo("  ".join([_um(position_um), *states, *([gcs.meaning(code)] if code else [])]))


@main.command()
@click.option("--chip", type=click.IntRange(min=0), help="Of /dev/gpiochipN; then --pin is a line of it.")
@click.option("--board", type=click.Choice(list(BOARDS)), help="Then --pin is a pin of its header.")
@click.option("--pin", type=click.IntRange(min=0), help="Line of the chip, or pin of the board's header.")
@click.option("--port", help="sim: fires a simulated line.")
@click.option("--pulses", type=click.IntRange(min=1), default=1, show_default=True)
def fire(chip: int | None, board: str | None, pin: int | None, port: str | None, pulses: int) -> None:
    """Fire the camera's trigger line."""
    if port is not None:
        if not port.startswith("sim:"):
            raise click.UsageError("only sim: has a trigger line of its own; a real one needs --chip and --pin")
        with _open(port=port) as stage:
            if stage.simulator is None:
                raise click.UsageError(f"{port} is not simulated")
            stage.simulator.on_pulse(lambda index, _, pose_um: click.echo(f"SIMULATED pulse {index} at {_um(pose_um)}"))
            _fire(SimulatedTriggerLine(stage.simulator), pulses)
    elif pin is None or (chip is None) == (board is None):
        raise click.UsageError("give --chip and --pin, or --board and --pin, or --port sim:")
    else:
        _fire(open_trigger(chip=chip, board=board, pin=pin), pulses)


def _fire(line: Any, pulses: int) -> None:
    try:
        for _ in range(pulses):
            line.fire()
        click.echo(f"fired {line.fired}")
    finally:
        line.close()


def _um(position_um: PositionUm) -> str:
    return ", ".join(f"{um:.4f}" for um in position_um) + " um"


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@stage_options
@click.argument("action", nargs=-1, type=click.UNPROCESSED, required=True)
@click.pass_context
def trace(ctx: click.Context, port: str, profile: str | None, baud: int, action: tuple[str, ...]) -> None:
    """Show every byte on the wire while an ACTION runs: status, move, monitor or fire, with its own options.

    For instance: superlens-pzt trace --port sim: move --x 10
    """
    actions = {command.name: command for command in (status, move, monitor, fire)}
    name, *words = action
    if name not in actions:
        raise click.UsageError(f"no action {name!r} to trace: expected one of {', '.join(map(str, actions))}")
    mine = {"port": port, "profile": profile, "baud": str(baud)}
    known = {parameter.name for parameter in actions[name].params}
    options = [word for key, value in mine.items() if value and key in known for word in (f"--{key}", value)]
    begun_s = time.monotonic()

    def show(way: str, data: bytes) -> None:
        click.echo(f"{time.monotonic() - begun_s:10.6f} s  {'sent' if way == '<' else 'received':8}  {data!r}")

    with actions[name].make_context(name, [*options, *words], parent=ctx, obj=show) as inner:
        actions[name].invoke(inner)


for command in (simulate, focus, contact):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="superlens-pzt")
