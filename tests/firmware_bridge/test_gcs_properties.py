"""What holds for every reply however it was cut, and for every rubbish in its place: never a value from rubbish."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge import gcs
from firmware_bridge.errors import LinkError, OutOfRangeError, ProtocolError
from firmware_bridge.link import Link

AXES = ("1", "2", "3")
# As long as a controller's number, and with all that makes numbers, names and ends of lines.
RUBBISH = st.binary(max_size=60) | st.text(alphabet="0123456789.-+eE=ABC \n\r\0", max_size=60).map(str.encode)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


class Rubbish:
    """A device that answers its name, and everything else with what it was given."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = list(chunks)
        self._waiting: list[bytes] = []
        self.now_s = 0.0

    def write(self, data: bytes) -> None:
        if data == b"*IDN?\n":
            self._waiting.append(b"PI, E-727, 1, 2\n")
        else:
            self._waiting += self._chunks
            self._chunks = []

    def read(self, timeout_s: float) -> bytes:
        while self._waiting:
            data = self._waiting.pop(0)
            if data:
                return data
        self.now_s += timeout_s
        return b""

    def close(self) -> None:
        pass


def asked(chunks: list[bytes], request: bytes, parse):
    device = Rubbish(chunks)
    link = Link(device, name="rubbish", clock=lambda: device.now_s)
    link.identify()
    return link.ask(request, parse)


@given(st.lists(st.lists(NUMBERS, min_size=1, max_size=3), min_size=1, max_size=4), st.lists(st.integers(0)))
def test_any_split_of_the_bytes_gives_the_same_replies(values, places):
    replies = [gcs.format_items(zip(AXES, map(repr, row), strict=False)) for row in values]
    whole = "".join(replies).encode()
    reader = gcs.ReplyReader()
    found = [reply for chunk in cut(whole, places) for reply in reader.feed(chunk)]
    assert found == [reply[:-1] for reply in replies]
    assert reader.pending == b""


@given(st.binary(max_size=200), st.lists(st.integers(0)))
def test_any_split_of_any_bytes_gives_the_same_replies(data, places):
    whole, parts = gcs.ReplyReader(), gcs.ReplyReader()
    assert [reply for chunk in cut(data, places) for reply in parts.feed(chunk)] == whole.feed(data)
    assert parts.pending == whole.pending


@given(st.lists(NUMBERS, min_size=3, max_size=3), st.lists(st.integers(0)))
def test_a_link_reads_a_reply_however_it_comes(values, places):
    reply = gcs.format_items(zip(AXES, map(repr, values), strict=True)).encode()
    assert asked(cut(reply, places), b"POS? 1 2 3\n", lambda text: gcs.parse_numbers(text, AXES)) == values


def a_reply_of_numbers(data: bytes) -> bool:
    number = rb" *[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)? *"
    return re.fullmatch(rb"\0*1=%b \n2=%b \n3=%b\n" % ((number,) * 3), data) is not None


@given(RUBBISH, st.lists(st.integers(0)))
def test_rubbish_is_a_typed_error_and_never_a_position(data, places):
    try:
        values = asked(cut(data, places), b"POS? 1 2 3\n", lambda text: gcs.parse_numbers(text, AXES))
    except LinkError:
        return
    # What comes later than a whole reply is found before the next question.
    assert a_reply_of_numbers(re.match(rb"(?s).*?(?<! )\n", data)[0]), values
    assert all(map(math.isfinite, values))


@given(RUBBISH)
def test_rubbish_is_never_a_state(data):
    try:
        asked([data], b"SVO? 1 2 3\n", lambda text: gcs.parse_flags(text, AXES))
    except LinkError:
        return
    assert re.fullmatch(rb"\0*1=[01] *\n2=[01] *\n3=[01] *\n", data)


@given(RUBBISH)
def test_rubbish_is_never_an_error_number(data):
    try:
        code = asked([data], b"ERR?\n", gcs.parse_integer)
    except LinkError:
        return
    assert data == b"%d\n" % code or re.fullmatch(rb"[-+]?0*%d\n" % abs(code), data)


@given(RUBBISH)
def test_rubbish_is_never_a_motion_bitmap(data):
    try:
        asked([data], gcs.MOVING, gcs.parse_bitmap)
    except LinkError:
        return
    assert re.fullmatch(rb"(0[xX])?[0-9a-fA-F]+\n", data)


@given(RUBBISH)
def test_rubbish_is_never_ready(data):
    try:
        ready = asked([data], gcs.READY, gcs.parse_ready)
    except LinkError:
        return
    assert data == (b"\xb1\n" if ready else b"\xb0\n")


@given(st.floats())
def test_what_is_sent_is_the_number_or_an_error(value):
    if not math.isfinite(value):
        with pytest.raises(OutOfRangeError):
            gcs.format_number(value)
        return
    text = gcs.format_number(value)
    assert re.fullmatch(r"-?\d+(\.\d{1,6})?", text)
    assert float(text) == pytest.approx(value, abs=5.1e-7, rel=1e-12)


@given(st.lists(st.sampled_from(AXES), min_size=1, max_size=4), NUMBERS)
def test_a_reply_for_other_items_is_never_taken(items, value):
    reply = gcs.format_items((item, repr(value)) for item in items)[:-1]
    if items == list(AXES):
        assert gcs.parse_numbers(reply, AXES) == [value] * 3
    else:
        with pytest.raises(ProtocolError):
            gcs.parse_numbers(reply, AXES)
