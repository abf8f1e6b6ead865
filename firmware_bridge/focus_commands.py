"""`superlens-pzt focus` and `superlens-pzt contact`: the focus stage and the contact signal, without the daemon."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from typing import IO, Any, Literal, TypeVar

import click

from .adc import READERS, open_reader
from .approach import approach, retract
from .contact import ContactMonitor, ContactReader, Thresholds
from .errors import OutOfRangeError, RefusedError
from .finite_option import FINITE, NOT_NEGATIVE, POSITIVE
from .focus import FocusStage, open_focus, open_simulated
from .focus_axis import FocusGuard
from .guarded import open_guarded
from .interrupts import one_interrupt
from .json_option import json_option, print_report
from .position import ANYWHERE, PositionUm
from .pzt import PztStage, open_stage
from .safety import Interlock, Rules, State

F = TypeVar("F", bound=Callable[..., Any])

POLL_S = 0.2
# The simulated sample begins so far from the middle of z towards the sphere, and touches it a little later.
SIMULATED_START_UM, SIMULATED_TOUCH_UM = 1.5, 2.0


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


# -- focus ------------------------------------------------------------------------------------------------------------

focus_options = _options(
    click.option("--driver", type=click.Choice(["xps", "esp301"]), required=True, help="The focus controller."),
    click.option("--port", help="tcp://host:5001 of an XPS, /dev/ttyUSB0 of an ESP301."),
    click.option("--axis", help="FOCUS.Pos of an XPS, 1 to 3 of an ESP301."),
    click.option("--baud", default=921600, show_default=True, help="Of an ESP301; 19200 on its RS-232 port."),
    click.option("--simulated", is_flag=True, help="A simulated controller instead of a port."),
)


class AwayOnly:
    """No interlock is at work in this command: it goes nearer only when a person says that it may."""

    def __init__(self, *, nearer: bool) -> None:
        self._nearer = nearer

    def check_focus(self, here_um: float, target_um: float) -> None:
        """See focus.FocusGuard."""
        if target_um < here_um and not self._nearer:
            raise RefusedError(
                f"from {here_um:.2f} to {target_um:g} um goes nearer to the sample, and nothing watches the contact "
                "here: lift the sphere, then say --nearer"
            )


def _focus(
    driver: str, port: str | None, axis: str | None, baud: int, simulated: bool, guard: FocusGuard | None = None
) -> contextlib.AbstractContextManager[FocusStage]:
    if simulated == (port is not None):
        raise click.UsageError("give either --port or --simulated")
    if port is None:
        return open_simulated(driver, axis, guard=guard)
    if axis is None:
        raise click.UsageError("give --axis: FOCUS.Pos of an XPS, 1 to 3 of an ESP301")
    return open_focus(driver, port, axis, baud=baud, guard=guard)


def _focus_report(stage: FocusStage) -> dict[str, Any]:
    return {
        "identity": stage.identity,
        "simulated": stage.simulated,
        "position_um": stage.position_um(),
        "limits_um": list(stage.limits_um),
    }


@click.group()
def focus() -> None:
    """The focus stage; + is away from the sample."""


@focus.command("status")
@focus_options
@json_option
def focus_status(as_json: IO[str] | None, **where: Any) -> None:
    """Say where it is and may go. Nothing moves."""
    with _focus(**where) as stage:
        print_report(_focus_report(stage), as_json)


@focus.command("move")
@click.argument("target_um", type=FINITE)
@click.option("--nearer", is_flag=True, help="It may go nearer to the sample: the sphere is lifted.")
@click.option("--timeout-s", type=POSITIVE, default=60.0, show_default=True)
@focus_options
@json_option
def focus_move(target_um: float, nearer: bool, timeout_s: float, as_json: IO[str] | None, **where: Any) -> None:
    """Move to TARGET_UM, wait until at rest, and say where it is."""
    with _focus(**where, guard=AwayOnly(nearer=nearer)) as stage:
        stage.move_to(target_um, timeout_s=timeout_s)
        print_report(_focus_report(stage), as_json)


# -- contact ----------------------------------------------------------------------------------------------------------

adc_options = _options(
    click.option("--adc", type=click.Choice(list(READERS)), help="What reads the contact."),
    click.option("--bus", type=click.IntRange(min=0), help="I2C (default 1) or SPI bus (default 0)."),
    click.option("--channel", type=click.IntRange(0, 7), default=0, show_default=True, help="Input of the ADC."),
    click.option("--address", default="0x48", show_default=True, help="Of an ADS1115."),
    click.option("--simulated", is_flag=True, help="A simulated cantilever over a simulated stage."),
)


def _reader(adc: str, bus: int | None, channel: int, address: str) -> ContactReader:
    try:
        number = int(address, 0)
    except ValueError as exc:
        raise OutOfRangeError(f"{address!r} is no I2C address: write 0x48 to 0x4b") from exc
    return open_reader(adc, bus=bus, channel=channel, address=number)


@click.group()
def contact() -> None:
    """The contact between sphere and sample."""


@contact.command("read")
@click.option("--samples", type=click.IntRange(1, 100_000), default=100, show_default=True)
@adc_options
@json_option
def contact_read(
    samples: int,
    adc: str | None,
    bus: int | None,
    channel: int,
    address: str,
    simulated: bool,
    as_json: IO[str] | None,
) -> None:
    """Read the contact signal. Nothing moves."""
    with contextlib.ExitStack() as stack:
        if simulated:
            from .simulator.cantilever import SimulatedCantilever

            reader: ContactReader = SimulatedCantilever(lambda: PositionUm(50.0, 50.0, 5.0))
        elif adc is None:
            raise click.UsageError("give either --adc or --simulated")
        else:
            reader = _reader(adc, bus, channel, address)
        stack.callback(reader.close)
        began_s = time.monotonic()
        values_v = [reader.read_v() for _ in range(samples)]
        report = {
            "simulated": simulated,
            "mean_v": statistics.fmean(values_v),
            "std_v": statistics.stdev(values_v) if samples > 1 else 0.0,
            "min_v": min(values_v),
            "max_v": max(values_v),
            "samples_hz": samples / max(time.monotonic() - began_s, 1e-9),
        }
    print_report(report, as_json)


@contact.command("approach")
@click.option("--by", required=True, help="Your name: you arm the instrument, and it is written into the log.")
@click.option("--port", help="Of the PZT controller; not with --simulated.")
@click.option("--mount", type=click.Choice(["cantilever", "objective"]), default="cantilever", show_default=True)
@click.option("--z-sign", type=click.Choice(["1", "-1"]), default="1", show_default=True, help="1: +z is nearer.")
@click.option("--set-point-v", type=FINITE, required=True, help="Contact signal to stop at.")
@click.option("--overload-v", type=FINITE, required=True, help="Contact signal to retract at.")
@click.option("--broken-v", type=FINITE, help="Below it the sensor is broken.")
@click.option("--step-um", type=POSITIVE, default=0.01, show_default=True)
@click.option("--travel-um", type=POSITIVE, default=2.0, show_default=True, help="At most so far.")
@click.option("--period-s", type=POSITIVE, default=0.005, show_default=True, help="Between two contact samples.")
@click.option("--hold-s", type=NOT_NEGATIVE, default=0.0, show_default=True, help="Stay so long.")
@click.option("--enable-servo", is_flag=True, help="Close the servo loop first: the stage may jump.")
@click.option("--sphere-lifted", is_flag=True, help="You have lifted the sphere: the servo may be closed.")
@click.option("--focus-driver", type=click.Choice(["xps", "esp301"]), help="A fault lifts this focus stage too.")
@click.option("--focus-port", help="As --port of the focus commands; not with --simulated.")
@click.option("--focus-axis", help="As --axis of the focus commands.")
@click.option("--focus-baud", default=921600, show_default=True, help="Of an ESP301.")
@adc_options
@json_option
def contact_approach(
    by: str,
    port: str | None,
    mount: Any,
    z_sign: str,
    set_point_v: float,
    overload_v: float,
    broken_v: float | None,
    step_um: float,
    travel_um: float,
    period_s: float,
    hold_s: float,
    enable_servo: bool,
    sphere_lifted: bool,
    focus_driver: str | None,
    focus_port: str | None,
    focus_axis: str | None,
    focus_baud: int,
    adc: str | None,
    bus: int | None,
    channel: int,
    address: str,
    simulated: bool,
    as_json: IO[str] | None,
) -> None:
    """Approach until the set point, say where that is, and retract again.

    Nothing guards a contact after this command: so it always ends retracted, also by Ctrl-C, a closed terminal or a
    kill. It begins with z at its end away from the sphere, or, with --sphere-lifted, where z is.
    """
    thresholds = Thresholds(set_point_v, overload_v, broken_v)
    sign: Any = int(z_sign)
    rules = Rules(mount, ANYWHERE, z_sign=sign, approach_travel_um=travel_um)
    if simulated == (port is not None) or simulated == (adc is not None):
        raise click.UsageError("give either --port and --adc, or --simulated")
    if focus_driver is None and (focus_port is not None or focus_axis is not None):
        raise click.UsageError("give --focus-driver with --focus-port and --focus-axis")

    def open_lift(interlock: Interlock) -> contextlib.AbstractContextManager[FocusStage]:
        return _focus(str(focus_driver), focus_port, focus_axis, focus_baud, simulated, interlock)

    with (
        one_interrupt(),
        open_guarded(
            rules,
            lambda interlock: _stage(port, sign, interlock, enable_servo=enable_servo),
            open_focus=None if focus_driver is None else open_lift,
            open_reader=lambda stage: _cantilever(stage, sign) if adc is None else _reader(adc, bus, channel, address),
            thresholds=thresholds,
            period_s=period_s,
            lifted_by=by if sphere_lifted or simulated else None,
        ) as instrument,
    ):
        if instrument.monitor is None:
            raise RefusedError("the contact is not read, so nothing would end an approach")
        if not (sphere_lifted or simulated):
            instrument.stage.park()  # it may have been left in contact
        instrument.interlock.arm(by=by)
        found = approach(instrument.stage, instrument.monitor, instrument.interlock, step_um=step_um)
        _hold(instrument.monitor, instrument.interlock, hold_s)
        retract(instrument.stage, instrument.interlock)
    print_report(
        {
            "simulated": simulated,
            "position_um": list(found.position_um),
            "value_v": found.value_v,
            "steps": found.steps,
            "retracted": True,
        },
        as_json,
    )


def _hold(monitor: ContactMonitor, interlock: Interlock, hold_s: float) -> None:
    end_s = time.monotonic() + hold_s
    while (left_s := end_s - time.monotonic()) > 0:
        time.sleep(min(left_s, POLL_S))
        if interlock.state is State.FAULT:
            raise RefusedError(f"the contact ended in a fault: {interlock.why}")
        monitor.latest()


def _stage(port: str | None, z_sign: int, interlock: Interlock, *, enable_servo: bool) -> PztStage:
    if port is not None:
        return open_stage(port, z_sign=z_sign, guard=interlock, enable_servo=enable_servo)
    from .simulator import Simulator
    from .simulator.controller import TRAVEL_UM

    start_um = TRAVEL_UM.centre._replace(z=TRAVEL_UM.centre.z + z_sign * SIMULATED_START_UM)
    simulator = Simulator("e727", start_um=start_um)
    return open_stage("sim:", simulator=simulator, z_sign=z_sign, guard=interlock)


def _cantilever(stage: PztStage, z_sign: Literal[1, -1]) -> ContactReader:
    from .simulator.cantilever import SimulatedCantilever

    if stage.simulator is None:
        raise RefusedError("a simulated cantilever needs a simulated stage")
    touch_z_um = stage.limits_um.centre.z + z_sign * SIMULATED_TOUCH_UM
    return SimulatedCantilever(stage.simulator.pose_um, touch_z_um=touch_z_um, z_sign=z_sign)
