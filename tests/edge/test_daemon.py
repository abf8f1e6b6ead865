"""The daemon over the whole simulated instrument: real bytes to the controller, real engine, no screen."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile

from edge import instrument, jobs
from edge.config import Config
from edge.daemon import Daemon
from edge.errors import BusyError, ConfigError, EdgeError
from edge.jobs import plan_scan
from edge.status import RunState
from firmware_bridge.errors import LinkError
from models.optics import Optics

PIXEL_SIZE_NM = Optics().pixel_size_nm

DaemonMaker = Callable[..., Daemon]


@pytest.fixture
def make(
    identity_bundle: Path, small_specimen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DaemonMaker]:
    monkeypatch.setattr("edge.daemon.SNAPSHOT_TIMEOUT_S", 60.0)  # the first frame of a loaded machine takes its time
    daemons: list[Daemon] = []

    def make_daemon(**sections: dict[str, Any]) -> Daemon:
        camera = {"shape_px": (256, 256), "fps": 200, **sections.pop("camera", {})}
        config = Config.model_validate(
            {
                "box": {"data_dir": str(tmp_path / "data")},
                "camera": camera,
                "engine": {"model": str(identity_bundle)},
                "specimen": {"path": str(small_specimen), "pixel_size_nm": PIXEL_SIZE_NM},
                "sphere": {"field_um": 8.0},
                **sections,
            }
        )
        daemons.append(Daemon(config))
        return daemons[-1]

    yield make_daemon
    for daemon in daemons:
        daemon.close()


def test_a_live_view_runs_for_its_frames_and_ends_idle(make: DaemonMaker) -> None:
    daemon = make()
    daemon.start_live(frames=10)
    daemon.wait(until_job_ends=True)
    status = daemon.board.status()
    assert (status.state, status.flow.frames) == (RunState.IDLE, 10)
    assert status.simulated == ("camera", "stage")
    assert daemon.board.preview() is not None
    assert status.flow.copies_per_frame == 0


def test_the_status_shows_where_the_stage_is_and_how_far_it_may_go(make: DaemonMaker) -> None:
    daemon = make()
    daemon.open()
    stage = daemon.board.status().stage
    assert stage is not None
    assert [axis.measured_um for axis in stage.axes] == pytest.approx([50, 50, 5], abs=0.1)
    assert [(axis.low_um, axis.high_um) for axis in stage.axes] == [(0, 100), (0, 100), (0, 10)]
    assert stage.servo_on is True


def test_the_trigger_line_is_opened_as_the_configuration_says(
    make: DaemonMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Line:
        def close(self) -> None:
            pass

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(instrument, "open_trigger", lambda **how: (asked.append(how), Line())[-1])
    where = {"board": "jetson-orin-nano", "pin": 33, "exposure_pin": 31, "timed": True}
    daemon = make(trigger={"driver": "gpio", **where})
    assert isinstance(daemon.open().trigger, Line)
    assert asked == [{**where, "chip": None}]


def test_one_job_at_a_time_and_the_second_is_told_so(make: DaemonMaker) -> None:
    daemon = make()
    daemon.start_live()
    with pytest.raises(BusyError):
        daemon.start_live()
    daemon.stop()
    assert daemon.board.status().state is RunState.IDLE
    daemon.start_live(frames=1)


def test_stop_sends_stop_all_to_the_controller_and_holds(make: DaemonMaker) -> None:
    daemon = make()
    instrument = daemon.open()
    daemon.start_live()
    stopped = []
    stage_stop = instrument.stage.stop
    instrument.stage.stop = lambda: (stopped.append(True), stage_stop())  # type: ignore[method-assign]
    before_um = instrument.stage.position_um()
    daemon.stop()
    assert stopped == [True]
    assert instrument.stage.position_um() == pytest.approx(before_um, abs=0.02)


def test_a_scan_records_every_tile_near_the_true_position(make: DaemonMaker, tmp_path: Path) -> None:
    daemon = make()
    plan = plan_scan(daemon.open(), region_um=(12, 8), overlap=0.15, settle_s=0)
    daemon.start_scan(plan, tmp_path / "scan")
    daemon.wait(until_job_ends=True)
    recorder = daemon.job.recorder
    assert recorder.complete
    assert recorder.rms_position_um < 0.1
    status = daemon.board.status().scan
    assert (status.done, status.tiles, status.missing, status.complete) == (plan.tiles, plan.tiles, 0, True)
    index = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert index["facts"]["simulated"] == ["camera", "stage"]


def test_stop_in_mid_scan_keeps_the_tiles_and_says_not_complete(make: DaemonMaker, tmp_path: Path) -> None:
    daemon = make()
    plan = plan_scan(daemon.open(), region_um=(60, 60), overlap=0.15, settle_s=0.02)
    daemon.start_scan(plan, tmp_path / "scan")
    while len(daemon.job.recorder.tiles) < 3:
        daemon.job.thread.join(0.005)
    daemon.stop()
    index = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert not index["complete"]
    assert 3 <= len(index["tiles"]) < plan.tiles
    assert (tmp_path / "scan" / index["mosaic"]).exists()
    assert daemon.board.status().scan.complete is False
    assert daemon.board.status().state is RunState.IDLE


def test_a_scan_leaves_z_where_it_was_put(make: DaemonMaker) -> None:
    daemon = make()
    stage = daemon.open().stage
    stage.move_to(stage.limits_um.centre._replace(z=2.0))
    daemon.start_scan_of(region_um=(6, 6), overlap=0.15)
    daemon.wait(until_job_ends=True)
    assert daemon.job.recorder.complete
    assert stage.position_um().z == pytest.approx(2.0, abs=0.02)


def test_a_stop_while_a_job_is_being_started_keeps_it_from_beginning(
    make: DaemonMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop falls between the making of the job and its thread, where a person's finger cannot aim."""
    daemon = make()
    daemon.open()
    make_scan = jobs.scan_job

    def scan_job_and_then_stop(*arguments: Any) -> jobs.Job:
        job = make_scan(*arguments)
        daemon.stop()
        return job

    monkeypatch.setattr("edge.daemon.scan_job", scan_job_and_then_stop)
    with pytest.raises(BusyError, match="STOP was pressed"):
        daemon.start_scan_of(region_um=(20, 20), overlap=0.15)
    assert not daemon.running
    (folder,) = (daemon.data_dir / "scans").iterdir()
    assert json.loads((folder / "scan.json").read_text())["complete"] is False


