"""`superlens`: run | scan | enhance | bench | doctor | check-config.

Exit codes: 0 done, 1 it failed while running, 2 the command line or the configuration is wrong.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge import __version__
from edge.config import Config, load_config
from edge.errors import ConfigError, EdgeError
from edge.process import log_tail, quit_on_signals, set_up_log, share_heaps
from firmware_bridge.errors import FirmwareError

if TYPE_CHECKING:
    from edge.daemon import Daemon
    from edge.engine import Backend
    from edge.web import PageServer
    from export.manifest import Precision

log = logging.getLogger(__name__)

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="superlens")
@click.option("-v", "--verbose", is_flag=True, help="Log debug messages too.")
def main(verbose: bool) -> None:
    """Real-time enhanced video from a microscope that looks through a microsphere."""
    set_up_log(verbose=verbose)
    share_heaps()


@contextmanager
def _errors_as_exit_codes() -> Iterator[None]:
    """One clear line on stderr and an exit code; never a traceback for what a user can mend."""
    try:
        yield
    except ConfigError as exc:
        click.echo(f"superlens: {exc}", err=True)
        sys.exit(2)
    except (EdgeError, FirmwareError) as exc:
        click.echo(f"superlens: {exc}", err=True)
        sys.exit(1)


def _config_options(command: FunctionT) -> FunctionT:
    """The options every command shares that opens an instrument."""
    for option in reversed(
        (
            click.option(
                "--config", "config_path", type=click.Path(path_type=Path), help="TOML file; see check-config."
            ),
            click.option("--camera", help='"simulated" or "replay:PATH" (image, folder, TIFF stack or .npz).'),
            click.option("--model", help="Bundle folder, or the name of a bundle that ships with superlens."),
            click.option("--show", help="Which of the model's outputs is on view, and goes into a scan [its first]."),
            click.option("--fps", type=float, help="Frame rate of the simulated camera, or pacing of a replay."),
            click.option("--bit-depth", type=int, help="Bits the camera's counts have, if fewer than the file's."),
            click.option("--pixel-size-nm", type=float, help="Size of a pixel on the specimen."),
        )
    ):
        command = option(command)
    return command


def _config(
    config_path: Path | None,
    camera: str | None,
    model: str | None,
    show: str | None,
    fps: float | None,
    bit_depth: int | None,
    pixel_size_nm: float | None,
    web: Mapping[str, Any] | None = None,
) -> Config:
    driver, _, path = (camera or "").partition(":")
    if path and driver != "replay":
        raise ConfigError(f"--camera {camera}: only replay takes a path, as in replay:FILE.")
    return load_config(
        config_path,
        {
            "camera": {
                "driver": driver or None,
                "path": path or None,
                "fps": fps,
                "bit_depth": bit_depth,
                "pixel_size_nm": pixel_size_nm,
            },
            "engine": {"model": model, "show": show},
            "web": dict(web or {}),
        },
    )


def _print_json(target: str | None, document: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Write the result where ``--json`` says: a file, or ``-`` for standard output."""
    if target is None:
        return
    text = json.dumps(document, indent=2, default=str)
    if target == "-":
        click.echo(text)
        return
    try:
        Path(target).write_text(text + "\n", encoding="utf-8")
    except OSError as exc:
        raise EdgeError(f"The result could not be written to {target}: {exc}.") from exc


def _writable(context: click.Context, parameter: click.Parameter, target: str | None) -> str | None:
    """Notice a result that could not be written before the work, not after it."""
    del context
    if target not in (None, "-") and not os.access(Path(target).parent, os.W_OK):
        raise click.BadParameter(f"the folder of {target} does not exist or is not writable", param=parameter)
    return target


_json_option = click.option(
    "--json", "json_path", metavar="FILE", callback=_writable, help='Write the figures as JSON; "-" is stdout.'
)


