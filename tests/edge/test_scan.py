"""The plan as a value, and the acquisition that follows it, against a stage and a camera of a few lines."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edge.errors import CameraError, CameraTimeoutError, ConfigError
from edge.frames import Frame, Gap
from edge.scan import ScanPlan, acquire, inscribed_square_um
from firmware_bridge.errors import OutOfRangeError
from firmware_bridge.pzt import Box, PositionUm

CENTRE = PositionUm(50, 50, 5)
TRAVEL = Box(PositionUm(0, 0, 0), PositionUm(100, 100, 10))


def plan(width: float = 30, height: float = 20, **arguments) -> ScanPlan:
    return ScanPlan(region_um=(width, height), **{"centre_um": CENTRE, "tile_um": 10.0, **arguments})


@given(st.floats(1, 90), st.floats(1, 90), st.floats(0, 0.8))
def test_the_tiles_cover_the_region_and_overlap_as_asked(width: float, height: float, overlap: float) -> None:
    raster = plan(width, height, overlap=overlap)
    points = list(raster.points())
    assert len(points) == raster.tiles == raster.columns * raster.lines
    xs, ys = sorted({p.target_um.x for p in points}), sorted({p.target_um.y for p in points})
    for values, centre, length in ((xs, CENTRE.x, width), (ys, CENTRE.y, height)):
        assert values[0] - 5 <= centre - length / 2 + 1e-6
        assert values[-1] + 5 >= centre + length / 2 - 1e-6
        if len(values) > 1:
            np.testing.assert_allclose(np.diff(values), 10 * (1 - overlap), atol=1e-6)


def test_lines_run_in_the_same_direction() -> None:
    points = list(plan().points())
    by_line = [[p.target_um.x for p in points if p.line == line] for line in range(plan().lines)]
    assert all(xs == sorted(xs) for xs in by_line)
    assert [p.index for p in points] == list(range(len(points)))


def test_a_region_of_exactly_one_tile_is_one_tile() -> None:
    assert plan(10, 10).tiles == 1
    assert plan(18.5, 10, overlap=0.15).columns == 2


def test_a_plan_survives_being_saved() -> None:
    raster = plan(overlap=0.3)
    assert ScanPlan.model_validate_json(raster.model_dump_json()) == raster


def test_a_region_beyond_the_travel_is_refused_before_anything_moves() -> None:
    with pytest.raises(ConfigError, match=r"Choose a smaller region. Nothing was moved"):
        plan(120, 20).check(TRAVEL)
    plan(90, 90).check(TRAVEL)


@given(st.floats(1, 120), st.floats(1, 120), st.floats(0, 0.8), st.floats(20, 80), st.floats(-5, 15))
def test_a_plan_is_refused_exactly_where_one_of_its_tiles_is_out_of_reach(
    width: float, height: float, overlap: float, x: float, z: float
) -> None:
    raster = plan(width, height, overlap=overlap, centre_um=PositionUm(x, 50, z))
    if all(TRAVEL.contains(point.target_um) for point in raster.points()):
        raster.check(TRAVEL)
    else:
        with pytest.raises(ConfigError, match="outside its travel"):
            raster.check(TRAVEL)


def test_a_plan_of_more_tiles_than_anybody_waits_for_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"tiles of 0\.001 µm; at most 100000 .* Choose a smaller region"):
        plan(10, 10, tile_um=0.001).check(TRAVEL)


@pytest.mark.parametrize("overlap", [-0.1, 0.95, float("nan")])
def test_an_impossible_overlap_is_refused(overlap: float) -> None:
    with pytest.raises(ValidationError):
        plan(overlap=overlap)


def test_the_tile_is_the_inscribed_square_of_the_field() -> None:
    assert inscribed_square_um(16.0) == pytest.approx(11.314, abs=1e-3)


class FakeStage:
    limits_um = TRAVEL

    def __init__(self) -> None:
        self.moves: list[PositionUm] = []

    def move_to(self, target_um: PositionUm, *, unless: threading.Event) -> PositionUm:
        self.moves.append(target_um)
        return target_um._replace(x=target_um.x + 0.001)


class FakeCamera:
    """Exposes on each pulse; frames in ``lost`` never come, those in ``late`` come one time-out later."""

    def __init__(self, lost: tuple[int, ...] = (), late: tuple[int, ...] = ()) -> None:
        self.pulses = -1
        self._lost, self._late = lost, late
        self._waiting: list[int] = []

    def fire(self) -> None:
        self.pulses += 1
        if self.pulses not in self._lost:
            self._waiting.append(self.pulses)

    def next_frame(self, *, timeout_s: float) -> Frame:
        if not self._waiting or (self._waiting == [self.pulses] and self.pulses in self._late):
            raise CameraTimeoutError("no frame")
        return Frame(np.zeros((2, 2), np.uint8), self._waiting.pop(0), 0)


def follow(stage, camera, stop: threading.Event | None = None, discarded: list | None = None):
    discard = (discarded if discarded is not None else []).append
    return acquire(plan(), stage, camera, camera, stop=stop or threading.Event(), discard=discard)


def test_every_tile_is_moved_to_pulsed_once_and_carries_its_measured_position() -> None:
    stage, camera = FakeStage(), FakeCamera()
    items = list(follow(stage, camera))
    targets = [p.target_um for p in plan().points()]
    assert stage.moves == targets
    assert camera.pulses == len(targets) - 1
    assert [item.index for item in items] == list(range(len(targets)))
    assert [item.position_um.x for item in items] == [t.x + 0.001 for t in targets]


def test_a_frame_that_does_not_come_is_a_gap_and_the_scan_goes_on() -> None:
    camera = FakeCamera(lost=(2,))
    items = list(follow(FakeStage(), camera))
    assert [item.index for item in items if isinstance(item, Gap)] == [2]
    assert len(items) == plan().tiles


def test_a_late_frame_is_a_gap_of_its_own_tile_and_never_taken_for_the_next() -> None:
    camera, discarded = FakeCamera(late=(2,)), []
    items = list(follow(FakeStage(), camera, discarded=discarded))
    assert [item.index for item in items if isinstance(item, Gap)] == [2]
    assert [frame.index for frame in discarded] == [2]
    assert [item.index for item in items] == list(range(plan().tiles))


def test_more_exposures_than_pulses_end_the_scan() -> None:
    class Noisy(FakeCamera):
        def fire(self) -> None:
            super().fire()
            if self.pulses == 1:
                self.pulses += 1
                self._waiting = [2]

    discarded: list[Frame] = []
    with pytest.raises(CameraError, match="3 exposures after 2 trigger pulses"):
        list(follow(FakeStage(), Noisy(), discarded=discarded))
    assert len(discarded) == 1


def test_a_refused_move_ends_the_scan() -> None:
    class Refusing(FakeStage):
        def move_to(self, target_um: PositionUm, *, unless: threading.Event) -> PositionUm:
            raise OutOfRangeError("no")

    camera = FakeCamera()
    with pytest.raises(OutOfRangeError):
        list(follow(Refusing(), camera))
    assert camera.pulses == -1


def test_stop_ends_the_scan_before_the_next_move() -> None:
    stage, camera, stop = FakeStage(), FakeCamera(), threading.Event()
    for item in follow(stage, camera, stop):
        if item.index == 1:
            stop.set()
    assert len(stage.moves) == 2
