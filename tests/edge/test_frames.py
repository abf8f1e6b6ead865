"""The pool's promise: one owner a slot."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import CameraTimeoutError
from edge.frames import DTYPE, LAYOUTS, SLOT_ALIGNMENT, FramePool, PixelFormat, aligned_empty, slot_shape


@pytest.fixture
def pool() -> FramePool:
    return FramePool([aligned_empty((4, 6), np.uint8) for _ in range(2)])


def test_a_slot_has_one_owner_at_a_time(pool: FramePool) -> None:
    first, second = pool.acquire(timeout_s=0), pool.acquire(timeout_s=0)
    assert first is not second
    assert pool.free == 0
    pool.release(first)
    assert pool.acquire(timeout_s=0) is first


def test_an_empty_pool_is_a_timeout_that_says_why(pool: FramePool) -> None:
    for _ in range(2):
        pool.acquire(timeout_s=0)
    with pytest.raises(CameraTimeoutError, match="does not keep up"):
        pool.acquire(timeout_s=0.001)


def test_a_slot_cannot_be_released_twice(pool: FramePool) -> None:
    slot = pool.acquire(timeout_s=0)
    pool.release(slot)
    with pytest.raises(ValueError, match="twice"):
        pool.release(slot)


def test_a_foreign_array_is_no_slot(pool: FramePool) -> None:
    with pytest.raises(ValueError, match="not a slot"):
        pool.release(np.empty((4, 6), np.uint8))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (511, 513)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_aligned_memory_is_aligned_contiguous_and_of_the_shape(shape: tuple[int, int], dtype: type) -> None:
    array = aligned_empty(shape, dtype)
    assert array.ctypes.data % SLOT_ALIGNMENT == 0
    assert array.flags.c_contiguous
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))


@pytest.mark.parametrize("width", [1, 4, 5, 63])
@pytest.mark.parametrize("pixel_format", LAYOUTS)
def test_a_slot_holds_every_bit_of_a_row_and_less_than_a_byte_more(pixel_format: PixelFormat, width: int) -> None:
    height, *row = slot_shape(pixel_format, (7, width))
    spare_bits = 8 * int(np.prod(row)) * np.dtype(DTYPE[pixel_format]).itemsize - width * LAYOUTS[pixel_format].bits
    assert height == 7
    assert 0 <= spare_bits < 8
