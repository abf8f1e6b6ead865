"""PI's General Command Set 2.0: text to values and back, for both ends of the wire. No I/O, no threads, no clock.

A host line is a mnemonic, a space between arguments, and LF; ``?`` makes it a query. Four control bytes are commands
without LF. A reply ends in LF; each of its lines but the last ends in space, LF. Set commands are not answered: one
error register keeps the last error until ``ERR?`` reads and clears it. There is no checksum.
(PI manuals MS249E for the E-517 and PZ285EN for the E-727; PIPython 2.11.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .errors import OutOfRangeError, ProtocolError

MOVING, READY, GENERATING, STOP = b"\x05", b"\x07", b"\x09", b"\x18"
CONTROL_BYTES = MOVING + READY + GENERATING + STOP
READY_REPLY, BUSY_REPLY = "\xb1", "\xb0"
# Bytes 0x80-0xFF occur (READY_REPLY), and this codec loses none.
ENCODING = "latin-1"
# Stricter than Python's int and float, to which a CR, an underscore and an Arabic digit belong to numbers.
NUMBER = re.compile(r" *[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
INTEGER = re.compile(r"[-+]?[0-9]{1,9}")
BITMAP = re.compile(r"(0[xX])?[0-9a-fA-F]{1,8}")
# Longer than any reply of three axes; a device that talks on without ever ending a reply is not a controller.
LONGEST_REPLY_BYTES = 65536

SYNTAX, UNKNOWN_COMMAND, SERVO_OFF, POSITION_LIMITS, VELOCITY_LIMITS, STOPPED = 1, 2, 5, 7, 8, 10
BAD_AXIS, OUT_OF_RANGE, WRONG_COUNT, BAD_NUMBER, MISSING_ARGUMENT, UNKNOWN_PARAMETER = 15, 17, 24, 25, 26, 54
MEANING = {
    SYNTAX: "syntax error",
    UNKNOWN_COMMAND: "unknown command",
    SERVO_OFF: "servo is off",
    POSITION_LIMITS: "position beyond the limits",
    VELOCITY_LIMITS: "velocity beyond the limits",
    STOPPED: "stopped by command",
    BAD_AXIS: "no such axis",
    OUT_OF_RANGE: "argument out of range",
    WRONG_COUNT: "wrong number of arguments",
    BAD_NUMBER: "not a number",
    MISSING_ARGUMENT: "an argument is missing",
    UNKNOWN_PARAMETER: "unknown parameter",
    60: "parameter is protected by the command level",
    61: "autozero is running",
    63: "the controller is initialising",
    73: "the wave generator is running",
    75: "no wave table is selected",
    76: "command buffer overrun",
    215: "a cable seems to be broken",
    304: "receive buffer overflow",
    307: "receive time-out",
    603: "over-temperature",
    1005: "the controller is busy",
    -1024: "motion error while the servo is off",
}


def meaning(code: int) -> str:
    """What an error number says.

    >>> meaning(7)
    'error 7: position beyond the limits'
    >>> meaning(4711)
    "error 4711: see the controller's manual"
    """
    text = MEANING.get(code, "see the controller's manual")
    return f"error {code}: {text}"


@dataclass(frozen=True)
class Profile:
    """What differs between the controllers we speak to.

    Attributes
    ----------
    name, model : str
        How a config file and how ``*IDN?`` call it.
    axes : tuple of str
        Axis names for x, y and z.
    starts_offline : bool
        Powers up with its piezo channels listening to the analogue inputs: moves are accepted and nothing moves until
        ``ONL channel 1``.
    velocity_control : bool
        ``VCO axis 1`` is needed for the velocity, and for ``ONT?``, to mean anything.
    trigger_thresholds : bool
        Pulses at a distance can be kept to a part of the way (CTO parameters 8 and 9).
    """

    name: str
    model: str
    axes: tuple[str, str, str]
    starts_offline: bool
    velocity_control: bool
    trigger_thresholds: bool


PROFILES = {
    "e727": Profile(
        "e727", "E-727", ("1", "2", "3"), starts_offline=False, velocity_control=False, trigger_thresholds=True
    ),
    "e517": Profile(
        "e517", "E-517", ("A", "B", "C"), starts_offline=True, velocity_control=True, trigger_thresholds=False
    ),
}


def profile_of(identity: str) -> Profile | None:
    """The profile named in a reply to ``*IDN?``, or None for a controller we do not know.

    >>> profile_of("(c)2013 Physik Instrumente (PI) GmbH & Co. KG, E-727, 116012345, 13.10").name
    'e727'
    """
    return next((p for p in PROFILES.values() if p.model in identity.upper()), None)


# -- the host's side ----------------------------------------------------------------------------------------------


def format_number(value: float) -> str:
    """A finite number as the controllers' parsers like it: fixed point, 1e-6 resolution (1 pm for a position in um).

    No longer than it needs to be: at 115 200 Bd a digit takes 87 us.

    Raises
    ------
    OutOfRangeError
        NaN and infinity never reach the wire.

    >>> format_number(12.5), format_number(-1e-7)
    ('12.5', '0')
    """
    if not math.isfinite(value):
        raise OutOfRangeError(f"{value} is not a finite number; nothing was sent")
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def set_line(mnemonic: str, values: Mapping[str, float | bool]) -> bytes:
    r"""A set command.

    >>> set_line("MOV", {"1": 10, "2": 20.5})
    b'MOV 1 10 2 20.5\n'
    >>> set_line("SVO", {"A": True})
    b'SVO A 1\n'
    """
    return command_line(mnemonic, *(word for pair in values.items() for word in pair))


def command_line(mnemonic: str, *words: str | float) -> bytes:
    r"""A command of any words; flags are sent as 0 and 1. Errors as in `format_number`.

    >>> command_line("CTO", 1, 3, 0, 1, 1, 0.5)
    b'CTO 1 3 0 1 1 0.5\n'
    """
    texts = (word if isinstance(word, str) else format_number(word) for word in words)
    return f"{' '.join([mnemonic, *texts])}\n".encode(ENCODING)


def query_line(mnemonic: str, items: Iterable[str] = ()) -> bytes:
    r"""A query.

    >>> query_line("POS?", ["1", "3"])
    b'POS? 1 3\n'
    """
    return f"{' '.join([mnemonic, *items])}\n".encode(ENCODING)


class ReplyReader:
    r"""Cuts the controller's bytes into replies, however they were split on the way.

    >>> reader = ReplyReader()
    >>> reader.feed(b"1=0.5 \n2="), reader.feed(b"1.5\n0\n")
    ([], ['1=0.5 \n2=1.5', '0'])
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> bytes:
        """Bytes of a reply that has not ended."""
        return bytes(self._buffer)

    def clear(self) -> None:
        """Forget the beginning of a reply."""
        self._buffer.clear()

    def feed(self, data: bytes) -> list[str]:
        """Take bytes, return the replies that they complete, without their last LF.

        Raises
        ------
        ProtocolError
            More than 64 KiB without the end of a reply.
        """
        searched = len(self._buffer)
        self._buffer += data
        replies = []
        start = 0
        while (end := self._buffer.find(b"\n", max(start, searched))) >= 0:
            searched = end + 1
            if end > start and self._buffer[end - 1] == 0x20:
                continue
            replies.append(self._buffer[start:end].decode(ENCODING))
            start = end + 1
        del self._buffer[:start]
        if len(self._buffer) > LONGEST_REPLY_BYTES:
            raise ProtocolError(f"{len(self._buffer)} bytes without the end of a reply: is this a PI controller?")
        return replies


