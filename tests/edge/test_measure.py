"""How fast and how far from the reference an engine is measured to be."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from edge.engine import load_engine
from edge.engine.measure import LEAST_REPEATS, REPEATS, WARM_UP, measure, pictures_of
from export.manifest import load_bundle


def test_one_slow_frame_in_a_hundred_is_not_the_99th_percentile(identity_bundle: Path) -> None:
    engine = load_engine(load_bundle(identity_bundle), frame_shape_px=(32, 48), pixel_format="mono8", bit_depth=8)
    frame = np.full((32, 48), 7, np.uint8)
    lengths_s = [0.3] * WARM_UP + [0.001 * n for n in range(1, REPEATS)] + [5.0]  # what warms up does not count
    ticks = iter(np.repeat(np.cumsum([0.0, *lengths_s]), 2)[1:])
    figures = measure(engine, [frame], [pictures_of(engine, frame)], 255, clock=lambda: float(next(ticks)))
    assert figures.median_s == pytest.approx(0.0505)
    assert 0.099 <= figures.p99_s < 0.15, "the maximum is 5 s"


@pytest.mark.parametrize(("frame_s", "warm_up", "timed"), [(4.0, 3, 15), (100.0, 1, LEAST_REPEATS), (0.1, 20, 100)])
def test_a_slow_engine_is_timed_for_a_minute_and_not_for_a_hundred_frames(
    identity_bundle: Path, frame_s: float, warm_up: int, timed: int
) -> None:
    engine = load_engine(load_bundle(identity_bundle), frame_shape_px=(32, 48), pixel_format="mono8", bit_depth=8)
    frame, now_s, told = np.full((32, 48), 7, np.uint8), itertools.count(), []
    figures = measure(
        engine,
        [frame],
        [pictures_of(engine, frame)],
        255,
        clock=lambda: frame_s * next(now_s),
        alive=lambda: told.append(True),
    )
    assert (figures.median_s, figures.timed) == (pytest.approx(frame_s), timed)
    assert len(told) == 1 + warm_up + timed
