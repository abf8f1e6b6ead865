"""`superlens doctor --selftest`: does this box do what it is for? It runs the engine, and writes a report.

Each check passes, fails, or is about something that is not here and need not be. Nothing moves: neither the stage nor
a trigger is opened.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from edge import __version__, pipeline
from edge.cameras import open_camera
from edge.cameras.microscope import fitted
from edge.config import Config
from edge.devices import Camera, Engine
from edge.doctor import Package
from edge.engine import Backend, find_bundle, manifest_of, reference_backend
from edge.engine.builder import BuildJob, default_plans
from edge.engine.choice import LEAST_PSNR_DB, Choice
from edge.engine.measure import REPEATS, Figures, measure, pictures_of, textures
from edge.engine.prepare import Counts
from edge.engine.tiling import load_for_camera
from edge.errors import ConfigError, EdgeError
from edge.making import next_frames, open_engine
from edge.utc import utc_now
from export.errors import PlanError
from export.files import write_atomically
from export.plan import l4t_release, this_device
from firmware_bridge.boards import find_chip, line_of
from firmware_bridge.errors import LinkError
from firmware_bridge.simulator.controller import TRAVEL_UM

Outcome = Literal["passed", "FAILED", "not present"]

FLOW_FRAMES = 40
"""Frames through the pipeline, for the ledger of copies."""
MOST_COPIES = 1.0
"""Of a frame, by the camera. What the engine copies itself, to cut frames into tiles, it says and is allowed."""
HOT_MARGIN_C = 5.0
"""A sensor this near to where the system throttles, or switches off, is a failure."""
_COMMAND_TIMEOUT_S = 10.0
_SILENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    """One of them: what came out, in words and in figures."""

    name: str
    outcome: Outcome
    words: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class System:
    """Where the kernel says how the machine is; a test gives another."""

    sys: Path = Path("/sys")
    dev: Path = Path("/dev")


def self_test(
    config: Config,
    *,
    packages: Sequence[Package],
    rebuild: bool = False,
    system: System = System(),
    progress: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Run every check, and write the report.

    Parameters
    ----------
    config
        Its engine and its camera are tried; an engine of TensorRT is built where there is none, which takes minutes.
    packages
        What is installed; one that is needed and missing is a failure.
    rebuild
        Build and measure every plan of TensorRT again, also those that are in order.

    Returns
    -------
    ``passed``, ``checks`` as :class:`Check`, ``problems`` (those that failed, in words), and ``report``, the path of
    the file that says the same.

    Raises
    ------
    ConfigError
        There is nothing to rebuild: the engine is not TensorRT's.
    EdgeError
        The report cannot be written.
    """
    if rebuild and config.engine.backend != "tensorrt":
        raise ConfigError(
            f'--rebuild builds plans of TensorRT, but [engine] backend = "{config.engine.backend}". Give the --config '
            "that superlens run is given."
        )
    checks = [versions(packages), _gpu(), _l4t(), *_power(system), temperature(system)]
    checks += _engine_checks(config, rebuild, progress, clock)
    checks += [serial(config, system), gpio(config, system)]
    report: dict[str, Any] = {
        "passed": all(check.outcome != "FAILED" for check in checks),
        "problems": [f"{check.name}: {check.words}" for check in checks if check.outcome == "FAILED"],
        "checks": [asdict(check) for check in checks],
        "software": f"superlens {__version__}",
        "taken_utc": utc_now(),
    }
    folder = default_plans().parent / "selftest"
    path = folder / f"{report['taken_utc'].replace(':', '').replace('-', '')}.json"
    report["report"] = str(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(report, indent=2, default=str) + "\n").encode())
    except OSError as exc:
        raise EdgeError(f"The report could not be written to {path}: {exc}. Free some space there.") from exc
    return report


def versions(packages: Sequence[Package]) -> Check:
    """Of all that is installed in the figures, of what the engine computes with in the words too."""
    versions = {package.name: package.version or "not installed" for package in packages}
    if missing := [package for package in packages if package.needed and package.version is None]:
        words = "; ".join(f"{package.name} is missing: {package.how}" for package in missing)
        return Check("versions", "FAILED", words, versions)
    computes = ", ".join(f"{package.name} {package.version}" for package in packages if package.computes)
    return Check("versions", "passed", f"superlens {__version__}, {computes}, and all else that it needs", versions)


def _gpu() -> Check:
    try:
        device = this_device()
    except PlanError as exc:
        return Check("gpu", "not present", str(exc))
    return Check("gpu", "passed", f"{device.gpu}, compute capability {device.compute_capability}", device._asdict())


def _l4t() -> Check:
    try:
        release = l4t_release()
    except PlanError as exc:
        return Check("l4t", "FAILED", str(exc))
    if release is None:
        return Check("l4t", "not present", "this is no Jetson")
    return Check("l4t", "passed", f"L4T {release}", {"l4t": release})


