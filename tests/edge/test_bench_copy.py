"""Copies per frame: counted in frames that ran, and a camera that does not do what it says is found out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge.__main__ import main
from edge.bench_copy import FileCamera, WholeFrames, bench_copy
from edge.config import Config
from edge.errors import CameraError, EdgeError
from edge.frames import Frame, FramePool, Tile


@pytest.fixture
def config(identity_bundle: Path, small_specimen: Path) -> Config:
    return Config.model_validate(
        {
            "camera": {"shape_px": (64, 96), "fps": 500},
            "engine": {"model": str(identity_bundle)},
            "specimen": {"path": str(small_specimen), "pixel_size_nm": 48.0},
        }
    )


@pytest.fixture
def raw(tmp_path: Path) -> tuple[Path, np.ndarray]:
    frames = np.random.default_rng(1).integers(0, 256, (3, 20, 30), np.uint8)
    frames.tofile(tmp_path / "frames.raw")
    return tmp_path / "frames.raw", frames


@pytest.mark.parametrize("pixel_format", ["mono8", "mono16", "mono12p", "bayer_rg8", "rgb8"])
def test_only_cameras_that_insist_on_their_own_buffer_cost_a_copy(config: Config, pixel_format: str) -> None:
    camera = config.camera.model_copy(update={"pixel_format": pixel_format})
    figures = bench_copy(config.model_copy(update={"camera": camera}), frames=12)
    expected = {"simulated": 0, "replay": 1, "userptr": 0, "own_buffer": 1}
    if pixel_format not in ("mono8", "mono16"):
        del expected["replay"]  # no recording holds them
    assert figures == expected


def test_the_command_prints_them(identity_bundle: Path) -> None:
    options = ["--model", str(identity_bundle), "--frames", "3"]
    done = CliRunner().invoke(main, ["bench", "copy", *options, "--json", "-"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["own_buffer"] == 1


@pytest.mark.parametrize("own_buffer", [False, True])
def test_the_kernel_fills_the_memory_the_camera_is_given(raw: tuple[Path, np.ndarray], own_buffer: bool) -> None:
    path, frames = raw
    camera = FileCamera(path, (20, 30), "mono8", own_buffer=own_buffer)
    pool = FramePool([np.zeros((20, 30), np.uint8) for _ in range(2)])
    camera.start(pool, exposure_s=0.01, triggered=False)
    for index in range(5):
        frame = camera.next_frame(timeout_s=1)
        assert (frame.index, frame.ledger.copies) == (index, int(own_buffer))
        assert any(frame.pixels is slot for slot in pool.slots)
        np.testing.assert_array_equal(frame.pixels, frames[index % 3])
        pool.release(frame.pixels)
    camera.close()
    camera.close()


def test_half_a_frame_is_an_error_and_gives_its_slot_back(raw: tuple[Path, np.ndarray]) -> None:
    path, _ = raw
    camera = FileCamera(path, (20, 30), "mono8", own_buffer=False)
    pool = FramePool([np.zeros((20, 30), np.uint8)])
    camera.start(pool, exposure_s=0.01, triggered=False)
    path.write_bytes(b"")
    with pytest.raises(CameraError, match="half a frame"):
        camera.next_frame(timeout_s=1)
    assert pool.free == 1
    camera.close()


def test_a_frame_outside_the_engines_memory_is_noticed() -> None:
    pool = FramePool([np.zeros((4, 4), np.uint8)])
    sink = WholeFrames(None, pool, "liar")
    with pytest.raises(EdgeError, match="left frame 7 outside the engine's memory"):
        sink.write(Frame(np.zeros((4, 4), np.uint8), 7, 0), Tile({}, 7))


def test_a_frame_that_is_not_what_was_sent_is_noticed() -> None:
    pool = FramePool([np.zeros((4, 4), np.uint8)])
    sink = WholeFrames(np.ones((1, 4, 4), np.uint8), pool, "liar")
    with pytest.raises(EdgeError, match="not what was sent"):
        sink.write(Frame(pool.slots[0], 0, 0), Tile({}, 0))
