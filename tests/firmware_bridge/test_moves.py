"""Moves: transcripts of what is said on the wire, and what a stop, a retreat and a series do to them."""

from __future__ import annotations

import math
import threading
import time

import pytest

from firmware_bridge import gcs
from firmware_bridge.controller import Controller
from firmware_bridge.errors import (
    LinkTimeoutError,
    OutOfRangeError,
    ProtocolError,
    RefusedError,
    StoppedError,
)
from firmware_bridge.guard import Unguarded
from firmware_bridge.moves import Rest
from firmware_bridge.pzt import PositionUm, PztStage
from tests.sphere import SETTLED_WITHIN_UM
from tests.waiting import until

IDN = (b"*IDN?\n", b"PI, E-727, 1, 2\n")
OPENING = [
    IDN,
    (b"SAI?\n", b"1 \n2 \n3\n"),
    (b"TMN? 1 2 3\n" * 2, b"1=0 \n2=0 \n3=0\n" * 2),
    (b"TMX? 1 2 3\n" * 2, b"1=100 \n2=100 \n3=10\n" * 2),
    (b"VEL? 1 2 3\n" * 2, b"1=1e6 \n2=1e6 \n3=1e6\n" * 2),
]
MOV = b"MOV 1 10 2 20 3 5\nERR?\n"
TARGET = PositionUm(10, 20, 5)


def on_the_bench(link, profile="e727", **options):
    link.identify()
    return PztStage(Controller(link, gcs.PROFILES[profile]), **options)


def closed_loop(scripted, script, **options):
    link, wire = scripted([*OPENING, (b"SVO? 1 2 3\n", b"1=1 \n2=1 \n3=1\n"), *script])
    return on_the_bench(link, **options), wire


def pos(x, y, z):
    return (b"POS? 1 2 3\n", f"1={x} \n2={y} \n3={z}\n".encode())


def look(moving, on_target, *positions):
    """One look at a move: the question, and its answer."""
    answers = [b"%d\n" % moving, b"1=%d \n2=1 \n3=1\n" % on_target, *(pos(*at)[1] for at in positions)]
    return (b"\x05ONT?\n" + b"POS?\n" * len(positions), b"".join(answers))


@pytest.mark.parametrize(
    "target",
    [(math.nan, 50, 5), (50, math.inf, 5), (50, 50, -math.inf), (100.001, 50, 5), (50, -0.001, 5), (50, 50, 10.5)],
)
def test_a_target_out_of_range_is_refused_and_not_one_byte_is_sent(target, scripted):
    stage, wire = closed_loop(scripted, [])
    before = wire.sent
    with pytest.raises(OutOfRangeError, match="target"):
        stage.move_to(PositionUm(*target))
    assert wire.sent == before


def test_a_move_is_one_write_and_then_looks_until_it_rests(scripted):
    stage, _ = closed_loop(
        scripted,
        [
            (MOV, b"0\n"),
            look(3, False, (4, 20, 5), (5, 20, 5)),
            look(0, False, (10, 20, 5), (10, 20, 5)),
            look(1, True, (10, 20, 5), (10, 20, 5)),
            look(0, True, (10.001, 20, 5), (10.002, 20, 5)),
        ],
    )
    assert stage.move_to(TARGET) == (10.002, 20, 5)


def test_the_next_move_commands_only_what_changes(scripted):
    rest = look(0, True, (10, 20, 5), (10, 20, 5))
    script = [(MOV, b"0\n"), rest, (b"MOV 2 21\nERR?\n", b"0\n"), look(0, True, (10, 21, 5), (10, 21, 5))]
    stage, _ = closed_loop(scripted, script)
    stage.move_to(TARGET)
    assert stage.move_to(TARGET._replace(y=21)) == (10, 21, 5)


def test_a_reading_that_was_garbled_on_the_wire_is_read_again(scripted):
    good = look(0, True, (10, 20, 5), (10, 20, 5))
    stage, _ = closed_loop(scripted, [(MOV, b"0\n"), look(0, True, (18, 20, 5), (10, 20, 5)), good])
    assert stage.move_to(TARGET) == TARGET


def test_a_move_that_the_controller_refuses_reaches_the_caller_as_what_it_is(scripted):
    stage, _ = closed_loop(scripted, [(MOV, b"7\n"), (b"\x18", None), (b"ERR?\n", b"10\n")])
    with pytest.raises(OutOfRangeError, match=r"MOV 1 10 .*error 7") as refused:
        stage.move_to(TARGET)
    assert refused.value.code == 7