def _power(system: System) -> Iterator[Check]:
    """Power mode and clocks: a figure means little without them."""
    if shutil.which("nvpmodel") is None:
        yield Check("power mode", "not present", "there is no nvpmodel here")
    else:
        yield power_mode()
    clocks = {}
    for policy in sorted(system.sys.glob("devices/system/cpu/cpufreq/policy*")):
        clocks[policy.name] = {
            name: _read(policy / name) for name in ("scaling_governor", "scaling_cur_freq", "scaling_max_freq")
        }
    for gpu in sorted(system.sys.glob("class/devfreq/*gpu*")):
        clocks[gpu.name] = {name: _read(gpu / name) for name in ("governor", "cur_freq", "max_freq")}
    words = ", ".join(f"{name} {' / '.join(str(v) for v in values.values())}" for name, values in clocks.items())
    yield Check("clocks", "passed" if clocks else "not present", words or "the kernel does not tell them", clocks)


def power_mode() -> Check:
    """As nvpmodel says it."""
    try:
        done = subprocess.run(
            ["nvpmodel", "-q"], capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as exc:
        return Check("power mode", "FAILED", f"nvpmodel -q does not say it: {exc}")
    return Check("power mode", "passed", " ".join(done.stdout.split()))


def temperature(system: System) -> Check:
    """Whether a sensor is near to where the system throttles, or switches off."""
    zones, hot = {}, []
    for zone in sorted(system.sys.glob("class/thermal/thermal_zone*")):
        reading = _read(zone / "temp")
        if reading is None or int(reading) <= 0:  # a sensor that is switched off
            continue
        name, now_c = _read(zone / "type") or zone.name, int(reading) / 1000
        zones[name] = now_c
        for trip in zone.glob("trip_point_*_type"):
            limit = _read(trip.with_name(trip.name.replace("_type", "_temp")))
            if _read(trip) in ("hot", "critical") and limit is not None and int(limit) > 0:
                limit_c = int(limit) / 1000
                if now_c > limit_c - HOT_MARGIN_C:
                    hot.append(f"{name} is {now_c:.0f} C, and {limit_c:.0f} C is its limit")
    if not zones:
        return Check("temperature", "not present", "the kernel has no sensors here")
    if hot:
        return Check("temperature", "FAILED", f"{'; '.join(hot)}. Clean the fan, or lower the power mode.", zones)
    name, warmest_c = max(zones.items(), key=lambda item: item[1])
    return Check("temperature", "passed", f"at most {warmest_c:.0f} C ({name})", zones)


def _engine_checks(
    config: Config, rebuild: bool, progress: Callable[[str], None], clock: Callable[[], float]
) -> list[Check]:
    """Model, camera, engine, accuracy, latency, copies; where one fails there is nothing to try the next with."""
    checks: list[Check] = []
    now = "model"

    def begin(name: str) -> None:
        nonlocal now
        now = name
        progress(name)

    try:
        with ExitStack() as closing:
            bundle = find_bundle(config.engine.model)
            config = fitted(config, manifest_of(bundle, "fp32"))
            checks.append(Check(now, "passed", f"{bundle.name}, in {', '.join(bundle.precisions)}"))
            begin("camera")
            pose_um = (lambda: TRAVEL_UM.centre) if config.stage.port.startswith("sim:") else None
            camera = open_camera(config, pose_um=pose_um)
            closing.callback(camera.close)
            frames = next_frames(camera, exposure_s=config.camera.exposure_s)
            label = "SIMULATED " if camera.simulated else ""
            checks.append(Check(now, "passed", f"{label}{camera.name}, {camera.format}, {camera.shape} px"))
            begin("engine")
            counts = Counts.of(camera)
            engine, choice = _engine(config, BuildJob(bundle, counts), frames, rebuild, progress)
            closing.callback(engine.close)
            checks.append(_engine_check(engine, choice))
            begin("accuracy")
            by = reference_backend()
            reference = load_for_camera(bundle, counts, backend=by, precision="fp32", hint="f32")
            closing.callback(reference.close)
            frames = [*frames, *textures(counts)]  # the camera may be in the dark
            alive = _now_and_then(progress, now)
            expected = []
            for frame in frames:
                alive()
                expected.append(pictures_of(reference, frame))
            figures = measure(engine, frames, expected, counts.full_scale, clock=clock, alive=alive)
            checks.append(_accuracy(figures, by, len(frames)))
            checks.append(_latency(figures))
            begin("copies")
            checks.append(_copies(camera, engine, config.camera.exposure_s))
    except (EdgeError, PlanError) as exc:
        checks.append(Check(now, "FAILED", str(exc)))
    return checks


def _now_and_then(progress: Callable[[str], None], name: str) -> Callable[[], None]:
    """To be called once a frame: says how many there were, not more often than somebody would ask."""
    frames, told_s = 0, time.monotonic()

    def alive() -> None:
        nonlocal frames, told_s
        if time.monotonic() - told_s >= _SILENCE_S:
            told_s = time.monotonic()
            progress(f"{name}: {frames} frames so far")
        frames += 1

    return alive


def _engine(
    config: Config,
    job: BuildJob,
    frames: Sequence[NDArray[Any]],
    rebuild: bool,
    progress: Callable[[str], None],
) -> tuple[Engine, Choice | None]:
    """As the daemon would have it, but nothing stands in for it: what does not run is to be seen."""
    wanted = config.engine
    if wanted.backend != "tensorrt":
        bundle, counts, backend = job.bundle, job.counts, wanted.backend
        return load_for_camera(bundle, counts, backend=backend, precision=wanted.precision, hint=wanted.hint), None
    engine, choice, making = open_engine(
        job,
        lambda: frames,
        slots=pipeline.SLOTS,
        fallback=False,
        again=rebuild,
        progress=lambda step: progress(f"{step.precision}: {step.phase}"),
    )
    if making is None:
        return engine, choice
    engine.close()  # what is to be tried again is measured with the GPU to itself
    with closing(making):
        making.start()
        while not making.wait(_SILENCE_S):
            progress(f"{making.progress.precision}: {making.progress.phase}")
        made = making.made()
    return made.engine, made.choice


def _engine_check(engine: Engine, choice: Choice | None) -> Check:
    manifest = engine.manifest
    words = f"{manifest.name} ({manifest.precision} file) on {engine.backend} in {engine.precision}"
    if choice is None:
        return Check("engine", "passed", words)
    return Check("engine", "passed", f"{words}: {choice.note}", choice.model_dump(mode="json"))


def _accuracy(figures: Figures, by: Backend, frames: int) -> Check:
    words = f"{figures.psnr_db:.1f} dB from FP32 on {by}; at least {LEAST_PSNR_DB:g} dB are asked for"
    outcome: Outcome = "passed" if figures.psnr_db >= LEAST_PSNR_DB else "FAILED"
    return Check("accuracy", outcome, words, {"psnr_db": figures.psnr_db, "reference": by, "frames": frames})


def _latency(figures: Figures) -> Check:
    """Measured, and no more: how fast is fast enough depends on the camera."""
    words = f"{1e3 * figures.median_s:.2f} ms a frame, 99 of 100 within {1e3 * figures.p99_s:.2f} ms"
    if figures.timed < REPEATS:
        words += f"; it is so slow that only {figures.timed} were timed"
    return Check(
        "latency", "passed", words, {"p50_s": figures.median_s, "p99_s": figures.p99_s, "frames": figures.timed}
    )


def _copies(camera: Camera, engine: Engine, exposure_s: float) -> Check:
    """Of frames that ran through the pipeline, as the ledger has them."""
    pool = engine.allocate(pipeline.SLOTS)
    copies = pipeline.copies_per_frame(camera, engine, pool, exposure_s=exposure_s, frames=FLOW_FRAMES)
    most = MOST_COPIES + engine.copies_per_frame
    words = f"{copies:g} host copies per frame from {camera.name}; at most {most:g} is allowed"
    if engine.copies_per_frame:
        words += f", {engine.copies_per_frame} of them into tiles and out"
    figures = {"copies_per_frame": copies, "passes_per_frame": engine.passes_per_frame, "frames": FLOW_FRAMES}
    return Check("copies", "passed" if copies <= most else "FAILED", words, figures)


def serial(config: Config, system: System) -> Check:
    """The stage's port. It is not opened: a program that runs may hold it."""
    port = config.stage.port
    if config.camera.driver == "replay" or port.startswith("sim:"):
        return Check("serial port", "not present", "none is used")
    ports = sorted(str(path) for pattern in ("ttyUSB*", "ttyACM*", "ttyTHS*") for path in system.dev.glob(pattern))
    if "://" in port:
        return Check("serial port", "not present", f"the stage is behind {port}, which is no port of this machine")
    if Path(port).exists():
        return Check("serial port", "passed", f"{port} is there", {"ports": ports})
    others = ", ".join(ports) or "no serial port at all"
    return Check("serial port", "FAILED", f"{port} is not there, but {others}. Check the cable and [stage] port.")


def gpio(config: Config, system: System) -> Check:
    """The trigger's chip. No line of it is opened."""
    chips = sorted(path.name for path in system.dev.glob("gpiochip*"))
    if config.trigger.driver != "gpio":
        words = f"none is used; there are {', '.join(chips)}" if chips else "none is used, and there is none"
        return Check("gpio", "not present", words)
    wanted = f"gpiochip{config.trigger.chip}"
    if config.trigger.board is not None and config.trigger.pin is not None:
        label, _ = line_of(config.trigger.board, config.trigger.pin)
        try:
            wanted = f"gpiochip{find_chip(label, folder=system.dev)}"
        except LinkError as exc:
            return Check("gpio", "FAILED", f"{exc}. See [trigger] board.", {"chips": chips})
    if wanted in chips:
        return Check("gpio", "passed", f"{wanted} is there", {"chips": chips})
    return Check("gpio", "FAILED", f"{wanted} is not there, but {', '.join(chips) or 'no chip'}. See [trigger] chip.")


def _read(path: Path) -> str | None:
    """A line of sysfs; None where there is none, or the kernel refuses."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
