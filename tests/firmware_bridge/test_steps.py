"""Step and shoot: one edge a tile, and none or two are named."""

from __future__ import annotations

import pytest

from firmware_bridge.errors import FirmwareError, OutOfRangeError, StoppedError
from firmware_bridge.outputs import TriggerOutput
from firmware_bridge.pzt import PositionUm, open_stage
from firmware_bridge.simulator import Simulator
from firmware_bridge.steps import step_and_shoot

TILES = [PositionUm(40 + 3 * n, 45, 5) for n in range(4)]


@pytest.fixture(params=["e517", "e727"])
def line(request):
    simulator = Simulator(request.param)
    pulses = []
    with open_stage("sim:", simulator=simulator, velocity_um_s=2000) as stage:
        simulator.on_pulse(lambda _, t_ns, pose_um: pulses.append(pose_um))
        yield stage, TriggerOutput(stage), pulses


def test_each_tile_has_its_edge_at_rest_on_it(line):
    stage, output, pulses = line
    shots = list(step_and_shoot(stage, output, TILES, axis=0, pulses=lambda: len(pulses)))
    assert [shot.gap for shot in shots] == [""] * 4
    assert [shot.target_um for shot in shots] == TILES
    for shot in shots:
        assert pulses[shot.pulse] == pytest.approx(shot.target_um, abs=0.005)
        assert shot.position_um == pytest.approx(shot.target_um, abs=0.005)
    assert len({shot.pulse for shot in shots}) == 4


def test_after_the_line_no_move_makes_a_pulse(line):
    stage, output, pulses = line
    list(step_and_shoot(stage, output, TILES, axis=0, pulses=lambda: len(pulses)))
    count = len(pulses)
    stage.move_to(PositionUm(20, 45, 5))
    assert len(pulses) == count


def test_a_caller_who_leaves_in_the_middle_leaves_no_pulses_behind(line):
    stage, output, pulses = line
    shots = step_and_shoot(stage, output, TILES, axis=0, pulses=lambda: len(pulses))
    next(shots)
    shots.close()
    count = len(pulses)
    stage.move_to(PositionUm(20, 45, 5))
    assert len(pulses) == count


@pytest.mark.parametrize(
    ("miscount", "says", "edges"), [(-1, "did not fall", [1, 0, 1, 1]), (+1, "flickered", [1, 2, 1, 1])]
)
def test_none_or_two_edges_for_a_tile_are_named_and_the_others_keep_theirs(line, miscount, says, edges):
    stage, output, pulses = line

    def counted():  # arming makes the first, the first tile the second; of the third one is lost, or there are two
        return len(pulses) + (miscount if len(pulses) > 2 else 0)

    shots = list(step_and_shoot(stage, output, TILES, axis=0, pulses=counted, edge_timeout_s=0.05))
    assert [shot.edges for shot in shots] == edges
    assert says in shots[1].gap
    assert shots[1].pulse is None
    assert [shots[n].gap for n in (0, 2, 3)] == [""] * 3


def test_a_fault_ends_the_line_and_switches_the_output_off(line):
    stage, output, pulses = line
    shots = step_and_shoot(stage, output, TILES, axis=0, pulses=lambda: len(pulses))
    next(shots)
    stage.simulator.faults.inject("garbage", only="#5")
    with pytest.raises(FirmwareError):
        next(shots)
    count = len(pulses)
    stage.move_to(PositionUm(20, 45, 5))
    assert len(pulses) == count


@pytest.mark.parametrize(
    ("tiles", "says"),
    [
        ([], "needs tiles"),
        ([TILES[0], TILES[0]], "another place"),
        ([TILES[0], PositionUm(101, 45, 5)], "outside the limits"),
    ],
)
def test_tiles_that_cannot_be_are_refused_and_nothing_moves(line, tiles, says):
    stage, output, pulses = line
    before = stage.simulator.pose_um()
    with pytest.raises(OutOfRangeError, match=says):
        list(step_and_shoot(stage, output, tiles, axis=0, pulses=lambda: len(pulses)))
    assert stage.simulator.pose_um() == before


def test_a_line_at_the_edge_of_the_travel_is_begun_from_its_other_side(line):
    stage, output, pulses = line
    tiles = [PositionUm(0, 45, 5), PositionUm(3, 45, 5)]
    shots = list(step_and_shoot(stage, output, tiles, axis=0, pulses=lambda: len(pulses)))
    assert [shot.gap for shot in shots] == ["", ""]


def test_a_stop_between_two_tiles_ends_the_line(line):
    stage, output, pulses = line
    shots = step_and_shoot(stage, output, TILES, axis=0, pulses=lambda: len(pulses))
    at_um = next(shots).position_um
    stage.stop()
    with pytest.raises(StoppedError):
        next(shots)
    assert stage.simulator.pose_um() == pytest.approx(at_um, abs=0.005)
    count = len(pulses)
    stage.move_to(PositionUm(20, 45, 5))
    assert len(pulses) == count