@main.command()
@_config_options
@click.option("--host", help="Address of the status page; only loopback, until logins are built.")
@click.option("--port", type=int, help="Port of the status page [8080].")
@click.option("--no-web", is_flag=True, help="No page; pictures are still encoded as for one.")
@click.option("--frames", type=click.IntRange(min=1), help="End after this many enhanced frames.")
@_json_option
def run(
    *, host: str | None, port: int | None, no_web: bool, frames: int | None, json_path: str | None, **options: Any
) -> None:
    """Enhance live video, and show it on the status page."""
    from edge.daemon import Daemon

    with _errors_as_exit_codes():
        config = _config(**options, web={"host": host, "port": port})
        daemon = Daemon(config)
        quit_on_signals(daemon.quit)
        server = None
        try:
            if not no_web:
                server = _serve_page(daemon)
                host = f"[{config.web.host}]" if ":" in config.web.host else config.web.host
                click.echo(f"superlens: http://{host}:{server.port}", err=True)
            try:
                daemon.start_live(frames=frames)
            except ConfigError:
                raise  # typed wrong: nobody can mend it on the page
            except (EdgeError, FirmwareError) as exc:
                if server is None:
                    raise
                # The page stays up and shows why; a person can mend it and press Try again.
                log.error("the instrument did not start: %s", exc)
            daemon.wait(until_job_ends=no_web or frames is not None)
            result = _run_figures(daemon)
            never_started = daemon.job is None and not daemon.quitting
        finally:
            daemon.close()
            if server is not None:
                server.close()
        _print_json(json_path, result)
        job = daemon.job
        if never_started:
            raise EdgeError(f"The instrument did not start. {result['error']}")
        if job is not None and job.error is not None:
            raise EdgeError(str(job.error)) from job.error


@contextmanager
def _words_for_the_page() -> Iterator[None]:
    """The page knows the errors of the appliance; those of the bridge reach it in the same words."""
    try:
        yield
    except FirmwareError as exc:
        raise EdgeError(str(exc)) from exc


def _serve_page(daemon: Daemon) -> PageServer:
    from edge.web import JobRequest, create_app, serve

    @_words_for_the_page()
    def submit(request: JobRequest) -> None:
        if request.region_um is None:
            daemon.start_live()
        else:
            daemon.start_scan_of(region_um=request.region_um, overlap=request.overlap)

    web = daemon.config.web
    app = create_app(
        daemon.board,
        log_tail=log_tail.lines,
        config_text=json.dumps(daemon.config.model_dump(mode="json"), indent=2),
        submit=submit,
        stop=_words_for_the_page()(daemon.stop),
        show=_words_for_the_page()(daemon.show),
        snapshot=daemon.snapshot,
        allowed_hosts=web.allowed_hosts,
        max_viewers=web.max_viewers,
    )
    # One thread a video stream, one an event stream, and some for the API.
    server = serve(app, host=web.host, port=web.port, threads=2 * web.max_viewers + 4)
    server.start()
    return server


def _run_figures(daemon: Daemon) -> dict[str, Any]:
    from edge.meter import peak_rss_mb

    instrument, job = daemon.instrument, daemon.job
    if instrument is None or job is None:
        return {"frames": 0, "error": daemon.board.status().start_error}
    meter, flow = job.meter, job.meter.flow()
    return {
        "frames": meter.frames,
        "dropped": meter.dropped,
        "gaps": meter.gaps,
        "fps": meter.fps(),
        "latency_s": meter.latency_s().model_dump(),
        "engine_s": meter.engine_s().model_dump(),
        "first_frame_s": meter.first_frame_s,
        "copies_per_frame": flow.copies_per_frame,
        "passes_per_frame": flow.passes_per_frame,
        "camera": instrument.camera.name,
        "microscope": instrument.camera.microscope,
        "model": instrument.engine.manifest.name,
        "outputs": list(instrument.engine.manifest.output_names),
        "shown": instrument.shown,
        "backend": instrument.engine.backend,
        "precision": instrument.engine.precision,
        "model_precision": instrument.engine.manifest.precision,
        "simulated": bool(instrument.simulated),
        "simulated_parts": list(instrument.simulated),
        "pixel_size_nm": instrument.pixel_size_nm,
        "pixel_size": "known" if instrument.pixel_size_nm is not None else "pixel size unknown",
        "rss_mb": peak_rss_mb(),
    }


