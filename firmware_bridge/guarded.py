"""Stage, focus stage and contact monitor under one interlock: opened in the safe order, and left retracted."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from .approach import retract
from .contact import ContactMonitor, ContactReader, Thresholds
from .errors import FirmwareError, OutOfRangeError
from .focus import FocusStage
from .pzt import PztStage
from .retraction import FocusRetraction, PztRetraction
from .safety import Interlock, Rules, State
from .watch import Watch

log = logging.getLogger(__name__)

# A link that is not in step any more needs some time-outs, before z is seen to arrive.
LEAVE_S = 10.0


@dataclass(frozen=True)
class Guarded:
    """What `open_guarded` opened. Disarmed: nothing moves until `interlock.arm`.

    Attributes
    ----------
    interlock : Interlock
        Who is asked.
    stage : PztStage
        Guarded by it.
    focus : FocusStage or None
        Guarded by it.
    monitor : ContactMonitor or None
        Runs, and tells it.
    watch : Watch
        Runs, and looks after the stage and the interlock.
    """

    interlock: Interlock
    stage: PztStage
    focus: FocusStage | None
    monitor: ContactMonitor | None
    watch: Watch


@contextlib.contextmanager
def open_guarded(
    rules: Rules,
    open_stage: Callable[[Interlock], PztStage],
    *,
    open_focus: Callable[[Interlock], AbstractContextManager[FocusStage]] | None = None,
    open_reader: Callable[[PztStage], ContactReader] | None = None,
    thresholds: Thresholds | None = None,
    period_s: float = 0.005,
    lifted_by: str | None = None,
) -> Iterator[Guarded]:
    """Open an instrument, and retract it when it is left near the sphere, whatever ended its use.

    The focus is opened first, so that it can be lifted before a servo is closed; then the stage; then the contact is
    read; each knows the interlock before it can move.

    Parameters
    ----------
    rules : Rules
        What is allowed. Its limits are intersected with the stage's, its velocity is at most the stage's own, and it
        has a contact guard exactly where there is a reader.
    open_stage, open_focus : callable
        Given the interlock, open the stage (``pzt.open_stage(..., guard=interlock)``) and the focus stage
        (``focus.open_focus(..., guard=interlock)`` or ``open_simulated``).
    open_reader : callable, optional
        Given the stage, opens what reads the contact; a simulated one looks at the simulated stage.
    thresholds : Thresholds
        What the contact means; with a reader.
    period_s : float
        Between two contact samples, seconds.
    lifted_by : str, optional
        The person who says that the sphere is lifted: a servo may be closed.

    Raises
    ------
    OutOfRangeError
        A reader without thresholds, a stage whose `z_sign` is not that of the rules, or limits that leave no position.
    FirmwareError
        What opening raised; all that was open is closed again.
    """
    if (open_reader is None) != (thresholds is None):
        raise OutOfRangeError("a contact reader needs its thresholds, and thresholds a reader")
    pzt, lift = PztRetraction(), FocusRetraction()
    interlock = Interlock(
        replace(rules, contact=open_reader is not None), stage=pzt, focus=None if open_focus is None else lift
    )
    if lifted_by is not None:
        interlock.sphere_lifted(by=lifted_by)
    with contextlib.ExitStack() as stack:
        stack.callback(lift.wait, LEAVE_S)  # which ends when the interlock gives it up
        stack.callback(interlock.close)
        focus = None
        if open_focus is not None:
            focus = stack.enter_context(open_focus(interlock))
            lift.bind(focus)
        stage = stack.enter_context(open_stage(interlock))
        if stage.z_sign != rules.z_sign:
            raise OutOfRangeError(
                f"the stage was opened with z_sign {stage.z_sign} and the rules say {rules.z_sign}: which end of z is "
                "away from the sphere has to be the same for both"
            )
        pzt.bind(stage)
        interlock.narrow(limits_um=stage.limits_um, max_velocity_um_s=min(stage.velocity_um_s()))
        monitor = None
        if open_reader is not None and thresholds is not None:
            reader = open_reader(stage)
            stack.callback(reader.close)
            monitor = stack.enter_context(
                ContactMonitor(reader, thresholds, guard=interlock, period_s=period_s, stale_s=rules.contact_timeout_s)
            )
            monitor.wait()
        watch = stack.enter_context(Watch(stage, interlock, period_s=rules.poll_timeout_s / 4))
        stack.callback(_leave, stage, interlock, lift)
        yield Guarded(interlock, stage, focus, monitor, watch)


def _leave(stage: PztStage, interlock: Interlock, lift: FocusRetraction) -> None:
    try:
        _retract(stage, interlock)
    except KeyboardInterrupt:  # only now: it does not keep the sphere in contact
        _retract(stage, interlock)
        raise
    finally:
        lift.check(timeout_s=LEAVE_S)


def _retract(stage: PztStage, interlock: Interlock) -> None:
    if interlock.state in (State.APPROACHING, State.ENGAGED):
        log.warning("left near the sphere (%s): retracting", interlock.state.value)
        try:
            retract(stage, interlock)
        except FirmwareError as exc:
            interlock.overload(f"left near the sphere, and {exc}")  # which sends it again until it has arrived
    if interlock.state is State.FAULT and not interlock.wait_retracted(timeout_s=LEAVE_S):
        log.critical("left in a fault, and z has not arrived at its end: cut the power, lift the sphere")
