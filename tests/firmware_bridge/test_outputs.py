"""Trigger outputs: what is sent for each mode, and what is refused before anything is."""

from __future__ import annotations

import math

import pytest

from firmware_bridge.controller import Controller, gcs
from firmware_bridge.errors import OutOfRangeError, RefusedError
from firmware_bridge.outputs import TriggerOutput
from firmware_bridge.pzt import PztStage

DONE = b"0\n"


def values(axes, *numbers):
    return " \n".join(f"{axis}={number}" for axis, number in zip(axes, numbers, strict=True)).encode() + b"\n"


def opened(scripted, script, profile="e727"):
    model = gcs.PROFILES[profile]
    axes = model.axes
    named = " ".join(axes).encode()
    opening = [
        (b"*IDN?\n", b"PI, " + model.model.encode() + b", 1, 2\n"),
        (b"SAI?\n", " \n".join(axes).encode() + b"\n"),
        (b"TMN? %b\n" % named * 2, values(axes, 0, 0, 0) * 2),
        (b"TMX? %b\n" % named * 2, values(axes, 100, 100, 10) * 2),
        (b"VEL? %b\n" % named * 2, values(axes, 1000, 1000, 1000) * 2),
    ]
    if profile == "e727":
        opening.append((b"SVO? 1 2 3\n", values(axes, 1, 1, 1)))
    link, wire = scripted([*opening, *script])
    link.identify()
    return TriggerOutput(PztStage(Controller(link, model))), wire


def help_of(*commands):
    return (b"HLP?\n", " \n".join(["The following are valid:", *commands, "end of help"]).encode() + b"\n")


def test_pulses_at_a_distance_have_thresholds_and_lose_none_to_rounding(scripted):
    output, _ = opened(scripted, [(b"CTO 1 2 1 1 3 0 1 1 0.5 1 8 10 1 9 90.125\nERR?\n", DONE), help_of("CTO", "POS?")])
    output.every(0, first_um=10, last_um=90, step_um=0.5, noise_pp_um=0.004)


def test_pulses_backwards_begin_at_the_upper_threshold(scripted):
    output, _ = opened(scripted, [(b"CTO 1 2 2 1 3 0 1 1 2 1 8 90 1 9 9.5\nERR?\n", DONE), help_of("CTO")])
    output.every(1, first_um=90, last_um=10, step_um=2, noise_pp_um=0.004)


def test_a_controller_that_lists_tro_is_switched_on_and_off_by_it(scripted):
    script = [
        (b"CTO 1 2 C 1 3 2\nERR?\n", DONE),
        help_of("CTO", "TRO {<Line> <On>} - Set Trigger Output State"),
        (b"TRO 1 1\nERR?\n", DONE),
        (b"TRO 1 0\nERR?\n", DONE),
    ]
    output, _ = opened(scripted, script, "e517")
    output.on_target(2)
    output.off()


def test_a_controller_without_tro_is_silenced_by_a_window_out_of_reach(scripted):
    output, _ = opened(scripted, [help_of("CTO"), (b"CTO 1 2 1 1 3 3 1 5 1100 1 6 2100\nERR?\n", DONE)])
    output.off()


def test_a_window_and_the_generator(scripted):
    script = [
        (b"CTO 1 2 1 1 3 3 1 5 0.3 1 6 0.6\nERR?\n", DONE),
        help_of("CTO"),
        (b"CTO 1 2 1 1 3 4\nERR?\n", DONE),
    ]
    output, _ = opened(scripted, script)
    output.inside(0, low_um=0.3, high_um=0.6)
    output.by_generator(0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"step_um": 0.015}, "5 x the sensor's noise"),
        ({"step_um": math.nan}, "finite"),
        ({"step_um": 0.0}, "finite"),
        ({"noise_pp_um": math.nan}, "finite"),
        ({"noise_pp_um": math.inf}, "finite"),
        ({"first_um": -1.0}, "outside the limits"),
        ({"last_um": 101.0}, "outside the limits"),
        ({"last_um": 10.0}, "two or more"),
    ],
)
def test_pulses_that_cannot_be_are_refused_and_cost_no_byte(scripted, wrong, says):
    output, wire = opened(scripted, [])
    sent = wire.sent
    with pytest.raises(OutOfRangeError, match=says):
        output.every(0, **{"first_um": 10.0, "last_um": 90.0, "step_um": 1.0, "noise_pp_um": 0.004, **wrong})
    assert wire.sent == sent


@pytest.mark.parametrize("axis", [-1, 3])
def test_an_unknown_axis_costs_no_byte(scripted, axis):
    output, wire = opened(scripted, [])
    sent = wire.sent
    for arm in (output.on_target, output.by_generator, lambda a: output.inside(a, low_um=1, high_um=2)):
        with pytest.raises(OutOfRangeError, match="0 for x"):
            arm(axis)
    assert wire.sent == sent


def test_an_empty_window_is_refused(scripted):
    output, _ = opened(scripted, [])
    with pytest.raises(OutOfRangeError, match="low below a high"):
        output.inside(0, low_um=2, high_um=2)


def test_an_e517_has_no_thresholds_and_says_what_to_do_instead(scripted):
    output, wire = opened(scripted, [], "e517")
    sent = wire.sent
    with pytest.raises(RefusedError, match="wave generator, or step and shoot"):
        output.every(0, first_um=10, last_um=90, step_um=1, noise_pp_um=0.004)
    assert wire.sent == sent


def test_there_are_three_outputs(scripted):
    output, _ = opened(scripted, [])
    with pytest.raises(OutOfRangeError, match="1, 2 or 3"):
        TriggerOutput(output.stage, 4)


def test_an_output_is_switched_off_again_where_a_stop_hid_whether_it_was(scripted):
    off = b"TRO 1 0\nERR?\n"
    output, _ = opened(scripted, [help_of("CTO", "TRO"), (off, b"10\n"), (off, DONE)])
    output.off()


def test_a_controller_that_refuses_a_window_out_of_reach_gets_one_at_the_end_that_is_further_away(scripted, caplog):
    axes = gcs.PROFILES["e517"].axes
    script = [
        help_of("CTO"),
        (b"CTO 1 2 A 1 3 3 1 5 1100 1 6 2100\nERR?\n", b"17\n"),
        (b"POS? A B C\n", values(axes, 30, 50, 5)),
        (b"CTO 1 2 A 1 3 3 1 5 99.999 1 6 100\nERR?\n", DONE),
    ]
    output, _ = opened(scripted, script, "e517")
    output.off()
    assert "x from 99.999 to 100" in caplog.text
