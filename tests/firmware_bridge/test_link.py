"""One request in flight, always in step: transcripts of (sent, received)."""

from __future__ import annotations

import contextlib
import threading

import pytest

from firmware_bridge import gcs
from firmware_bridge.errors import LinkError, LinkTimeoutError, ProtocolError, RefusedError

IDN = (b"*IDN?\n", b"PI, E-727, 1, 2\n")
POS = b"POS? 1\n"


def number(reply: str) -> float:
    return gcs.parse_numbers(reply, ["1"])[0]


def test_a_question_gets_its_answer(scripted):
    link, _ = scripted([IDN, (POS, b"1=0.5\n")])
    assert link.identify() == "PI, E-727, 1, 2"
    assert link.ask(POS, number) == 0.5


def test_rubbish_on_the_line_before_the_session_is_forgotten(scripted):
    link, wire = scripted([IDN])
    wire.arrives_late(b"1=0.5\n1=0.")
    assert link.identify() == "PI, E-727, 1, 2"


def test_a_late_reply_is_never_taken_for_the_answer_to_the_next_question(scripted):
    link, wire = scripted([IDN, (POS, None), IDN, (b"ERR?\n", b"0\n"), IDN, (POS, b"1=2.0\n")])
    link.identify()
    with pytest.raises(LinkTimeoutError, match="did not answer b'POS"):
        link.ask(POS, number)
    wire.arrives_late(b"1=1.0\n")
    assert link.ask(POS, number) == 2.0


def test_a_reply_that_comes_while_getting_in_step_is_thrown_away(scripted):
    link, _ = scripted([IDN, (POS, None), (IDN[0], b"1=1.0\n<pause>" + IDN[1]), (b"ERR?\n", b"0\n"), (POS, b"1=2.0\n")])
    link.identify()
    with pytest.raises(LinkTimeoutError):
        link.ask(POS, number)
    assert link.ask(POS, number) == 2.0


def test_a_query_that_is_refused_in_silence_is_explained_by_the_error_register(scripted):
    link, _ = scripted([IDN, (b"POS? 9\n", None), IDN, (b"ERR?\n", b"15\n")])
    link.identify()
    with pytest.raises(RefusedError, match="no such axis") as refused:
        link.ask(b"POS? 9\n", number)
    assert refused.value.code == 15


def test_a_dead_controller_is_a_time_out_and_never_a_hang(scripted):
    link, wire = scripted([IDN, (POS, None), (IDN[0], None), (IDN[0], None)])
    link.identify()
    for _ in range(2):
        with pytest.raises(LinkTimeoutError):
            link.ask(POS, number)
    assert wire.now_s < 5.0


def test_half_a_reply_is_a_time_out_that_shows_the_half(scripted):
    link, _ = scripted([IDN, (POS, b"1=0."), IDN, (b"ERR?\n", b"0\n")])
    link.identify()
    with pytest.raises(LinkTimeoutError, match=r"received \[b'1=0\.'\]"):
        link.ask(POS, number)


@pytest.mark.parametrize("answer", [b"2=0.5\n", b"POS? 1\n", b"1=0.5\r\n", b"1=0.5\n1=0.6\n", b"\xff\xfe\n"])
def test_an_answer_that_makes_no_sense_is_an_error_and_the_next_question_is_in_step(scripted, answer):
    link, _ = scripted([IDN, (POS, answer), IDN, (POS, b"1=2.0\n")])
    link.identify()
    with pytest.raises(ProtocolError):
        link.ask(POS, number)
    assert link.ask(POS, number) == 2.0


def test_stop_passes_a_request_that_waits_for_its_reply(scripted):
    link, wire = scripted([IDN, (POS, None), (b"\x18", b"1=0.5\n")])
    link.identify()
    waits, goes_on = threading.Event(), threading.Event()
    read = wire.read

    def slow_read(timeout_s: float) -> bytes:
        if wire.script and wire.script[0][0] == b"\x18" and timeout_s > 0:
            waits.set()
            assert goes_on.wait(5)
        return read(timeout_s)

    wire.read = slow_read
    answers: list[float] = []
    asking = threading.Thread(target=lambda: answers.append(link.ask(POS, number)))
    asking.start()
    assert waits.wait(5)
    link.interrupt()  # returns although the request is still in flight
    goes_on.set()
    asking.join(5)
    assert answers == [0.5]


def test_what_is_raised_before_sending_keeps_the_request_back(scripted):
    link, wire = scripted([IDN])
    link.identify()

    def stopped() -> None:
        raise RefusedError("stopped")

    with pytest.raises(RefusedError, match="stopped"):
        link.ask(POS, number, before_sending=stopped)
    assert wire.sent == IDN[0]


def test_a_closed_link_says_so(scripted):
    link, wire = scripted([IDN])
    link.identify()
    link.close()
    link.close()
    assert wire.closed
    with pytest.raises(LinkError, match="closed"):
        link.ask(POS, number)
    with pytest.raises(LinkError, match="closed"):
        link.interrupt()


def test_something_else_than_a_controller_is_named(scripted):
    link, _ = scripted([(b"*IDN?\n", b"OK\n")])
    with pytest.raises(ProtocolError, match="not a PI controller"):
        link.identify()


def test_nobody_at_the_port_says_what_to_check(scripted):
    link, _ = scripted([(b"*IDN?\n", None)])
    with pytest.raises(LinkTimeoutError, match="baud"):
        link.identify()


def test_a_stop_and_where_to_go_instead_are_one_write(scripted):
    link, wire = scripted([IDN, (b"\x18MOV 3 0\n", None), (POS, b"1=0.5\n")])
    link.identify()
    writes = []
    write, wire.write = wire.write, lambda data: (writes.append(data), write(data))
    link.interrupt(b"MOV 3 0\n")
    assert writes == [b"\x18MOV 3 0\n"]
    assert link.ask(POS, number) == 0.5


@pytest.mark.parametrize("read_number", range(1, 10))
def test_after_a_ctrl_c_anywhere_the_next_question_gets_its_own_answer(scripted, read_number):
    # a question in two parts, a missing answer, and getting in step again: whichever read the Ctrl-C comes in
    script = [IDN, (POS, b"1=1<pause>.0\n"), (POS, None), IDN, (b"ERR?\n", b"0\n")]
    link, wire = scripted(script)
    link.identify()
    read, reads, late = wire.read, [], []

    def interrupted(timeout_s: float) -> bytes:
        reads.append(timeout_s)
        data = read(timeout_s)
        if len(reads) == read_number:
            # What was to come is still on its way, and comes when the next question has been asked.
            late.extend(part for part in (data, *wire._waiting) if part not in (b"", wire.PAUSE))
            wire._waiting.clear()
            raise KeyboardInterrupt
        return data

    wire.read = interrupted
    with contextlib.suppress(KeyboardInterrupt):
        for _ in range(2):
            link.ask(POS, number)
    assert len(reads) == read_number
    wire.script.clear()
    answers = {POS: b"1=4.0\n", IDN[0]: IDN[1], b"ERR?\n": b"0\n"}

    def write(data: bytes) -> None:
        wire._waiting += [*late, answers[data]]
        late.clear()

    wire.write = write
    assert link.ask(POS, number) == 4.0
