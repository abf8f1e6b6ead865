"""The simulated cantilever: far, snap-in, contact, pull-off, tilt, drift."""

from __future__ import annotations

import numpy as np
import pytest

from firmware_bridge.errors import LinkError, OutOfRangeError
from firmware_bridge.position import PositionUm
from firmware_bridge.simulator.cantilever import SimulatedCantilever


class Bench:
    def __init__(self, **keywords) -> None:
        self.at = PositionUm(50, 50, 6.0)
        self.now_s = 0.0
        keywords = {"noise_v": 0.0, "tilt": (0.0, 0.0), **keywords}
        self.sensor = SimulatedCantilever(lambda: self.at, clock=lambda: self.now_s, **keywords)

    def read_at(self, z_um: float, x_um: float = 50.0) -> float:
        self.at = PositionUm(x_um, 50, z_um)
        return self.sensor.read_v()


def test_far_away_it_reads_its_baseline():
    assert Bench().read_at(1.0) == 1.0


def test_the_sphere_snaps_in_so_the_signal_falls_before_it_rises_and_then_follows_the_sample():
    bench = Bench(snap_in_nm=15, v_per_nm=0.004)
    assert bench.read_at(6.980) == 1.0
    assert bench.read_at(6.990) == pytest.approx(0.96)
    assert bench.read_at(7.000) == pytest.approx(1.0)
    assert bench.read_at(7.100) == pytest.approx(1.4)


def test_adhesion_holds_the_sphere_longer_than_attraction_drew_it():
    bench = Bench(snap_in_nm=15, pull_off_nm=60)
    bench.read_at(7.0)
    assert bench.read_at(6.95) == pytest.approx(0.8)
    assert bench.read_at(6.93) == 1.0
    assert bench.read_at(6.95) == 1.0


def test_the_sample_is_tilted():
    bench = Bench(tilt=(0.01, 0.0), v_per_nm=0.004)
    assert bench.read_at(7.0, x_um=60.0) == pytest.approx(1.4)


def test_signal_and_gap_drift():
    bench = Bench(drift_v_s=0.01, drift_nm_s=2.0, v_per_nm=0.004)
    bench.read_at(7.0)
    bench.now_s = 10.0
    assert bench.read_at(7.0) == pytest.approx(1.0 + 0.1 + 0.08)


def test_the_noise_has_the_width_that_was_asked_for_and_is_reproducible():
    values = [[sensor.read_v() for _ in range(2000)] for sensor in (Bench(noise_v=0.005).sensor for _ in range(2))]
    assert values[0] == values[1]
    assert np.std(values[0]) == pytest.approx(0.005, rel=0.1)


def test_what_an_adc_could_not_see_is_out_of_range():
    with pytest.raises(OutOfRangeError, match="SIMULATED"):
        Bench().read_at(8.0)


def test_a_silent_adc_is_a_link_error_and_a_knock_pushes():
    bench = Bench(v_per_nm=0.004)
    bench.sensor.knock_nm = 100.0
    assert bench.read_at(7.0) == pytest.approx(1.4)
    bench.sensor.silent = True
    with pytest.raises(LinkError, match="SIMULATED"):
        bench.sensor.read_v()


def test_a_stage_that_is_wired_the_other_way_round_touches_from_above():
    bench = Bench(z_sign=-1, touch_z_um=3.0, v_per_nm=0.004)
    assert bench.read_at(4.0) == 1.0
    assert bench.read_at(2.9) == pytest.approx(1.4)
