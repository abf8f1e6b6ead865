"""What several tests of the bridge share: a scripted wire, and a clock that moves only when it is told to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from firmware_bridge.link import Link
from firmware_bridge.pzt import PztStage, open_stage
from firmware_bridge.simulator import Simulator, serve_tcp


class ScriptedTransport:
    """Plays a transcript of (sent, received): another byte than the script's fails the test.

    None is silence for ever, PAUSE inside what is received a silence of 0.1 s.
    """

    PAUSE = b"<pause>"

    def __init__(self, script: list[tuple[bytes, bytes | None]]) -> None:
        self.script = list(script)
        self.sent = b""
        self.now_s = 0.0
        self.closed = False
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> None:
        assert self.script, f"unexpected {data!r}"
        expected, received = self.script.pop(0)
        assert data == expected
        self.sent += data
        if received is not None:
            self._waiting += [part for part in re.split(b"(%b)" % self.PAUSE, received) if part]

    def arrives_late(self, data: bytes) -> None:
        self._waiting.insert(0, data)

    def read(self, timeout_s: float) -> bytes:
        if self._waiting and self._waiting[0] == self.PAUSE:
            self._waiting.pop(0)
            self.now_s += min(timeout_s, 0.1)
            if timeout_s < 0.1:
                return b""
        if self._waiting:
            return self._waiting.pop(0)
        self.now_s += timeout_s
        return b""

    def close(self) -> None:
        self.closed = True


Script = Callable[[list[tuple[bytes, bytes | None]]], tuple[Link, ScriptedTransport]]


@pytest.fixture
def scripted() -> Iterator[Script]:
    """Make a link over a transcript; at the end of the test all of it has been played."""
    transports = []

    def make(script: list[tuple[bytes, bytes | None]]) -> tuple[Link, ScriptedTransport]:
        transport = ScriptedTransport(script)
        transports.append(transport)
        return Link(transport, name="scripted", timeout_s=1.0, clock=lambda: transport.now_s), transport

    yield make
    for transport in transports:
        assert not transport.script, f"never sent: {transport.script}"


class Clock:
    """Nanoseconds that pass when the test says so."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000

    def __call__(self) -> int:
        return self.ns

    def advance(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sim:e727", "sim:e517", "tcp:e727", "tcp:e517"])
def stage(request: pytest.FixtureRequest) -> Iterator[PztStage]:
    """An open stage on either controller and wire; `behind` is its simulator."""
    wire, _, profile = request.param.partition(":")
    simulator = Simulator(profile)
    if wire == "sim":
        with open_stage(request.param, simulator=simulator) as stage:
            stage.behind = simulator
            yield stage
    else:
        with serve_tcp(simulator) as server, open_stage(server.address) as stage:
            stage.behind = simulator
            yield stage