def test_an_error_that_may_be_anothers_stops_the_stage_before_it_is_reported(scripted):
    stage, _ = closed_loop(scripted, [(MOV, b"603\n"), (b"\x18", None), (b"ERR?\n", b"10\n")])
    with pytest.raises(RefusedError, match="over-temperature"):
        stage.move_to(TARGET)


def test_a_stage_that_says_on_target_elsewhere_is_not_believed(scripted):
    elsewhere = look(0, True, (50, 20, 5), (50, 20, 5))
    script = [(MOV, b"0\n"), elsewhere, pos(50, 20, 5), (b"\x18", None), (b"ERR?\n", b"10\n")]
    stage, _ = closed_loop(scripted, script, rest=Rest(timeout_s=1e-9))  # its deadline is over after one look
    with pytest.raises(LinkTimeoutError, match=r"it was at \(50, 20, 5\) um"):
        stage.move_to(TARGET)


def test_a_stage_whose_answer_makes_no_sense_in_mid_move_is_stopped(scripted):
    nonsense = (look(0, True, TARGET, TARGET)[0], b"what?\n" + look(0, True, TARGET, TARGET)[1][2:])
    stage, _ = closed_loop(scripted, [(MOV, b"0\n"), nonsense, (b"\x18", None), IDN, (b"ERR?\n", b"10\n")])
    with pytest.raises(ProtocolError, match="bitmap"):
        stage.move_to(TARGET)


def test_a_stage_that_cannot_be_stopped_is_logged_and_the_first_error_reaches_the_caller(scripted, caplog):
    silence = [(MOV, None), (b"*IDN?\n", None), (b"\x18", None), (b"*IDN?\n", None)]
    stage, _ = closed_loop(scripted, silence)
    with pytest.raises(LinkTimeoutError, match="did not answer b'MOV"):
        stage.move_to(TARGET)
    assert "may be moving" in caplog.text


def test_the_servo_is_closed_after_a_look_and_verified(scripted):
    link, _ = scripted(
        [
            *OPENING,
            (b"SVO? 1 2 3\n", b"1=0 \n2=0 \n3=0\n"),
            pos(1, 2, 3),
            (b"ERR?\n", b"0\n"),
            (b"SVO 1 1 2 1 3 1\nERR?\n", b"0\n"),
            (b"SVO? 1 2 3\n", b"1=1 \n2=0 \n3=1\n"),
        ]
    )
    stage = on_the_bench(link)
    with pytest.raises(RefusedError, match="axis 2 is off although switched on: check the switches"):
        stage.servo_on()


def test_an_e517_is_put_online_before_its_servo_is_closed(scripted):
    abc = (b"A=1 \nB=1 \nC=1\n",)
    link, _ = scripted(
        [
            (b"*IDN?\n", b"PI, E-517, 1, 2\n"),
            (b"SAI?\n", b"A \nB \nC\n"),
            (b"TMN? A B C\n" * 2, b"A=0 \nB=0 \nC=0\n" * 2),
            (b"TMX? A B C\n" * 2, b"A=100 \nB=100 \nC=10\n" * 2),
            (b"VEL? A B C\n" * 2, b"A=1 \nB=1 \nC=1\n" * 2),
            (b"POS? A B C\n", b"A=+0012.0000 \nB=1.25000E+01 \nC=3\n"),
            (b"ERR?\n", b"10\n"),
            (b"TPC?\n", b"3\n"),
            (b"ONL 1 1 2 1 3 1\nERR?\n", b"0\n"),
            (b"VCO A 1 B 1 C 1\nERR?\n", b"0\n"),
            (b"SVO A 1 B 1 C 1\nERR?\n", b"0\n"),
            (b"SVO? A B C\n", *abc),
            (b"ONL? 1 2 3\n", b"1=1 \n2=1 \n3=1\n"),
            (b"POS? A B C\n", b"A=12 \nB=12.5 \nC=3\n"),
        ]
    )
    on_the_bench(link, "e517").servo_on()


def test_axes_with_other_names_are_refused(scripted):
    link, _ = scripted([IDN, (b"SAI?\n", b"X \nY \nZ\n")])
    with pytest.raises(RefusedError, match="axes are"):
        on_the_bench(link)


