"""Step and shoot: the controller triggers the camera when an axis has settled, once a tile, and each edge is counted.

The output shows the **level** of on target (CTO mode 2), so an edge comes only where on target has fallen before. It
falls with each new target, unless the step lies within the axis' tolerance; it may flicker while the axis settles. So
the edges between one tile and the next are counted, and none or two are named.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .errors import FirmwareError, OutOfRangeError
from .outputs import TriggerOutput
from .position import PositionUm
from .stage import PztStage

log = logging.getLogger(__name__)

POLL_S = 0.001


@dataclass(frozen=True)
class Shot:
    """One tile.

    Attributes
    ----------
    index : int
        Of the tile, from 0.
    target_um, position_um : PositionUm
        Wanted; and measured at rest, read twice.
    pulse : int or None
        The number of its pulse since the counter began, from 0; None where it had none, or more than one.
    edges : int
        Pulses that came for it.
    gap : str
        What is wrong with it; empty where there was just one edge.
    """

    index: int
    target_um: PositionUm
    position_um: PositionUm
    pulse: int | None
    edges: int
    gap: str


def step_and_shoot(
    stage: PztStage,
    output: TriggerOutput,
    targets_um: Sequence[PositionUm],
    *,
    axis: int,
    pulses: Callable[[], int],
    edge_timeout_s: float = 0.2,
    unless: threading.Event | None = None,
) -> Iterator[Shot]:
    """Go from tile to tile of one line; the controller triggers on each.

    The stage first goes one step beside the first tile, with the output off, and is armed there at rest. That may make
    one pulse, which belongs to no tile: it is counted before the line begins.

    Parameters
    ----------
    stage, output : PztStage, TriggerOutput
        The output's wire goes to the camera.
    targets_um : sequence of PositionUm
        The tiles; each has another place along `axis` than the one before.
    axis : int
        Whose on target triggers: the one that moves.
    pulses : callable
        How many pulses there were so far: the camera's frames, or the trigger ledger's.
    edge_timeout_s : float
        How long the count may lag behind the stage, seconds.
    unless : threading.Event, optional
        As in `PztStage.move_to`.

    Yields
    ------
    Shot
        At rest on each tile, after its edge was counted or is missing.

    Raises
    ------
    OutOfRangeError
        No tiles, two at one place along the axis, or one outside the limits: nothing has moved.
    FirmwareError
        As in `PztStage.move_to`; a stop ends the line also where it comes between two tiles. The output is off when
        this ends in any way.
    """
    if not targets_um or any(a[axis] == b[axis] for a, b in itertools.pairwise(targets_um)):
        raise OutOfRangeError("step and shoot needs tiles, each at another place along the axis than the one before")
    beside_um = _beside(stage, targets_um, axis)
    for at_um in (beside_um, *targets_um):
        stage.check_target(at_um)
    output.off()
    with stage.series() as since:
        stage.move_to(beside_um, unless=unless)
    try:
        output.on_target(axis)
        _wait_for(pulses, pulses() + 1, edge_timeout_s)  # of arming
        for index, target_um in enumerate(targets_um):
            before = pulses()
            with stage.series(since):  # and not around the yield: what the caller does there is theirs
                position_um = stage.move_to(target_um, unless=unless)
            _wait_for(pulses, before + 1, edge_timeout_s)
            edges = pulses() - before
            gap = ""
            if edges == 0:
                gap = "no pulse: on target did not fall (a step within the tolerance?), or the line is not wired"
            elif edges > 1:
                gap = f"{edges} pulses: on target flickered while it settled (a longer settling time 0x07000901?)"
            yield Shot(index, target_um, position_um, before if edges == 1 else None, edges, gap)
    except BaseException:  # also the caller's, who does not want the rest
        _off(output)
        raise
    output.off()


def _beside(stage: PztStage, targets_um: Sequence[PositionUm], axis: int) -> PositionUm:
    first_um = targets_um[0]
    step_um = targets_um[1][axis] - first_um[axis] if len(targets_um) > 1 else 1.0
    at_um = list(first_um)
    at_um[axis] = first_um[axis] - step_um
    before_um = PositionUm(*at_um)
    if stage.limits_um.contains(before_um):
        return before_um
    at_um[axis] = first_um[axis] + step_um
    return PositionUm(*at_um)


def _wait_for(pulses: Callable[[], int], count: int, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while pulses() < count and time.monotonic() < deadline_s:
        time.sleep(POLL_S)


def _off(output: TriggerOutput) -> None:
    try:
        output.off()
    except FirmwareError as exc:  # the first error is the one that counts
        log.warning("trigger output %d could not be switched off: %s", output.line, exc)
