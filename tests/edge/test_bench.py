"""The bench measures what it says, and notices a frame that was changed or lost. No timing is asserted."""

from __future__ import annotations

import numpy as np
import pytest

from edge.bench import CheckSink, MemoryWatch, bench_loop
from edge.config import Config
from edge.errors import EdgeError
from edge.frames import Frame, Tile

PICTURES = np.random.default_rng(0).integers(0, 256, (64, 20, 30), np.uint8)


def check(lossless: bool = True) -> CheckSink:
    return CheckSink(PICTURES, lossless=lossless, memory=MemoryWatch())


def deliver(sink: CheckSink, index: int, pixels: np.ndarray) -> None:
    sink.write(Frame(pixels, index, 0), Tile({"enhanced": pixels}, index))


def test_whole_frames_in_order_pass() -> None:
    sink = check()
    for index in range(130):
        deliver(sink, index, PICTURES[index % 64])


def test_one_changed_pixel_is_noticed() -> None:
    torn = PICTURES[0].copy()
    torn[19, 29] ^= 1
    with pytest.raises(EdgeError, match="changed"):
        deliver(check(), 0, torn)


def test_a_missing_frame_is_noticed_where_none_may_be_missing() -> None:
    with pytest.raises(EdgeError, match="frame 1 came where 0 was due"):
        deliver(check(), 1, PICTURES[1])
    deliver(check(lossless=False), 1, PICTURES[1])


@pytest.mark.slow
def test_a_short_bench_fills_every_figure_of_the_definition(identity_bundle, small_specimen) -> None:
    config = Config.model_validate(
        {
            "camera": {"shape_px": (128, 128), "fps": 100},
            "engine": {"model": str(identity_bundle)},
            "specimen": {"path": str(small_specimen), "pixel_size_nm": 48.0},
        }
    )
    figures = bench_loop(config, viewers=1, windows=1, frames=400)
    for key in (
        "loop_fps",
        "loop_physics_fps",
        "engine_fps",
        "ratio",
        "rss_mb",
        "copies_per_frame",
        "passes_per_frame",
    ):
        assert figures[key] is not None, key
    assert figures["latency_s"]["p50"] <= figures["latency_s"]["p99"]
    assert figures["frames"] >= 400
    assert isinstance(figures["contended"], bool)