def test_a_stop_that_comes_before_the_bytes_of_a_move_keeps_them_back(scripted):
    stage, wire = closed_loop(scripted, [(b"\x18", None), (b"ERR?\n", b"10\n")])
    began_with = stage._mover.stops.since
    stage.stop()
    with pytest.raises(StoppedError):
        stage._mover.move(TARGET, began_with, 1.0)
    assert b"MOV" not in wire.sent


def test_the_place_where_a_stage_rests_is_read_until_two_readings_agree(scripted):
    twice = b"POS? 1 2 3\n" * 2
    flipped = (twice, pos(50, 20, 5)[1] + pos(10, 20, 5)[1])
    stage, _ = closed_loop(scripted, [flipped, (twice, pos(10, 20, 5)[1] * 2)])
    assert stage.rest_um() == (10, 20, 5)


def test_a_retreat_is_one_write_that_asks_nothing_also_where_the_servo_is_not_known_to_be_closed(scripted):
    stage, wire = closed_loop(scripted, [(b"\x18MOV 3 0\n", None), (b"\x18MOV 3 10\n", None)])
    stage.retreat(0)
    stage.invalidate("a test")
    stage.retreat(10)
    assert wire.sent.endswith(b"\x18MOV 3 0\n\x18MOV 3 10\n")


@pytest.mark.parametrize("z_um", [-0.1, 10.1, float("nan")])
def test_a_retreat_to_nowhere_is_refused(scripted, z_um):
    stage, _ = closed_loop(scripted, [])
    with pytest.raises(OutOfRangeError, match="limits"):
        stage.retreat(z_um)


def test_the_error_of_a_retreat_is_not_taken_for_the_answer_to_the_next_move(scripted):
    script = [(b"\x18MOV 3 0\n", None), (b"ERR?\n", b"10\n"), (MOV, b"0\n"), look(0, True, TARGET, TARGET)]
    stage, _ = closed_loop(scripted, script)
    stage.retreat(0)
    assert stage.move_to(TARGET) == TARGET


def test_a_retreat_passes_a_move_under_way_and_arrives(stage):
    stage.set_velocity(velocity_um_s=20)
    ends = []

    def scan():
        try:
            stage.move_to(PositionUm(100, 100, 5), timeout_s=30)
        except StoppedError as exc:
            ends.append(exc)

    thread = threading.Thread(target=scan)
    thread.start()
    until(lambda: stage.behind.pose_um().x > 50.01)
    stage.retreat(4.9)
    thread.join(10)
    assert [type(end) for end in ends] == [StoppedError]
    until(lambda: stage.behind.pose_um().z == pytest.approx(4.9, abs=SETTLED_WITHIN_UM))
    assert stage.behind.pose_um().x < 99


@pytest.mark.parametrize("stops", [lambda stage: stage.stop(), lambda stage: stage.retreat(5)])
def test_a_stop_between_two_moves_ends_a_series_and_the_series_around_it(stage, stops):
    def one_after_the_other():
        with stage.series():
            stage.move_to(PositionUm(51, 50, 5))
            with stage.series():
                stops(stage)
                with pytest.raises(StoppedError):
                    stage.move_to(PositionUm(52, 50, 5))
                with pytest.raises(StoppedError):
                    stage.run(
                        b"WGO 1 1\n",
                        bool,
                        through=[],
                        ends_um=PositionUm(52, 50, 5),
                        velocity_um_s=9,
                        timeout_s=1,
                        what="a wave",
                    )
                with pytest.raises(StoppedError):
                    stage.servo_on()
            stage.move_to(PositionUm(53, 50, 5))

    with pytest.raises(StoppedError):
        one_after_the_other()
    assert stage.behind.pose_um().x == pytest.approx(51, abs=SETTLED_WITHIN_UM)


def test_a_series_can_be_left_and_gone_on_with_and_the_moves_between_are_not_part_of_it(stage):
    with stage.series() as since:
        stage.move_to(PositionUm(51, 50, 5))
    stage.stop()
    stage.move_to(PositionUm(52, 50, 5))
    with stage.series(since), pytest.raises(StoppedError):
        stage.move_to(PositionUm(53, 50, 5))


