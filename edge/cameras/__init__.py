"""Cameras: one file a driver, one dict that names them."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from edge.config import Config
from edge.devices import Camera
from firmware_bridge.pzt import PositionUm

DRIVERS: dict[str, str] = {
    "simulated": "edge.cameras.simulated:open_simulated",
    "replay": "edge.cameras.replay:open_replay",
}
"""``open(config, pose_um)`` of each driver, imported when it is asked for."""


def open_camera(config: Config, *, pose_um: Callable[[], PositionUm] | None) -> Camera:
    """Open the camera the configuration names.

    Parameters
    ----------
    pose_um
        The true pose of the simulated stage, which only a simulated camera looks at; None on a real stage.

    Raises
    ------
    ConfigError
        The source does not exist, cannot be read, or does not fit the other settings.
    CameraError
        The camera is there but does not answer.
    """
    module, name = DRIVERS[config.camera.driver].split(":")
    camera: Camera = getattr(importlib.import_module(module), name)(config, pose_um)
    return camera
