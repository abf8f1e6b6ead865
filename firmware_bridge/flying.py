"""Fly a line: run up to its beginning, arm output and recorder, fly, disarm, read what the recorder saw.

Two ways: a move at a set velocity with pulses at positions (E-727), or a wave of the generator with pulses at its
points (E-727 and E-517). The controller makes the pulses; Python only arms, waits and counts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from . import gcs
from .errors import FirmwareError
from .lines import FlyLine, Wave
from .outputs import TriggerOutput
from .position import PositionUm
from .recording import Recorder, Recording, crossings_s
from .stage import PztStage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flown:
    """A line that was flown.

    Attributes
    ----------
    line : FlyLine
        What was asked for.
    began_s : tuple of float
        The motion began between these times on the stage's clock, seconds: see `PztStage.began_s`.
    pulses_s : tuple of float
        When each pulse fell, after the motion began, by the recorder; NaN where it does not know.
    tiles_um : tuple of PositionUm
        Measured in the middle of each tile's exposure; NaN where the recorder does not know.
    recording : Recording
        All of it.
    """

    line: FlyLine
    began_s: tuple[float, float]
    pulses_s: tuple[float, ...]
    tiles_um: tuple[PositionUm, ...]
    recording: Recording

    @property
    def due_s(self) -> list[float]:
        """When each pulse fell at the earliest, on the stage's clock: what `recording.reconcile` takes."""
        return [self.began_s[0] + at_s for at_s in self.pulses_s]

    @property
    def unsure_s(self) -> float:
        """By how much all of `due_s` may be too early: the time that the command took. 3 ms at 115 200 Bd."""
        return self.began_s[1] - self.began_s[0]


def fly(
    stage: PztStage,
    line: FlyLine,
    output: TriggerOutput,
    *,
    blur_um: float,
    noise_pp_um: float,
    frame_time_s: float,
    shutter: Literal["global", "rolling"],
    rows: int = 200,
    by_wave: bool = False,
) -> Flown:
    """Fly one line: run up to its beginning, arm output and recorder, fly, disarm, read the recorder.

    The stage's velocity is as before when this returns or raises.

    Parameters
    ----------
    stage : PztStage
        Ready.
    line : FlyLine
        The tiles.
    output : TriggerOutput
        Wired to the camera.
    blur_um, noise_pp_um, frame_time_s, shutter
        What the line has to keep, and of which camera, see `FlyLine.check`.
    rows : int
        Of the recorder, at most.
    by_wave : bool
        By the wave generator instead of a move; the only way with an E-517.

    Raises
    ------
    OutOfRangeError
        The line would smear or shear, lose pulses or leave the limits, or is too fast now: nothing has moved.
    StoppedError
        There was a stop since this was called.
    FirmwareError
        As in `PztStage.move_to`, `TriggerOutput.every` and `Recorder.read`. The output is off then, if it can be.
    """
    line.check(blur_um=blur_um, noise_pp_um=noise_pp_um, frame_time_s=frame_time_s, shutter=shutter)
    begin_um, end_um = line.ends_um
    stage.check_target(end_um)
    stage.guard.check_velocity(line.velocity_um_s)
    wave = Wave.of(line) if by_wave else None
    recorder = Recorder(stage)
    with stage.series(), _silent_afterwards(output):
        stage.move_to(begin_um)
        if wave is not None:
            for command in wave.commands(output.line):
                stage.command(command)
            output.by_generator(line.axis)
            recorder.arm(duration_s=wave.duration_s, rows=rows)
            stage.run(
                gcs.command_line("WGO", wave.generator, 1),
                lambda: not stage.controller.generating(),
                through=[],
                ends_um=end_um,
                velocity_um_s=line.velocity_um_s,
                timeout_s=2 * wave.duration_s + 5.0,
                what="the wave",
            )
            stage.command(gcs.command_line("WGO", wave.generator, 0))
        else:
            first_um, *_, last_um = line.pulses_um
            step_um = abs(line.step_um)
            output.every(line.axis, first_um=first_um, last_um=last_um, step_um=step_um, noise_pp_um=noise_pp_um)
            recorder.arm(duration_s=line.duration_s, rows=rows)
            with _at_velocity(stage, line.velocity_um_s):
                stage.move_to(end_um, timeout_s=2 * line.duration_s + 5.0)
    recording = recorder.read()
    pulses_s = crossings_s(recording, line.axis, line.pulses_um)
    middles_s = np.array(pulses_s) + line.exposure_s / 2
    columns = [np.interp(middles_s, recording.t_s, along, right=math.nan) for along in recording.position_um.T]
    tiles_um = tuple(PositionUm(*map(float, at_um)) for at_um in np.transpose(columns))
    return Flown(line, stage.began_s, tuple(pulses_s), tiles_um, recording)


@contextmanager
def _silent_afterwards(output: TriggerOutput) -> Iterator[None]:
    try:
        yield
    except BaseException:  # also a Ctrl-C
        _quietly(output.off)  # the first error is the one that counts
        raise
    output.off()


@contextmanager
def _at_velocity(stage: PztStage, velocity_um_s: float) -> Iterator[None]:
    before_um_s = stage.velocity_um_s()
    try:
        stage.set_velocity(velocity_um_s=velocity_um_s)
        yield
    except BaseException:
        _quietly(lambda: stage.set_velocity(velocity_um_s=before_um_s))
        raise
    stage.set_velocity(velocity_um_s=before_um_s)


def _quietly(clean_up: Callable[[], None]) -> None:
    try:
        clean_up()
    except FirmwareError as exc:
        log.warning("after a line that went wrong: %s", exc)
