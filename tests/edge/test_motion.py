"""The interlock in the appliance: who arms it, what ends a job, and what a person does then."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edge import daemon as daemon_module
from edge import motion
from edge.config import Config
from edge.daemon import Daemon
from edge.errors import BusyError, ConfigError
from edge.jobs import plan_scan
from edge.motion import open_motion
from edge.status import RunState
from firmware_bridge.errors import RefusedError
from firmware_bridge.focus import FocusStage
from firmware_bridge.retraction import FocusRetraction, PztRetraction
from firmware_bridge.safety import State
from firmware_bridge.simulator import cantilever
from models.optics import Optics
from tests.waiting import until

CONTACT = {"driver": "simulated", "set_point_v": 1.2, "overload_v": 2.0, "broken_v": 0.2}
PATIENT = {"contact_timeout_s": 5.0}  # a loaded machine keeps no short time-out
Make = Callable[..., Daemon]


@pytest.fixture
def sensors(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The simulated cantilevers that are made."""
    made: list[Any] = []

    class Seen(cantilever.SimulatedCantilever):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(cantilever, "SimulatedCantilever", Seen)
    return made


@pytest.fixture
def make(identity_bundle: Path, small_specimen: Path, tmp_path: Path) -> Iterator[Make]:
    daemons: list[Daemon] = []

    def make_daemon(**sections: dict[str, Any]) -> Daemon:
        config = {
            "box": {"data_dir": str(tmp_path / "data")},
            "camera": {"shape_px": (256, 256), "fps": 200},
            "engine": {"model": str(identity_bundle)},
            "specimen": {"path": str(small_specimen), "pixel_size_nm": Optics().pixel_size_nm},
            "contact": CONTACT,
            "interlock": PATIENT,
            "focus": {"driver": "simulated"},
            **sections,
            "sphere": {"field_um": 8.0, **sections.get("sphere", {})},
        }
        daemons.append(Daemon(Config.model_validate(config)))
        return daemons[-1]

    yield make_daemon
    for daemon in daemons:
        daemon.close()


