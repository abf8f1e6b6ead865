"""The seams of the appliance: what a camera, a trigger, a positioner, an engine and a sink must be able to do."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from edge.frames import Frame, FramePool, PixelFormat, Tile
from export.manifest import Manifest
from firmware_bridge.pzt import Box, PositionUm


class Camera(Protocol):
    """A source of frames that fills memory it is given.

    ``shape`` is (height, width) in px; ``bit_depth`` gives full scale, 2**bit_depth - 1 counts.
    ``frame_time_s`` is None where nothing paces the frames. ``microscope`` (in words) and ``distortion`` (as in
    ``[sphere] distortion``) are what a simulated camera knows of its own optics; None elsewhere. ``lossless``: the
    source waits for its reader (a replay).
    """

    name: str
    shape: tuple[int, ...]
    format: PixelFormat
    bit_depth: int
    shutter: Literal["global", "rolling"]
    pixel_size_nm: float | None
    frame_time_s: float | None
    microscope: str | None
    distortion: tuple[tuple[float, float], ...] | None
    simulated: bool
    lossless: bool

    def start(self, pool: FramePool, *, exposure_s: float, triggered: bool) -> None:
        """Begin to expose into slots of ``pool``; with ``triggered`` each frame waits for a pulse."""

    def next_frame(self, *, timeout_s: float) -> Frame:
        """The next frame, in a slot of the pool that the caller now owns.

        Raises
        ------
        CameraTimeoutError
            No frame in time.
        OverrunError
            The camera lost a frame although it promised not to.
        """

    def stop(self) -> None:
        """End exposing, from any thread; a :meth:`next_frame` that waits ends with a CameraTimeoutError."""

    def close(self) -> None:
        """Release the camera. May be called twice."""


class Trigger(Protocol):
    """One line to the camera's hardware trigger."""

    def fire(self) -> None:
        """One pulse, acknowledged: it has been sent when this returns."""

    def close(self) -> None:
        """Release the line. May be called twice."""


class Positioner(Protocol):
    """Something that holds the sample and is at rest when a call returns."""

    limits_um: Box

    def position_um(self) -> PositionUm:
        """The measured position."""

    def move_to(
        self, target_um: PositionUm, *, timeout_s: float = ..., unless: threading.Event | None = None
    ) -> PositionUm:
        """Go there and settle; the measured position. Refuses what it cannot reach, never clips.

        ``unless`` ends a series of moves: once it is set, none of them begins.
        """

    def park(self) -> None:
        """Retract z first, then rest."""

    def stop(self) -> None:
        """Halt and hold, from any thread, ahead of everything queued."""

    def close(self) -> None:
        """Release the port. May be called twice."""


class Engine(Protocol):
    """A loaded model that was prepared for one camera's shape, format and bit depth."""

    manifest: Manifest
    backend: str
    precision: str
    copies_per_frame: int
    passes_per_frame: int

    def allocate(self, slots: int) -> FramePool:
        """Memory that :meth:`infer` reads without a copy."""

    def infer(self, pixels: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """All outputs by name, in the order of the manifest; valid until the next call.

        ``pixels`` is a slot of :meth:`allocate`. Outputs are (height, width), or (height, width, 3) where the manifest
        says three channels, ``manifest.scale`` times the frame's sides, contiguous, of the camera's dtype and full
        scale.
        """

    def close(self) -> None:
        """Release the memory. May be called twice."""


class FrameSink(Protocol):
    """Where frames and tiles end: a mosaic, a recorder, the preview."""

    def write(self, frame: Frame, tile: Tile) -> None:
        """Take what is needed; copy what is kept."""

    def skip(self, index: int, reason: str) -> None:
        """Frame ``index`` is missing. A gap is data."""

    def close(self) -> None:
        """Finish and release. May be called twice."""