@main.command()
@_config_options
@click.option("--region-um", type=float, nargs=2, required=True, metavar="WIDTH HEIGHT", help="x then y, stage axes.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for tiles and mosaic.")
@click.option("--overlap", type=float, default=0.15, show_default=True, help="Share of a tile that the next repeats.")
@click.option("--settle-s", type=float, default=0.0, show_default=True, help="Extra wait at each tile.")
@_json_option
def scan(
    *,
    region_um: tuple[float, float],
    out: Path,
    overlap: float,
    settle_s: float,
    json_path: str | None,
    **options: Any,
) -> None:
    """Raster-scan a region and place the tiles in one mosaic by stage position."""
    from edge.daemon import Daemon
    from edge.jobs import plan_scan

    with _errors_as_exit_codes():
        daemon = Daemon(_config(**options))
        quit_on_signals(daemon.quit)
        try:
            instrument = daemon.open()
            plan = plan_scan(instrument, region_um=region_um, overlap=overlap, settle_s=settle_s)
            daemon.start_scan(plan, out)
            daemon.wait(until_job_ends=True)
            if daemon.running:  # a signal came: hold the stage, keep the tiles
                daemon.stop()
            job = daemon.job
        finally:
            daemon.close()
        if job is None or job.recorder is None:
            raise EdgeError("The scan did not begin.")
        recorder = job.recorder
        _print_json(
            json_path,
            {
                "tiles": len(recorder.tiles),
                "planned": plan.tiles,
                "columns": plan.columns,
                "lines": plan.lines,
                "missing": len(recorder.missing),
                "complete": recorder.complete,
                "rms_position_um": recorder.rms_position_um,
                "pixel_size_nm": instrument.pixel_size_nm,
                "mosaic": recorder.mosaic_path,
                "folder": recorder.folder,
                "simulated": bool(instrument.simulated),
            },
        )
        if job.error is not None:
            raise EdgeError(f"The scan ended early; {len(recorder.tiles)} tiles are kept. {job.error}") from job.error
        if not recorder.complete:
            raise EdgeError(
                f"The scan is not complete: {len(recorder.tiles)} of {plan.tiles} tiles are in {recorder.folder}."
            )


@main.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the enhanced OME-TIFFs.")
@click.option("--model", help="Bundle folder, or the name of a bundle that ships with superlens.")
@click.option("--backend", type=click.Choice(["openvino", "onnxruntime"]), help="What runs the model [openvino].")
@click.option("--bit-depth", type=int, help="Bits the counts have, if fewer than the file's type.")
@click.option("--pixel-size-nm", type=float, help="Size of a pixel on the specimen.")
@click.option("--resample", is_flag=True, help="Resample to the model's pixel size where it differs by more than 10 %.")
@_json_option
def enhance(*, sources: tuple[Path, ...], out: Path, json_path: str | None, **options: Any) -> None:
    """Enhance image files: each becomes OUT/<name>_enhanced.ome.tif."""
    from edge.offline import enhance_files

    with _errors_as_exit_codes():
        config = load_config(None, {"engine": {"model": options["model"], "backend": options["backend"]}})
        _print_json(
            json_path,
            enhance_files(
                sources,
                out,
                config.engine,
                bit_depth=options["bit_depth"],
                pixel_size_nm=options["pixel_size_nm"],
                resample=options["resample"],
            ),
        )


@main.command("check-config")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@_json_option
def check_config(*, path: Path | None, json_path: str | None) -> None:
    """Check a configuration file without opening anything; without PATH, show the defaults."""
    with _errors_as_exit_codes():
        config = load_config(path)
        _print_json(json_path, config.model_dump(mode="json"))
        if json_path is None:
            click.echo(
                f"{path or 'the defaults'}: in order" if path else json.dumps(config.model_dump(mode="json"), indent=2)
            )


