"""Reading image files: counts stay counts, and what is not an image of one channel is refused in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge.errors import ConfigError
from edge.images import Stack, list_images
from edge.images import open_stack as open_for_good

_open: list[Stack] = []


def open_stack(path: Path, *, bit_depth: int | None = None) -> Stack:
    _open.append(open_for_good(path, bit_depth=bit_depth))
    return _open[-1]


@pytest.fixture(autouse=True)
def _close_stacks():
    yield
    while _open:
        _open.pop().close()


def test_a_greyscale_png_keeps_its_counts(tmp_path: Path, frames: np.ndarray) -> None:
    Image.fromarray(frames[0]).save(tmp_path / "a.png")
    stack = open_stack(tmp_path / "a.png")
    assert (stack.length, stack.shape, stack.format, stack.bit_depth) == (1, (64, 96), "mono8", 8)
    np.testing.assert_array_equal(stack.read(0), frames[0])


def test_a_sixteen_bit_png_keeps_its_counts(tmp_path: Path) -> None:
    pixels = np.arange(64 * 32, dtype=np.uint16).reshape(64, 32) * 31
    Image.fromarray(pixels).save(tmp_path / "a.png")
    stack = open_stack(tmp_path / "a.png")
    assert (stack.format, stack.bit_depth) == ("mono16", 16)
    np.testing.assert_array_equal(stack.read(0), pixels)


def test_a_tiff_stack_is_read_page_by_page(tmp_path: Path, frames: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "stack.tif", frames, photometric="minisblack")
    stack = open_stack(tmp_path / "stack.tif")
    assert stack.length == len(frames)
    np.testing.assert_array_equal(stack.read(7), frames[7])


def test_a_folder_is_a_stack_in_the_order_of_names(tmp_path: Path, frames: np.ndarray) -> None:
    for index in (2, 0, 1):
        Image.fromarray(frames[index]).save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    stack = open_stack(tmp_path)
    assert stack.length == 3
    np.testing.assert_array_equal(stack.read(1), frames[1])


def test_an_npz_of_frames_is_a_stack(tmp_path: Path, frames: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", images=frames, other=np.zeros(3))
    assert open_stack(tmp_path / "a.npz").length == len(frames)


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(0, 1, width=32), min_size=256, max_size=256))
def test_a_float_image_becomes_sixteen_bit_counts_to_the_nearest(tmp_path_factory, values: list[float]) -> None:
    pixels = np.array(values, np.float32).reshape(16, 16)
    path = tmp_path_factory.mktemp("float") / "a.tif"
    tifffile.imwrite(path, pixels)
    stack = open_stack(path)
    assert (stack.format, stack.passes) == ("mono16", 1)
    assert np.abs(stack.read(0) / 65535 - pixels).max() <= 0.51 / 65535
    stack.close()


def test_a_colour_file_of_equal_channels_is_grey(tmp_path: Path, frames: np.ndarray) -> None:
    Image.fromarray(np.stack([frames[0]] * 3, axis=-1)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_stack(tmp_path / "a.png").read(0), frames[0])


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((16, 16), np.nan, np.float32), "NaN pixels"),
        (np.full((16, 16), 1.5, np.float32), r"1\.5.*0\.\.1"),
        (np.full((16, 16), -0.1, np.float32), r"-0\.1.*0\.\.1"),
        (np.zeros((16, 16), np.int32), "int32"),
        (np.zeros((16, 16), np.complex64), "complex64"),
    ],
)
def test_pixels_that_are_no_counts_are_refused(tmp_path: Path, pixels: np.ndarray, message: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    with pytest.raises(ConfigError, match=message):
        open_stack(tmp_path / "a.tif")


def test_a_colour_image_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="colour"):
        open_stack(tmp_path / "a.png")


def test_counts_above_the_bit_depth_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((16, 16), 5000, np.uint16))
    assert open_stack(tmp_path / "a.tif", bit_depth=13).bit_depth == 13
    with pytest.raises(ConfigError, match=r"5000.*4095"):
        open_stack(tmp_path / "a.tif", bit_depth=12)


def test_a_bit_depth_beyond_the_files_storage_is_refused(tmp_path: Path, frames: np.ndarray) -> None:
    Image.fromarray(frames[0]).save(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"8-bit pixels.*12"):
        open_stack(tmp_path / "a.png", bit_depth=12)


def test_a_frame_of_another_shape_is_refused_when_it_comes(tmp_path: Path, frames: np.ndarray) -> None:
    Image.fromarray(frames[0]).save(tmp_path / "a.png")
    Image.fromarray(frames[1][:32]).save(tmp_path / "b.png")
    with pytest.raises(ConfigError, match=r"Frame 1.*32 x 96.*64 x 96"):
        open_stack(tmp_path).read(1)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.npz"])
def test_a_damaged_file_is_refused_in_words(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is no image at all, whatever its name says")
    with pytest.raises(ConfigError, match="cannot be read"):
        open_stack(tmp_path / name)


def test_archives_that_are_cut_off_empty_or_something_else_are_refused_in_words(
    tmp_path: Path, frames: np.ndarray
) -> None:
    np.savez_compressed(tmp_path / "whole.npz", images=frames)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.npz").write_bytes(whole[:200] + bytes(200) + whole[400:])
    (tmp_path / "nothing.npz").write_bytes(b"")
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, frames)
    np.savez(tmp_path / "hollow.npz", images=np.zeros((0, 4, 4), np.float32))
    tifffile.imwrite(tmp_path / "whole.tif", frames[0], compression="zlib")
    whole = (tmp_path / "whole.tif").read_bytes()
    (tmp_path / "flipped.tif").write_bytes(whole[:900] + bytes(400) + whole[1300:])
    for name in ("cut.npz", "flipped.npz", "nothing.npz", "array.npz", "hollow.npz", "flipped.tif"):
        with pytest.raises(ConfigError):
            open_stack(tmp_path / name)


def test_inks_are_no_grey_levels(tmp_path: Path) -> None:
    Image.new("CMYK", (32, 32), (0, 0, 0, 128)).save(tmp_path / "a.jpg")
    with pytest.raises(ConfigError, match="CMYK"):
        open_stack(tmp_path / "a.jpg")


def test_a_pickled_array_is_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ConfigError, match="cannot be read"):
        open_stack(tmp_path / "a.npz")


def test_a_missing_file_an_empty_folder_and_an_unsupported_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file or folder"):
        open_stack(tmp_path / "absent.png")
    with pytest.raises(ConfigError, match="holds no image"):
        list_images(tmp_path)
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(ConfigError, match="unsupported kind"):
        open_stack(tmp_path / "a.gif")