def parse_items(reply: str, items: Sequence[str]) -> list[str]:
    r"""The values of a reply of ``item=value`` lines, in the order of the question.

    Parameters
    ----------
    reply : str
        As ReplyReader gives it. Some controllers put a NUL before a reply of several lines.
    items : sequence of str
        What was asked for; the reply has to name just these, in this order.

    Raises
    ------
    ProtocolError
        Another item, a missing one, one too many, or anything that is not ``item=value``.

    >>> parse_items("A=1 \nB=0", ["A", "B"])
    ['1', '0']
    """
    lines = reply.lstrip("\0").split("\n")
    pairs = [line.rstrip(" ").partition("=") for line in lines]
    if [name for name, _, _ in pairs] != list(items) or any(not value or "\r" in value for _, _, value in pairs):
        raise ProtocolError(f"expected a value for each of {' '.join(items)}, received {reply!r}")
    return [value for _, _, value in pairs]


def parse_number(text: str) -> float:
    """A finite number.

    Raises
    ------
    ProtocolError
        Anything else.

    >>> parse_number("+0012.0000"), parse_number("1.25000E+01")
    (12.0, 12.5)
    """
    value = float(text) if NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise ProtocolError(f"expected a number, received {text!r}")
    return value


def parse_numbers(reply: str, items: Sequence[str]) -> list[float]:
    r"""The numbers of a reply of ``item=value`` lines; errors as in `parse_items` and `parse_number`.

    >>> parse_numbers("1=10.00012 \n2=-0.5", ["1", "2"])
    [10.00012, -0.5]
    """
    return [parse_number(text) for text in parse_items(reply, items)]


