"""The scan's recorder: raw and enhanced tiles as they come, an index, and one mosaic at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from edge.errors import ConfigError, EdgeError
from edge.frames import Frame, Tile
from edge.ometiff import Picture, write_json, write_ome_tiff, write_ome_tiffs
from edge.scan import ScanPlan
from edge.stitch import Mosaic, crop_square, place
from firmware_bridge.pzt import PositionUm

_ANOTHER = "Give another one: --out on the command line, [box] data_dir for the scans of the page."


def check_folder(folder: Path) -> None:
    """Refuse (ConfigError) a folder that holds something, or is none; one that is not there yet is in order."""
    try:
        used = folder.exists() and any(folder.iterdir())
    except OSError as exc:
        raise ConfigError(f"The folder {folder} cannot be used: {exc}. {_ANOTHER}") from exc
    if used:
        raise ConfigError(f"The folder {folder} is not empty, and nothing is overwritten. {_ANOTHER}")


def existing(folder: Path) -> Path:
    """The folder, or what is there of the way to it."""
    return next(place for place in (folder, *folder.parents, Path()) if os.path.exists(place))


def check_room(folder: Path, plan: ScanPlan, *, side_px: int, bytes_per_px: float) -> None:
    """Refuse (ConfigError) a scan whose tiles and mosaic do not fit on the folder's disk.

    ``bytes_per_px`` is raw and enhanced together, per pixel of the camera.
    """
    lines_px, columns_px = (side_px * (1 + (count - 1) * (1 - plan.overlap)) for count in (plan.lines, plan.columns))
    needed = bytes_per_px * (plan.tiles * side_px**2 + lines_px * columns_px)
    free = shutil.disk_usage(existing(folder)).free
    if needed > free:
        raise ConfigError(
            f"The {plan.tiles} tiles and their mosaic take {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free at "
            f"{folder}. Free some space, or choose a smaller region or another disk. Nothing was moved."
        )


class ScanRecorder:
    """Keeps a scan: raw and enhanced tiles as they come, ``scan.json``, and at the end one mosaic by stage positions.

    Every file on disk is whole. ``scan.json`` says ``"complete": false`` from the first moment until the last tile and
    the mosaic are there, so a scan that was cut off cannot look like a finished one.

    The mosaic is one image of two channels. Where the enhanced one is in colour, or finer than the raw one, the file
    holds two images instead, raw first, each on its own grid.

    Parameters
    ----------
    folder
        Must not exist, or be empty.
    side_px
        Side of the square that is cropped from each frame around ``centre_px``, in pixels of the camera.
    output, words
        Which output of the model is kept, and what its channel is called.
    scale
        Pixels of the output per pixel of the camera, along a side.
    distortion
        Taken out of the mosaic, as in ``[sphere] distortion``; the tiles on the disk stay as they were seen.
    a_px_per_um
        ``stitch.camera_from_stage``.
    picture
        A slot to counts (height, width), see `edge.engine.prepare.Counts.picture`.
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
        output: str,
        words: str,
        scale: int = 1,
        distortion: tuple[tuple[float, float], ...] | None = None,
        picture: Callable[[NDArray[Any]], NDArray[Any]] = lambda pixels: pixels,
        facts: Mapping[str, Any],
    ) -> None:
        check_folder(folder)
        try:
            for kind in ("raw", "enhanced"):
                (folder / kind).mkdir(parents=True)
        except OSError as exc:
            raise ConfigError(f"The folder {folder} cannot be made: {exc}. {_ANOTHER}") from exc
        self.folder, self.plan = folder, plan
        self.mosaic_path: Path | None = None
        self.missing: dict[int, str] = {}
        self.tiles: list[dict[str, Any]] = []
        self._side_px, self._centre_px = side_px, centre_px
        self._pixel_size_nm, self._a = pixel_size_nm, a_px_per_um
        self._distortion, self._picture = distortion, picture
        self._output = output
        self._words = {"raw": "raw", "enhanced": words}
        self._scale = {"raw": 1, "enhanced": scale}
        self._facts = {**facts, "output": output}
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
        y_px, x_px = place([self.plan.centre_um, frame.position_um], self._a)[1]
        record: dict[str, Any] = {
            "index": frame.index,
            "line": line,
            "column": column,
            "file": name,
            "position_um": frame.position_um,
            "t_exposure_end_ns": frame.t_exposure_end_ns,
        }
        if frame.true_position_um is not None:
            record["true_position_um"] = frame.true_position_um
        try:
            for kind, image in (("raw", self._picture(frame.pixels)), ("enhanced", tile.outputs[self._output])):
                scale = self._scale[kind]
                write_ome_tiff(
                    self.folder / kind / name,
                    crop_square(image, side_px=self._side_px, centre_px=self._centre_px, scale=scale),
                    channels=(self._words[kind],),
                    pixel_size_nm=self._pixel_size_nm / scale,
                    facts={**self._facts, "kind": kind, **record},
                    position_um=(x_px * self._pixel_size_nm / 1e3, y_px * self._pixel_size_nm / 1e3),
                )
        except EdgeError:
            (self.folder / "raw" / name).unlink(missing_ok=True)  # a tile is both or neither
            raise
        self.tiles.append(record)
        self._positions_um.append(frame.position_um)
        if frame.true_position_um is not None:
            error_um = np.subtract(frame.position_um, frame.true_position_um)
            self._position_errors_um.append(float(np.linalg.norm(error_um)))

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
        self._write_index(complete=False)  # what was taken is on record, whatever becomes of the mosaic
        if self.tiles:
            self._write_mosaic()
        self._write_index(complete=self.complete)

    def _write_mosaic(self) -> None:
        raw, enhanced = (self._blended(kind) for kind in ("raw", "enhanced"))
        pictures = [raw, enhanced]
        if raw.pixels.shape == enhanced.pixels.shape:
            both = np.stack([raw.pixels, enhanced.pixels])
            pictures = [Picture(both, raw.channels + enhanced.channels, self._pixel_size_nm)]
        path = self.folder / "mosaic.ome.tif"
        write_ome_tiffs(
            path,
            pictures,
            facts={
                **self._facts,
                "complete": self.complete,
                "placed_by": "stage positions",
                "distortion": "taken out" if self._distortion is not None else "not corrected",
            },
        )
        self.mosaic_path = path

    def _blended(self, kind: str) -> Picture:
        """All tiles of a kind in one image, on their own grid."""
        scale = self._scale[kind]
        offsets_px = place(self._positions_um, self._a * scale)
        correct = self._correction(scale)
        mosaic: Mosaic | None = None
        for number, record in enumerate(self.tiles):
            pixels = correct(tifffile.imread(self.folder / kind / record["file"]))
            mosaic = mosaic or Mosaic(offsets_px, pixels.shape, pixels.dtype)
            mosaic.add(number, pixels)
        if mosaic is None:
            raise EdgeError("There is no tile to make a mosaic of.")
        return Picture(mosaic.image(), (self._words[kind],), self._pixel_size_nm / scale)

    def _correction(self, scale: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
        """What is done to each tile before it is blended."""
        if self._distortion is None:
            return lambda pixels: pixels
        from edge.correct import Undistortion  # scipy's filters, which a live view never needs

        side_px, pixel_size_nm = self._side_px * scale, self._pixel_size_nm / scale
        return Undistortion(self._distortion, side_px=side_px, pixel_size_nm=pixel_size_nm).apply

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
