"""The recorder's array is read or is an error; and each frame finds its tile, or its absence is named."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.errors import LinkError, OutOfRangeError, ProtocolError, RefusedError
from firmware_bridge.pzt import PositionUm, open_stage
from firmware_bridge.recording import Recorder, Recording, crossings_s, parse_table, reconcile
from firmware_bridge.simulator import Simulator

ARRAY = (
    "# VERSION = 1 \n# TYPE = 1 \n# SEPARATOR = 32 \n# DIM = 2 \n# SAMPLE_TIME = 0.00010 \n# NDATA = 3 \n"
    "# NAME0 = Current Position of Axis 1 \n# NAME1 = Current Position of Axis 2 \n# END_HEADER \n"
    "1.00000 4.00000 \n2.00000 5.00000 \n3.0e+00 -6.00000"
)


def test_an_array_is_read_with_its_header():
    table = parse_table(ARRAY)
    assert table.sample_time_s == 1e-4
    assert table.names == ("Current Position of Axis 1", "Current Position of Axis 2")
    assert table.values.tolist() == [[1, 4], [2, 5], [3, -6]]


def test_another_separator_is_the_headers_business():
    tabbed = ARRAY.replace("SEPARATOR = 32", "SEPARATOR = 9").replace("1.00000 4", "1.00000\t4")
    tabbed = tabbed.replace("2.00000 5", "2.00000\t5").replace("3.0e+00 -6", "3.0e+00\t-6")
    assert parse_table(tabbed).values.tolist() == [[1, 4], [2, 5], [3, -6]]


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "0",
        ARRAY.replace("# END_HEADER", "# END"),
        ARRAY.replace("NDATA = 3", "NDATA = 4"),
        ARRAY.replace("DIM = 2", "DIM = 3"),
        ARRAY.replace("DIM = 2", "DIM = two"),
        ARRAY.replace("# DIM = 2 \n", ""),
        ARRAY.replace("SAMPLE_TIME = 0.00010", "SAMPLE_TIME = 0"),
        ARRAY.replace("SEPARATOR = 32", "SEPARATOR = -1"),
        ARRAY.replace("5.00000", "5.00000 7"),
        ARRAY.replace("5.00000", "nan"),
        ARRAY.replace("5.00000", "5.0_0"),
        ARRAY[:-9],
    ],
)
def test_a_broken_array_is_an_error(broken):
    with pytest.raises(ProtocolError):
        parse_table(broken)


@given(
    st.text(max_size=200) | st.builds(lambda n, what: ARRAY[:n] + what + ARRAY[n:], st.integers(0), st.text(max_size=3))
)
def test_any_text_is_an_array_or_a_typed_error(text):
    try:
        table = parse_table(text)
    except ProtocolError:
        return
    assert table.values.ndim == 2
    assert np.isfinite(table.values).all()


def test_where_an_axis_was_first_is_interpolated():
    recording = Recording(np.array([0, 1, 2, 3.0]), np.array([[0.0], [10.0], [10.0], [0.0]]))
    times = crossings_s(recording, 0, [0.0, 2.5, 10.0, 11.0])
    assert times[:3] == [0.0, 0.25, 1.0]
    assert math.isnan(times[3])


# -- triggers = frames = rows, or the gap is named --------------------------------------------------------------------

DUE = [10.0 + 0.1 * n for n in range(8)]


def test_a_whole_line_has_no_gap():
    account = reconcile(DUE, [at + 0.004 for at in DUE], triggers=8)
    assert account.gap == ""
    assert account.frame_of == tuple(range(8))
    assert (account.expected, account.triggers, account.frames, account.rows) == (8, 8, 8, 8)


def test_a_missing_frame_is_named_and_the_others_keep_their_tiles():
    account = reconcile(DUE, [at + 0.004 for n, at in enumerate(DUE) if n != 3], triggers=8)
    assert account.gap == "no frame for tile 3"
    assert account.frame_of == (0, 1, 2, None, 3, 4, 5, 6)


def test_the_first_frame_missing_is_not_the_last():
    assert reconcile(DUE, [at + 0.01 for at in DUE[1:]], triggers=7).frame_of == (None, 0, 1, 2, 3, 4, 5, 6)
    assert reconcile(DUE, [at + 0.01 for at in DUE[:-1]], triggers=7).frame_of == (0, 1, 2, 3, 4, 5, 6, None)


def test_a_start_that_is_not_known_exactly_does_not_shift_a_line_whose_first_frame_is_missing():
    late = [at + 0.07 for at in DUE]  # most of it, because the motion began later than it may have
    assert reconcile(DUE, late[1:], triggers=7, unsure_s=0.08).frame_of == (None, 0, 1, 2, 3, 4, 5, 6)
    assert reconcile(DUE, late[:-1], triggers=7, unsure_s=0.08).frame_of == (0, 1, 2, 3, 4, 5, 6, None)


@pytest.mark.parametrize(
    ("unsure_s", "there", "lates"),
    [(0.0, slice(0, -1), "-0.0300 or 0.0700"), (0.2, slice(1, None), "0.0700 or 0.1700")],
    ids=["early, or later than the camera may be", "late, or the start was later still"],
)
def test_where_two_shifts_explain_as_many_frames_none_is_given_to_a_tile(unsure_s, there, lates):
    late = [at + 0.07 for at in DUE]
    assert reconcile(DUE, late, triggers=8, unsure_s=unsure_s).gap == ""
    account = reconcile(DUE, late[there], triggers=8, unsure_s=unsure_s)
    assert account.frame_of == (None,) * 8
    assert account.gap == f"7 frames for 8 tiles: frames may be late by {lates} s, so none is given to a tile"
    assert reconcile(DUE, [*late[:3], *late[4:]], triggers=8, unsure_s=unsure_s).gap == "no frame for tile 3"


def test_a_frame_too_many_is_named():
    account = reconcile(DUE, sorted([*DUE, 10.34]), triggers=9)
    assert "9 pulses for 8 tiles" in account.gap
    assert "frame 4 belongs to no tile" in account.gap
    assert None not in account.frame_of


def test_what_the_recorder_does_not_know_is_named():
    account = reconcile([*DUE[:6], math.nan, math.nan], DUE[:6], triggers=8)
    assert account.rows == 6
    assert "the recorder knows 6 of 8 tiles" in account.gap
    assert "no frame for tile 6, 7" in account.gap


def test_a_line_without_any_frame_is_a_line_of_gaps():
    account = reconcile(DUE, [], triggers=0)
    assert account.frame_of == (None,) * 8
    assert "0 pulses for 8 tiles" in account.gap


@given(st.sets(st.integers(0, 11), max_size=6), st.floats(0, 0.04), st.randoms(use_true_random=False))
def test_whatever_is_missing_is_what_is_named(missing, late_s, chance):
    due = [0.1 * n for n in range(12)]
    came = [at + late_s + chance.uniform(0, 0.004) for n, at in enumerate(due) if n not in missing]
    account = reconcile(due, came, triggers=12)
    assert {tile for tile, frame in enumerate(account.frame_of) if frame is None} == missing
    assert [frame for frame in account.frame_of if frame is not None] == list(range(len(came)))
    assert bool(account.gap) == bool(missing)


# -- with the simulated controller ------------------------------------------------------------------------------------


@pytest.fixture(params=["e517", "e727"])
def stage(request):
    with open_stage("sim:", simulator=Simulator(request.param), velocity_um_s=200) as stage:
        yield stage


def test_a_move_is_recorded_as_it_was(stage):
    recorder = Recorder(stage)
    recorder.arm(duration_s=0.05, rows=120)
    stage.move_to(PositionUm(60, 50, 5))
    recording = recorder.read()
    assert 100 < len(recording.t_s) <= 120
    assert recording.position_um.shape == (len(recording.t_s), 3)
    assert recording.position_um[0] == pytest.approx((50, 50, 5), abs=0.005)
    at = np.searchsorted(recording.t_s, 0.03)
    assert recording.position_um[at, 0] == pytest.approx(50 + 200 * 0.03, abs=0.5)


def test_a_recorded_digit_that_flips_on_the_wire_is_read_again(stage):
    recorder = Recorder(stage)
    recorder.arm(duration_s=0.03, rows=50)
    stage.move_to(PositionUm(60, 50, 5))
    good = recorder.read()
    stage.simulator.faults.inject("digit", only="DRR?")
    assert np.array_equal(recorder.read().position_um, good.position_um)
    stage.simulator.faults.inject("digit", only="DRR?", times=None)
    with pytest.raises(LinkError):
        recorder.read()


def test_a_recorder_that_was_never_armed_has_nothing_to_read(stage):
    with pytest.raises(RefusedError, match="arm the recorder"):
        Recorder(stage).read()


def test_rows_that_were_not_recorded_are_refused(stage):
    recorder = Recorder(stage)
    recorder.arm(duration_s=5.0, rows=50)
    stage.move_to(PositionUm(50.1, 50, 5))
    with pytest.raises(RefusedError):
        recorder.read()


@pytest.mark.parametrize("wrong", [{"duration_s": 0.0}, {"duration_s": math.nan}, {"duration_s": 1.0, "rows": 1}])
def test_a_recording_that_makes_no_sense_is_refused(stage, wrong):
    with pytest.raises(OutOfRangeError, match="rows"):
        Recorder(stage).arm(**wrong)
