"""A stop ends the moves that were decided on before it, and no other."""

from __future__ import annotations

import threading

import pytest

from firmware_bridge.errors import StoppedError
from firmware_bridge.stops import Stops


def test_a_stop_ends_what_was_decided_on_before_it_and_not_what_comes_after():
    stops = Stops("stopped", code=10)
    since = stops.since
    stops.check(since)
    stop = stops.new()
    with pytest.raises(StoppedError, match="stopped") as ended:
        stops.check(since)
    assert ended.value.code == 10
    assert stop is stops.last is stops.since
    stops.check(stop)


def test_a_stop_ends_a_series_and_the_one_around_it_but_nothing_after_them():
    stops = Stops("stopped")
    with stops.series() as begun:
        with stops.series():
            stops.new()
        assert stops.since is begun
        assert stops.came(stops.since)
    assert not stops.came(stops.since)
    with stops.series(begun):  # a later part of the same
        assert stops.came(stops.since)


def test_a_series_is_its_own_threads():
    stops, seen = Stops("stopped"), []
    with stops.series():
        stops.new()
        other = threading.Thread(target=lambda: seen.append(stops.came(stops.since)))
        other.start()
        other.join(5)
    assert seen == [False]