def test_the_instrument_is_opened_once_however_many_ask(make: DaemonMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = make()
    begun, go_on = threading.Event(), threading.Event()
    open_one = instrument.open_instrument

    def slowly(config: Config, **means: Any) -> instrument.Instrument:
        begun.set()
        assert go_on.wait(10)
        return open_one(config, **means)

    monkeypatch.setattr("edge.daemon.open_instrument", slowly)
    first = threading.Thread(target=daemon.open)
    first.start()
    assert begun.wait(10)
    with pytest.raises(BusyError, match="being started"):
        daemon.start_live()
    go_on.set()
    first.join(10)
    assert daemon.open() is daemon.instrument


def test_nothing_begins_once_the_program_ends(make: DaemonMaker) -> None:
    daemon = make()
    daemon.quit()
    with pytest.raises(BusyError):
        daemon.start_live()
    assert not daemon.running


def test_stop_ends_a_wait_for_a_frame_that_is_far_away(make: DaemonMaker) -> None:
    daemon = make(camera={"fps": 0.01})
    daemon.start_live()
    daemon.stop()
    assert not daemon.running
    assert daemon.board.status().state is RunState.IDLE


def test_a_stage_that_no_longer_answers_is_a_fault_and_is_opened_anew_at_the_next_start(make: DaemonMaker) -> None:
    daemon = make()
    stage = daemon.open().stage
    daemon.start_live()
    stage.close()  # what an unplugged cable is to those who ask
    daemon.beat()
    status = daemon.board.status()
    assert status.state is RunState.FAULT
    assert "start again" in status.problems[0].what_to_do
    daemon.job.thread.join(5)
    daemon.start_live(frames=1)
    daemon.wait(until_job_ends=True)
    assert daemon.instrument.stage is not stage
    assert daemon.board.status().problems == ()


def test_a_tile_that_does_not_fit_the_frame_is_refused_before_anything_moves(make: DaemonMaker) -> None:
    daemon = make(sphere={"field_um": 8.0, "centre_px": [10, 10]})
    with pytest.raises(ConfigError, match="do not fit the camera's frame"):
        plan_scan(daemon.open(), region_um=(10, 10), overlap=0.1, settle_s=0)


def test_a_scan_that_does_not_fit_on_the_disk_is_refused_before_anything_moves(
    make: DaemonMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = make()
    plan = plan_scan(daemon.open(), region_um=(12, 8), overlap=0.15, settle_s=0)
    monkeypatch.setattr("edge.recorder.shutil.disk_usage", lambda _: SimpleNamespace(free=100_000))
    with pytest.raises(ConfigError, match=r"6 tiles .* take 0\.00 GB, and 0\.00 GB are free .* Nothing was moved"):
        daemon.start_scan(plan, tmp_path / "scan")
    assert not (tmp_path / "scan").exists()


def test_a_data_folder_that_cannot_be_written_is_on_the_page_from_the_start(make: DaemonMaker) -> None:
    daemon = make(box={"data_dir": "/proc/1/x"})
    daemon.open()
    assert [problem.key for problem in daemon.board.status().problems] == ["data"]


def test_a_region_out_of_all_bounds_is_a_config_error(make: DaemonMaker) -> None:
    with pytest.raises(ConfigError, match="region_um"):
        make().start_scan_of(region_um=(20_000, 10), overlap=0.1)


def test_a_scan_takes_the_place_of_the_live_view_but_not_of_a_scan(make: DaemonMaker) -> None:
    daemon = make()
    daemon.start_live()
    with pytest.raises(ConfigError, match="Nothing was moved"):
        daemon.start_scan_of(region_um=(300, 10), overlap=0.15)
    assert daemon.running
    daemon.start_scan_of(region_um=(60, 60), overlap=0.15)
    assert daemon.board.status().state is RunState.SCANNING
    with pytest.raises(BusyError):
        daemon.start_scan_of(region_um=(10, 10), overlap=0.15)
    daemon.stop()
    assert Path(daemon.board.status().scan.folder).parent == daemon.data_dir / "scans"


def test_nothing_begins_beside_a_live_view_that_does_not_end(
    make: DaemonMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = make()
    engine = daemon.open().engine
    entered, go_on, infer = threading.Event(), threading.Event(), engine.infer

    def hang(pixels: np.ndarray) -> Any:
        entered.set()
        assert go_on.wait(20)
        return infer(pixels)

    engine.infer = hang  # type: ignore[method-assign]
    daemon.start_live()
    live = daemon.job
    assert entered.wait(10)
    monkeypatch.setattr("edge.daemon.FRAME_TIMEOUT_S", 0.05)
    with pytest.raises(BusyError, match=r"has not ended within 0\.05 s"):
        daemon.start_scan_of(region_um=(20, 20), overlap=0.15)
    assert daemon.job is live
    assert live.running
    (folder,) = (daemon.data_dir / "scans").iterdir()
    assert json.loads((folder / "scan.json").read_text())["complete"] is False
    go_on.set()
    live.thread.join(10)


def test_a_snapshot_is_two_files_that_say_what_they_are(make: DaemonMaker) -> None:
    daemon = make()
    with pytest.raises(BusyError, match="Start the live view"):
        daemon.snapshot()
    daemon.start_live()
    raw, enhanced = daemon.snapshot()
    assert "SIMULATED" in raw.name
    with tifffile.TiffFile(enhanced) as file:
        assert "not raw data" in file.ome_metadata
        assert file.asarray().shape == (256, 256)


def test_an_output_is_chosen_in_the_configuration_and_live(make: DaemonMaker, lens_bundle: Path) -> None:
    engine = {"model": str(lens_bundle), "show": "inverted"}
    daemon = make(engine=engine, optics={}, specimen={})
    with pytest.raises(BusyError, match="not open"):
        daemon.show("colour")
    daemon.start_live()
    assert daemon.board.status().engine.outputs == ("enhanced", "inverted", "colour")
    assert daemon.board.status().engine.shown == "inverted"
    preview = daemon.board.wait_preview(-1, timeout_s=10)
    assert preview.output == "inverted"
    daemon.show("colour")
    assert daemon.board.status().engine.shown == "colour"
    while preview.output == "inverted":
        preview = daemon.board.wait_preview(preview.counter, timeout_s=10)
    assert preview.output == "colour"
    with pytest.raises(ConfigError, match="Choose one of: enhanced, inverted, colour"):
        daemon.show("shadows")
    assert daemon.board.status().engine.shown == "colour"


def test_the_choice_outlives_an_instrument_that_is_opened_anew(make: DaemonMaker, lens_bundle: Path) -> None:
    daemon = make(engine={"model": str(lens_bundle)}, optics={}, specimen={})
    stage = daemon.open().stage
    daemon.show("colour")
    stage.close()
    daemon.beat()
    daemon.start_live(frames=1)
    daemon.wait(until_job_ends=True)
    assert daemon.instrument.stage is not stage
    assert daemon.board.status().engine.shown == "colour"


def test_an_output_that_is_none_of_the_models_is_refused_at_the_start(make: DaemonMaker, lens_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="no output 'map'"):
        make(engine={"model": str(lens_bundle), "show": "map"}).open()


def test_a_snapshot_has_a_file_for_each_output_and_colour_stays_colour(make: DaemonMaker, lens_bundle: Path) -> None:
    daemon = make(engine={"model": str(lens_bundle)}, optics={}, specimen={})
    daemon.start_live()
    raw, *outputs = daemon.snapshot()
    assert [path.name.split("_", 1)[1] for path in outputs] == [
        f"enhanced_{name}_SIMULATED.ome.tif" for name in ("enhanced", "inverted", "colour")
    ]
    pixels = tifffile.imread(raw)
    np.testing.assert_allclose(tifffile.imread(outputs[1]), 255 - pixels, atol=1)  # bf16 rounds
    with tifffile.TiffFile(outputs[2]) as file:
        assert file.asarray().shape == (256, 256, 3)
        assert file.pages[0].photometric.name == "RGB"
        image = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    facts = json.loads(image["Description"])
    assert (facts["output"], facts["microscope"][:13]) == ("colour", "20x objective")
    assert image["Pixels"]["Channel"]["Name"] == "colour, enhanced by gain, not raw data"


def test_a_finer_output_has_half_the_pixel_size_in_its_files(
    make: DaemonMaker, new_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    daemon = make(engine={"model": str(new_bundle(scale=2))})
    daemon.start_live()
    raw, enhanced = daemon.snapshot()
    sizes = []
    for path in (raw, enhanced):
        with tifffile.TiffFile(path) as file:
            sizes.append(tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]["PhysicalSizeX"])
    assert sizes == pytest.approx([PIXEL_SIZE_NM / 1e3, PIXEL_SIZE_NM / 2e3])
    daemon.stop()
    daemon.start_scan(plan_scan(daemon.open(), region_um=(6, 6), overlap=0.15, settle_s=0), tmp_path / "scan")
    daemon.wait(until_job_ends=True)
    with tifffile.TiffFile(daemon.job.recorder.mosaic_path) as file:
        raw_shape, enhanced_shape = (series.shape for series in file.series)
    assert enhanced_shape == pytest.approx(np.multiply(2, raw_shape), abs=4)


def test_a_scan_keeps_the_output_it_began_with(make: DaemonMaker, lens_bundle: Path) -> None:
    daemon = make(engine={"model": str(lens_bundle), "show": "colour"}, optics={}, sphere={}, specimen={})
    plan = plan_scan(daemon.open(), region_um=(100, 60), overlap=0.15, settle_s=0)
    assert plan.tile_um == pytest.approx(256 * 0.332)  # no sphere: the whole frame
    daemon.start_scan_of(region_um=(100, 60), overlap=0.15)
    daemon.show("inverted")
    daemon.wait(until_job_ends=True)
    recorder = daemon.job.recorder
    assert recorder.complete
    with tifffile.TiffFile(recorder.mosaic_path) as file:
        raw, colour = (series.asarray() for series in file.series)
    assert colour.shape == (*raw.shape, 3)
    np.testing.assert_allclose(colour[..., 0].astype(int), raw, atol=2)
    assert json.loads((recorder.folder / "scan.json").read_text())["facts"]["output"] == "colour"


def test_the_board_stays_fresh_while_the_instrument_is_being_opened(
    make: DaemonMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = make()

    def slow(*args: object, **kwargs: object) -> None:
        for _ in range(3):
            before = daemon.board.wait_status(-1, timeout_s=0.0)[0]
            assert daemon.board.wait_status(before, timeout_s=30.0)[0] > before
        raise ConfigError("opened for long enough")

    monkeypatch.setattr("edge.daemon.open_instrument", slow)
    with pytest.raises(ConfigError, match="long enough"):
        daemon.open()


@pytest.mark.parametrize(("opening_s", "told"), [(600.0, True), (0.0, False)])
def test_the_watchdog_hears_of_an_opening_that_is_slow_and_not_of_one_that_hangs(
    make: DaemonMaker, monkeypatch: pytest.MonkeyPatch, opening_s: float, told: bool
) -> None:
    daemon, beats = make(), threading.Semaphore(0)
    alive = threading.Event()
    monkeypatch.setattr(daemon, "_alive", alive.set)
    monkeypatch.setattr("edge.daemon.OPENING_S", opening_s)
    monkeypatch.setattr(daemon, "beat", beats.release)

    def slow(*args: object, **kwargs: object) -> None:
        for _ in range(3):  # the second beat comes after what followed the first
            assert beats.acquire(timeout=30)
        raise ConfigError("opened for long enough")

    monkeypatch.setattr("edge.daemon.open_instrument", slow)
    with pytest.raises(ConfigError, match="long enough"):
        daemon.open()
    assert alive.is_set() == told


def test_an_instrument_that_does_not_open_is_on_the_board_with_the_reason(make: DaemonMaker) -> None:
    daemon = make(focus={"driver": "esp301", "port": "/dev/absent-focus", "axis": "1"})
    with pytest.raises(LinkError):
        daemon.open()
    status = daemon.board.status()
    assert status.state is RunState.FAULT
    assert "/dev/absent-focus" in (status.start_error or "")


def test_what_ends_a_job_is_a_problem_in_words_and_the_next_start_clears_it(make: DaemonMaker) -> None:
    daemon = make()
    instrument = daemon.open()

    def broken(pixels: object) -> None:
        raise EdgeError("the engine gave up")

    infer, instrument.engine.infer = instrument.engine.infer, broken  # type: ignore[method-assign]
    daemon.start_live()
    daemon.wait(until_job_ends=True)
    daemon.beat()
    status = daemon.board.status()
    assert status.state is RunState.FAULT
    assert status.problems[0].what_to_do == "the engine gave up"
    instrument.engine.infer = infer  # type: ignore[method-assign]
    daemon.start_live(frames=1)
    daemon.wait(until_job_ends=True)
    assert daemon.board.status().problems == ()


def test_closing_ends_every_thread_it_started(make: DaemonMaker) -> None:
    before = set(threading.enumerate())
    daemon = make()
    daemon.start_live()
    daemon.close()
    daemon.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert {thread.name for thread in set(threading.enumerate()) - before} == set()


def test_a_replay_has_no_stage_and_cannot_scan(make: DaemonMaker, tmp_path: Path, frames) -> None:
    np.savez(tmp_path / "frames.npz", images=frames)
    daemon = make(camera={"driver": "replay", "path": str(tmp_path / "frames.npz"), "fps": None})
    instrument = daemon.open()
    assert instrument.simulated == ()
    with pytest.raises(ConfigError, match="no stage"):
        plan_scan(instrument, region_um=(10, 10), overlap=0.1, settle_s=0)
    daemon.start_live(frames=30)
    daemon.wait(until_job_ends=True)
    assert (daemon.job.meter.frames, daemon.job.meter.dropped) == (30, 0)
