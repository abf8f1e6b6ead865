"""The instrument: stage, trigger, camera and engine, opened together and closed together, from one configuration."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import __version__
from edge.cameras import open_camera
from edge.cameras.microscope import fitted
from edge.config import Config
from edge.devices import Camera, Engine, Trigger
from edge.engine import check_pixel_size, find_bundle, manifest_of
from edge.engine.builder import BuildJob, Progress
from edge.engine.choice import Choice
from edge.engine.measure import check_int8
from edge.engine.prepare import Counts, raw_words
from edge.engine.tiling import load_for_camera
from edge.errors import ConfigError
from edge.frames import FramePool
from edge.making import Made, Making, next_frames, open_engine
from edge.motion import Motion, open_motion
from edge.pipeline import SLOTS
from edge.sinks import field_disc
from export.manifest import Bundle, Manifest
from firmware_bridge.pzt import PositionUm, PztStage
from firmware_bridge.trigger import SimulatedTriggerLine, open_trigger


@dataclass(slots=True)
class Instrument:
    """Everything a job needs. ``motion``, ``stage`` and ``trigger`` are None where frames are replayed.

    ``config`` is the one it was opened with, the simulated microscope fitted to the model. ``simulated`` names the
    simulated parts; ``field`` is the sphere's disc in the frame, None when the pixel size is unknown or no field is
    marked. ``shown`` is the model's output that is on view, and changes by :meth:`show`. ``choice`` says why a TensorRT
    engine, or the one in its place, is the one; ``making`` makes the one that is to take over, by :meth:`adopt`.
    ``broken``: its engine failed and nothing stands in for it.
    """

    config: Config
    camera: Camera
    engine: Engine
    pool: FramePool
    motion: Motion | None
    trigger: Trigger | None
    simulated: tuple[str, ...]
    field: NDArray[np.bool_] | None
    shown: str
    choice: Choice | None
    making: Making | None
    _closing: ExitStack
    broken: bool = False

    def show(self, output: str) -> None:
        """Put another output of the model on view, from the next picture on. From any thread.

        Raises
        ------
        ConfigError
            The model has no such output.
        """
        self.shown = _output(self.engine.manifest, output)

    def adopt(self, made: Made) -> None:
        """Run another engine of the same model from now on, and close the one before. Only while no job runs."""
        before, self.making = self.engine, None
        self.engine, self.pool, self.choice = made
        self.broken = False
        before.close()

    @property
    def stage(self) -> PztStage | None:
        """The stage, which asks the interlock of ``motion`` before it moves."""
        return None if self.motion is None else self.motion.stage

    @property
    def counts(self) -> Counts:
        """What the frame slots hold."""
        return Counts.of(self.camera)

    @property
    def pixel_size_nm(self) -> float | None:
        """Pixel on the specimen, as the camera says; None is unknown."""
        return self.camera.pixel_size_nm

    def facts(self) -> dict[str, Any]:
        """What every file made with this instrument says about its origin."""
        return {
            "simulated": list(self.simulated) or False,
            "camera": self.camera.name,
            "microscope": self.camera.microscope or "unknown",
            "bit_depth": self.camera.bit_depth,
            "pixel_format": self.camera.format,
            "raw_is": raw_words(self.camera.format),
            "stage": None if self.stage is None else self.stage.identity,
            "model": self.engine.manifest.name,
            "model_sha256": self.engine.manifest.sha256,
            "trained_on": self.engine.manifest.training_data,
            "backend": self.engine.backend,
            "precision": self.engine.precision,
            "model_precision": self.engine.manifest.precision,
            "pixel_size_nm": self.pixel_size_nm if self.pixel_size_nm is not None else "unknown",
            "software": f"superlens {__version__}",
        }

    def close(self) -> None:
        """Close all parts, the engine last: its memory holds the frames. The stage stays, unless it is in contact."""
        try:
            self._closing.close()
        finally:
            self.engine.close()


def check(config: Config) -> None:
    """Refuse what cannot become an instrument, before any of it is opened.

    Raises
    ------
    ConfigError
        A file is not there, the model has no such precision or output, or a part has no driver yet.
    """
    manifest = _manifest(config)[1]
    _output(manifest, config.engine.show or manifest.output_names[0])
    replayed = config.camera.driver == "replay"
    if not replayed and not config.stage.port.startswith("sim:"):
        raise ConfigError(
            f'[stage] port = "{config.stage.port}" is a real stage, and this version has no driver of a real camera '
            'yet: only the simulated one, which looks at the simulated stage. Set port = "sim:e727", and try the real '
            "stage with superlens-pzt."
        )
    path = config.camera.path if replayed else config.specimen.path
    if path is not None and not path.exists():
        raise ConfigError(f"There is no file or folder {path}. Check the path.")


def open_instrument(
    config: Config, *, progress: Progress = lambda _: None, cancelled: threading.Event | None = None
) -> Instrument:
    """Open what the configuration names. Nothing moves; `Motion.arm` comes afterwards.

    Parameters
    ----------
    progress, cancelled
        Of the making of a TensorRT engine where none is there and nothing may run in its place: it takes minutes.

    Raises
    ------
    ConfigError
        The parts do not fit each other or cannot be what the configuration says.
    EdgeError, FirmwareError
        A part does not answer; whatever was opened before it is closed again.
    """
    check(config)
    bundle, manifest = _manifest(config)
    shown = _output(manifest, config.engine.show or manifest.output_names[0])
    config = fitted(config, manifest)
    with ExitStack() as closing, ExitStack() as closing_engine:
        motion = None if config.camera.driver == "replay" else closing.enter_context(open_motion(config))
        stage = None if motion is None else motion.stage
        simulator = None if stage is None else stage.simulator
        camera = open_camera(config, pose_um=None if simulator is None else simulator.pose_um)
        closing.callback(camera.close)
        check_pixel_size(
            bundle,
            manifest.precision,
            camera.pixel_size_nm,
            remedy="Use a model for this pixel size, or correct --pixel-size-nm.",
        )
        choice, making = None, None
        if config.engine.backend == "tensorrt":
            engine, choice, making = open_engine(
                BuildJob(bundle, Counts.of(camera)),
                lambda: next_frames(camera, exposure_s=config.camera.exposure_s),
                slots=SLOTS,
                fallback=config.engine.fallback is not None,
                progress=progress,
                cancelled=cancelled,
            )
        else:
            if config.engine.precision == "int8":
                check_int8(bundle, Counts.of(camera), backend=config.engine.backend, hint=config.engine.hint)
            engine = load_for_camera(
                bundle,
                Counts.of(camera),
                backend=config.engine.backend,
                precision=config.engine.precision,
                hint=config.engine.hint,
            )
        closing_engine.callback(engine.close)
        trigger = _open_trigger(config, stage)
        if trigger is not None:
            closing.callback(trigger.close)
        hear: Callable[[int, int, PositionUm], None] | None = getattr(camera, "hear", None)
        if simulator is not None and hear is not None:
            closing.callback(simulator.on_pulse(hear))
        simulated = ("camera",) if camera.simulated else ()
        if making is not None:
            closing.callback(making.close)
        pool = engine.allocate(SLOTS)
        closing_engine.pop_all()  # from here on the instrument closes it, or what took its place
        return Instrument(
            config,
            camera,
            engine,
            pool,
            motion,
            trigger,
            simulated if motion is None else (*simulated, *motion.simulated),
            _field(config, camera),
            shown,
            choice,
            making,
            closing.pop_all(),
        )


def _manifest(config: Config) -> tuple[Bundle, Manifest]:
    bundle = find_bundle(config.engine.model)
    return bundle, manifest_of(bundle, "fp32" if config.engine.backend == "tensorrt" else config.engine.precision)


def _output(manifest: Manifest, name: str) -> str:
    if name not in manifest.output_names:
        names = ", ".join(manifest.output_names)
        raise ConfigError(f"{manifest.name} has no output {name!r}. Choose one of: {names}.")
    return name


def _open_trigger(config: Config, stage: PztStage | None) -> Trigger | None:
    if stage is None:
        return None
    if config.trigger.driver == "gpio":
        return open_trigger(**config.trigger.model_dump(exclude={"driver"}))
    if stage.simulator is None:
        raise ConfigError(
            '[trigger] driver = "simulated" works with a simulated stage only. Set driver = "gpio" with its pin.'
        )
    return SimulatedTriggerLine(stage.simulator)


def _field(config: Config, camera: Camera) -> NDArray[np.bool_] | None:
    if config.sphere.field_um is None or camera.pixel_size_nm is None:
        return None
    diameter_px = config.sphere.field_um * 1e3 / camera.pixel_size_nm
    return field_disc(camera.shape, diameter_px=diameter_px, centre_px=config.sphere.centre_px)
