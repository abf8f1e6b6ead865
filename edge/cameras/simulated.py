"""The simulated camera: looks through `models.optics` at a specimen that lies at the simulated stage's pose.

One instrument with the simulated stage: when the stage moves by s um a feature moves by ``A @ s`` px, and in triggered
mode an exposure happens when the controller pulses, at the pose of that moment. The specimen is blurred once; a frame
is a bilinear look-up at the pose through the sphere's distortion, its field light, and noise from a bank that repeats.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from edge.cameras.microscope import (
    OBJECTIVE_LAMP,
    SIDE_UM,
    SPHERE_LAMP,
    PlainObjective,
    draw_specimen,
    microscope,
    optics_of,
)
from edge.config import Config
from edge.errors import CameraError, CameraTimeoutError, ConfigError
from edge.frames import LAYOUTS, Frame, FramePool, PixelFormat, pack
from firmware_bridge.pzt import PositionUm
from models.errors import ModelsError
from models.optics import Optics, Sensor, blur

Image = NDArray[np.float32]

DEFAULT_FPS = 40.0
NOMINAL_EXPOSURE_S = 0.005
DISTORTION_RADII_UM = tuple(map(float, range(17)))
"""Where :attr:`SimulatedCamera.distortion` samples the traced curve."""
STILL_UM = 2e-4
"""A pose that differs by less than this (0.2 nm, 0.004 px) shows the same picture."""
NOISE_BANK_EXTRA = 1 << 16
FILTERS = {"r": 0.7, "g": 1.0, "b": 0.5}
"""Share of the light that a colour camera's filters pass, the specimen being grey."""
_BLUR_STRIP_PX = 256


def open_simulated(config: Config, pose_um: Callable[[], PositionUm] | None) -> SimulatedCamera:
    """Render the specimen, blur it, and open the camera over it.

    Raises
    ------
    ConfigError
        The optics are unphysical, the specimen cannot be read, or the stage is a real one.
    """
    if pose_um is None:
        raise ConfigError(
            'The simulated camera looks at the simulated stage, but [stage] port is a real one. Set port = "sim:e727".'
        )
    try:
        optics = optics_of(config.optics)
        return SimulatedCamera(config, optics, draw_specimen(config, optics), pose_um)
    except ModelsError as exc:
        raise ConfigError(f"The simulated camera cannot be built: {exc}") from exc


