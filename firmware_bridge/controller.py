"""One PI controller: what its commands ask and answer. No policy: what may move, `stage` and the interlock decide."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from . import gcs
from .errors import OutOfRangeError, RefusedError, StoppedError
from .link import Link
from .position import PositionUm
from .transport import Trace, open_transport, stable_name

if TYPE_CHECKING:
    from .simulator import Server, Simulator

log = logging.getLogger(__name__)

T = TypeVar("T")


class Look(NamedTuple):
    """How a move is getting on: whether set points still move, whether all axes are on target, where they are."""

    moving: bool
    on_target: bool
    positions_um: list[PositionUm]


class Controller:
    """A controller that has told its name. `open_controller` makes one.

    Each method is one exchange, unless it says otherwise, and raises LinkErrors as `Link.ask` does.

    Parameters
    ----------
    link : Link
        Owned from now on, identified.
    profile : gcs.Profile
        Which controller it is.
    server : Server, optional
        The simulator behind it, to be stopped at the end.
    reopen : callable, optional
        Opens the port again and returns what is there, see `Link.reopen`.

    Attributes
    ----------
    identity : str
        What it answered to ``*IDN?``: maker, model, serial number, firmware.
    axes : tuple of str
        Its names for x, y and z.
    """

    def __init__(
        self,
        link: Link,
        profile: gcs.Profile,
        *,
        server: Server | None = None,
        reopen: Callable[[], str] | None = None,
    ) -> None:
        self.link, self.profile, self.server = link, profile, server
        self.identity = link.identity
        self.axes: tuple[str, ...] = profile.axes
        self._reopen = reopen
        self._commands: frozenset[str] | None = None

    # -- questions ----------------------------------------------------------------------------------------------------

    def axis_names(self) -> list[str]:
        """The names that it has for its axes."""
        return self.link.ask(gcs.query_line("SAI?"), str.split)

    def read(self, mnemonic: str, *, times: int = 1) -> list[PositionUm]:
        """A number for each axis, asked `times` times in one write."""
        return self.link.ask_each(gcs.query_line(mnemonic, self.axes) * times, [self._parse_position] * times)

    def query(self, line: bytes, parse: Callable[[str], T]) -> T:
        """A question that has no method here, and what `parse` makes of its answer."""
        return self.link.ask(line, parse)

    def flags(self, mnemonic: str) -> list[bool]:
        """A state of each axis."""
        return self.link.ask(gcs.query_line(mnemonic, self.axes), self._parse_flags)

    def error(self) -> int:
        """The error register, which reading clears."""
        return self.link.ask(gcs.query_line("ERR?"), gcs.parse_integer)

    def look(self, readings: int) -> Look:
        """Moving (#5), on target (ONT?) and so many readings of the position (POS?), in one write.

        Without arguments a query is for all axes, which saves a millisecond at 115 200 Bd.
        """
        request = gcs.MOVING + gcs.query_line("ONT?") + gcs.query_line("POS?") * readings
        parsers: list[Callable[[str], Any]] = [gcs.parse_bitmap, self._parse_flags, *[self._parse_position] * readings]
        moving, on_target, *positions_um = self.link.ask_each(request, parsers)
        return Look(moving != 0, all(on_target), positions_um)

    def generating(self) -> bool:
        """Whether a wave generator runs (#9)."""
        return self.link.ask(gcs.GENERATING, gcs.parse_bitmap) != 0

    def ready(self) -> bool:
        """Whether it takes commands (#7): not while it calibrates or starts."""
        return self.link.ask(gcs.READY, gcs.parse_ready)

    def has(self, mnemonic: str) -> bool:
        """Whether ``HLP?`` lists a command; asked once."""
        if self._commands is None:
            self._commands = self.link.ask(gcs.query_line("HLP?"), gcs.parse_help)
        return mnemonic in self._commands

    def open_loops(self) -> str:
        """Which axes are not under our control, in words; empty when all are. One or two exchanges."""
        found = [
            f"the servo of axis {axis} is off" for axis, on in zip(self.axes, self.flags("SVO?"), strict=True) if not on
        ]
        if self.profile.starts_offline:
            channels = self._channels()
            online = self.link.ask(gcs.query_line("ONL?", channels), lambda reply: gcs.parse_flags(reply, channels))
            found += [f"channel {channel} is offline" for channel, on in zip(channels, online, strict=True) if not on]
        return ", ".join(found)

    # -- commands -----------------------------------------------------------------------------------------------------

    def set(
        self,
        mnemonic: str,
        values: Mapping[str, float | bool],
        *,
        before_sending: Callable[[], None] | None = None,
    ) -> None:
        """A value for each of some items; errors as in `command`."""
        self.command(gcs.set_line(mnemonic, values), before_sending=before_sending)

    def command(self, line: bytes, *, before_sending: Callable[[], None] | None = None) -> None:
        """Send a command, and in the same write the question whether it was accepted: one round trip.

        Raises
        ------
        OutOfRangeError
            Refused, because a value lies beyond a limit.
        StoppedError
            A stop (#24) came meanwhile, or before: whether the command was accepted is not known.
        RefusedError
            Refused for another reason, `code`.
        """
        code = self.link.ask(line + gcs.query_line("ERR?"), gcs.parse_integer, before_sending=before_sending)
        if code:
            raise refusal(line, code)

    def close_loops(self, *, before_sending: Callable[[], None] | None = None) -> None:
        """Put the channels on line, switch velocity control on (E-517) and close the servo loops. Several exchanges.

        What `before_sending` raises keeps back each of them.

        Raises
        ------
        RefusedError
            Refused, or a servo is still open.
        """
        if self.profile.starts_offline:
            channels = self.link.ask(gcs.query_line("TPC?"), gcs.parse_integer)
            if channels < len(self.axes):
                raise RefusedError(
                    f"the controller has {channels} piezo channels, expected {len(self.axes)}: wrong modules?"
                )
            self.set("ONL", dict.fromkeys(self._channels(), True), before_sending=before_sending)
        if self.profile.velocity_control:
            self.set("VCO", dict.fromkeys(self.axes, True), before_sending=before_sending)
        self.set("SVO", dict.fromkeys(self.axes, True), before_sending=before_sending)
        still_open = self.open_loops()
        if still_open:
            raise RefusedError(f"{still_open} although switched on: check the switches on the front panel")

    def stop(self, then: bytes = b"", *, before_sending: Callable[[], None] | None = None) -> None:
        """Stop all axes and generators (#24), past any request that waits, and go on as `Link.interrupt` says.

        The reply to it is the next `error`.
        """
        self.link.interrupt(then, before_sending=before_sending)

    # -- the link -----------------------------------------------------------------------------------------------------

    def reconnect(self) -> None:
        """Open the port again, and make sure that the same device is there.

        Raises
        ------
        RefusedError
            Another device is there: nothing else was asked of it.
        LinkError
            Nobody is there.
        """
        if self._reopen is None:
            raise RefusedError("this link was not opened by its port's name: open the stage anew")
        found = self._reopen()
        if found != self.identity:
            self.link.lost = f"{self.link.name} is another device"
            raise RefusedError(
                f"{self.link.name} is {found!r} now, expected {self.identity!r}: connect the same controller, or open "
                "the stage anew"
            )
        self._commands = None

    def close(self) -> None:
        """Close the link, and stop the simulator behind it. Idempotent."""
        self.link.close()
        if self.server is not None:
            self.server.stop()

    def _parse_position(self, reply: str) -> PositionUm:
        return PositionUm(*gcs.parse_numbers(reply, self.axes))

    def _parse_flags(self, reply: str) -> list[bool]:
        return gcs.parse_flags(reply, self.axes)

    def _channels(self) -> Sequence[str]:
        return [str(number) for number in range(1, len(self.axes) + 1)]


def refusal(line: bytes, code: int) -> RefusedError:
    """What a controller's error number after a command means to a caller."""
    if code == gcs.STOPPED:
        return StoppedError(f"stopped when {line.decode(gcs.ENCODING).strip()!r} was sent", code=code)
    beyond = code in (gcs.POSITION_LIMITS, gcs.VELOCITY_LIMITS, gcs.OUT_OF_RANGE)
    error = OutOfRangeError if beyond else RefusedError
    return error(f"the controller refused {line.decode(gcs.ENCODING).strip()!r}: {gcs.meaning(code)}", code=code)


def open_controller(
    port: str,
    *,
    profile: str | None = None,
    baud: int = 115200,
    reply_timeout_s: float = 1.0,
    simulator: Simulator | None = None,
    trace: Trace | None = None,
) -> Controller:
    """Open the port and find out who is there; parameters and errors as in `pzt.open_stage`. Nothing is changed but
    that an error which another client left is cleared, and reported.
    """
    if profile is not None and profile not in gcs.PROFILES:
        raise OutOfRangeError(f"no profile {profile!r}: expected one of {', '.join(gcs.PROFILES)}")
    server = None
    scheme, _, name = port.partition(":")
    if scheme == "sim":
        from .simulator import Simulator, serve_pty  # a real instrument needs none

        if name and profile not in (None, name):
            raise OutOfRangeError(f"{port} is one controller and the profile {profile} another: leave one of them out")
        server = serve_pty(simulator or Simulator(name or profile or "e727"))
        port = server.address
    elif simulator is not None:
        raise OutOfRangeError(f"a simulator stands behind the port sim:, not behind {port!r}")
    link = None
    try:
        link = Link(open_transport(port, baud=baud, trace=trace), name=port, timeout_s=reply_timeout_s)
        known_as = stable_name(port)
        found = gcs.profile_of(link.identify())
        if found is None or found.name != (profile or found.name):
            wanted = gcs.PROFILES[profile].model if profile else " or ".join(p.model for p in gcs.PROFILES.values())
            raise RefusedError(
                f"{port} is {link.identity!r}, expected an {wanted}: correct the [stage] port or profile"
            )
        opened = link
        controller = Controller(
            link,
            found,
            server=server,
            reopen=lambda: opened.reopen(lambda: open_transport(known_as, baud=baud, trace=trace)),
        )
        foreign = controller.error()
        if foreign:
            log.warning("%s had an error before we came, now cleared: %s", port, gcs.meaning(foreign))
        return controller
    except BaseException:
        if link is not None:
            link.close()
        if server is not None:
            server.stop()
        raise
