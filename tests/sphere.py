"""Sphere, sample, stage, contact monitor and interlock on one clock that a test owns."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from firmware_bridge.contact import ContactMonitor, Sample, Thresholds
from firmware_bridge.errors import LinkTimeoutError, StoppedError
from firmware_bridge.position import Box, PositionUm
from firmware_bridge.retraction import PztRetraction
from firmware_bridge.safety import Interlock, Rules
from firmware_bridge.simulator.cantilever import SimulatedCantilever

TRAVEL = Box(PositionUm(0, 0, 0), PositionUm(100, 100, 10))
ME = "a tester"
SETTLED_WITHIN_UM = 0.005  # of a simulated stage that has settled: some ten times its noise
START = PositionUm(50, 50, 6)
V_PER_NM = 0.004
LIMITS = Thresholds(set_point_v=1.2, overload_v=2.0, broken_v=0.2)  # the set point is 50 nm of force
PERIOD_S = 0.005


class Bench:
    """Stage, cantilever, monitor and interlock on one clock. A move takes 8 ms, in which the monitor samples on."""

    def __init__(self, start_um: PositionUm = START, *, rules: dict | None = None, **sensor) -> None:
        self.now_s = 0.0
        self.at_um, self.limits_um = start_um, TRAVEL
        self.done: list[tuple[str, float]] = []
        self.stopped = False
        self.on_move = lambda: None
        self.away_z_um = TRAVEL.high.z if (rules or {}).get("z_sign", 1) < 0 else TRAVEL.low.z
        self.stops = 0  # in all, and before the series began
        self.before: int | None = None
        retraction = PztRetraction()
        retraction.bind(self)
        self.interlock = Interlock(
            Rules("cantilever", TRAVEL, **(rules or {})), stage=retraction, focus=self, clock=lambda: self.now_s
        )
        self.sensor = SimulatedCantilever(
            lambda: self.at_um, v_per_nm=V_PER_NM, clock=lambda: self.now_s, **{"tilt": (0.0, 0.0), **sensor}
        )
        self.monitor = SteppedMonitor(self)
        self.pass_time(0.05)
        self.interlock.sphere_lifted(by=ME)
        self.interlock.arm(by=ME)

    def pass_time(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.monitor.due_s <= end_s:
            self.now_s = self.monitor.due_s
            self.monitor.due_s += PERIOD_S
            self.interlock.polled()
            self.monitor.step()
        self.now_s = end_s

    def position_um(self) -> PositionUm:
        return self.at_um

    rest_um = position_um

    @contextlib.contextmanager
    def series(self) -> Iterator[None]:
        outer, self.before = self.before, self.stops if self.before is None else self.before
        try:
            yield
        finally:
            self.before = outer

    def move_to(
        self, target_um: PositionUm, *, timeout_s: float = 5.0, unless: threading.Event | None = None
    ) -> PositionUm:
        if unless is not None and unless.is_set():
            raise StoppedError("the series was stopped")
        if self.before not in (None, self.stops):
            raise StoppedError("stopped before this move")
        self.interlock.check_move(self.at_um, target_um)
        self.stopped = False
        self.on_move()
        self.at_um = target_um
        self.pass_time(0.008)
        if self.stopped:
            raise StoppedError("stopped")
        return self.at_um

    def set_velocity(self, *, velocity_um_s: float) -> None:
        self.interlock.check_velocity(velocity_um_s)
        self.velocity_um_s = velocity_um_s

    def stop(self) -> None:
        self.done.append(("stop", self.now_s))
        self.stopped, self.stops = True, self.stops + 1

    def retreat(self, z_um: float) -> None:
        assert z_um == self.away_z_um
        self.done.append(("retreat", self.now_s))
        self.stopped, self.stops = True, self.stops + 1
        self.at_um = self.at_um._replace(z=z_um)

    def park(self) -> None:
        self.done.append(("park", self.now_s))
        self.at_um = self.at_um._replace(z=self.away_z_um)

    def close(self) -> None:
        self.done.append(("close", self.now_s))

    def focus_up(self) -> None:
        self.done.append(("focus", self.now_s))

    def lift(self, failed: Callable[[str], None], given_up: threading.Event | None) -> None:
        self.focus_up()


class SteppedMonitor(ContactMonitor):
    """Samples when the bench lets time pass."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.sensor, LIMITS, guard=bench.interlock, period_s=PERIOD_S, clock=lambda: bench.now_s)
        self.bench, self.due_s = bench, 0.0

    def wait(self, count: int = 1, *, timeout_s: float = 1.0) -> list[Sample]:
        samples, after_s = [], self.bench.now_s
        while len(samples) < count:
            self.bench.pass_time(PERIOD_S)
            if self._sample is not None and self._sample.t_s > after_s and self._sample not in samples:
                samples.append(self._sample)
            if self.bench.now_s > after_s + timeout_s:
                raise LinkTimeoutError("no samples")
        return samples


def error_nm(bench: Bench) -> float:
    """How far the sphere is from where its force would be the set point's."""
    return bench.sensor.indentation_nm() - (LIMITS.set_point_v - 1.0) / V_PER_NM
