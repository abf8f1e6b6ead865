"""Text over a transport: replies are cut by their end mark, however the bytes came."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.errors import LinkError, OutOfRangeError, ProtocolError, RefusedError, StoppedError
from firmware_bridge.esp301 import meaning
from firmware_bridge.newport import TextLine, parse_number
from firmware_bridge.xps import parse_reply


class Pieces:
    """Gives the bytes in the pieces that the test chose."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces, self.sent, self.closed = list(pieces), b"", 0

    def write(self, data: bytes) -> None:
        self.sent += data

    def read(self, timeout_s: float) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    def close(self) -> None:
        self.closed += 1


def line(*pieces: bytes) -> TextLine:
    times = iter(range(10**6))
    return TextLine(Pieces(*pieces), name="a test", end=b"\r\n", clock=lambda: next(times) * 1e-3)


@given(st.lists(st.integers(0, 12), max_size=6))
def test_replies_are_the_same_however_they_were_split(cuts):
    data = b"1.5\r\n\r\n-2\r\n"
    bounds = [0, *sorted(cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(bounds) if a < b]
    text = line(*pieces)
    assert [text.read(1.0) for _ in range(3)] == ["1.5", "", "-2"]
    assert text.read(0.01) is None


def test_half_a_reply_is_none_and_is_kept_for_the_other_half():
    text = line(b"1.")
    assert text.read(0.01) is None
    assert text.pending == b"1."
    text._transport.pieces.append(b"5\r\n")
    assert text.read(0.01) == "1.5"


def test_a_reply_that_never_ends_is_a_protocol_error():
    with pytest.raises(ProtocolError, match="without ending"):
        line(*[b"x" * 1000] * 10).read(10.0)


def test_what_is_no_ascii_is_a_protocol_error():
    with pytest.raises(ProtocolError, match="baud rate"):
        line(b"\xff\xfe\r\n").read(1.0)


def test_draining_forgets_the_beginning_of_a_reply():
    text = line(b"1.5\r\n2.", b"5\r\n")
    text.read(1.0)
    text.drain(1.0)
    assert text.pending == b""


def test_a_closed_line_says_so():
    text = line()
    text.close()
    for use in (lambda: text.write("x"), lambda: text.read(0.1)):
        with pytest.raises(LinkError, match="closed"):
            use()


@pytest.mark.parametrize("text", ["", "hello", "nan", "inf", "1_0", "1,5", "1.5 mm"])
def test_what_is_no_number_is_never_a_value(text):
    with pytest.raises(ProtocolError):
        parse_number(text, "a test")


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ("-17,GroupMoveAbsolute(A.B,99)", OutOfRangeError),
        ("-35,GroupMoveAbsolute(A.B,99)", OutOfRangeError),
        ("-27,GroupMoveAbsolute(A.B,1)", StoppedError),
        ("-22,GroupMoveAbsolute(A.B,1)", RefusedError),
        ("-25,GroupMoveAbsolute(A.B,1)", LinkError),
        ("-999,GroupMoveAbsolute(A.B,1)", RefusedError),
        ("hello", ProtocolError),
        ("0", ProtocolError),
        ("", ProtocolError),
        ("0.5,", ProtocolError),
    ],
)
def test_an_xps_reply_is_its_values_or_a_typed_error(reply, error):
    with pytest.raises(error):
        parse_reply(reply, "a call")
    assert parse_reply("0,", "a call") == [""]


@given(st.text(max_size=20))
def test_no_text_makes_the_xps_parser_fail_otherwise(text):
    try:
        parse_reply(text, "a call")
    except (LinkError, RefusedError):
        return
    assert text.strip().startswith(("0,", "-0,", "00"))


def test_an_esp301s_numbers_have_their_axis_in_front():
    assert meaning(207) == "error 207: axis 2, negative software limit"
    assert meaning(99) == "error 99: see the manual"
