"""`superlens`: run | scan | enhance | bench | doctor | check-config.

Exit codes: 0 done, 1 it failed while running, 2 the command line or the configuration is wrong, 130 it was broken off
by Ctrl-C.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    import click

    from edge import __version__
    from edge.bench_commands import bench
    from edge.config import load_config
    from edge.errors import ConfigError, EdgeError
    from edge.options import config_from, config_options, errors_as_exit_codes, json_option, print_json
    from edge.process import log_tail, quit_on_signals, set_up_log, share_heaps
    from edge.service import Service
    from firmware_bridge.errors import FirmwareError
except KeyboardInterrupt:  # these take a second, and nothing is open yet
    sys.exit(130)

if TYPE_CHECKING:
    from edge.daemon import Daemon
    from edge.web import PageServer

log = logging.getLogger(__name__)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="superlens")
@click.option("-v", "--verbose", is_flag=True, help="Log debug messages too.")
def main(verbose: bool) -> None:
    """Real-time enhanced video from a microscope that looks through a microsphere."""
    set_up_log(verbose=verbose)
    share_heaps()


main.add_command(bench)


@main.command()
@config_options
@click.option("--host", help="Address of the status page; only loopback, until logins are built.")
@click.option("--port", type=int, help="Port of the status page [8080]; 0 is any that is free.")
@click.option("--no-web", is_flag=True, help="No page; pictures are still encoded as for one.")
@click.option("--frames", type=click.IntRange(min=1), help="End after this many enhanced frames.")
@json_option
def run(
    *, host: str | None, port: int | None, no_web: bool, frames: int | None, json_path: str | None, **options: Any
) -> None:
    """Enhance live video, and show it on the status page."""
    with errors_as_exit_codes():
        from edge.daemon import Daemon

        config = config_from(**options, web={"host": host, "port": port})
        service = Service()
        daemon = Daemon(config, alive=service.alive)
        quit_on_signals(daemon.quit)
        server = None
        try:
            if not no_web:
                server = _serve_page(daemon)
                host = f"[{config.web.host}]" if ":" in config.web.host else config.web.host
                click.echo(f"superlens: http://{host}:{server.port}", err=True)
            service.ready()  # the page answers, whatever the instrument does
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
            service.stopping()
            daemon.close()
            if server is not None:
                server.close()
        print_json(json_path, result)
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
        reset=lambda: daemon.reset(by="somebody at the status page"),
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
@config_options
@click.option("--region-um", type=float, nargs=2, required=True, metavar="WIDTH HEIGHT", help="x then y, stage axes.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for tiles and mosaic.")
@click.option("--overlap", type=float, default=0.15, show_default=True, help="Share of a tile that the next repeats.")
@click.option("--settle-s", type=float, default=0.0, show_default=True, help="Extra wait at each tile.")
@json_option
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
    with errors_as_exit_codes():
        from edge.daemon import Daemon
        from edge.jobs import check_scan, plan_scan
        from edge.recorder import check_folder

        config = config_from(**options)
        check_scan(region_um=region_um, overlap=overlap, settle_s=settle_s)
        check_folder(out)
        daemon = Daemon(config)
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
        print_json(
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
        if json_path != "-":
            click.echo(f"{recorder.mosaic_path}: {len(recorder.tiles)} of {plan.tiles} tiles")


@main.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the enhanced OME-TIFFs.")
@click.option("--model", help="Bundle folder, or the name of a bundle that ships with superlens.")
@click.option("--backend", type=click.Choice(["openvino", "onnxruntime"]), help="What runs the model [openvino].")
@click.option("--bit-depth", type=int, help="Bits the counts have, if fewer than the file's type.")
@click.option("--pixel-size-nm", type=float, help="Size of a pixel on the specimen.")
@click.option("--resample", is_flag=True, help="Resample to the model's pixel size where it differs by more than 10 %.")
@click.option(
    "--tile-px",
    type=click.IntRange(min=64),
    help="Images with a longer side are enhanced in tiles of this side, with the same result [2048].",
)
@json_option
def enhance(*, sources: tuple[Path, ...], out: Path, json_path: str | None, **options: Any) -> None:
    """Enhance image files: each becomes OUT/<name>_enhanced.ome.tif."""
    with errors_as_exit_codes():
        from edge.engine.tiling import TILE_PX
        from edge.offline import enhance_files

        config = load_config(None, {"engine": {"model": options["model"], "backend": options["backend"]}})
        print_json(
            json_path,
            enhance_files(
                sources,
                out,
                config.engine,
                bit_depth=options["bit_depth"],
                pixel_size_nm=options["pixel_size_nm"],
                resample=options["resample"],
                tile_px=options["tile_px"] or TILE_PX,
            ),
        )


@main.command("check-config")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@json_option
def check_config(*, path: Path | None, json_path: str | None) -> None:
    """Check a configuration file without opening anything; without PATH, show the defaults."""
    with errors_as_exit_codes():
        from edge.instrument import check

        config = load_config(path)
        check(config)
        print_json(json_path, config.model_dump(mode="json"))
        if json_path is None:
            click.echo(
                f"{path or 'the defaults'}: in order" if path else json.dumps(config.model_dump(mode="json"), indent=2)
            )


@main.command()
@click.option("--selftest", is_flag=True, help="Try the engine and the camera too, and write a report; minutes.")
@click.option("--rebuild", is_flag=True, help="With --selftest: build and measure all TensorRT plans again.")
@config_options
@json_option
def doctor(*, selftest: bool, rebuild: bool, json_path: str | None, **options: Any) -> None:
    """Say what is installed, what is present and what is missing."""
    if rebuild and not selftest:
        raise click.UsageError("--rebuild is a part of --selftest: give both.")
    with errors_as_exit_codes():
        from edge.doctor import examine, packages, print_checks, print_report

        config = config_from(**options)
        if not selftest:
            report = examine(config.box.folder)
            if json_path != "-":
                print_report(report)
            print_json(json_path, report)
            return
        from edge.selftest import self_test

        report = self_test(
            config,
            packages=packages(config.engine.backend),
            rebuild=rebuild,
            progress=lambda step: click.echo(step, err=True),
        )
        if json_path != "-":
            print_checks(report)
        print_json(json_path, report)
        click.echo(f"report: {report['report']}", err=True)
        if not report["passed"]:
            raise EdgeError(f"The self-test failed. {'; '.join(report['problems'])}")


if __name__ == "__main__":
    main()
