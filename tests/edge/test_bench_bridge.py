"""`superlens bench bridge`: it measures what it says it does, and says what is missing."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge import bench_bridge
from edge.__main__ import main

NAMES = {"superlens", "superlens_single_read", "pipython_moveandwait", "pipython_loop"}


@pytest.fixture
def small(monkeypatch):
    """A bench of seconds; the simulated controllers are processes of their own and keep their settings.

    A reply is late by so much that a stop overtakes it on any machine.
    """
    for name, value in {"SIDE": 2, "ROUND_TRIPS": 50, "STOPS": 3, "LATE_S": 1.0}.items():
        monkeypatch.setattr(bench_bridge, name, value)


def test_the_raster_is_a_meander_of_equal_steps():
    tiles = bench_bridge.raster()
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(tiles)]
    assert {abs(x) + abs(y) for x, y in steps} == {bench_bridge.STEP_UM}
    assert len(set(tiles)) == len(tiles) == bench_bridge.SIDE**2


def test_without_its_peers_the_bench_says_how_to_get_them(tmp_path):
    result = CliRunner().invoke(main, ["bench", "bridge", "--peers", str(tmp_path)])
    assert result.exit_code == 2
    assert "make bench-peers" in result.stderr


def test_a_stop_is_timed_from_the_call_to_the_controller(small):
    with bench_bridge._controller(baud=None, settling=True) as (port, orders):
        idle_s, waiting_s = bench_bridge._stops(port, orders)
    assert len(idle_s) == len(waiting_s) == 3
    assert all(0 < took_s < bench_bridge.LATE_S / 2 for took_s in [*idle_s, *waiting_s])  # it did not wait its turn


def test_a_round_trip_of_ours_is_a_round_trip(small):
    with bench_bridge._controller(baud=None, settling=True) as (port, _):
        assert len(bench_bridge._round_trips(port)) == len(bench_bridge._raw_round_trips(port)) == 50


@pytest.mark.slow
def test_the_bench_prints_the_figures_of_all_four(small):
    result = CliRunner().invoke(main, ["bench", "bridge", "--runs", "1", "--peers", sys.prefix, "--json", "-"])
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    for part in (figures, figures["without_settling"]):
        assert set(part["tiles_per_s"]) == set(part["cpu_fraction"]) == NAMES
        assert all(rate > 1 for rate in part["tiles_per_s"].values())
        assert all(0 < share < 1.1 for share in part["cpu_fraction"].values())
    for name in ("roundtrip_s", "roundtrip_raw_s", "stop_s", "stop_while_waiting_s"):
        assert 0 < figures[name]["p50"] <= figures[name]["p99"] < 1


def test_the_peer_is_a_program_of_its_own():
    # It runs in an environment that has nothing of ours.
    source = Path(bench_bridge.PEER).read_text()
    assert "edge" not in source.partition('"""\n')[2]
    assert "firmware_bridge" not in source