@pytest.fixture
def retractions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the interlock has done to focus and stage, in its order."""
    done: list[str] = []
    lift, retract = FocusRetraction.lift, PztRetraction.retract_z

    def lifting(self: FocusRetraction, failed: Any, given_up: Any) -> None:
        done.append("focus")
        lift(self, failed, given_up)

    def retracting(self: PztRetraction) -> None:
        done.append("z")
        retract(self)

    monkeypatch.setattr(FocusRetraction, "lift", lifting)
    monkeypatch.setattr(PztRetraction, "retract_z", retracting)
    return done


def scan_until(daemon: Daemon, folder: Path, *, tiles: int) -> None:
    """Begin a long scan, and return when it has so many tiles."""
    daemon.start_scan(plan_scan(daemon.open(), region_um=(60, 60), overlap=0.15, settle_s=0.02), folder)
    while len(daemon.job.recorder.tiles) < tiles:
        daemon.job.thread.join(0.005)
        assert daemon.running


def beat_until_ended(daemon: Daemon) -> None:
    """As the main thread does, until the job has ended, and once more."""
    until(lambda: daemon.beat() or not daemon.running)
    daemon.beat()


@pytest.mark.parametrize(("mount", "order"), [("cantilever", ["z", "focus"]), ("objective", ["focus", "z"])])
def test_an_overload_in_a_scan_ends_it_retracts_and_is_latched_until_a_person_resets_it(
    make: Make, sensors: list[Any], retractions: list[str], tmp_path: Path, mount: str, order: list[str]
) -> None:
    daemon = make(sphere={"mount": mount}, interlock={"contact_timeout_s": 2.0})
    scan_until(daemon, tmp_path / "scan", tiles=2)
    stage = daemon.instrument.stage
    sensors[0].knock_nm = 2400.0  # 0.4 um into the sphere: 2.6 V
    until(lambda: daemon.instrument.motion.latched)
    beat_until_ended(daemon)
    until(lambda: len(retractions) == 2 and abs(stage.position_um().z) < 0.05)
    assert retractions == order
    index = json.loads((tmp_path / "scan" / "scan.json").read_text())
    assert index["complete"] is False
    assert len(index["tiles"]) >= 2
    assert index["facts"]["simulated"] == ["camera", "stage", "focus", "contact"]

    daemon.beat()
    status = daemon.board.status()
    assert (status.state, status.interlock.state) == (RunState.FAULT, "fault")
    assert [problem.key for problem in status.problems] == ["interlock"]
    assert "Contact overload: 2." in status.problems[0].what_to_do
    assert "servo" not in status.problems[0].what_to_do
    for start in (daemon.start_live, lambda: daemon.start_scan_of(region_um=(6, 6), overlap=0.15)):
        with pytest.raises(BusyError, match="latched"):
            start()
    daemon.stop()  # STOP is heard in every state
    sensors[0].silent = True
    interlock = daemon.instrument.motion.interlock
    until(lambda: interlock._overloaded)  # what is silent counts as that
    with pytest.raises(BusyError, match="still overloaded"):
        daemon.reset(by="a tester")

    sensors[0].silent, sensors[0].knock_nm = False, 0.0
    until(lambda: not interlock._overloaded)
    daemon.reset(by="a tester")
    status = daemon.board.status()
    assert (status.state, status.interlock.state, status.problems) == (RunState.IDLE, "disarmed", ())
    with pytest.raises(RefusedError):
        stage.move_to(stage.target_um()._replace(x=40.0))
    daemon.start_scan_of(region_um=(6, 6), overlap=0.15)
    daemon.wait(until_job_ends=True)
    assert daemon.job.recorder.complete
    assert daemon.instrument.stage is stage


def test_a_contact_sensor_that_falls_silent_ends_a_live_view(make: Make, sensors: list[Any]) -> None:
    daemon = make(interlock={"contact_timeout_s": 0.5})
    daemon.start_live()
    sensors[0].silent = True
    until(lambda: daemon.instrument.motion.latched)
    beat_until_ended(daemon)
    (problem,) = daemon.board.status().problems
    assert "stale" in problem.what_to_do


def test_a_stage_that_is_silent_for_too_long_is_a_latched_fault(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = make(contact={}, focus={})
    interlock = daemon.open().motion.interlock
    monkeypatch.setattr(interlock, "_clock", lambda: 1e9)  # nobody has answered since
    daemon.beat()
    status = daemon.board.status()
    assert status.interlock.state == "fault"
    assert "No answer from the PZT controller for 2 s" in status.problems[0].what_to_do


def test_a_servo_that_is_found_open_disarms_and_the_next_start_opens_the_stage_anew(make: Make) -> None:
    daemon = make(contact={}, focus={})
    stage = daemon.open().stage
    daemon.start_live()
    daemon.instrument.motion.interlock.lost("a servo is off")
    beat_until_ended(daemon)
    status = daemon.board.status()
    assert (status.state, status.problems[0].title) == (RunState.FAULT, "The stage is disarmed")
    assert "start again" in status.problems[0].what_to_do
    daemon.start_live(frames=1)
    daemon.wait(until_job_ends=True)
    assert daemon.instrument.stage is not stage
    assert daemon.board.status().interlock.state == "armed"


def test_there_is_nothing_to_reset_while_nothing_is_latched_nor_while_a_job_runs(make: Make) -> None:
    daemon = make(contact={}, focus={})
    with pytest.raises(BusyError, match="No stage is open"):
        daemon.reset(by="a tester")
    daemon.start_live()
    with pytest.raises(BusyError, match="busy"):
        daemon.reset(by="a tester")
    daemon.stop()
    with pytest.raises(BusyError, match="only when fault"):
        daemon.reset(by="a tester")


def pretend_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage does not say that it is simulated."""
    opened = motion.open_stage

    def open_real(*args: Any, **options: Any) -> Any:
        stage = opened(*args, **options)
        stage.simulated = False
        return stage

    monkeypatch.setattr(motion, "open_stage", open_real)


