"""How fast and how far from the reference an engine is measured to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.engine import load_engine
from edge.engine.measure import REPEATS, WARM_UP, measure, pictures_of
from export.manifest import load_bundle


def test_one_slow_frame_in_a_hundred_is_not_the_99th_percentile(identity_bundle: Path) -> None:
    engine = load_engine(load_bundle(identity_bundle), frame_shape_px=(32, 48), pixel_format="mono8", bit_depth=8)
    frame = np.full((32, 48), 7, np.uint8)
    lengths_s = [9.0] * WARM_UP + [0.001 * n for n in range(1, REPEATS)] + [5.0]  # what warms up does not count
    ticks = iter(np.repeat(np.cumsum([0.0, *lengths_s]), 2)[1:])
    figures = measure(engine, [frame], [pictures_of(engine, frame)], 255, clock=lambda: float(next(ticks)))
    assert figures.median_s == pytest.approx(0.0505)
    assert 0.099 <= figures.p99_s < 0.15, "the maximum is 5 s"