@main.command()
@click.option("--selftest", is_flag=True, help="Try the engine and the camera too, and write a report; minutes.")
@_config_options
@_json_option
def doctor(*, selftest: bool, json_path: str | None, **options: Any) -> None:
    """Say what is installed, what is present and what is missing."""
    from edge.doctor import examine, print_checks, print_report, required_versions

    with _errors_as_exit_codes():
        config = _config(**options)
        if not selftest:
            report = examine()
            if json_path != "-":
                print_report(report)
            _print_json(json_path, report)
            return
        from edge.selftest import self_test

        report = self_test(config, versions=required_versions(), progress=lambda step: click.echo(step, err=True))
        if json_path != "-":
            print_checks(report)
        _print_json(json_path, report)
        click.echo(f"report: {report['report']}", err=True)
        if not report["passed"]:
            raise EdgeError(f"The self-test failed. {'; '.join(report['problems'])}")


@main.group()
def bench() -> None:
    """Measure this machine."""


@bench.command()
@_config_options
@click.option("--viewers", type=click.IntRange(0, 8), default=1, show_default=True, help="Browsers watching /video.")
@click.option(
    "--windows", type=click.IntRange(1, 15), default=5, show_default=True, help="Windows to take the median of."
)
@click.option(
    "--frames", type=click.IntRange(min=400), default=5000, show_default=True, help="Frames in all, at least."
)
@_json_option
def loop(*, viewers: int, windows: int, frames: int, json_path: str | None, **options: Any) -> None:
    """The whole loop against the bare engine, in one run."""
    from edge.bench import bench_loop

    with _errors_as_exit_codes():
        figures = bench_loop(_config(**options), viewers=viewers, windows=windows, frames=frames)
        if json_path != "-":
            click.echo(json.dumps(figures, indent=2))
        _print_json(json_path, figures)


@bench.command()
@click.option(
    "--model", "models", multiple=True, help="Bundle folder or name; may be given several times [enhance-rt]."
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(["openvino", "onnxruntime", "tensorrt"]),
    help="May be given several times [all that are installed].",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp32", "fp16", "int8", "int8_fp16"]),
    help="May be given several times [all that a back end has a use for].",
)
@click.option("--shape", "shape_px", type=click.IntRange(16, 8192), nargs=2, metavar="H W", help="Of the frames, px.")
@click.option("--windows", type=click.IntRange(1, 15), default=5, show_default=True, help="To take the median of.")
@_json_option
def engine(
    *,
    models: tuple[str, ...],
    backends: tuple[Backend, ...],
    precisions: tuple[Precision, ...],
    shape_px: tuple[int, int] | None,
    windows: int,
    json_path: str | None,
) -> None:
    """Back ends and precisions side by side, each in turn with its reference."""
    from edge.bench_engine import bench_engine, print_rows

    with _errors_as_exit_codes():
        rows, left_out = bench_engine(
            models or (Config().engine.model,),
            backends=backends,
            precisions=precisions,
            shape_px=shape_px,
            windows=windows,
        )
        for line in left_out:
            click.echo(f"left out: {line}", err=True)
        if not rows:
            raise EdgeError("Nothing of what was asked for can be measured here; see what was left out.")
        if json_path != "-":
            print_rows(rows)
        _print_json(json_path, rows)


@bench.command()
@_config_options
@click.option("--frames", type=click.IntRange(min=1), default=32, show_default=True, help="Of each camera.")
@_json_option
def copy(*, frames: int, json_path: str | None, **options: Any) -> None:
    """How often the bytes of a frame are copied, per kind of camera."""
    from edge.bench_copy import SHAPE_PX, bench_copy

    with _errors_as_exit_codes():
        config = _config(**options)
        if "shape_px" not in config.camera.model_fields_set:  # a small frame is copied as often as a large one
            camera = config.camera.model_copy(update={"shape_px": SHAPE_PX})
            config = config.model_copy(update={"camera": camera})
        figures = bench_copy(config, frames=frames)
        if json_path != "-":
            for name, copies in figures.items():
                click.echo(f"{name}: {copies:g} copies per frame")
        _print_json(json_path, figures)


if __name__ == "__main__":
    main()