def test_a_real_stage_is_not_armed_by_itself_and_a_scan_says_what_to_do(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_real(monkeypatch)
    daemon = make(contact={}, focus={})
    instrument = daemon.open()
    assert instrument.simulated == ("camera",)
    assert daemon.board.status().interlock.state == "disarmed"
    assert daemon.board.status().problems == ()
    with pytest.raises(RefusedError):
        instrument.stage.move_to(instrument.stage.limits_um.centre)
    with pytest.raises(ConfigError, match=r"Lift the sphere, set \[stage\] enable_servo = true"):
        daemon.start_scan_of(region_um=(6, 6), overlap=0.15)
    assert not (daemon.data_dir / "scans").exists()
    daemon.start_live(frames=2)  # to look is free
    daemon.wait(until_job_ends=True)
    assert daemon.board.status().state is RunState.IDLE


@pytest.mark.parametrize(
    ("real", "enable_servo", "state"),
    [
        (True, None, State.DISARMED),
        (True, True, State.ARMED),
        (False, None, State.ARMED),
        (False, False, State.DISARMED),
    ],
)
def test_only_a_simulated_stage_or_a_persons_word_arms(
    monkeypatch: pytest.MonkeyPatch, *, real: bool, enable_servo: bool | None, state: State
) -> None:
    if real:
        pretend_real(monkeypatch)
    with open_motion(Config.model_validate({"stage": {"enable_servo": enable_servo}})) as moving:
        assert moving.interlock.state is State.DISARMED
        moving.arm()
        assert (moving.interlock.state, moving.stage.ready) == (state, state is State.ARMED)


def test_the_contact_is_told_with_its_unit_and_age_and_an_old_sample_as_old(sensors: list[Any]) -> None:
    with open_motion(Config.model_validate({"contact": CONTACT, "interlock": PATIENT})) as moving:
        until(lambda: moving.status().contact_v is not None)
        status = moving.status()
        assert status.contact_v == pytest.approx(1.0, abs=0.05)
        assert status.set_point_v == 1.2
        assert status.contact_age_s < 5
        sensors[0].silent = True
        until(lambda: moving.status().contact_age_s > 0.3)
        assert moving.status().contact_v == pytest.approx(1.0, abs=0.05)


def test_without_a_contact_sensor_the_status_knows_of_no_contact() -> None:
    with open_motion(Config()) as moving:
        status = moving.status()
    assert (status.contact_v, status.set_point_v, status.contact_age_s) == (None, None, None)


def test_stop_reaches_the_focus_even_where_the_stage_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_motion(Config.model_validate({"focus": {"driver": "simulated"}})) as moving:
        heard: list[str] = []
        monkeypatch.setattr(FocusStage, "stop", lambda _: heard.append("focus"))

        def fails() -> None:
            raise RefusedError("no link")

        monkeypatch.setattr(moving.stage, "stop", fails)
        with pytest.raises(RefusedError, match="no link"):
            moving.stop()
        assert heard == ["focus"]


def test_the_focus_does_not_wait_for_a_stage_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_motion(Config.model_validate({"focus": {"driver": "simulated"}})) as moving:
        halted, stop = threading.Event(), moving.stage.stop
        monkeypatch.setattr(FocusStage, "stop", lambda _: halted.set())

        def slow() -> None:
            assert halted.wait(10)
            stop()

        monkeypatch.setattr(moving.stage, "stop", slow)
        moving.stop()


def test_a_stop_while_the_instrument_is_being_opened_keeps_it_from_being_armed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = make(contact={}, focus={})
    opened = daemon_module.open_instrument

    def open_and_stop(*args: Any, **options: Any) -> Any:
        found = opened(*args, **options)
        daemon.stop()  # it has no instrument yet that it could stop
        return found

    monkeypatch.setattr(daemon_module, "open_instrument", open_and_stop)
    with pytest.raises(BusyError, match="STOP was pressed"):
        daemon.start_live()
    assert daemon.instrument is not None
    assert daemon.instrument.motion is not None
    assert daemon.instrument.motion.interlock.state is State.DISARMED
    assert not daemon.instrument.motion.stage.ready
    daemon.start_live()  # a person's next start
    assert daemon.instrument.motion.interlock.state is State.ARMED


def test_a_simulated_contact_needs_a_simulated_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = motion.open_stage

    def open_other(*args: Any, **options: Any) -> Any:
        stage = opened(*args, **options)
        stage.simulator = None
        return stage

    monkeypatch.setattr(motion, "open_stage", open_other)
    with pytest.raises(ConfigError, match="simulated stage only"), open_motion(Config(contact=CONTACT)):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["dead", "unplug", "servo_off", "reboot"])
