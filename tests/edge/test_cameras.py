"""Both cameras against the contract, the replay's files, and the simulated camera's optics, pose, trigger and noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.cameras import open_camera
from edge.cameras.replay import ReplayCamera
from edge.cameras.simulated import FILTERS, SimulatedCamera, _blurred
from edge.config import Config
from edge.errors import CameraError, CameraTimeoutError, ConfigError
from edge.frames import DTYPE, LAYOUTS, slot_shape
from edge.images import open_stack
from firmware_bridge.pzt import PositionUm
from models.optics import Optics, blur
from tests.contracts import CameraContract, packed, pool_for

MIDDLE = PositionUm(50, 50, 5)
SHAPE = (96, 128)


class HandClock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


def dots() -> np.ndarray:
    """One bright dot in the middle and one 100 px to the right of it, on a dark ground; 601 px a side."""
    specimen = np.full((601, 601), 0.1, np.float32)
    specimen[297:304, 297:304] = specimen[297:304, 397:404] = 1.0
    return specimen


def simulated(pose: PositionUm = MIDDLE, clock: HandClock | None = None, **camera) -> SimulatedCamera:
    clock = clock or HandClock()
    config = Config.model_validate({"camera": {"shape_px": SHAPE, **camera}})
    return SimulatedCamera(config, Optics(), dots, lambda: pose, clock_ns=clock, sleep=clock.sleep)


def picture(camera: SimulatedCamera, pose: PositionUm) -> np.ndarray:
    camera.start(pool_for(camera), exposure_s=0.005, triggered=False)
    out = np.empty(camera.shape, np.uint8)
    camera.expose(pose, out)
    return out.astype(float)


def brightest(image: np.ndarray) -> tuple[int, int]:
    y, x = np.unravel_index(np.argmax(image), image.shape)
    return int(y), int(x)


class TestSimulated(CameraContract):
    @pytest.fixture(params=LAYOUTS)
    def camera(self, request: pytest.FixtureRequest) -> SimulatedCamera:
        return simulated(pixel_format=request.param)


class TestReplay(CameraContract):
    @pytest.fixture
    def camera(self, tmp_path: Path, frames: np.ndarray) -> ReplayCamera:
        np.savez(tmp_path / "frames.npz", images=frames)
        return ReplayCamera(open_stack(tmp_path / "frames.npz"), fps=None, pixel_size_nm=None)

    def test_it_begins_again_at_the_end_and_counts_on(self, camera: ReplayCamera, frames: np.ndarray) -> None:
        pool = pool_for(camera)
        camera.start(pool, exposure_s=0.005, triggered=False)
        for index in range(len(frames) + 3):
            frame = camera.next_frame(timeout_s=1)
            np.testing.assert_array_equal(frame.pixels, frames[index % len(frames)])
            assert frame.index == index
            assert frame.ledger.copies == 1
            pool.release(frame.pixels)

    def test_a_paced_replay_keeps_its_rate(self, tmp_path: Path, frames: np.ndarray) -> None:
        np.savez(tmp_path / "paced.npz", images=frames)
        clock = HandClock()
        camera = ReplayCamera(
            open_stack(tmp_path / "paced.npz"), fps=20, pixel_size_nm=None, clock_ns=clock, sleep=clock.sleep
        )
        pool = pool_for(camera)
        camera.start(pool, exposure_s=0.005, triggered=False)
        times = []
        for _ in range(5):
            frame = camera.next_frame(timeout_s=1)
            times.append(frame.t_exposure_end_ns)
            pool.release(frame.pixels)
        np.testing.assert_allclose(np.diff(times), 50_000_000)

    def test_a_recording_hears_no_trigger(self, camera: ReplayCamera) -> None:
        with pytest.raises(CameraError, match="cannot be triggered"):
            camera.start(pool_for(camera), exposure_s=0.005, triggered=True)


@pytest.mark.parametrize("height", [90, 128, 200, 300, 601])
def test_blurring_strip_by_strip_is_blurring_the_whole(height: int) -> None:
    specimen = np.random.default_rng(0).random((height, 150), np.float32)
    kernel = Optics().psf()
    whole = blur(specimen, kernel)
    found, median = _blurred(specimen.copy, kernel)
    np.testing.assert_allclose(found, whole, atol=1e-5)
    assert median == pytest.approx(np.median(specimen), abs=0.05)


def test_a_feature_moves_by_a_times_the_stage_move() -> None:
    """Default A: +x of the stage moves the feature to the right, +y down, by 1 / pixel size."""
    camera = simulated()
    y0, x0 = brightest(picture(camera, MIDDLE))
    pixel_um = camera.pixel_size_nm / 1e3
    y1, x1 = brightest(picture(camera, MIDDLE._replace(x=50 + 20 * pixel_um, y=50 - 10 * pixel_um)))
    assert (y0, x0) == pytest.approx(((SHAPE[0] - 1) / 2, (SHAPE[1] - 1) / 2), abs=1)
    assert (y1 - y0, x1 - x0) == pytest.approx((-10, 20), abs=1)


def test_a_calibrated_a_with_mirror_and_quarter_turn_is_obeyed() -> None:
    scale = 1e3 / Optics().pixel_size_nm
    config = Config.model_validate(
        {"camera": {"shape_px": SHAPE}, "sphere": {"camera_from_stage_px_per_um": [[0, scale], [scale, 0]]}}
    )
    camera = SimulatedCamera(config, Optics(), dots, lambda: MIDDLE)
    y0, x0 = brightest(picture(camera, MIDDLE))
    y1, x1 = brightest(picture(camera, MIDDLE._replace(x=50 + 20 / scale)))
    assert (y1 - y0, x1 - x0) == pytest.approx((20, 0), abs=1)


def test_it_looks_through_the_optics_light_falls_off_and_edges_are_soft() -> None:
    config = Config.model_validate({"camera": {"shape_px": (400, 400)}})
    camera = SimulatedCamera(config, Optics(), lambda: np.full((601, 601), 0.8, np.float32), lambda: MIDDLE)
    image = picture(camera, MIDDLE)
    middle, at_8_um = image[195:205, 195:205].mean(), image[195:205, 360:372].mean()
    assert at_8_um / middle == pytest.approx(0.77, abs=0.03)
    dot = picture(simulated(), MIDDLE)[48, 40:88]
    assert 4 < np.count_nonzero(dot > (dot.max() + dot.min()) / 2) < 12  # 7 px of dot, blurred by 6 px of PSF


def test_noise_is_shot_noise_and_two_frames_differ() -> None:
    camera = simulated()
    pictures = np.stack([picture(camera, MIDDLE), *(_again(camera) for _ in range(80))])
    mean, variance = pictures.mean(axis=0), pictures.var(axis=0)
    assert variance.min() > 0
    bright, dark = mean > np.percentile(mean, 98), mean < np.percentile(mean, 20)
    shot = [variance[where].mean() - 1 / 12 for where in (bright, dark)]  # less that of rounding to counts
    assert shot[0] / shot[1] == pytest.approx(mean[bright].mean() / mean[dark].mean(), rel=0.1)


def _again(camera: SimulatedCamera) -> np.ndarray:
    out = np.empty(camera.shape, np.uint8)
    camera.expose(MIDDLE, out)
    return out.astype(float)


def test_beyond_the_specimen_lies_its_background() -> None:
    image = picture(simulated(), PositionUm(0, 0, 5))
    assert image.std() < 12


def test_a_triggered_camera_exposes_at_the_pose_of_the_pulse() -> None:
    camera = simulated()
    pool = pool_for(camera)
    camera.start(pool, exposure_s=0.005, triggered=True)
    pose = PositionUm(50.5, 50, 5)
    camera.hear(0, 1_000, pose)
    frame = camera.next_frame(timeout_s=1)
    assert frame.true_position_um == pose
    assert frame.t_exposure_end_ns == 1_000 + 5_000_000


def test_without_a_pulse_a_triggered_camera_times_out() -> None:
    camera = simulated()
    camera.start(pool_for(camera), exposure_s=0.005, triggered=True)
    with pytest.raises(CameraTimeoutError, match="No trigger pulse"):
        camera.next_frame(timeout_s=0.001)


def test_pulses_while_it_runs_free_are_not_heard() -> None:
    camera = simulated()
    camera.start(pool_for(camera), exposure_s=0.005, triggered=False)
    camera.hear(0, 0, MIDDLE)
    camera.start(pool_for(camera), exposure_s=0.005, triggered=True)
    with pytest.raises(CameraTimeoutError):
        camera.next_frame(timeout_s=0.001)


def test_a_free_running_camera_that_is_read_too_late_skips_and_counts_on() -> None:
    clock = HandClock()
    camera = simulated(clock=clock, fps=40)
    pool = pool_for(camera)
    camera.start(pool, exposure_s=0.005, triggered=False)
    pool.release(camera.next_frame(timeout_s=1).pixels)
    clock.sleep(0.1)
    frame = camera.next_frame(timeout_s=1)
    assert frame.index == 4  # 1, 2 and 3 ended while nobody read


def test_a_simulated_camera_needs_a_simulated_stage() -> None:
    with pytest.raises(ConfigError, match="simulated stage"):
        open_camera(Config(), pose_um=None)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optics": {"sphere_index": 1.3, "medium_index": 1.5}}, "cannot be built.*sphere_index"),
        ({"camera": {"pixel_size_nm": 100}}, r"48\.1 nm"),
        ({"camera": {"driver": "replay"}}, "needs a path"),
        ({"specimen": {"path": "absent.png"}}, r"absent\.png"),
    ],
)
def test_what_cannot_be_simulated_is_refused(sections: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_camera(Config.model_validate(sections), pose_um=lambda: MIDDLE)


def exposed(**camera) -> np.ndarray:
    device = simulated(**camera)
    device.start(pool_for(device), exposure_s=0.005, triggered=False)
    slot = np.full(slot_shape(device.format, device.shape), 0xA5, DTYPE[device.format])
    device.expose(MIDDLE, slot)
    return slot


@pytest.mark.parametrize("bits", [10, 12])
def test_a_packed_frame_holds_the_counts_of_an_unpacked_one_bit_by_bit(bits: int) -> None:
    counts = exposed(pixel_format="mono16", bit_depth=bits)
    assert counts.max() > 1 << (bits - 2)
    np.testing.assert_array_equal(exposed(pixel_format=f"mono{bits}p"), packed(counts, bits))


@pytest.mark.parametrize("pattern", ["rg", "gr", "gb", "bg"])
def test_green_sites_of_a_mosaic_see_what_a_mono_camera_sees_and_the_others_less(pattern: str) -> None:
    mono, mosaic = exposed().astype(float), exposed(pixel_format=f"bayer_{pattern}8").astype(float)
    letters = {"rg": "rggb", "gr": "grbg", "gb": "gbrg", "bg": "bggr"}[pattern]
    for place, letter in enumerate(letters):
        site = np.s_[place // 2 :: 2, place % 2 :: 2]
        assert (mosaic[site].mean() / mono[site].mean()) == pytest.approx(FILTERS[letter], abs=0.03)
        if letter == "g":
            np.testing.assert_array_equal(mosaic[site], mono[site])


def test_a_colour_camera_has_its_colours_last() -> None:
    colours, mono = exposed(pixel_format="rgb8"), exposed()
    assert colours.shape == (*SHAPE, 3)
    for place, letter in enumerate("rgb"):
        assert colours[..., place].mean() / mono.mean() == pytest.approx(FILTERS[letter], abs=0.03)
    noise = colours.astype(float) - colours.mean((0, 1))
    assert np.abs(np.diff(noise, axis=2)).max() > 0  # each has its own
