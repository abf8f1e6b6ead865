"""What a stage at rest does: drift, noise, and how far from its target it stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import OutOfRangeError
from .position import PositionUm


class Drift(NamedTuple):
    """What a stage at rest does.

    Attributes
    ----------
    rate_um_s : PositionUm
        Slope of the readings.
    noise_pp_um : PositionUm
        The readings' largest minus their smallest, without the slope.
    error_um : PositionUm
        Mean reading minus target.
    samples : int
        Readings.
    duration_s : float
        From the first to the last.
    """

    rate_um_s: PositionUm
    noise_pp_um: PositionUm
    error_um: PositionUm
    samples: int
    duration_s: float


def watch(
    read_um: Callable[[], PositionUm],
    target_um: PositionUm,
    *,
    duration_s: float,
    samples: int,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Drift:
    """Read a position at equal times, and fit a line. `PztStage.drift_um` does it for a stage.

    Raises
    ------
    OutOfRangeError
        A duration or number that makes no sense.
    """
    if not (math.isfinite(duration_s) and duration_s > 0 and samples >= 3):
        raise OutOfRangeError(f"{samples} samples in {duration_s} s: expected 3 or more, in a time above 0")
    begun_s = clock()
    times_s, readings_um = np.empty(samples), np.empty((samples, 3))
    for index in range(samples):
        wait_s = begun_s + duration_s * index / (samples - 1) - clock()
        if wait_s > 0:
            sleep(wait_s)
        times_s[index] = clock()
        readings_um[index] = read_um()
    elapsed_s = times_s - times_s.mean()
    slope, mean = np.polyfit(elapsed_s, readings_um, 1)
    return Drift(
        rate_um_s=_position(slope),
        noise_pp_um=_position(np.ptp(readings_um - np.outer(elapsed_s, slope), axis=0)),
        error_um=_position(mean - np.asarray(target_um)),
        samples=samples,
        duration_s=float(times_s[-1] - times_s[0]),
    )


def _position(values: NDArray[np.float64]) -> PositionUm:
    x, y, z = map(float, values)
    return PositionUm(x, y, z)