def test_a_controller_that_is_lost_in_a_scan_ends_it_and_the_next_start_opens_it_anew(
    make: Make, tmp_path: Path, fault: str
) -> None:
    daemon = make(contact={}, focus={})
    scan_until(daemon, tmp_path / "scan", tiles=2)
    stage, interlock = daemon.instrument.stage, daemon.instrument.motion.interlock
    stage.simulator.faults.inject(fault)
    beat_until_ended(daemon)
    until(lambda: daemon.beat() or interlock.state in (State.DISARMED, State.FAULT))
    daemon.beat()
    assert len(json.loads((tmp_path / "scan" / "scan.json").read_text())["tiles"]) >= 2
    status = daemon.board.status()
    assert status.state is RunState.FAULT
    (told,) = [problem.what_to_do for problem in status.problems if problem.key == "stage"]
    assert told.endswith(". Lift the sphere, then start again.")
    if interlock.state is State.FAULT:
        with pytest.raises(BusyError, match="latched"):
            daemon.start_live()
        daemon.reset(by="a tester")
    daemon.start_scan_of(region_um=(6, 6), overlap=0.15)
    daemon.wait(until_job_ends=True)
    assert daemon.job.recorder.complete
    assert daemon.instrument.stage is not stage
    assert daemon.board.status().problems == ()


def test_a_contact_that_is_overloaded_at_the_start_is_a_fault_on_the_page_and_reset_there(
    make: Make, monkeypatch: pytest.MonkeyPatch, sensors: list[Any]
) -> None:
    monkeypatch.setattr(cantilever, "SimulatedCantilever", partial(cantilever.SimulatedCantilever, baseline_v=2.6))
    daemon = make(focus={})
    daemon.open()
    daemon.beat()
    status = daemon.board.status()
    assert (status.start_error, status.interlock.state, status.state) == (None, "fault", RunState.FAULT)
    assert [problem.key for problem in status.problems] == ["interlock"]
    assert not daemon.instrument.stage.ready
    assert "Lift the sphere: the servo is open" in status.problems[0].what_to_do
    monkeypatch.setattr(sensors[0], "read_v", lambda: 1.0)
    until(lambda: daemon.instrument.motion.status().contact_v == 1.0)
    daemon.reset(by="a tester")
    daemon.start_live(frames=1)
    daemon.wait(until_job_ends=True)
    assert daemon.board.status().interlock.state == "armed"


@pytest.mark.parametrize("z_sign", [1, -1])
def test_the_simulated_sphere_is_on_the_side_that_the_sign_of_z_says(sensors: list[Any], z_sign: int) -> None:
    with open_motion(
        Config.model_validate({"contact": CONTACT, "interlock": PATIENT, "stage": {"z_sign": z_sign}})
    ) as moving:
        moving.arm()
        assert moving.interlock.state is State.ARMED
        assert sensors[0].indentation_nm() == pytest.approx(-2000, abs=50)


def test_limits_beyond_the_travel_are_refused_with_their_keys() -> None:
    limits = {"limits_low_um": [200, 200, 0], "limits_high_um": [300, 300, 10]}
    with (
        pytest.raises(ConfigError, match=r"\[stage\] limits_low_um, limits_high_um .*no position lies both"),
        open_motion(Config.model_validate({"stage": limits})),
    ):
        pass
