"""Text to values and back: every split, every round trip, and nothing that is not an answer."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge import gcs
from firmware_bridge.errors import OutOfRangeError, ProtocolError

AXES = st.lists(st.sampled_from("123ABC"), min_size=1, max_size=6, unique=True)
POSITIONS = st.floats(-1e6, 1e6)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


@given(st.lists(st.dictionaries(st.sampled_from("123"), POSITIONS, min_size=1)), st.lists(st.integers(0)))
def test_any_split_of_the_bytes_gives_the_same_replies(answers: list[dict[str, float]], cuts: list[int]) -> None:
    texts = [gcs.format_items((axis, gcs.format_number(um)) for axis, um in answer.items()) for answer in answers]
    reader = gcs.ReplyReader()
    replies = [reply for piece in pieces("".join(texts).encode(), cuts) for reply in reader.feed(piece)]
    assert [f"{reply}\n" for reply in replies] == texts
    assert reader.pending == b""


@given(st.binary(), st.lists(st.integers(0)))
def test_any_split_of_the_bytes_gives_the_same_commands(data: bytes, cuts: list[int]) -> None:
    reader = gcs.CommandReader()
    assert [c for piece in pieces(data, cuts) for c in reader.feed(piece)] == gcs.CommandReader().feed(data)


@given(AXES, st.data())
def test_what_is_formatted_is_parsed_to_the_same_values(axes: list[str], data: st.DataObject) -> None:
    values = data.draw(st.lists(POSITIONS, min_size=len(axes), max_size=len(axes)))
    pairs = dict(zip(axes, values, strict=True))
    (line,) = gcs.CommandReader().feed(gcs.set_line("MOV", pairs))
    words = line.split(" ")
    assert words[0] == "MOV"
    assert words[1::2] == axes
    assert list(map(float, words[2::2])) == pytest.approx(values, abs=0.5e-6)
    (reply,) = gcs.ReplyReader().feed(gcs.format_items((a, gcs.format_number(v)) for a, v in pairs.items()).encode())
    assert gcs.parse_numbers(reply, axes) == pytest.approx(values, abs=0.5e-6)


@given(st.text(alphabet="123ABC=. \n\r\0+-e_x", max_size=30))
def test_a_reply_is_parsed_or_refused_but_never_misread(reply: str) -> None:
    try:
        values = gcs.parse_numbers(reply, ["1", "2"])
    except ProtocolError:
        return
    assert len(values) == 2
    assert all(map(math.isfinite, values))
    assert [line.split("=")[0] for line in reply.lstrip("\0").split("\n")] == ["1", "2"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_never_becomes_a_command(value: float) -> None:
    with pytest.raises(OutOfRangeError, match="nothing was sent"):
        gcs.set_line("MOV", {"1": value})


@pytest.mark.parametrize(
    "reply",
    [
        "1=0.5",  # one axis is missing
        "2=0.5 \n1=0.5",  # another order
        "1=0.5 \n3=0.5",  # another axis
        "1=0.5 \n2=0.5 \n3=0",  # one too many
        "POS? 1 2",  # an echo
        "x1=0.5 \n2=0.5",  # junk before it
        "1=0.5 \n2=0.5\r",  # CR LF
        "1=nan \n2=0.5",
        "1= \n2=0.5",
        "1=0_5 \n2=0.5",
        "",
    ],
)
def test_an_answer_to_another_question_is_refused(reply: str) -> None:
    with pytest.raises(ProtocolError):
        gcs.parse_numbers(reply, ["1", "2"])


def test_a_nul_before_a_reply_of_several_lines_is_known() -> None:
    assert gcs.parse_numbers("\0A=+0012.0000 \nB=1.25000E+01", ["A", "B"]) == [12.0, 12.5]


def test_a_state_is_0_or_1_and_nothing_else() -> None:
    assert gcs.parse_flags("1=1 \n2=0", ["1", "2"]) == [True, False]
    with pytest.raises(ProtocolError, match="0 or 1"):
        gcs.parse_flags("1=1 \n2=2", ["1", "2"])


def test_a_device_that_never_ends_a_reply_is_refused() -> None:
    with pytest.raises(ProtocolError, match="is this a PI controller"):
        gcs.ReplyReader().feed(b"x" * (gcs.LONGEST_REPLY_BYTES + 1))
