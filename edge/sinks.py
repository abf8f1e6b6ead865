"""Where frames end: the live preview, the snapshot, and the recorder of raw and enhanced images."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from edge.errors import ConfigError, EdgeError
from edge.frames import Frame, Tile
from edge.meter import FlowMeter
from edge.ometiff import write_json, write_ome_tiff
from edge.scan import ScanPlan
from edge.status import Preview, StatusBoard
from edge.stitch import Mosaic, crop_square, place
from firmware_bridge.pzt import PositionUm

OUTSIDE_FIELD_GREY = 96
"""Level of the flat grey where nothing is enhanced, of 255."""

MAX_PREVIEW_SIDE_PX = 1024

_CHANNEL = {"raw": "raw", "enhanced": "enhanced by {model}, not raw data"}


class PreviewSink:
    """Encodes raw | enhanced side by side as one JPEG, at most ``fps`` a second; frames in between cost nothing.

    Outside ``field`` (a boolean map of the frame, None for everywhere) the enhanced half stays flat grey: beyond the
    sphere's usable field the network has nothing to go by.
    """

    def __init__(
        self,
        board: StatusBoard,
        meter: FlowMeter,
        *,
        bit_depth: int,
        fps: float,
        quality: int,
        field: NDArray[np.bool_] | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._board, self._meter, self._clock_ns = board, meter, clock_ns
        self._shift = max(0, bit_depth - 8)
        self._gain = 255 / ((1 << bit_depth) - 1) if bit_depth < 8 else None
        self._interval_ns = round(1e9 / fps)
        self._quality = quality
        self._field = field
        self._due_ns = 0
        self._counter = 0
        self._canvas: NDArray[np.uint8] | None = None
        self._step = 1

    def write(self, frame: Frame, tile: Tile) -> None:
        """Encode and publish, if the last picture is old enough."""
        now_ns = self._clock_ns()
        if now_ns < self._due_ns:
            return
        # The grid of due times is kept, so that 40 frames/s into 30 pictures/s gives 30 and not 20.
        self._due_ns = max(self._due_ns + self._interval_ns, now_ns - self._interval_ns)
        raw, enhanced = frame.pixels, tile.shown
        scale = enhanced.shape[0] // raw.shape[0]
        if self._canvas is None:
            self._step = -(-max(enhanced.shape) // MAX_PREVIEW_SIDE_PX)
            height, width = enhanced[:: self._step, :: self._step].shape
            self._canvas = np.full((height, 2 * width, 1), OUTSIDE_FIELD_GREY, np.uint8)
            if self._field is not None:
                self._field = self._field.repeat(scale, 0).repeat(scale, 1)[:: self._step, :: self._step]
        height, double_width, _ = self._canvas.shape
        width = double_width // 2
        if scale > 1:
            raw = raw.repeat(scale, 0).repeat(scale, 1)
        self._to_eight_bits(raw[:: self._step, :: self._step], self._canvas[:, :width, 0], True)
        inside = True if self._field is None else self._field
        self._to_eight_bits(enhanced[:: self._step, :: self._step], self._canvas[:, width:, 0], inside)
        jpeg = simplejpeg.encode_jpeg(self._canvas, quality=self._quality, colorspace="GRAY", fastdct=True)
        self._counter += 1
        self._meter.previewed((self._clock_ns() - frame.t_exposure_end_ns) / 1e9)
        self._board.publish_preview(Preview(jpeg, self._counter, frame.index, frame.t_exposure_end_ns, width, height))

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
    """Raw and enhanced of one frame, copied out of the loop."""

    raw: NDArray[Any]
    enhanced: NDArray[Any]
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
        EdgeError
            None passed in time.
        """
        with self._one_at_a_time:
            self._taken.clear()
            self._wanted.set()
            if not self._taken.wait(timeout_s) or self._shot is None:
                self._wanted.clear()
                raise EdgeError(
                    f"No frame came within {timeout_s:g} s, so there is nothing to save. Start the live view."
                )
            shot, self._shot = self._shot, None
            return shot

    def write(self, frame: Frame, tile: Tile) -> None:
        """Copy this frame if one is wanted."""
        if self._wanted.is_set():
            self._wanted.clear()
            self._shot = Shot(frame.pixels.copy(), tile.shown.copy(), frame.index, frame.position_um)
            self._taken.set()

    def skip(self, index: int, reason: str) -> None:
        """A missing frame cannot be saved."""

    def close(self) -> None:
        """Nothing is held."""


def field_disc(
    shape_px: tuple[int, ...], *, diameter_px: float, centre_px: tuple[float, float] | None = None
) -> NDArray[np.bool_]:
    """The sphere's usable field as a map of the frame: True inside the disc.

    Parameters
    ----------
    shape_px : (height, width). centre_px : (y, x); None is the middle of the frame.
    """
    height, width = shape_px
    y0, x0 = centre_px if centre_px is not None else ((height - 1) / 2, (width - 1) / 2)
    y, x = np.ogrid[:height, :width]
    disc: NDArray[np.bool_] = (y - y0) ** 2 + (x - x0) ** 2 <= (diameter_px / 2) ** 2
    return disc


