"""Rates, percentiles and counts, with a clock that is moved by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.frames import Ledger
from edge.meter import KEPT, Durations, FlowMeter, Rate, peak_rss_mb, process_age_s, rss_mb


class HandClock:
    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ns

    def forward(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


def test_a_rate_is_that_of_the_last_second() -> None:
    clock = HandClock()
    rate = Rate(clock)
    assert rate.per_second() is None
    for _ in range(100):
        clock.forward(0.02)
        rate.tick()
    assert rate.per_second() == pytest.approx(50)


def test_a_rate_falls_to_zero_when_events_stop_and_is_not_kept_on_view() -> None:
    clock = HandClock()
    rate = Rate(clock)
    for _ in range(10):
        clock.forward(0.1)
        rate.tick()
    clock.forward(3)
    assert rate.per_second() == 0


def test_a_rate_below_one_a_second_is_still_measured() -> None:
    clock = HandClock()
    rate = Rate(clock)
    for _ in range(3):
        clock.forward(2)
        rate.tick()
    assert rate.per_second() == pytest.approx(0.5)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=300))
def test_percentiles_are_numpys_over_what_was_added(durations_s: list[float]) -> None:
    durations = Durations()
    for duration_s in durations_s:
        durations.add(duration_s)
    found = durations.percentiles()
    assert found.p50 == pytest.approx(np.percentile(durations_s, 50))
    assert found.p99 == pytest.approx(np.percentile(durations_s, 99))


def test_only_the_newest_durations_are_kept() -> None:
    durations = Durations()
    for value in [100.0] * 10 + [1.0] * KEPT:
        durations.add(value)
    assert durations.percentiles().p99 == 1.0
    assert Durations().percentiles().p50 is None


def test_fps_is_frames_less_one_over_first_to_last() -> None:
    clock = HandClock()
    meter = FlowMeter(clock)
    assert meter.fps() is None
    for _ in range(11):
        meter.enhanced(0.001, Ledger())
        clock.forward(0.1)
    assert meter.fps() == pytest.approx(10)


def test_the_process_knows_its_age_and_memory() -> None:
    assert 0 < process_age_s() < 3600
    assert 1 < rss_mb() <= peak_rss_mb() + 1
