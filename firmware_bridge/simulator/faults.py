"""What can go wrong between a host and its controller, on demand: injected at run time, from any thread."""

from __future__ import annotations

import math
import random
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields

from firmware_bridge import gcs
from firmware_bridge.errors import OutOfRangeError

# a reply on its way to the host
_REPLIES = {
    "silent": "the command is executed, its reply is lost",
    "late": "the reply comes delay_s later (0.3 s by default), and all others wait behind it",
    "partial": "the reply breaks off in the middle; the rest never comes",
    "garbage": "bytes that make no sense, as at a wrong baud rate, in place of the reply",
    "echo": "the command comes back before its reply",
    "twice": "the reply comes two times",
    "stale": "the reply that the same question had the last time",
    "wrong_axis": "the reply names another axis",
    "wrong_mnemonic": "the reply to another question of the same shape (TMX? for POS?, SVO? for ONT?, ...)",
    "digit": "one digit of the reply's values is another one",
    "junk_before": "junk in front of the reply",
    "nul": "a NUL in front of the reply",
    "crlf": "its lines end in CR LF",
}
# the controller or its cable, as the next command comes
_EVENTS = {
    "latched": "an error (307) appears in the register by itself",
    "reboot": "a power cycle: servo open, off line (E-517), settings lost; deaf and dumb for delay_s",
    "servo_off": "somebody opens the servo at the front panel",
    "unplug": "the line hangs up; it is plugged in again after delay_s, or by Server.replug() where it is 0",
}
# conditions, which last for delay_s, or until `clear` where it is 0
_CONDITIONS = {
    "dead": "the firmware hangs: nothing is executed, nothing answered",
    "never_on_target": "ONT? says 0 and the on-target line stays low",
    "deaf": "the wire's input is not read: the host's writes pile up",
}
FAULTS = {**_REPLIES, **_EVENTS, **_CONDITIONS}
_SAME_SHAPE = {"POS?": "TMX?", "MOV?": "POS?", "TMN?": "TMX?", "TMX?": "TMN?", "ONT?": "SVO?", "SVO?": "ONT?"}
_LATE_S = 0.3


@dataclass
class Fault:
    """One fault that waits for its moment. `Faults.inject` says what the fields mean.

    >>> Fault.parse("late:times=2,delay_s=0.5,only=POS?")
    Fault(name='late', times=2, only='POS?', delay_s=0.5, after=0)
    """

    name: str
    times: int | None = 1
    only: str | None = None
    delay_s: float = 0.0
    after: int = 0

    def __post_init__(self) -> None:
        if self.name not in FAULTS:
            raise OutOfRangeError(f"no fault {self.name!r}: expected one of {', '.join(FAULTS)}")
        if not 0 <= self.delay_s < math.inf or self.after < 0 or (self.times is not None and self.times < 1):
            raise OutOfRangeError(f"{self}: expected times >= 1 or none, a finite delay_s >= 0 and after >= 0")

    @classmethod
    def parse(cls, spec: str) -> Fault:
        """Read ``NAME`` or ``NAME:KEY=VALUE,...`` with the keys times (a number, or ``none``), only, delay_s, after.

        Raises
        ------
        OutOfRangeError
            It is not one.
        """
        name, _, rest = spec.strip().partition(":")
        words = dict(word.partition("=")[::2] for word in rest.split(",") if word)
        kinds: dict[str, Callable[[str], object]] = {
            "times": lambda text: None if text == "none" else int(text),
            "only": str.upper,
            "delay_s": float,
            "after": int,
        }
        try:
            values = {key: kinds[key](text) for key, text in words.items()}
        except (KeyError, ValueError) as exc:
            raise OutOfRangeError(
                f"{spec!r} is not a fault: expected NAME:times=1,only=POS?,delay_s=0.3,after=0 ({exc})"
            ) from exc
        return cls(name, **values)  # type: ignore[arg-type]  # each key has its kind

    def __str__(self) -> str:
        return f"{self.name}:" + ",".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self)[1:])


