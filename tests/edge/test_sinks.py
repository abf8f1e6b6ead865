"""The preview's picture and rate, the field's grey, and the snapshot."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import simplejpeg

from edge.errors import BusyError, EdgeError
from edge.frames import Frame, Tile
from edge.meter import FlowMeter
from edge.sinks import OUTSIDE_FIELD_GREY, PreviewSink, SnapshotSink, field_disc
from edge.status import RunState, Status, StatusBoard


@pytest.fixture
def board() -> StatusBoard:
    return StatusBoard(Status(name="t", version="0", state=RunState.LIVE, note="", simulated=(), start_error=None))


def preview(board: StatusBoard, times_ns: list[int] | None = None, **arguments) -> PreviewSink:
    clock = (lambda: times_ns[0]) if times_ns is not None else (lambda: 10**12)
    defaults = {"show": lambda: "enhanced", "bit_depth": 8, "fps": 30.0, "quality": 95}
    return PreviewSink(board, FlowMeter(), clock_ns=clock, **{**defaults, **arguments})


def halves(board: StatusBoard) -> tuple[np.ndarray, np.ndarray]:
    newest = board.preview()
    assert newest is not None
    image = simplejpeg.decode_jpeg(newest.jpeg, colorspace="GRAY")[..., 0]
    left, right = np.hsplit(image, 2)
    return left, right


@pytest.mark.parametrize(("bit_depth", "dtype"), [(4, np.uint8), (8, np.uint8), (12, np.uint16), (16, np.uint16)])
def test_raw_is_left_and_enhanced_right_at_any_bit_depth(board: StatusBoard, bit_depth: int, dtype: type) -> None:
    full = (1 << bit_depth) - 1
    raw, enhanced = np.full((32, 48), full // 4, dtype), np.full((32, 48), full, dtype)
    preview(board, bit_depth=bit_depth).write(Frame(raw, 0, 0), Tile({"enhanced": enhanced}, 0))
    left, right = halves(board)
    assert left.mean() == pytest.approx(255 * (full // 4) / full, abs=4)
    assert right.mean() == pytest.approx(255, abs=2)


def test_enhanced_is_flat_grey_outside_the_field_and_raw_is_not(board: StatusBoard) -> None:
    field = field_disc((64, 64), diameter_px=32)
    sink = preview(board, field=field)
    bright = np.full((64, 64), 220, np.uint8)
    sink.write(Frame(bright, 0, 0), Tile({"enhanced": bright}, 0))
    left, right = halves(board)
    assert left[0, 0] == pytest.approx(220, abs=4)
    assert right[0, 0] == pytest.approx(OUTSIDE_FIELD_GREY, abs=4)
    assert right[32, 32] == pytest.approx(220, abs=4)


def test_forty_frames_a_second_give_thirty_pictures_and_not_twenty(board: StatusBoard) -> None:
    now_ns = [0]
    sink = preview(board, now_ns)
    image = np.zeros((16, 16), np.uint8)
    for index in range(400):
        now_ns[0] = 10**12 + index * 25_000_000
        sink.write(Frame(image, index, 0), Tile({"enhanced": image}, index))
    newest = board.preview()
    assert newest is not None
    assert newest.counter == pytest.approx(300, abs=2)


def test_a_viewer_of_one_job_sees_the_pictures_of_the_next(board: StatusBoard) -> None:
    image = np.zeros((16, 16), np.uint8)
    first = preview(board)
    for index in range(3):
        first._due_ns = 0
        first.write(Frame(image, index, 0), Tile({"enhanced": image}, index))
    seen = board.preview_counter
    board.clear_preview()
    assert board.wait_preview(seen, timeout_s=0) is None
    preview(board).write(Frame(image, 0, 0), Tile({"enhanced": image}, 0))
    newest = board.wait_preview(seen, timeout_s=0)
    assert newest is not None
    assert newest.frame_index == 0


def test_an_enhanced_image_of_twice_the_size_gets_a_raw_half_of_the_same_size(board: StatusBoard) -> None:
    raw, enhanced = np.full((16, 16), 50, np.uint8), np.full((32, 32), 200, np.uint8)
    preview(board).write(Frame(raw, 0, 0), Tile({"enhanced": enhanced}, 0))
    left, right = halves(board)
    assert left.shape == right.shape == (32, 32)


def test_a_large_frame_of_twice_the_size_is_thinned_on_both_halves_alike(board: StatusBoard) -> None:
    raw = np.arange(700, dtype=np.uint16)[:, None] * np.ones(900, np.uint16) // 3
    field = field_disc((700, 900), diameter_px=600)
    large = raw.repeat(2, 0).repeat(2, 1)
    preview(board, field=field).write(Frame(raw.astype(np.uint8), 0, 0), Tile({"enhanced": large.astype(np.uint8)}, 0))
    left, right = halves(board)
    assert left.shape == (700, 900)
    inside = field_disc((700, 900), diameter_px=580)
    assert np.abs(left.astype(int) - right)[inside].max() < 8
    assert right[2, 2] == pytest.approx(OUTSIDE_FIELD_GREY, abs=8)


@pytest.mark.parametrize(("bit_depth", "dtype"), [(4, np.uint8), (8, np.uint8), (12, np.uint16)])
def test_the_output_on_view_may_change_between_pictures_and_may_be_in_colour(
    board: StatusBoard, bit_depth: int, dtype: type
) -> None:
    full, chosen, now_ns = (1 << bit_depth) - 1, ["map"], [0]
    raw = np.full((32, 48), full // 2, dtype)
    red = np.zeros((32, 48, 3), dtype)
    red[..., 0] = full
    sink = preview(
        board, now_ns, show=lambda: chosen[0], bit_depth=bit_depth, field=field_disc((32, 48), diameter_px=30)
    )

    def picture(output: str) -> np.ndarray:
        chosen[0] = output
        now_ns[0] += 10**9
        sink.write(Frame(raw, 0, 5), Tile({"bright": np.full_like(raw, full), "map": red}, 0))
        newest = board.preview()
        assert (newest.output, newest.t_exposure_end_ns) == (output, 5)
        return simplejpeg.decode_jpeg(newest.jpeg, colorspace="RGB").astype(int)

    for _ in range(2):
        image = picture("map")
        assert image[16, 10] == pytest.approx([255 * (full // 2) / full] * 3, abs=6)
        assert image[16, 48 + 24] == pytest.approx([255, 0, 0], abs=6)
        assert image[1, 95] == pytest.approx([OUTSIDE_FIELD_GREY] * 3, abs=8)
        assert picture("bright")[16, 48 + 24] == pytest.approx([255] * 3, abs=3)


def test_a_large_frame_is_thinned_for_the_screen_only(board: StatusBoard) -> None:
    image = np.zeros((1100, 2100), np.uint8)
    preview(board).write(Frame(image, 0, 0), Tile({"enhanced": image}, 0))
    assert [half.shape for half in halves(board)] == [(367, 700)] * 2


def test_a_snapshot_is_a_copy_of_the_next_frame_and_its_tile() -> None:
    sink, pixels = SnapshotSink(), np.zeros((4, 4), np.uint8)
    got = []
    asking = threading.Thread(target=lambda: got.append(sink.take(timeout_s=60)))
    asking.start()
    while asking.is_alive():
        pixels[:] = 9
        sink.write(Frame(pixels, 5, 0), Tile({"enhanced": pixels + 1}, 5))
        pixels[:] = 0
    (shot,) = got
    assert (shot.index, int(shot.raw[0, 0]), int(shot.outputs["enhanced"][0, 0])) == (5, 9, 10)


def test_a_snapshot_has_every_output() -> None:
    sink, grey, colour = SnapshotSink(), np.full((4, 6), 3, np.uint8), np.full((4, 6, 3), 7, np.uint8)
    got = []
    asking = threading.Thread(target=lambda: got.append(sink.take(timeout_s=60)))
    asking.start()
    while asking.is_alive():
        sink.write(Frame(grey, 0, 0), Tile({"magnified": grey, "map": colour}, 0))
    assert {name: pixels.shape for name, pixels in got[0].outputs.items()} == {"magnified": (4, 6), "map": (4, 6, 3)}


def test_nobody_queues_for_a_snapshot() -> None:
    sink, pixels = SnapshotSink(), np.zeros((4, 6), np.uint8)
    asking = threading.Thread(target=sink.take, kwargs={"timeout_s": 60})
    asking.start()
    while not sink._wanted.is_set():
        assert asking.is_alive()
    with pytest.raises(BusyError):
        sink.take(timeout_s=60)
    sink.write(Frame(pixels, 0, 0), Tile({"enhanced": pixels}, 0))
    asking.join()


def test_a_snapshot_of_nothing_is_an_error_in_words() -> None:
    with pytest.raises(EdgeError, match="Start the live view"):
        SnapshotSink().take(timeout_s=0.001)


def test_the_field_is_a_disc_around_its_centre() -> None:
    disc = field_disc((50, 60), diameter_px=20, centre_px=(10, 30))
    assert disc[10, 30]
    assert disc[19, 30]
    assert not disc[21, 30]
    assert disc.sum() == pytest.approx(np.pi * 100, rel=0.05)
