"""Boxes: what lies inside, and what two of them share."""

from __future__ import annotations

import math

import pytest

from firmware_bridge.errors import OutOfRangeError
from firmware_bridge.pzt import Box, PositionUm
from tests.sphere import TRAVEL


def test_the_bounds_belong_to_a_box_and_nan_does_not():
    assert TRAVEL.contains(TRAVEL.low)
    assert TRAVEL.contains(TRAVEL.high)
    assert not TRAVEL.contains(PositionUm(50, 50, 10.001))
    assert not TRAVEL.contains(PositionUm(50, math.nan, 5))


def test_two_boxes_share_what_lies_in_both():
    wanted = Box(PositionUm(-5, 10, 2), PositionUm(50, 120, 3))
    assert TRAVEL.intersect(wanted) == Box(PositionUm(0, 10, 2), PositionUm(50, 100, 3))


@pytest.mark.parametrize("low_x", [101.0, math.nan])
def test_limits_that_leave_no_position_are_refused(low_x):
    with pytest.raises(OutOfRangeError, match="no position lies both"):
        TRAVEL.intersect(Box(PositionUm(low_x, 0, 0), PositionUm(200, 100, 10)))