class SimulatedCamera:
    """Frames of a specimen at the stage's pose, free-running or on a trigger.

    Parameters
    ----------
    draw_specimen
        Gives a (height, width) reflectivity 0..1 on the camera's pixel grid, in stage axes; its middle lies under the
        sphere when the stage stands in the middle of its travel. Beyond its edges lies its median, an empty background.
        Called in a thread at once and waited for by :meth:`start`, so that the network is compiled meanwhile.
    pose_um
        The true pose of the simulated stage.
    """

    name = "simulated sCMOS"
    shutter: Literal["global", "rolling"] = "global"
    simulated = True
    lossless = False

    def __init__(
        self,
        config: Config,
        optics: Optics,
        draw_specimen: Callable[[], Image],
        pose_um: Callable[[], PositionUm],
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.shape: tuple[int, ...] = config.camera.shape_px
        self.format = config.camera.pixel_format
        self._layout = LAYOUTS[self.format]
        self.bit_depth = config.camera.bit_depth or self._layout.depth
        self.pixel_size_nm: float | None = optics.pixel_size_nm
        if config.camera.pixel_size_nm not in (None, optics.pixel_size_nm):
            raise ConfigError(
                f"The simulated camera's pixel is {optics.pixel_size_nm:.1f} nm, given by its optics; "
                f"{config.camera.pixel_size_nm:g} nm was asked for. Leave pixel_size_nm out, or change [optics]."
            )
        self.fps = config.camera.fps or DEFAULT_FPS
        self.frame_time_s: float | None = 1 / self.fps
        self.microscope: str | None = microscope(optics)
        self.distortion: tuple[tuple[float, float], ...] | None = tuple(
            (radius_um, float(optics.distortion(radius_um))) for radius_um in DISTORTION_RADII_UM
        )
        self._lamp = SPHERE_LAMP
        if isinstance(optics, PlainObjective):
            self.distortion, self._lamp = None, OBJECTIVE_LAMP
        self._full = (1 << self.bit_depth) - 1
        self._stopped = threading.Event()
        self._stopped.set()
        self._pose_um, self._clock_ns, self._sleep = pose_um, clock_ns, sleep or self._stopped.wait
        self._sensor = Sensor()
        shape_px = config.camera.shape_px
        self._light = optics.field_light(shape_px, centre_px=config.sphere.centre_px)
        drawing = ThreadPoolExecutor(1, thread_name_prefix="specimen")
        self._drawn = drawing.submit(_blurred, draw_specimen, optics.psf())
        drawing.shutdown(wait=False)
        self._look_up = _look_up_map(optics, shape_px, config)
        rng = np.random.default_rng(config.specimen.seed)
        self._filters = _filters(self.format, shape_px)
        sites = np.broadcast_shapes(shape_px, self._filters.shape[:2]) + self._filters.shape[2:]
        self._noise = rng.standard_normal(math.prod(sites) + NOISE_BANK_EXTRA, dtype=np.float32)
        self._rng = rng
        self._triggered = False
        self._pulses: queue.SimpleQueue[tuple[int, PositionUm] | None] = queue.SimpleQueue()
        self._scratch = np.empty(sites, np.float32)
        self._still: tuple[PositionUm, Image, Image] | None = None

    def hear(self, index: int, t_ns: int, pose_um: PositionUm) -> None:
        """One pulse of the controller's trigger output; expose there and then. Called from the stage's thread."""
        del index  # the camera counts its own exposures
        if self._triggered:
            self._pulses.put((t_ns, pose_um))

    def start(self, pool: FramePool, *, exposure_s: float, triggered: bool) -> None:
        """Begin exposing; pulses and frames from before are forgotten."""
        self._specimen, self._border = self._drawn.result()
        self._pool, self._triggered = pool, triggered
        while not self._pulses.empty():
            self._pulses.get_nowait()
        self._exposure_s = exposure_s
        self._still = None
        self._index = 0
        self._due_ns = self._clock_ns() + round(exposure_s * 1e9)
        self._stopped.clear()

    def next_frame(self, *, timeout_s: float) -> Frame:
        """The frame whose exposure ends next. A free-running camera that was not read in time skips, and counts on."""
        if self._stopped.is_set():
            raise CameraError("The simulated camera is not started.")
        if self._triggered:
            index, t_exposure_end_ns, pose_um = self._next_pulse(timeout_s)
        else:
            index, t_exposure_end_ns = self._next_tick()
            pose_um = self._pose_um()
        slot = self._pool.acquire(timeout_s=timeout_s)
        try:
            self.expose(pose_um, slot)
        except BaseException:
            self._pool.release(slot)
            raise
        return Frame(slot, index, t_exposure_end_ns, true_position_um=pose_um)

    def stop(self) -> None:
        """End exposing; a wait for the next frame, in another thread, ends with a CameraTimeoutError."""
        self._stopped.set()
        self._triggered = False
        self._pulses.put(None)

    def close(self) -> None:
        """Nothing to release."""
        self.stop()

    def _next_pulse(self, timeout_s: float) -> tuple[int, int, PositionUm]:
        try:
            pulse = self._pulses.get(timeout=timeout_s)
        except queue.Empty:
            raise CameraTimeoutError(
                f"No trigger pulse came within {timeout_s:g} s. Check the line between the trigger and the camera."
            ) from None
        if pulse is None:
            raise CameraTimeoutError("The simulated camera was stopped.")
        t_ns, pose_um = pulse
        index = self._index
        self._index += 1
        return index, t_ns + round(self._exposure_s * 1e9), pose_um

    def _next_tick(self) -> tuple[int, int]:
        interval_ns = round(1e9 / self.fps)
        late = max(0, (self._clock_ns() - self._due_ns) // interval_ns)
        self._index += late  # nobody read these: the sensor has overwritten them
        due_ns = self._due_ns + late * interval_ns
        index = self._index
        self._index += 1
        self._due_ns = due_ns + interval_ns
        self._sleep(max(0, due_ns - self._clock_ns()) / 1e9)
        if self._stopped.is_set():
            raise CameraTimeoutError("The simulated camera was stopped.")
        return index, due_ns

    def expose(self, pose_um: PositionUm, slot: NDArray[Any]) -> None:
        """Write one noisy exposure into the slot, as the sensor's read-out would."""
        mean, sigma = self._counts(pose_um)
        start = int(self._rng.integers(NOISE_BANK_EXTRA))
        noise = self._noise[start : start + mean.size].reshape(mean.shape)
        np.multiply(noise, sigma, out=self._scratch)
        np.add(self._scratch, mean, out=self._scratch)
        # A sensor saturates: this limit is its physics, not a correction.
        np.clip(self._scratch, 0, self._full, out=self._scratch)
        if self._layout.packed:
            pack(self._scratch.astype(np.uint16), self._layout, slot)
        else:
            np.copyto(slot, self._scratch, casting="unsafe")

    def _counts(self, pose_um: PositionUm) -> tuple[Image, Image]:
        """Mean and standard deviation of the counts at a pose; kept while the stage stands still."""
        if self._still is not None and max(abs(a - b) for a, b in zip(self._still[0], pose_um, strict=True)) < STILL_UM:
            return self._still[1], self._still[2]
        irradiance = self._light * (np.float32(1 - self._lamp.veil) * self._seen(pose_um) + np.float32(self._lamp.veil))
        if self._filters.ndim == 3:
            irradiance = irradiance[..., np.newaxis]
        electrons = irradiance * self._filters * np.float32(self._electrons_at_one())
        counts_per_electron = self._lamp.level * self._full / self._electrons_at_one(NOMINAL_EXPOSURE_S)
        mean = electrons * np.float32(counts_per_electron) + np.float32(0.5)
        sigma = np.sqrt(electrons + np.float32(self._sensor.read_noise_e**2)) * np.float32(counts_per_electron)
        self._still = (pose_um, mean, sigma)
        return mean, sigma

    def _electrons_at_one(self, exposure_s: float | None = None) -> float:
        photons = self._lamp.photons * (exposure_s or self._exposure_s) / NOMINAL_EXPOSURE_S
        return photons * self._sensor.quantum_efficiency

    def _seen(self, pose_um: PositionUm) -> Image:
        """The blurred specimen under each pixel, bilinear.

        A feature at f (um, stage axes) appears at ``A @ (f + p)``; the pixel therefore sees ``inv(A) @ px - p``.
        """
        pixel_um = cast("float", self.pixel_size_nm) / 1e3
        middle_um = SIDE_UM / 2
        height, width = self._specimen.shape
        y = self._look_up[0] + np.float32((height - 1) / 2 - (pose_um.y - middle_um) / pixel_um)
        x = self._look_up[1] + np.float32((width - 1) / 2 - (pose_um.x - middle_um) / pixel_um)
        y0, x0 = np.floor(y), np.floor(x)
        fy, fx = y - y0, x - x0
        outside = (y0 < 0) | (x0 < 0) | (y0 > height - 2) | (x0 > width - 2)
        start = np.clip(y0, 0, height - 2).astype(np.int32) * width + np.clip(x0, 0, width - 2).astype(np.int32)
        flat = self._specimen.ravel()
        top = flat[start] * (1 - fx) + flat[start + 1] * fx
        bottom = flat[start + width] * (1 - fx) + flat[start + width + 1] * fx
        seen = top * (1 - fy) + bottom * fy
        seen[outside] = self._border
        return cast("Image", seen)


def _filters(pixel_format: PixelFormat, shape_px: tuple[int, int]) -> Image:
    """`FILTERS` at each site, (height, width), or in each of the colours, (1, 1, 3); without filters (1, 1)."""
    if pixel_format == "rgb8":
        return np.array([[[FILTERS[colour] for colour in "rgb"]]], np.float32)
    if not pixel_format.startswith("bayer"):
        return np.ones((1, 1), np.float32)
    # The name is the first row's; the second has what the first has not, green below the other colour.
    above = pixel_format[len("bayer_") : -1]
    below = {"rg": "gb", "gr": "bg", "gb": "rg", "bg": "gr"}[above]
    tile = np.array([[FILTERS[colour] for colour in row] for row in (above, below)], np.float32)
    height, width = shape_px
    return np.tile(tile, (-(-height // 2), -(-width // 2)))[:height, :width]


def _look_up_map(optics: Optics, shape_px: tuple[int, int], config: Config) -> Image:
    """(2, height, width): offset (y, x), in specimen pixels, that each pixel sees, for a stage in mid-travel."""
    height, width = shape_px
    centre_y, centre_x = config.sphere.centre_px or ((height - 1) / 2, (width - 1) / 2)
    undistorted = optics.distortion_map(shape_px, centre_px=config.sphere.centre_px)
    offset_yx = undistorted - np.array([centre_y, centre_x], np.float32)[:, None, None]
    if config.sphere.camera_from_stage_px_per_um is None:
        return np.asarray(offset_yx, np.float32)
    to_stage_px = np.linalg.inv(np.array(config.sphere.camera_from_stage_px_per_um)) * 1e3 / optics.pixel_size_nm
    x, y = np.tensordot(to_stage_px, offset_yx[::-1], axes=1)
    return np.stack([y, x]).astype(np.float32)


def _blurred(draw_specimen: Callable[[], Image], kernel: Image) -> tuple[Image, np.float32]:
    """The blurred specimen, and its median.

    It is blurred in place, strip by strip: a second copy and the FFT of the whole would be the largest things in the
    memory of the process.
    """
    specimen = draw_specimen()
    median = np.float32(np.median(specimen[::4, ::4]))
    half = kernel.shape[0] // 2
    height = specimen.shape[0]
    sharp_above = specimen[:0]  # the rows above the strip as they were before the strip before was blurred
    for top in range(0, height, _BLUR_STRIP_PX):
        bottom = min(height, top + _BLUR_STRIP_PX)
        strip = np.concatenate([sharp_above, specimen[top : min(height, bottom + half)]])
        above = len(sharp_above)
        sharp_above = strip[above + bottom - top - half : above + bottom - top].copy()
        specimen[top:bottom] = blur(strip, kernel)[above : above + bottom - top]
    return specimen, median
