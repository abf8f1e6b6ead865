"""What is asked of a scan before it begins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from edge.config import Config
from edge.errors import ConfigError
from edge.instrument import Instrument
from edge.jobs import plan_scan
from firmware_bridge.pzt import Box, PositionUm

TRAVEL = Box(PositionUm(0, 0, 0), PositionUm(100, 100, 10))


def instrument(**sphere: Any) -> Instrument:
    """As much of one as a plan is made of: a stage at rest, a camera of 50 nm a pixel."""
    parts = SimpleNamespace(
        stage=SimpleNamespace(limits_um=TRAVEL, target_um=lambda: PositionUm(20, 30, 4)),
        camera=SimpleNamespace(shape=(512, 512)),
        pixel_size_nm=50.0,
        config=Config.model_validate({"sphere": sphere}),
    )
    return cast(Instrument, parts)


def test_a_scan_is_centred_on_the_travel_at_the_height_where_the_stage_stands() -> None:
    plan = plan_scan(instrument(field_um=16.0), region_um=(30, 20), overlap=0.15, settle_s=0)
    assert plan.centre_um == PositionUm(50, 50, 4)


def test_a_tile_of_a_few_pixels_is_refused_with_the_field_that_makes_it() -> None:
    with pytest.raises(ConfigError, match=r"tile of 0\.5\d* µm is 11 px at 50 nm .* needs 16 px\. Correct \[sphere\]"):
        plan_scan(instrument(field_um=0.8), region_um=(30, 20), overlap=0.15, settle_s=0)
