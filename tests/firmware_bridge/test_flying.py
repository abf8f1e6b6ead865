"""Fly lines over the simulated controllers: pulses fall where the plan says, and everything is accounted for."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from firmware_bridge.errors import FirmwareError, LinkError, OutOfRangeError, RefusedError, StoppedError
from firmware_bridge.flying import fly
from firmware_bridge.guard import Unguarded
from firmware_bridge.lines import FlyLine, raster
from firmware_bridge.outputs import TriggerOutput
from firmware_bridge.pzt import PositionUm, open_stage
from firmware_bridge.recording import Recorder, reconcile
from firmware_bridge.simulator import Simulator, serve_pty
from tests.waiting import until

LINE = FlyLine(PositionUm(40, 50, 5), axis=0, step_um=2.0, count=6, velocity_um_s=200.0, exposure_s=0.001)
KEEPS = {"blur_um": 0.25, "noise_pp_um": 0.003, "frame_time_s": 0.005, "shutter": "global"}
WAYS = [("e727", False), ("e727", True), ("e517", True)]


@pytest.fixture(params=WAYS, ids=["e727 velocity", "e727 wave", "e517 wave"])
def flight(request):
    """An open stage, what it is flown by, and the pulses that came: (t_ns, pose)."""
    profile, by_wave = request.param
    simulator = Simulator(profile)
    pulses = []
    with open_stage("sim:", simulator=simulator, velocity_um_s=2000) as stage:
        simulator.on_pulse(lambda _, t_ns, pose_um: pulses.append((t_ns, pose_um)))
        yield stage, by_wave, pulses


@pytest.mark.parametrize("direction", [1, -1], ids=["forwards", "backwards"])
def test_a_line_has_a_pulse_for_each_tile_where_it_should_be_and_no_other(flight, direction):
    stage, by_wave, pulses = flight
    (line,) = raster(LINE, lines=1, pitch_um=0)
    if direction < 0:
        _, line = raster(LINE, lines=2, pitch_um=0, meander=True, offset_um=(0, 0))
    flown = fly(stage, line, TriggerOutput(stage), **KEEPS, by_wave=by_wave)
    until(lambda: len(pulses) >= line.count)
    assert len(pulses) == line.count
    # a wave puts its pulses on points, and the stage lags behind it by 2 v / w
    near_um = 0.5 if by_wave else 0.02
    assert [pose.x for _, pose in pulses] == pytest.approx(line.pulses_um, abs=near_um)
    # what the recorder says of the tiles is where the stage was in the middle of the exposures
    tiles = [at + direction * line.velocity_um_s * line.exposure_s / 2 for at in line.pulses_um]
    assert [tile.x for tile in flown.tiles_um] == pytest.approx(tiles, abs=0.05)
    assert [tile.y for tile in flown.tiles_um] == pytest.approx([50] * line.count, abs=0.01)
    frames_s = [t_ns / 1e9 for t_ns, _ in pulses]
    account = reconcile(flown.due_s, frames_s, triggers=len(pulses), unsure_s=flown.unsure_s)
    assert account.gap == ""
    assert account.rows == line.count
    assert stage.velocity_um_s() == (2000, 2000, 2000)


def test_after_a_line_no_pulse_falls(flight):
    stage, by_wave, pulses = flight
    fly(stage, LINE, TriggerOutput(stage), **KEEPS, by_wave=by_wave)
    until(lambda: len(pulses) >= LINE.count)
    stage.move_to(PositionUm(20, 50, 5))
    stage.move_to(PositionUm(70, 50, 5))
    assert len(pulses) == LINE.count


def test_a_frame_that_was_lost_is_named(flight):
    stage, by_wave, pulses = flight
    flown = fly(stage, LINE, TriggerOutput(stage), **KEEPS, by_wave=by_wave)
    until(lambda: len(pulses) >= LINE.count)
    frames_s = [t_ns / 1e9 for t_ns, _ in pulses]
    del frames_s[2]
    account = reconcile(flown.due_s, frames_s, triggers=len(pulses), unsure_s=flown.unsure_s)
    assert account.gap == "no frame for tile 2"


def test_a_line_that_leaves_the_travel_is_refused_before_anything_moves(flight):
    stage, by_wave, _ = flight
    before = stage.simulator.pose_um()
    line = FlyLine(PositionUm(97, 50, 5), 0, 1.0, 3, 100.0, 0.001)
    with pytest.raises(OutOfRangeError, match="outside the limits"):
        fly(stage, line, TriggerOutput(stage), **KEEPS, by_wave=by_wave)
    assert stage.simulator.pose_um() == before


@pytest.mark.parametrize(
    "broken", [{"blur_um": 0.1}, {"noise_pp_um": 0.5}, {"frame_time_s": 0.02}, {"shutter": "rolling"}]
)
def test_a_line_that_would_smear_or_lose_pulses_is_refused_before_anything_moves(flight, broken):
    stage, by_wave, _ = flight
    before = stage.simulator.pose_um()
    with pytest.raises(OutOfRangeError):
        fly(stage, LINE, TriggerOutput(stage), **{**KEEPS, **broken}, by_wave=by_wave)
    assert stage.simulator.pose_um() == before


def test_a_line_that_goes_wrong_leaves_no_pulses_and_no_slow_stage_behind(flight):
    stage, by_wave, pulses = flight
    stage.simulator.faults.inject("garbage", only="#9" if by_wave else "#5", after=0 if by_wave else 2)
    with pytest.raises(FirmwareError):
        fly(stage, LINE, TriggerOutput(stage), **KEEPS, by_wave=by_wave)
    stage.simulator.faults.clear()
    assert stage.velocity_um_s() == (2000, 2000, 2000)
    count = len(pulses)
    stage.move_to(PositionUm(20, 50, 5))
    stage.move_to(PositionUm(70, 50, 5))
    assert len(pulses) == count


@pytest.mark.parametrize("lost", [0, LINE.count - 1], ids=["the first", "the last"])
def test_a_frame_that_is_lost_at_an_end_shifts_no_line_at_the_speed_of_a_real_port(lost):
    simulator, pulses_s = Simulator("e727"), []
    simulator.on_pulse(lambda _, t_ns, pose_um: pulses_s.append(t_ns / 1e9))
    with serve_pty(simulator, baud=115200) as server, open_stage(server.address, enable_servo=True) as stage:
        line = replace(LINE, step_um=1.0, exposure_s=0.0005)  # a tile each 5 ms; the command takes 3
        flown = fly(stage, line, TriggerOutput(stage), **KEEPS)
        until(lambda: len(pulses_s) >= line.count)
    late_s = [came_s - due_s for came_s, due_s in zip(pulses_s, flown.due_s, strict=True)]
    assert min(late_s) > -0.0005
    assert max(late_s) < flown.unsure_s + 0.0005
    del pulses_s[lost]
    tiles = [n for n in range(line.count) if n != lost]
    account = reconcile(flown.due_s, pulses_s, triggers=line.count - 1, unsure_s=flown.unsure_s)
    told = [(tile, frame) for tile, frame in enumerate(account.frame_of) if frame is not None]
    assert told in ([], [(tile, frame) for frame, tile in enumerate(tiles)]), (
        "on a loaded machine it says that it is unsure"
    )
    assert account.gap


def test_a_line_leaves_each_axis_the_velocity_that_it_had():
    with open_stage("sim:e727") as stage:
        before_um_s = PositionUm(1000.0, 800.0, 50.0)
        stage.set_velocity(velocity_um_s=before_um_s)
        fly(stage, LINE, TriggerOutput(stage), **KEEPS)
        assert stage.velocity_um_s() == before_um_s


def test_an_e517_flies_by_its_wave_generator_only():
    with open_stage("sim:e517") as stage, pytest.raises(RefusedError, match="wave generator"):
        fly(stage, LINE, TriggerOutput(stage), **KEEPS)


def test_a_pulled_cable_ends_a_line(flight):
    stage, by_wave, _ = flight
    stage.simulator.faults.inject("unplug", only="DRR?")
    with pytest.raises(LinkError):
        fly(stage, LINE, TriggerOutput(stage), **KEEPS, by_wave=by_wave)
    assert not stage.ready


def test_a_stop_between_preparing_and_starting_ends_a_line_before_it_begins(flight, monkeypatch):
    stage, by_wave, pulses = flight
    arm = Recorder.arm

    def arm_and_stop(self, **how):
        arm(self, **how)
        stage.stop()

    monkeypatch.setattr(Recorder, "arm", arm_and_stop)
    with pytest.raises(StoppedError):
        fly(stage, LINE, TriggerOutput(stage), **KEEPS, by_wave=by_wave)
    assert stage.position_um() == pytest.approx(LINE.ends_um[0], abs=0.05)
    assert pulses == []
    assert stage.velocity_um_s() == (2000, 2000, 2000)
    stage.move_to(PositionUm(70, 50, 5))
    assert pulses == []


def test_a_ctrl_c_in_a_line_stops_it_and_leaves_no_pulses_and_no_slow_stage_behind(flight, monkeypatch):
    stage, by_wave, pulses = flight
    line = replace(LINE, velocity_um_s=50.0)

    def interrupted(seconds):
        if stage.simulator.pose_um().x > line.ends_um[0].x + 2:
            monkeypatch.undo()
            raise KeyboardInterrupt
        time.sleep(seconds)

    stage.move_to(line.ends_um[0])
    monkeypatch.setattr(stage._mover, "_sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fly(stage, line, TriggerOutput(stage), **KEEPS, by_wave=by_wave)
    stopped_um = stage.rest_um()
    assert stopped_um.x < line.ends_um[1].x - 1
    assert stage.velocity_um_s() == (2000, 2000, 2000)
    assert stage.error() == 0
    count = len(pulses)
    assert stage.rest_um() == pytest.approx(stopped_um, abs=0.05)
    stage.move_to(PositionUm(20, 50, 5))
    stage.move_to(PositionUm(70, 50, 5))
    assert len(pulses) == count


@pytest.mark.parametrize(("profile", "by_wave"), WAYS)
def test_a_line_faster_than_the_interlock_allows_is_refused_and_nothing_moves(profile, by_wave):
    class Slow(Unguarded):
        fastest_um_s = 2000.0

        def check_velocity(self, velocity_um_s):
            if velocity_um_s > self.fastest_um_s:
                raise OutOfRangeError(f"{velocity_um_s} um/s is too fast")

    guard = Slow()
    with open_stage("sim:", simulator=Simulator(profile), velocity_um_s=2000, guard=guard) as stage:
        before = stage.simulator.pose_um()
        guard.fastest_um_s = LINE.velocity_um_s - 1
        with pytest.raises(OutOfRangeError, match="too fast"):
            fly(stage, LINE, TriggerOutput(stage), **KEEPS, by_wave=by_wave)
        assert stage.simulator.pose_um() == before
        with pytest.raises(OutOfRangeError, match="too fast"):
            stage.run(b"WGO 1 1\n", bool, through=[], ends_um=before, velocity_um_s=300, timeout_s=1, what="a wave")
