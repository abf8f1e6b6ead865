"""The self-test on the CPU: what it finds, what it writes, and that it fails where something is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edge import selftest
from edge.__main__ import main
from edge.config import Config
from edge.doctor import Package
from edge.engine.openvino import OpenVinoEngine
from edge.errors import EdgeError, EngineError
from edge.frames import Frame, Ledger
from edge.selftest import System, self_test
from export.errors import PlanError
from export.plan import Device
from tests.tensorrt.models import make_precisions

NUMPY = Package("numpy", "2", "", needed=True, computes=False)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the service may write."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr(selftest, "FLOW_FRAMES", 3)
    return tmp_path / "state"


@pytest.fixture
def document(identity_bundle: Path, small_specimen: Path) -> dict[str, Any]:
    return {
        "camera": {"shape_px": (64, 64), "fps": 500},
        "engine": {"model": str(identity_bundle)},
        "specimen": {"path": str(small_specimen), "pixel_size_nm": 48.0},
    }


def run(document: dict[str, Any], *, system: System | None = None, **sections: dict[str, Any]) -> dict[str, Any]:
    merged = {**document, **{name: {**document.get(name, {}), **values} for name, values in sections.items()}}
    nowhere = System(Path("/nonexistent"), Path("/nonexistent"))
    return self_test(Config.model_validate(merged), packages=[NUMPY], system=system or nowhere)


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["outcome"] for check in report["checks"]}


def words(report: dict[str, Any], name: str) -> str:
    return next(check["words"] for check in report["checks"] if check["name"] == name)


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Device:
        raise PlanError("There is no CUDA driver here.")

    monkeypatch.setattr(selftest, "this_device", absent)


@pytest.mark.usefixtures("no_gpu")
def test_on_a_pc_all_that_is_there_passes_and_the_rest_is_not_present(document: dict[str, Any], state: Path) -> None:
    report = run(document)
    assert report["passed"] is True
    found = outcomes(report)
    for name in ("versions", "model", "camera", "engine", "accuracy", "latency", "copies"):
        assert found[name] == "passed", words(report, name)
    for name in ("gpu", "l4t", "power mode", "clocks", "temperature", "serial port", "gpio"):
        assert found[name] == "not present", words(report, name)
    figures = {check["name"]: check["figures"] for check in report["checks"]}
    assert figures["accuracy"]["psnr_db"] >= 35
    assert 0 < figures["latency"]["p50_s"] <= figures["latency"]["p99_s"]
    assert figures["copies"] == {"copies_per_frame": 0, "passes_per_frame": 0, "frames": 3}
    assert "SIMULATED" in words(report, "camera")
    path = Path(report["report"])
    assert path.parent == state / "selftest"
    assert json.loads(path.read_text()) == json.loads(json.dumps(report, default=str))


@pytest.mark.usefixtures("no_gpu")
def test_large_frames_are_tried_as_the_box_runs_them_in_tiles_and_their_copies_are_allowed(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.engine.tiling.TILE_PX", 64)
    report = run(document, camera={"shape_px": (96, 200)}, engine={"model": "srcnn"}, sphere={"field_um": None})
    for name in ("engine", "accuracy", "copies"):
        assert outcomes(report)[name] == "passed", words(report, name)
    assert words(report, "copies").startswith("2 host copies per frame from ")
    assert words(report, "copies").endswith("at most 3 is allowed, 2 of them into tiles and out")


@pytest.mark.usefixtures("no_gpu")
def test_whoever_waits_for_a_slow_engine_is_told_how_far_it_is(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selftest, "_SILENCE_S", 0.0)
    monkeypatch.setattr("edge.engine.measure.BUDGET_S", 0.0)
    told: list[str] = []
    nowhere = System(Path("/nonexistent"), Path("/nonexistent"))
    report = self_test(Config.model_validate(document), packages=[NUMPY], system=nowhere, progress=told.append)
    assert told[told.index("accuracy") :][:3] == ["accuracy", "accuracy: 0 frames so far", "accuracy: 1 frames so far"]
    assert words(report, "latency").endswith("it is so slow that only 5 were timed")


@pytest.mark.usefixtures("no_gpu")
def test_an_engine_that_computes_something_else_fails_the_gate(document: dict[str, Any], tmp_path: Path) -> None:
    bundle = make_precisions(tmp_path / "two", {"int8": 0.8})
    report = run(document, engine={"model": str(bundle), "precision": "int8"})
    assert report["passed"] is False
    assert outcomes(report)["accuracy"] == "FAILED"
    assert "at least 35 dB are asked for" in report["problems"][0]


@pytest.mark.usefixtures("no_gpu")
def test_it_fails_the_gate_in_the_dark_too(document: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "dark.npz", images=np.zeros((4, 64, 64), np.uint8))
    bundle = make_precisions(tmp_path / "two", {"int8": 0.1})
    dark = {**document, "camera": {"driver": "replay", "path": str(tmp_path / "dark.npz")}}
    report = run(dark, engine={"model": str(bundle), "precision": "int8"})
    assert outcomes(report)["accuracy"] == "FAILED", words(report, "accuracy")
    (figures,) = [check["figures"] for check in report["checks"] if check["name"] == "accuracy"]
    assert (figures["frames"], figures["psnr_db"] < 10) == (6, True)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("rebuild", [True, False])
def test_plans_are_built_again_only_when_it_is_asked_for(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, rebuild: bool
) -> None:
    asked: list[dict[str, Any]] = []

    def open_engine(*arguments: Any, **options: Any) -> None:
        asked.append(options)
        raise EngineError("TensorRT is not here")

    monkeypatch.setattr(selftest, "open_engine", open_engine)
    config = Config.model_validate({**document, "engine": {**document["engine"], "backend": "tensorrt"}})
    nowhere = System(Path("/nonexistent"), Path("/nonexistent"))
    report = self_test(config, packages=[NUMPY], rebuild=rebuild, system=nowhere)
    assert outcomes(report)["engine"] == "FAILED"
    assert [(options["again"], options["fallback"]) for options in asked] == [(rebuild, False)]


@pytest.mark.usefixtures("no_gpu")
def test_a_precision_that_is_to_be_tried_again_is_tried_before_the_rest(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[str] = []

    class Unfinished:
        def start(self) -> None:
            did.append("start")

        def wait(self, timeout_s: float) -> bool:
            return True

        def made(self) -> Any:
            raise EngineError("int8_fp16 is not built again")

        def close(self) -> None:
            did.append("close")

    engine = SimpleNamespace(close=lambda: did.append("the one before"))
    monkeypatch.setattr(selftest, "open_engine", lambda *_, **options: (engine, None, Unfinished()))
    report = run(document, engine={"backend": "tensorrt"})
    assert words(report, "engine") == "int8_fp16 is not built again"
    assert did == ["the one before", "start", "close"]


def test_there_is_nothing_to_rebuild_without_tensorrt() -> None:
    for arguments, said in ((["--selftest", "--rebuild"], 'backend = "openvino"'), (["--rebuild"], "--selftest")):
        done = CliRunner().invoke(main, ["doctor", *arguments])
        assert (done.exit_code, said in done.stderr) == (2, True)


@pytest.mark.usefixtures("no_gpu")
def test_an_engine_that_fails_while_it_runs_is_a_failed_check(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: OpenVinoEngine, pixels: np.ndarray) -> Mapping[str, np.ndarray]:
        raise EdgeError("the device was lost")

    monkeypatch.setattr(OpenVinoEngine, "infer", lost)
    report = run(document)
    assert (outcomes(report)["engine"], words(report, "accuracy")) == ("passed", "the device was lost")
    assert "copies" not in outcomes(report)


@pytest.mark.usefixtures("no_gpu")
def test_tensorrt_that_was_asked_for_and_is_not_there_fails(document: dict[str, Any]) -> None:
    report = run(document, engine={"backend": "tensorrt", "fallback": "openvino"})
    assert outcomes(report)["engine"] == "FAILED"
    assert "TensorRT" in words(report, "engine")


@pytest.mark.usefixtures("no_gpu")
def test_a_model_that_does_not_exist_leaves_nothing_to_try(document: dict[str, Any]) -> None:
    report = run(document, engine={"model": "no-such-model"})
    assert outcomes(report)["model"] == "FAILED"
    assert "engine" not in outcomes(report)


@pytest.mark.usefixtures("no_gpu")
def test_a_camera_that_copies_twice_is_found_out(document: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    expose = selftest.open_camera

    def wasteful(*arguments: Any, **options: Any) -> Any:
        camera = expose(*arguments, **options)
        next_frame = camera.next_frame

        def twice(*, timeout_s: float) -> Frame:
            frame = next_frame(timeout_s=timeout_s)
            return Frame(frame.pixels, frame.index, frame.t_exposure_end_ns, ledger=Ledger(copies=2))

        camera.next_frame = twice
        return camera

    monkeypatch.setattr(selftest, "open_camera", wasteful)
    assert words(run(document), "copies").startswith("2 host copies per frame")


def test_a_jetson_says_its_gpu_release_clocks_and_temperatures(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(selftest, "this_device", lambda: Device("Orin, 8 SM", "8.7", "12.6", "36.4.0"))
    monkeypatch.setattr(selftest, "l4t_release", lambda: "36.4.0")
    tool = tmp_path / "bin" / "nvpmodel"
    write(tmp_path, {"bin/nvpmodel": "#!/bin/sh\necho NV Power Mode: MAXN"})
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    policy, zone = "devices/system/cpu/cpufreq/policy0", "class/thermal/thermal_zone0"
    write(
        tmp_path / "sys",
        {
            f"{policy}/scaling_governor": "schedutil",
            f"{policy}/scaling_cur_freq": "1728000",
            f"{policy}/scaling_max_freq": "2201600",
            f"{zone}/type": "gpu-thermal",
            f"{zone}/temp": "52500",
            f"{zone}/trip_point_0_type": "critical",
            f"{zone}/trip_point_0_temp": "104500",
            "class/thermal/thermal_zone1/temp": "-256000",  # switched off
        },
    )
    system = System(tmp_path / "sys", tmp_path / "dev")
    report = run(document, system=system)
    assert report["passed"] is True
    assert words(report, "gpu") == "Orin, 8 SM, compute capability 8.7"
    assert words(report, "l4t") == "L4T 36.4.0"
    assert words(report, "power mode") == "NV Power Mode: MAXN"
    assert words(report, "clocks") == "policy0 schedutil / 1728000 / 2201600"
    assert words(report, "temperature") == "at most 52 C (gpu-thermal)"
    write(tmp_path / "sys", {f"{zone}/temp": "101000"})
    hot = selftest.temperature(system)
    assert (hot.outcome, hot.words[:45]) == ("FAILED", "gpu-thermal is 101 C, and 104 C is its limit.")
    tool.write_text("#!/bin/sh\nexit 3\n")
    assert selftest.power_mode().outcome == "FAILED"


@pytest.mark.usefixtures("no_gpu")
def test_a_port_and_a_chip_that_are_configured_have_to_be_there(document: dict[str, Any], tmp_path: Path) -> None:
    dev = tmp_path / "dev"
    write(dev, {"ttyACM0": "", "gpiochip0": ""})
    system = System(tmp_path, dev)

    def checks(port: str, chip: int) -> dict[str, str]:
        config = Config.model_validate(
            {"stage": {"port": port}, "trigger": {"driver": "gpio", "chip": chip, "pin": 18}}
        )
        return {check.name: check.outcome for check in (selftest.serial(config, system), selftest.gpio(config, system))}

    assert checks(str(dev / "ttyACM0"), 0) == {"serial port": "passed", "gpio": "passed"}
    assert checks(str(dev / "ttyUSB7"), 1) == {"serial port": "FAILED", "gpio": "FAILED"}


@pytest.mark.usefixtures("no_gpu")
def test_a_board_that_is_configured_has_to_have_its_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"gpiochip0": "", "gpiochip1": ""})
    monkeypatch.setattr("firmware_bridge.boards.chip_label", lambda path: f"label of {path.name}")
    config = Config.model_validate({"trigger": {"driver": "gpio", "board": "jetson-orin-nano", "pin": 33}})
    check = selftest.gpio(config, System(tmp_path, tmp_path))
    assert (check.outcome, "no GPIO chip tegra234-gpio here" in check.words) == ("FAILED", True)
    monkeypatch.setattr("firmware_bridge.boards.chip_label", lambda path: "tegra234-gpio" * (path.name == "gpiochip1"))
    check = selftest.gpio(config, System(tmp_path, tmp_path))
    assert (check.outcome, check.words) == ("passed", "gpiochip1 is there")


def test_a_package_that_is_missing_fails_if_it_is_needed() -> None:
    pycuda = Package("pycuda", None, ".venv/bin/pip install -e '.[jetson]' in the checkout", needed=True, computes=True)
    check = selftest.versions([NUMPY, pycuda])
    assert (check.outcome, check.words) == (
        "FAILED",
        "pycuda is missing: .venv/bin/pip install -e '.[jetson]' in the checkout",
    )
    assert selftest.versions([NUMPY, pycuda._replace(needed=False, computes=False)]).outcome == "passed"


def test_the_versions_that_the_engine_computes_with_are_in_the_words() -> None:
    nvrtc = Package("NVRTC", "12.6", "", needed=True, computes=True)
    check = selftest.versions([NUMPY, nvrtc, Package("torch", None, "", needed=False, computes=False)])
    assert ", NVRTC 12.6, and all else" in check.words
    assert check.figures == {"numpy": "2", "NVRTC": "12.6", "torch": "not installed"}


@pytest.mark.usefixtures("no_gpu")
def test_a_report_that_cannot_be_written_is_an_error(document: dict[str, Any], state: Path) -> None:
    state.write_text("a file")
    with pytest.raises(EdgeError, match="report could not be written"):
        run(document, engine={"model": "no-such-model"})


@pytest.mark.usefixtures("no_gpu")
def test_the_command_ends_with_one_where_a_check_fails_and_names_the_report(identity_bundle: Path) -> None:
    done = CliRunner().invoke(main, ["doctor", "--selftest", "--model", "no-such-model", "--json", "-"])
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert report["passed"] is False
    assert f"report: {report['report']}" in done.stderr
    assert "The self-test failed. model: No model 'no-such-model'" in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("no_gpu")
def test_the_command_passes_on_this_machine(identity_bundle: Path, state: Path) -> None:
    done = CliRunner().invoke(main, ["doctor", "--selftest", "--model", str(identity_bundle)])
    assert done.exit_code == 0, done.output
    assert "All that is here works" in done.stdout
    (report,) = (state / "selftest").iterdir()
    assert json.loads(report.read_text())["passed"] is True