class ScanRecorder:
    """Keeps a scan: raw and enhanced tiles as they come, ``scan.json``, and at the end one mosaic by stage positions.

    Every file on disk is whole. ``scan.json`` says ``"complete": false`` from the first moment until the last tile and
    the mosaic are there, so a scan that was cut off cannot look like a finished one.

    Parameters
    ----------
    folder
        Must not exist, or be empty.
    side_px
        Side of the square that is cropped from each frame around ``centre_px``.
    a_px_per_um
        ``stitch.camera_from_stage``.
    facts
        Provenance that goes into every file.

    Raises
    ------
    ConfigError
        The folder holds something, or cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        plan: ScanPlan,
        *,
        side_px: int,
        centre_px: tuple[float, float] | None,
        pixel_size_nm: float,
        a_px_per_um: NDArray[np.float64],
        facts: Mapping[str, Any],
    ) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise ConfigError(f"The folder {folder} is not empty. Give another --out; nothing is overwritten.")
            for kind in ("raw", "enhanced"):
                (folder / kind).mkdir()
        except OSError as exc:
            raise ConfigError(f"The folder {folder} cannot be made: {exc}. Give another --out.") from exc
        self.folder, self.plan = folder, plan
        self.mosaic_path: Path | None = None
        self.missing: dict[int, str] = {}
        self.tiles: list[dict[str, Any]] = []
        self._side_px, self._centre_px = side_px, centre_px
        self._pixel_size_nm, self._a = pixel_size_nm, a_px_per_um
        self._facts = dict(facts)
        self._positions_um: list[PositionUm] = []
        self._position_errors_um: list[float] = []
        self._closed = False
        self._write_index(complete=False)

    @property
    def rms_position_um(self) -> float | None:
        """Recorded against true position, root mean square; None on a real instrument, whose truth nobody knows."""
        if not self._position_errors_um:
            return None
        return float(np.sqrt(np.mean(np.square(self._position_errors_um))))

    @property
    def complete(self) -> bool:
        """Every tile of the plan is on the disk."""
        return len(self.tiles) == self.plan.tiles

    def write(self, frame: Frame, tile: Tile) -> None:
        """Save the tile's square, raw and enhanced."""
        if frame.position_um is None:
            raise EdgeError("A scan tile came without a stage position; it cannot be placed.")
        line, column = divmod(frame.index, self.plan.columns)
        name = f"tile_{line:03d}_{column:03d}.ome.tif"
        self._positions_um.append(frame.position_um)
        y_px, x_px = place([self.plan.centre_um, frame.position_um], self._a)[1]
        record = {
            "index": frame.index,
            "line": line,
            "column": column,
            "file": name,
            "position_um": frame.position_um,
            "t_exposure_end_ns": frame.t_exposure_end_ns,
        }
        if frame.true_position_um is not None:
            record["true_position_um"] = frame.true_position_um
            error_um = np.subtract(frame.position_um, frame.true_position_um)
            self._position_errors_um.append(float(np.linalg.norm(error_um)))
        for kind, image in (("raw", frame.pixels), ("enhanced", tile.shown)):
            write_ome_tiff(
                self.folder / kind / name,
                crop_square(image, side_px=self._side_px, centre_px=self._centre_px),
                channels=(_CHANNEL[kind].format(**self._facts),),
                pixel_size_nm=self._pixel_size_nm,
                facts={**self._facts, "kind": kind, **record},
                position_um=(x_px * self._pixel_size_nm / 1e3, y_px * self._pixel_size_nm / 1e3),
            )
        self.tiles.append(record)

    def skip(self, index: int, reason: str) -> None:
        """Tile ``index`` is missing, and ``scan.json`` will say why."""
        self.missing[index] = reason

    def close(self) -> None:
        """Blend what there is into ``mosaic.ome.tif`` and write the final ``scan.json``."""
        if self._closed:
            return
        self._closed = True
        taken = {record["index"] for record in self.tiles}
        for point in self.plan.points():
            if point.index not in taken:
                self.missing.setdefault(point.index, "the scan ended before this tile")
        if self.tiles:
            self._write_mosaic()
        self._write_index(complete=self.complete)

    def _write_mosaic(self) -> None:
        offsets_px = place(self._positions_um, self._a)
        shape = (self._side_px, self._side_px)
        channels = []
        for kind in ("raw", "enhanced"):
            tiles = [tifffile.imread(self.folder / kind / record["file"]) for record in self.tiles]
            mosaic = Mosaic(offsets_px, shape, tiles[0].dtype)
            for number, pixels in enumerate(tiles):
                mosaic.add(number, pixels)
            channels.append(mosaic.image())
        path = self.folder / "mosaic.ome.tif"
        write_ome_tiff(
            path,
            np.stack(channels),
            channels=tuple(_CHANNEL[kind].format(**self._facts) for kind in ("raw", "enhanced")),
            pixel_size_nm=self._pixel_size_nm,
            facts={**self._facts, "complete": self.complete, "placed_by": "stage positions"},
        )
        self.mosaic_path = path

    def _write_index(self, *, complete: bool) -> None:
        write_json(
            self.folder / "scan.json",
            {
                "complete": complete,
                "plan": self.plan.model_dump(mode="json"),
                "facts": self._facts,
                "pixel_size_nm": self._pixel_size_nm,
                "camera_from_stage_px_per_um": self._a.tolist(),
                "rms_position_um": self.rms_position_um,
                "tiles": self.tiles,
                "missing": self.missing,
                "mosaic": None if self.mosaic_path is None else self.mosaic_path.name,
            },
        )
