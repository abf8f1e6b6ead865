"""Fly lines as plans: where pulses fall, what is refused, and the wave that is the same line."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.errors import OutOfRangeError
from firmware_bridge.lines import FlyLine, Wave, offsets_um, raster
from firmware_bridge.position import PositionUm

LINE = FlyLine(PositionUm(20, 50, 5), axis=0, step_um=2.0, count=5, velocity_um_s=100.0, exposure_s=0.002)


def test_pulses_fall_half_an_exposure_before_the_tiles():
    assert LINE.pulses_um == pytest.approx([19.9, 21.9, 23.9, 25.9, 27.9])
    backwards = dataclasses.replace(LINE, step_um=-2.0)
    assert backwards.pulses_um == pytest.approx([20.1, 18.1, 16.1, 14.1, 12.1])


def test_a_calibrated_offset_moves_the_pulses_along_the_axis():
    assert dataclasses.replace(LINE, offset_um=0.03).pulses_um[0] == pytest.approx(19.93)


def test_a_run_has_its_overscan_before_the_first_pulse_and_after_the_last_exposure():
    begin, end = LINE.ends_um
    assert begin == pytest.approx((17.9, 50, 5))
    assert end == pytest.approx((30.1, 50, 5))
    assert LINE.duration_s == pytest.approx(0.122)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"blur_um": 0.1}, "fly at 50 um/s at most"),
        ({"noise_pp_um": 0.5}, "5 x the sensor's noise"),
        ({"frame_time_s": 0.05}, "fly at 40 um/s at most"),
        ({"blur_um": math.nan}, "smear"),
        ({"noise_pp_um": math.nan}, "noise"),
        ({"frame_time_s": math.nan}, "camera"),
        ({"shutter": "rolling"}, "a rolling shutter cannot fly"),
        ({"shutter": "Global"}, "cannot fly"),
    ],
)
def test_a_line_that_would_smear_or_lose_pulses_is_refused_with_what_would_do(limits, says):
    good = {"blur_um": 0.2, "noise_pp_um": 0.004, "frame_time_s": 0.02, "shutter": "global"}
    LINE.check(**good)
    with pytest.raises(OutOfRangeError, match=says):
        LINE.check(**{**good, **limits})


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 1},
        {"axis": 2},
        {"step_um": 0.0},
        {"step_um": math.nan},
        {"velocity_um_s": 0.0},
        {"velocity_um_s": math.inf},
        {"exposure_s": -1.0},
        {"overscan_um": 0.0},
        {"first_um": PositionUm(math.nan, 0, 0)},
    ],
)
def test_what_is_no_line_is_refused(wrong):
    with pytest.raises(OutOfRangeError, match="no line"):
        dataclasses.replace(LINE, **wrong)


def test_lines_go_the_same_way_by_default():
    lines = raster(LINE, lines=3, pitch_um=4.0)
    assert [line.direction for line in lines] == [1, 1, 1]
    assert [line.first_um for line in lines] == [(20, 50, 5), (20, 54, 5), (20, 58, 5)]


def test_a_meander_exposes_the_same_tiles_on_its_way_back_and_needs_calibrated_offsets():
    with pytest.raises(OutOfRangeError, match="calibrated offset"):
        raster(LINE, lines=2, pitch_um=4.0, meander=True)
    there, back = raster(LINE, lines=2, pitch_um=4.0, meander=True, offset_um=(0.01, -0.02))
    assert (there.offset_um, back.offset_um) == (0.01, -0.02)
    assert back.first_um == (28, 54, 5)
    assert back.step_um == -2.0
    ahead = LINE.velocity_um_s * LINE.exposure_s / 2
    tiles_there = [at + ahead - 0.01 for at in there.pulses_um]
    tiles_back = [at - ahead + 0.02 for at in back.pulses_um]
    assert tiles_there == pytest.approx(sorted(tiles_back))


@pytest.mark.parametrize("late_s", [0.0, 0.0004])
def test_with_calibrated_offsets_both_directions_of_a_meander_meet_although_the_camera_is_late(late_s):
    def exposed(line):
        """Where the tiles are, with a camera that begins so late."""
        ahead_um = line.direction * line.velocity_um_s * (late_s + line.exposure_s / 2)
        return sorted(at_um + ahead_um for at_um in line.pulses_um)

    there, back = raster(LINE, lines=2, pitch_um=0, meander=True, offset_um=(0, 0))
    shift_um = exposed(back)[0] - exposed(there)[0]
    assert shift_um == pytest.approx(-2 * late_s * LINE.velocity_um_s)
    there, back = raster(LINE, lines=2, pitch_um=0, meander=True, offset_um=offsets_um(shift_um))
    assert exposed(there) == pytest.approx(exposed(back))
    assert exposed(there)[0] == pytest.approx(LINE.first_um.x)


def test_a_calibration_that_is_no_number_is_refused():
    with pytest.raises(OutOfRangeError, match="measured"):
        offsets_um(math.nan)


@pytest.mark.parametrize("wrong", [{"lines": 0}, {"pitch_um": math.nan}])
def test_what_is_no_raster_is_refused(wrong):
    with pytest.raises(OutOfRangeError, match="lines"):
        raster(LINE, **{"lines": 2, "pitch_um": 4.0, **wrong})


@given(
    st.sampled_from([-3.0, -1.0, 0.5, 2.0, 9.6]),
    st.integers(2, 12),
    st.floats(20, 500),
    st.floats(1e-4, 5e-3),
)
def test_a_wave_has_its_pulses_where_the_line_has_them(step, count, velocity, exposure):
    line = FlyLine(PositionUm(50, 50, 5), 0, step, count, velocity, exposure, overscan_um=2.0)
    wave = Wave.of(line)
    # what the controller makes of it: E727T0005, "WAV ... LIN"
    t = np.arange(wave.points, dtype=float)
    slope = wave.way_um / (wave.points - 1 - wave.ramp)
    at_um = wave.begin_um + slope * (t - wave.ramp / 2)
    per_point_um = abs(slope)
    for mark, pulse in zip(wave.marks, line.pulses_um, strict=True):
        assert wave.ramp < mark < wave.points - wave.ramp
        assert at_um[mark - 1] == pytest.approx(pulse, abs=per_point_um)
    assert per_point_um / (wave.rate * 50e-6) == pytest.approx(velocity, rel=0.01)
    assert wave.points < 2 * 2000


def test_a_wave_is_loaded_in_commands_of_at_most_32_arguments():
    wave = Wave.of(dataclasses.replace(LINE, count=25, step_um=1.0))
    commands = wave.commands(output=2)
    assert all(len(command.split()) - 1 <= 32 for command in commands)
    assert commands[0].startswith(b"WAV 1 X LIN ")
    assert commands[1:3] == [b"WSL 1 1\n", b"WGC 1 1\n"]
    assert sum(command.count(b" 2 ") for command in commands if command.startswith(b"TWS")) >= 25


def test_pulses_faster_than_the_points_of_a_wave_are_refused():
    with pytest.raises(OutOfRangeError, match="points"):
        Wave.of(FlyLine(PositionUm(0, 50, 5), 0, 0.002, 40, 5000.0, 1e-6, overscan_um=50.0))
