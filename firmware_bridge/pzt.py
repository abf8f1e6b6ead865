"""The PZT stage, opened: what the rest of the program imports."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .controller import open_controller
from .drift import Drift as Drift
from .finite import check_positive
from .guard import MotionGuard as MotionGuard
from .moves import Rest
from .position import Box as Box
from .position import PositionUm as PositionUm
from .stage import PztStage as PztStage
from .transport import Trace

if TYPE_CHECKING:
    from .simulator import Simulator

log = logging.getLogger(__name__)


def open_stage(
    port: str,
    *,
    profile: str | None = None,
    baud: int = 115200,
    reply_timeout_s: float = 1.0,
    limits_um: Box | None = None,
    velocity_um_s: float | None = None,
    max_step_um: float | None = None,
    settle_timeout_s: float = 1.0,
    tolerance_um: float = 0.02,
    noise_um: float = 0.004,
    readings: int = 2,
    z_sign: int = 1,
    guard: MotionGuard | None = None,
    enable_servo: bool | None = None,
    simulator: Simulator | None = None,
    trace: Trace | None = None,
) -> PztStage:
    """Open the stage behind a port. Nothing moves, unless the servo is enabled.

    Parameters
    ----------
    port : str
        ``/dev/ttyUSB0``, ``tcp://host:50000``, or ``sim:``, ``sim:e727``, ``sim:e517``: a simulator in this process,
        behind a real pty.
    profile : str, optional
        ``e727`` or ``e517``; by default, what the controller says that it is.
    baud : int
        Of a serial port, Bd.
    reply_timeout_s : float
        How long an answer may keep us waiting, seconds.
    limits_um : Box, optional
        Where the stage may go; by default the controller's whole travel.
    velocity_um_s : float, optional
        Of all axes; by default, what the controller has.
    max_step_um : float, optional
        The largest step of one axis in one move; by default any.
    settle_timeout_s : float
        From the end of the motion to on target, seconds.
    tolerance_um, noise_um : float
        A returned position is at most this far from its target, and its two readings from each other. The defaults
        are wide for a P-733.3CL's noise (about 0.3 nm rms), and unverified on hardware.
    readings : int
        1 or 2: how often a returned position is read. GCS has no checksum; 1 is for comparisons.
    z_sign : int
        1 where +z brings the sample towards the sphere, -1 where it is wired the other way: where `park` retracts to.
    guard : MotionGuard, optional
        The interlock; by default nobody is asked.
    enable_servo : bool, optional
        Close the servo loop, in which **the stage may jump**. By default only where the instrument is simulated.
    simulator : Simulator, optional
        The one to stand behind ``sim:``; by default a new one.
    trace : callable, optional
        Is shown all bytes on the wire, see `transport.TracedTransport`.

    Returns
    -------
    PztStage
        Close it after use; it is a context manager.

    Raises
    ------
    LinkError
        Nobody is there, or the port is in use, or no controller answers.
    OutOfRangeError
        A value of the configuration makes no sense.
    RefusedError
        It is another controller than the profile says, or one that we do not know, or it refused.
    """
    check_positive(reply_timeout_s=reply_timeout_s)
    rest = Rest(tolerance_um, noise_um, readings, settle_timeout_s)
    controller = open_controller(
        port, profile=profile, baud=baud, reply_timeout_s=reply_timeout_s, simulator=simulator, trace=trace
    )
    try:
        stage = PztStage(
            controller,
            limits_um=limits_um,
            velocity_um_s=velocity_um_s,
            max_step_um=max_step_um,
            rest=rest,
            z_sign=z_sign,
            guard=guard,
        )
        if stage.simulated if enable_servo is None else enable_servo:
            stage.servo_on()
        log.info("stage open: %s at %s, limits %s", stage.identity, port, stage.limits_um)
        return stage
    except BaseException:
        controller.close()
        raise