def test_a_series_of_one_thread_is_none_of_another(stage):
    began, stopped, ends = threading.Event(), threading.Event(), []

    def series():
        with stage.series():
            began.set()
            assert stopped.wait(5)
            try:
                stage.move_to(PositionUm(51, 50, 5))
            except StoppedError as exc:
                ends.append(exc)

    thread = threading.Thread(target=series)
    thread.start()
    assert began.wait(5)
    stage.stop()
    stopped.set()
    thread.join(5)
    assert len(ends) == 1
    assert stage.move_to(PositionUm(52, 50, 5)).x == pytest.approx(52, abs=SETTLED_WITHIN_UM)


def test_parking_is_no_part_of_a_series(stage):
    with stage.series():
        stage.stop()
        stage.park()
    assert stage.behind.pose_um().z == pytest.approx(0, abs=SETTLED_WITHIN_UM)


def test_a_stop_while_the_focus_is_lifted_for_it_keeps_the_servo_open(scripted):
    class LiftingGuard(Unguarded):
        def check_servo(self):
            stage.stop()  # a person, while the interlock lifts the focus

    stop = [(b"\x18", None), (b"ERR?\n", b"10\n")]
    before = [pos(1, 2, 3), (b"ERR?\n", b"0\n")]
    link, wire = scripted([*OPENING, (b"SVO? 1 2 3\n", b"1=0 \n2=0 \n3=0\n"), *stop, *before])
    stage = on_the_bench(link, guard=LiftingGuard())
    with pytest.raises(StoppedError):
        stage.servo_on()
    assert b"SVO 1" not in wire.sent
    assert not stage.ready


VEL = b"VEL 1 200 2 200 3 200\nERR?\n"


def test_a_velocity_is_set_again_where_a_stop_hid_whether_it_was(scripted):
    stage, _ = closed_loop(scripted, [(VEL, b"10\n"), (VEL, b"0\n")])
    stage.set_velocity(velocity_um_s=200)


def test_a_velocity_that_may_not_have_arrived_is_set_when_the_servo_is_closed_again(scripted):
    on = [(b"SVO 1 1 2 1 3 1\nERR?\n", b"0\n"), (b"SVO? 1 2 3\n", b"1=1 \n2=1 \n3=1\n")]
    script = [(VEL, b"what?\n"), IDN, pos(1, 2, 3), (b"ERR?\n", b"0\n"), *on, (VEL, b"0\n"), pos(1, 2, 3)]
    stage, _ = closed_loop(scripted, script)
    with pytest.raises(ProtocolError):
        stage.set_velocity(velocity_um_s=200)
    stage.servo_on()


def test_a_command_that_met_a_stop_says_so(scripted):
    stage, _ = closed_loop(scripted, [(b"CTO 1 3 2\nERR?\n", b"10\n")])
    with pytest.raises(StoppedError, match="CTO 1 3 2"):
        stage.controller.command(b"CTO 1 3 2\n")


def test_a_stop_that_another_client_sent_in_the_middle_of_a_move_stops_it_for_good(scripted):
    stage, _ = closed_loop(scripted, [(MOV, b"10\n"), (b"\x18", None), (b"ERR?\n", b"10\n")])
    with pytest.raises(StoppedError):
        stage.move_to(TARGET)


def test_a_ctrl_c_in_a_move_stops_it_and_the_stage_can_be_asked(stage, monkeypatch):
    stage.set_velocity(velocity_um_s=20)

    def interrupted(seconds):
        if stage.behind.pose_um().x > 50.1:
            monkeypatch.undo()
            raise KeyboardInterrupt
        time.sleep(seconds)

    monkeypatch.setattr(stage._mover, "_sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stage.move_to(PositionUm(100, 50, 5), timeout_s=30)
    until(stage.on_target)
    assert stage.rest_um().x < 60
    assert stage.error() == 0


def test_a_move_whose_link_fails_does_not_stop_the_retreat_that_came_meanwhile(scripted):
    nonsense = (look(0, True, TARGET, TARGET)[0], b"what?\n" + look(0, True, TARGET, TARGET)[1][2:])
    stage, wire = closed_loop(scripted, [(MOV, b"0\n"), nonsense, (b"\x18MOV 3 0\n", None)])
    read = wire.read

    def retreats(timeout_s):
        if wire.script and wire.script[0][0].startswith(b"\x18") and timeout_s > 0:
            stage.retreat(0)
        return read(timeout_s)

    wire.read = retreats
    with pytest.raises(ProtocolError, match="bitmap"):
        stage.move_to(TARGET)
    assert wire.sent.endswith(b"\x18MOV 3 0\n")
