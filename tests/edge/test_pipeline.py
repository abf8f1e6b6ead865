"""The path of a frame: nothing is lost without being counted, no slot leaks, and whatever fails reaches the caller."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge import pipeline
from edge.errors import CameraError
from edge.frames import Frame, FramePool, Gap, Ledger, Tile, aligned_empty
from edge.meter import FlowMeter


class EchoEngine:
    """Returns its input; waits for a permit before each frame when given a gate."""

    copies_per_frame = 0
    passes_per_frame = 1

    def __init__(self, gate: threading.Semaphore | None = None) -> None:
        self._gate = gate

    def infer(self, pixels: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        if self._gate is not None:
            assert self._gate.acquire(timeout=10)
        return {"enhanced": pixels}


class ListSink:
    def __init__(self) -> None:
        self.levels: list[int] = []
        self.tiles: list[Tile] = []
        self.skipped: list[tuple[int, str]] = []

    def write(self, frame: Frame, tile: Tile) -> None:
        self.levels.append(int(tile.outputs["enhanced"][0, 0]))
        self.tiles.append(tile)

    def skip(self, index: int, reason: str) -> None:
        self.skipped.append((index, reason))

    def close(self) -> None: ...


@pytest.fixture
def pool() -> FramePool:
    return FramePool([aligned_empty((2, 2), np.uint8) for _ in range(pipeline.SLOTS)])


def numbered(pool: FramePool, count: int) -> Iterator[Frame]:
    for index in range(count):
        slot = pool.acquire(timeout_s=10)
        slot[:] = index
        yield Frame(slot, index, 0, ledger=Ledger(copies=1))


def run(source: Any, pool: FramePool, sink: ListSink, **arguments: Any) -> FlowMeter:
    meter = FlowMeter()
    defaults: dict[str, Any] = {"engine": EchoEngine(), "policy": "lossless", "stop": threading.Event()}
    pipeline.run(source, pool=pool, sinks=[sink], meter=meter, **{**defaults, **arguments})
    return meter


def test_lossless_delivers_every_frame_in_order(pool: FramePool) -> None:
    sink = ListSink()
    meter = run(numbered(pool, 50), pool, sink)
    assert sink.levels == list(range(50))
    assert (meter.frames, meter.dropped) == (50, 0)
    assert pool.free == pipeline.SLOTS


def test_newest_wins_drops_the_oldest_and_counts_it(pool: FramePool) -> None:
    gate, all_taken = threading.Semaphore(0), threading.Event()

    def source() -> Iterator[Frame]:
        yield from numbered(pool, 10)
        all_taken.set()
        gate.release(10)

    sink = ListSink()
    meter = run(source(), pool, sink, engine=EchoEngine(gate), policy="newest")
    assert all_taken.is_set()
    # The engine may have taken frame 0 before the queue filled, or found 0 dropped already.
    assert sink.levels[-2:] == [8, 9]
    assert meter.frames + meter.dropped == 10
    assert meter.dropped >= 7
    assert pool.free == pipeline.SLOTS


def test_a_jump_in_the_cameras_count_is_a_gap_and_a_loss(pool: FramePool) -> None:
    def source() -> Iterator[Frame]:
        for index in (0, 1, 5):
            yield Frame(pool.acquire(timeout_s=10), index, 0)

    meter = run(source(), pool, ListSink())
    assert (meter.gaps, meter.dropped) == (3, 3)


def test_a_missing_frame_is_told_to_every_sink_in_its_place(pool: FramePool) -> None:
    sink = ListSink()
    run([Gap(0, "no trigger"), *[]], pool, sink)
    assert sink.skipped == [(0, "no trigger")]


def test_what_the_source_raises_reaches_the_caller_after_the_frames_before_it(pool: FramePool) -> None:
    def source() -> Iterator[Frame]:
        yield from numbered(pool, 3)
        raise CameraError("unplugged")

    sink = ListSink()
    with pytest.raises(CameraError, match="unplugged"):
        run(source(), pool, sink)
    assert sink.levels == [0, 1, 2]
    assert pool.free == pipeline.SLOTS


def test_what_a_sink_raises_reaches_the_caller_and_no_slot_leaks(pool: FramePool) -> None:
    class FullDisk(ListSink):
        def write(self, frame: Frame, tile: Tile) -> None:
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        run(numbered(pool, 50), pool, FullDisk())
    assert pool.free == pipeline.SLOTS


def test_it_ends_after_the_number_of_frames_asked_for(pool: FramePool) -> None:
    sink, stop = ListSink(), threading.Event()
    run(numbered(pool, 10_000), pool, sink, frames=5, stop=stop)
    assert sink.levels == [0, 1, 2, 3, 4]
    assert stop.is_set()
    assert pool.free == pipeline.SLOTS


def test_stop_ends_a_run_that_has_no_end(pool: FramePool) -> None:
    stop = threading.Event()

    class StopAtTen(ListSink):
        def write(self, frame: Frame, tile: Tile) -> None:
            super().write(frame, tile)
            if len(self.levels) == 10:
                stop.set()

    sink = StopAtTen()
    run(numbered(pool, 1_000_000), pool, sink, stop=stop)
    assert len(sink.levels) == 10


def test_copies_and_passes_add_up_along_the_way(pool: FramePool) -> None:
    sink = ListSink()
    meter = run(numbered(pool, 4), pool, sink)
    assert sink.tiles[0].ledger == Ledger(copies=1, passes=1)
    assert (meter.flow().copies_per_frame, meter.flow().passes_per_frame) == (1.0, 1.0)