class Faults:
    """The faults of one simulated controller. `inject` and `clear` are for everyone, the rest for the controller.

    Parameters
    ----------
    clock : callable
        Of the controller, ns.
    seed : int
        Which digit flips, and to what.
    """

    def __init__(self, clock: Callable[[], int], *, seed: int = 0) -> None:
        self._clock = clock
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []
        self._until_ns: dict[str, float] = {}
        self._last: dict[str, str] = {}
        self.struck = 0

    def inject(
        self,
        name: str,
        *,
        times: int | None = 1,
        only: str | None = None,
        delay_s: float = 0.0,
        after: int = 0,
    ) -> None:
        """Let something go wrong.

        Parameters
        ----------
        name : str
            One of `FAULTS`.
        times : int, optional
            How many replies or commands it strikes; None for good. A condition holds until it ends.
        only : str, optional
            Strikes only at this command: ``POS?``, ``MOV``, or ``#5`` for a control byte. A fault of replies waits
            for a reply that it can alter.
        delay_s : float
            How late, or how long, seconds: see `FAULTS`.
        after : int
            How many replies (with `only`: commands) pass before it strikes.

        Raises
        ------
        OutOfRangeError
            No such fault, or a negative number.
        """
        self.add(Fault(name, times, only.upper() if only else None, delay_s, after))

    def add(self, fault: Fault) -> None:
        """`inject` a fault, as `Fault.parse` gives it."""
        with self._lock:
            self._waiting.append(fault)
            if fault.name in _CONDITIONS and not fault.after and fault.only is None:
                self._begin(fault)

    def clear(self) -> None:
        """All is well again, but for what a fault has done: an open servo stays open, a pulled plug out."""
        with self._lock:
            self._waiting.clear()
            self._until_ns.clear()

    def holds(self, condition: str) -> bool:
        """Whether a condition (dead, deaf, never_on_target) holds now."""
        return self._clock() < self._until_ns.get(condition, 0.0)

    def ends_ns(self) -> int | None:
        """When the next condition ends by itself, on the controller's clock."""
        with self._lock:
            ends = [int(t_ns) for t_ns in self._until_ns.values() if self._clock() < t_ns < float("inf")]
        return min(ends, default=None)

    # -- what the controller asks -----------------------------------------------------------------------------------

    def events(self, command: str) -> list[Fault]:
        """What happens as this command comes, before it is executed."""
        name = _named(command)
        with self._lock:
            due = [
                fault
                for fault in self._waiting
                if fault.name not in _REPLIES and not fault.after and fault.only in (None, name)
            ]
            for fault in due:
                if fault.name in _CONDITIONS:
                    self._begin(fault)
                else:
                    self._strike(fault)
            return [fault for fault in due if fault.name in _EVENTS]

    def reply(self, command: str, reply: str, ask: Callable[[str], str], axes: tuple[str, ...]) -> tuple[str, float]:
        """What becomes of a reply, and by how many seconds it is late. `ask` executes another command."""
        name = _named(command)
        delay_s = 0.0
        with self._lock:
            good = reply
            for fault in tuple(self._waiting):
                if fault.only not in (None, name) or (fault.only is None and not good):
                    continue
                if fault.after:
                    fault.after -= 1
                    continue
                if fault.name not in _REPLIES or not good:
                    continue
                altered = self._alter(fault, command, reply, ask, axes)
                if altered != reply or fault.name in ("late", "silent"):
                    delay_s += (fault.delay_s or _LATE_S) if fault.name == "late" else 0.0
                    reply = altered
                    self._strike(fault)
            if good:
                self._last[command.upper()] = good
        return reply, delay_s

    def _begin(self, condition: Fault) -> None:
        lasts_ns = condition.delay_s * 1e9 if condition.delay_s else float("inf")
        self._until_ns[condition.name] = self._clock() + lasts_ns
        self._waiting.remove(condition)
        self.struck += 1

    def _strike(self, fault: Fault) -> None:
        self.struck += 1
        if fault.times is not None:
            fault.times -= 1
            if not fault.times:
                self._waiting.remove(fault)

    def _alter(self, fault: Fault, command: str, reply: str, ask: Callable[[str], str], axes: tuple[str, ...]) -> str:
        match fault.name:
            case "silent":
                return ""
            case "partial":
                return reply[: len(reply) // 2]
            case "garbage":
                return "".join(chr(self._random.randrange(0xC0, 0x100)) for _ in range(8)) + "\n"
            case "echo":
                return f"{command}\n{reply}"
            case "twice":
                return reply + reply
            case "stale":
                return self._last.get(command.upper(), reply)
            case "wrong_axis":
                other = dict(zip(axes, (*axes[1:], axes[0]), strict=True))
                return re.sub(r"^[^=\s]+(?==)", lambda found: other.get(found[0], found[0]), reply, flags=re.MULTILINE)
            case "wrong_mnemonic":
                mnemonic, space, arguments = command.upper().partition(" ")
                return ask(_SAME_SHAPE[mnemonic] + space + arguments) if mnemonic in _SAME_SHAPE else reply
            case "digit":
                return self._flip(reply)
            case "junk_before":
                return f"\xfe~{reply}"
            case "nul":
                return f"\0{reply}"
            case "crlf":
                return reply.replace("\n", "\r\n")
        return reply

    def _flip(self, reply: str) -> str:
        # of the values; the items' names are wrong_axis's
        places = [found.start() for found in re.finditer(r"\d(?![^\n]*=)", reply)]
        if not places:
            return reply
        at = self._random.choice(places)
        digit = self._random.choice([digit for digit in "0123456789" if digit != reply[at]])
        return reply[:at] + digit + reply[at + 1 :]


def _named(command: str) -> str:
    """``POS?`` of ``pos? 1 2``, ``#5`` of a control byte."""
    if command.encode(gcs.ENCODING) in (gcs.MOVING, gcs.READY, gcs.GENERATING, gcs.STOP):
        return f"#{ord(command)}"
    return (command.upper().split() or [""])[0]
