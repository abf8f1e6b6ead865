"""A trigger output of the controller (CTO): where, or when, its pulses to the camera fall.

The controller sees positions every 50 us and needs no host: pulses fall where the stage is, not where Python thinks it
is. Sources: PI manuals E727T0005 (trigger output) and MS249E (E-517).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from . import gcs
from .errors import OutOfRangeError, RefusedError
from .stage import PztStage

log = logging.getLogger(__name__)

STEP, AXIS, MODE, LOW, HIGH, START, STOP = 1, 2, 3, 5, 6, 8, 9
POSITION_DISTANCE, ON_TARGET, WINDOW, GENERATOR = 0, 2, 3, 4
# The least distance of pulses in peak-to-peak noises of the sensor, below which pulses are lost or doubled (E727T0005).
STEP_IN_NOISES = 5
SLIVER_UM = 0.001


class TriggerOutput:
    """One of the controller's digital outputs, wired to the camera.

    Parameters
    ----------
    stage : PztStage
        Whose controller it belongs to.
    line : int
        1, 2 or 3.

    Raises
    ------
    OutOfRangeError
        No such line.
    """

    def __init__(self, stage: PztStage, line: int = 1) -> None:
        if line not in (1, 2, 3):
            raise OutOfRangeError(f"trigger output {line}: expected 1, 2 or 3")
        self.stage, self.line = stage, line

    def every(self, axis: int, *, first_um: float, last_um: float, step_um: float, noise_pp_um: float) -> None:
        """A pulse at `first_um` and each `step_um` after it up to `last_um`, and none outside (mode 0).

        Parameters
        ----------
        axis : int
            0 for x, 1 for y, 2 for z.
        first_um, last_um : float
            Thresholds inside the travel; the pulses come in the motion from the first to the last only.
        step_um : float
            Above 0.
        noise_pp_um : float
            Peak-to-peak noise of the sensor, as `PztStage.drift_um` measures it.

        Raises
        ------
        OutOfRangeError
            Less than 5 noises apart, or outside the limits: nothing was sent.
        RefusedError
            An E-517, which has no thresholds, or the controller refused.
        """
        if not all(map(math.isfinite, (first_um, last_um, step_um, noise_pp_um))) or step_um <= 0 or noise_pp_um < 0:
            raise OutOfRangeError(f"pulses every {step_um} um from {first_um} to {last_um}: expected finite numbers")
        if step_um < STEP_IN_NOISES * noise_pp_um:
            raise OutOfRangeError(
                f"pulses every {step_um:g} um are closer than {STEP_IN_NOISES} x the sensor's noise of "
                f"{noise_pp_um:g} um peak to peak, and would be lost or doubled: take a larger step"
            )
        self._check_axis(axis, first_um, last_um)
        if first_um == last_um:  # equal thresholds mean none to the controller
            raise OutOfRangeError(f"one pulse at {first_um:g} um is no line: expected two or more")
        if not self.stage.profile.trigger_thresholds:
            raise RefusedError(
                "an E-517 has no thresholds for its pulses (CTO parameters 8 and 9), so they would come in the "
                "overscan too: fly by the wave generator, or step and shoot"
            )
        # Past the last pulse by less than a step: it is not to be lost by rounding.
        past_um = math.copysign(step_um / 4, last_um - first_um)
        values = {MODE: POSITION_DISTANCE, STEP: step_um, START: first_um, STOP: last_um + past_um}
        self._set(axis, values)

    def on_target(self, axis: int) -> None:
        """The level of on target (mode 2): it rises when the axis has settled, and falls when a new target is given.

        Arming an axis that is on target already may make an edge at once.

        Raises
        ------
        OutOfRangeError, RefusedError
            As in `every`.
        """
        self._check_axis(axis)
        self._set(axis, {MODE: ON_TARGET})

    def inside(self, axis: int, *, low_um: float, high_um: float) -> None:
        """High while the axis is between two positions (mode 3); errors as in `every`."""
        self._check_axis(axis, low_um, high_um)
        if low_um >= high_um:
            raise OutOfRangeError(f"a window from {low_um:g} to {high_um:g} um: expected a low below a high")
        self._set(axis, {MODE: WINDOW, LOW: low_um, HIGH: high_um})

    def by_generator(self, axis: int) -> None:
        """High at the points of a wave that TWS names (mode 4); errors as in `every`."""
        self._check_axis(axis)
        self._set(axis, {MODE: GENERATOR})

    def off(self) -> None:
        """No more pulses, also where a stop came in between.

        A controller without TRO is given a window that the stage cannot reach; or one at the end of x that is further
        away, where it refuses that.
        """
        if self._switchable():
            self._switch(False)
            return
        low_um, high_um = (corner_um.x for corner_um in self.stage.limits_um)
        try:
            self._set(0, {MODE: WINDOW, LOW: high_um + 1e3, HIGH: high_um + 2e3})
        except OutOfRangeError as exc:
            upper = self.stage.position_um().x < (low_um + high_um) / 2
            window_um = (high_um - SLIVER_UM, high_um) if upper else (low_um, low_um + SLIVER_UM)
            log.warning("%s; the pulses are kept to x from %g to %g um", exc, *window_um)
            self._set(0, {MODE: WINDOW, LOW: window_um[0], HIGH: window_um[1]})

    def _check_axis(self, axis: int, *at_um: float) -> None:
        if axis not in (0, 1, 2):
            raise OutOfRangeError(f"axis {axis}: expected 0 for x, 1 for y or 2 for z")
        low_um, high_um = (corner_um[axis] for corner_um in self.stage.limits_um)
        for one_um in at_um:
            if not low_um <= one_um <= high_um:
                raise OutOfRangeError(f"a pulse at {one_um} um lies outside the limits {low_um:g} to {high_um:g} um")

    def _switchable(self) -> bool:
        return self.stage.ask(lambda: self.stage.controller.has("TRO"))

    def _switch(self, on: bool) -> None:
        self._command(gcs.command_line("TRO", self.line, on))

    def _set(self, axis: int, values: Mapping[int, float]) -> None:
        words: list[str | float] = [self.line, AXIS, self.stage.profile.axes[axis]]
        for parameter, value in values.items():
            words += [self.line, parameter, value]
        self._command(gcs.command_line("CTO", *words))
        if self._switchable():
            self._switch(True)

    def _command(self, line: bytes) -> None:
        self.stage.tell(line)