def parse_flags(reply: str, items: Sequence[str]) -> list[bool]:
    r"""The states of a reply of ``item=0`` and ``item=1`` lines.

    Raises
    ------
    ProtocolError
        Any value but 0 and 1, and as in `parse_items`.

    >>> parse_flags("1=1 \n2=0", ["1", "2"])
    [True, False]
    """
    values = parse_items(reply, items)
    if not set(values) <= {"0", "1"}:
        raise ProtocolError(f"expected 0 or 1 for each of {' '.join(items)}, received {reply!r}")
    return [value == "1" for value in values]


def parse_integer(reply: str) -> int:
    """A reply that is one integer, as to ``ERR?`` and ``TPC?``.

    Raises
    ------
    ProtocolError
        Anything else.

    >>> parse_integer("-1024")
    -1024
    """
    if not INTEGER.fullmatch(reply):
        raise ProtocolError(f"expected an integer, received {reply!r}")
    return int(reply)


def parse_bitmap(reply: str) -> int:
    """The answer to #5 and #9: a bit for each axis, or wave generator, in hex.

    Raises
    ------
    ProtocolError
        Anything else.

    >>> parse_bitmap("5"), parse_bitmap("0x5")
    (5, 5)
    """
    if not BITMAP.fullmatch(reply):
        raise ProtocolError(f"expected a bitmap in hex, received {reply!r}")
    return int(reply, 16)


def parse_ready(reply: str) -> bool:
    r"""The answer to #7.

    Raises
    ------
    ProtocolError
        Neither ready (0xB1) nor busy (0xB0).

    >>> parse_ready("\xb1"), parse_ready("\xb0")
    (True, False)
    """
    if reply not in (READY_REPLY, BUSY_REPLY):
        raise ProtocolError(f"expected ready or busy, received {reply!r}")
    return reply == READY_REPLY


def parse_help(reply: str) -> frozenset[str]:
    r"""The commands that ``HLP?`` lists, one a line, the first word of it.

    >>> sorted(parse_help("The following commands are valid: \nCTO {<Line>} - trigger \nPOS? \nend of help"))
    ['CTO', 'POS?']
    """
    lines = reply.lstrip("\0").split("\n")
    words = (line.split()[0] for line in lines[1:-1] if line.strip())
    return frozenset(word.upper() for word in words)


# -- the controller's side ----------------------------------------------------------------------------------------


class CommandReader:
    r"""Cuts the host's bytes into commands. A control byte acts at once, even in the middle of a line.

    >>> reader = CommandReader()
    >>> reader.feed(b"MOV 1 "), reader.feed(b"\x1810\nERR?\n")
    ([], ['\x18', 'MOV 1 10', 'ERR?'])

    Parameters
    ----------
    longest : int
        Bytes; of a longer line one more than this is kept, so that it is seen to be too long.
    """

    def __init__(self, *, longest: int = LONGEST_REPLY_BYTES) -> None:
        self._line, self._longest = bytearray(), longest

    def feed(self, data: bytes) -> list[str]:
        """Take bytes, return the lines and control bytes that they complete."""
        commands = []
        for byte in data:
            if byte in CONTROL_BYTES:
                commands.append(chr(byte))
            elif byte == 0x0A:
                commands.append(self._line.decode(ENCODING))
                self._line.clear()
            elif len(self._line) <= self._longest:
                self._line.append(byte)
        return commands


def format_items(pairs: Iterable[tuple[str, str]]) -> str:
    r"""A reply of ``item=value`` lines.

    >>> format_items([("1", "0.5"), ("2", "1")])
    '1=0.5 \n2=1\n'
    """
    return format_lines(f"{item}={value}" for item, value in pairs)


def format_lines(lines: Iterable[str]) -> str:
    r"""A reply of several lines.

    >>> format_lines(["1", "2"])
    '1 \n2\n'
    """
    return " \n".join(lines) + "\n"
