"""A simulated AFM cantilever with a sphere at its end, over a tilted sample on the simulated stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

import numpy as np

from firmware_bridge.contact import HIGHEST_V, LOWEST_V
from firmware_bridge.errors import LinkError, OutOfRangeError
from firmware_bridge.position import PositionUm


class SimulatedCantilever:
    """The contact signal, as an ADC would read it; a ContactReader.

    Far away the signal is its baseline, with noise and drift. When the gap closes to `snap_in_nm`, the sphere jumps
    to the sample and bends the cantilever towards it, so the signal **falls** before it rises; from there it follows
    the sample, `v_per_nm`, until the sample is pulled off by more than `pull_off_nm` (adhesion holds it longer than
    attraction drew it). The sample is stiff.

    Parameters
    ----------
    pose_um : callable
        Where the sample is; a Simulator's ``pose_um``.
    touch_z_um : float
        The PZT's z at which sphere and sample just touch without force, in the middle of the tilt.
    tilt : tuple of float
        How much higher the sample is per um of x and of y, um/um.
    centre_um : tuple of float
        x and y about which it is tilted.
    v_per_nm, baseline_v, noise_v, drift_v_s : float
        Of the signal; the noise is Gaussian, rms of one reading.
    drift_nm_s : float
        How fast sphere and sample drift together, by warming.
    snap_in_nm, pull_off_nm : float
        Adhesion.
    z_sign : 1 or -1
        1 where +z brings the sample towards the sphere.
    clock : callable
        Seconds.
    seed : int
        Of the noise.

    Attributes
    ----------
    knock_nm : float
        Added to the height of the sample: somebody hits the table.
    silent : bool
        Does not answer.
    """

    def __init__(
        self,
        pose_um: Callable[[], PositionUm],
        *,
        touch_z_um: float = 7.0,
        tilt: tuple[float, float] = (0.002, -0.001),
        centre_um: tuple[float, float] = (50.0, 50.0),
        v_per_nm: float = 0.004,
        baseline_v: float = 1.0,
        noise_v: float = 0.002,
        drift_v_s: float = 0.0,
        drift_nm_s: float = 0.0,
        snap_in_nm: float = 15.0,
        pull_off_nm: float = 60.0,
        z_sign: Literal[1, -1] = 1,
        clock: Callable[[], float] = time.monotonic,
        seed: int = 0,
    ) -> None:
        self._pose_um, self._touch_z_um, self._tilt, self._centre_um = pose_um, touch_z_um, tilt, centre_um
        self._v_per_nm, self._baseline_v, self._noise_v = v_per_nm, baseline_v, noise_v
        self._drift_v_s, self._drift_nm_s = drift_v_s, drift_nm_s
        self._snap_in_nm, self._pull_off_nm, self._z_sign = snap_in_nm, pull_off_nm, z_sign
        self._clock, self._began_s = clock, clock()
        self._random = np.random.default_rng(seed)
        self._lock = threading.Lock()  # adhesion has a memory, the noise a state
        self._sticks = False
        self.knock_nm = 0.0
        self.silent = False

    def indentation_nm(self) -> float:
        """How far the sample has pushed the sphere up; negative when it is away."""
        at_um = self._pose_um()
        height_um = self._tilt[0] * (at_um.x - self._centre_um[0]) + self._tilt[1] * (at_um.y - self._centre_um[1])
        pushed_um = self._z_sign * (at_um.z - self._touch_z_um) + height_um
        return 1e3 * pushed_um + self.knock_nm + self._drift_nm_s * (self._clock() - self._began_s)

    def read_v(self) -> float:
        """See `contact.ContactReader`."""
        with self._lock:
            if self.silent:
                raise LinkError("SIMULATED: the ADC does not answer")
            indentation_nm = self.indentation_nm()
            self._sticks = indentation_nm > -(self._pull_off_nm if self._sticks else self._snap_in_nm)
            deflection_nm = indentation_nm if self._sticks else 0.0
            drifted_v = self._drift_v_s * (self._clock() - self._began_s)
            value_v = (
                self._baseline_v + drifted_v + self._v_per_nm * deflection_nm + self._random.normal(0, self._noise_v)
            )
        if not LOWEST_V <= value_v <= HIGHEST_V:
            raise OutOfRangeError(
                f"SIMULATED: the ADC would see {value_v:.3f} V, expected {LOWEST_V:g} to {HIGHEST_V:g} V"
            )
        return float(value_v)

    def close(self) -> None:
        """Nothing to give back."""
