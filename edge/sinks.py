"""Where live frames end: the preview that viewers see, and the snapshot somebody asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from edge.errors import BusyError, EdgeError
from edge.frames import Frame, Tile
from edge.meter import FlowMeter
from edge.status import Preview, StatusBoard
from firmware_bridge.pzt import PositionUm

OUTSIDE_FIELD_GREY = 46
"""Level of the flat grey where nothing is enhanced, of 255."""

MAX_PREVIEW_SIDE_PX = 1024


@dataclass(frozen=True, slots=True)
class _Canvas:
    """Where one picture is put together, for outputs of one shape."""

    pixels: NDArray[np.uint8]  # (height, 2 x width, 1 or 3)
    step: int  # every so many pixels of the output are shown
    inside: NDArray[np.bool_] | bool  # where the right half is drawn, (height, width, 1)


class PreviewSink:
    """Encodes raw | enhanced side by side as one JPEG, at most ``fps`` a second; frames in between cost nothing.

    Parameters
    ----------
    show
        Asked for each picture: which output of the model stands on the right. In colour, so is the JPEG.
    field
        A boolean map of the frame, None for everywhere. Outside it the enhanced half stays flat grey: beyond the
        sphere's usable field the network has nothing to go by.
    picture
        A slot to counts (height, width), see `edge.engine.prepare.Counts.picture`.
    """

    def __init__(
        self,
        board: StatusBoard,
        meter: FlowMeter,
        *,
        show: Callable[[], str],
        bit_depth: int,
        fps: float,
        quality: int,
        field: NDArray[np.bool_] | None = None,
        picture: Callable[[NDArray[Any]], NDArray[Any]] = lambda pixels: pixels,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._board, self._meter, self._show, self._clock_ns = board, meter, show, clock_ns
        self._shift = max(0, bit_depth - 8)
        self._gain = 255 / ((1 << bit_depth) - 1) if bit_depth < 8 else None
        self._interval_ns = round(1e9 / fps)
        self._quality = quality
        self._field, self._picture = field, picture
        self._due_ns = 0
        self._counter = board.preview_counter
        self._canvases: dict[tuple[int, ...], _Canvas] = {}

    def write(self, frame: Frame, tile: Tile) -> None:
        """Encode and publish, if the last picture is old enough."""
        now_ns = self._clock_ns()
        if now_ns < self._due_ns:
            return
        # The grid of due times is kept, so that 40 frames/s into 30 pictures/s gives 30 and not 20.
        self._due_ns = max(self._due_ns + self._interval_ns, now_ns - self._interval_ns)
        output = self._show()
        raw, enhanced = self._picture(frame.pixels), np.atleast_3d(tile.outputs[output])
        scale = enhanced.shape[0] // raw.shape[0]
        canvas = self._canvases.get(enhanced.shape) or self._new_canvas(enhanced.shape, scale)
        width, channels = canvas.pixels.shape[1] // 2, canvas.pixels.shape[2]
        self._to_eight_bits(_thinned(raw, scale, canvas.step), canvas.pixels[:, :width], True)
        self._to_eight_bits(enhanced[:: canvas.step, :: canvas.step], canvas.pixels[:, width:], canvas.inside)
        colours = "GRAY" if channels == 1 else "RGB"
        jpeg = simplejpeg.encode_jpeg(canvas.pixels, quality=self._quality, colorspace=colours, fastdct=True)
        self._counter += 1
        self._meter.previewed((self._clock_ns() - frame.t_exposure_end_ns) / 1e9)
        self._board.publish_preview(Preview(jpeg, self._counter, frame.index, frame.t_exposure_end_ns, output))

    def _new_canvas(self, shape: tuple[int, ...], scale: int) -> _Canvas:
        step = -(-max(shape) // MAX_PREVIEW_SIDE_PX)
        height, width = -(-shape[0] // step), -(-shape[1] // step)
        pixels = np.full((height, 2 * width, shape[2]), OUTSIDE_FIELD_GREY, np.uint8)
        inside = True if self._field is None else _thinned(self._field, scale, step)
        self._canvases[shape] = _Canvas(pixels, step, inside)
        return self._canvases[shape]

    def _to_eight_bits(self, counts: NDArray[Any], out: NDArray[np.uint8], where: NDArray[np.bool_] | bool) -> None:
        if self._gain is not None:
            np.multiply(counts, self._gain, out=out, where=where, casting="unsafe")
        elif self._shift:
            np.right_shift(counts, self._shift, out=out, where=where, casting="unsafe")
        else:
            np.copyto(out, counts, where=where)

    def skip(self, index: int, reason: str) -> None:
        """A missing frame has no picture."""

    def close(self) -> None:
        """The last picture stays on the board; the page greys it by its age."""


@dataclass(frozen=True, slots=True)
class Shot:
    """A slot as the camera left it and all outputs of one frame, copied out of the loop."""

    raw: NDArray[Any]
    outputs: Mapping[str, NDArray[Any]]
    index: int
    position_um: PositionUm | None


class SnapshotSink:
    """Hands the next frame to whoever asks, from another thread. Costs nothing while nobody asks."""

    def __init__(self) -> None:
        self._wanted = threading.Event()
        self._shot: Shot | None = None
        self._taken = threading.Event()
        self._one_at_a_time = threading.Lock()

    def take(self, *, timeout_s: float) -> Shot:
        """The next frame that passes through the loop.

        Raises
        ------
        BusyError
            Another snapshot is being taken; nobody queues for one.
        EdgeError
            None passed in time.
        """
        if not self._one_at_a_time.acquire(blocking=False):
            raise BusyError("A snapshot is being taken already. Wait a moment.")
        try:
            self._taken.clear()
            self._wanted.set()
            if not self._taken.wait(timeout_s) or self._shot is None:
                self._wanted.clear()
                raise EdgeError(
                    f"No frame came within {timeout_s:g} s, so there is nothing to save. Start the live view."
                )
            shot, self._shot = self._shot, None
            return shot
        finally:
            self._one_at_a_time.release()

    def write(self, frame: Frame, tile: Tile) -> None:
        """Copy this frame if one is wanted."""
        if self._wanted.is_set():
            self._wanted.clear()
            outputs = {name: pixels.copy() for name, pixels in tile.outputs.items()}
            self._shot = Shot(frame.pixels.copy(), outputs, frame.index, frame.position_um)
            self._taken.set()

    def skip(self, index: int, reason: str) -> None:
        """A missing frame cannot be saved."""

    def close(self) -> None:
        """Nothing is held."""


def _thinned(image: NDArray[Any], scale: int, step: int) -> NDArray[Any]:
    """Every ``step``-th pixel of the image made ``scale`` times larger by repetition, (height, width, 1)."""
    if scale == 1:
        return image[::step, ::step, np.newaxis]
    y, x = (np.arange(0, side * scale, step) // scale for side in image.shape)
    return image[y[:, np.newaxis], x, np.newaxis]


def field_disc(
    shape_px: tuple[int, ...], *, diameter_px: float, centre_px: tuple[float, float] | None = None
) -> NDArray[np.bool_]:
    """The sphere's usable field as a map of the frame: True inside the disc.

    Parameters
    ----------
    shape_px
        (height, width) of the frame.
    diameter_px
        Of the disc, in pixels of the frame; what of it lies outside the frame is cut off.
    centre_px
        (y, x), counted from the middle of the first pixel; None is the middle of the frame.

    Returns
    -------
    A map of ``shape_px``.
    """
    height, width = shape_px
    y0, x0 = centre_px if centre_px is not None else ((height - 1) / 2, (width - 1) / 2)
    y, x = np.ogrid[:height, :width]
    disc: NDArray[np.bool_] = (y - y0) ** 2 + (x - x0) ** 2 <= (diameter_px / 2) ** 2
    return disc
