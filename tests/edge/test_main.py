"""`superlens` as a person uses it: figures as JSON, and one clear error with the right exit code for a wrong input."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

from edge.__main__ import main

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def superlens(tmp_path: Path) -> Run:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edge", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "XDG_DATA_HOME": str(tmp_path / "data")},
        )

    return run


@pytest.fixture
def npz(tmp_path: Path, frames: np.ndarray) -> Path:
    np.savez(tmp_path / "frames.npz", images=frames)
    return tmp_path / "frames.npz"


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_run_enhances_a_replay_without_loss_and_prints_its_figures(
    superlens: Run, npz: Path, identity_bundle: Path
) -> None:
    done = superlens(
        *("run", "--no-web", "--camera", f"replay:{npz}", "--frames", 30, "--model", identity_bundle, "--json", "-")
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["frames"], figures["dropped"], figures["copies_per_frame"]) == (30, 0, 1.0)
    assert figures["simulated"] is False
    assert figures["pixel_size_nm"] is None
    assert figures["pixel_size"] == "pixel size unknown"
    for key in ("fps", "first_frame_s", "rss_mb", "backend", "precision"):
        assert figures[key], key
    for key in ("latency_s", "engine_s"):
        assert 0 < figures[key]["p50"] <= figures[key]["p99"]


def test_run_on_the_simulated_instrument_says_simulated(superlens: Run, identity_bundle: Path) -> None:
    done = superlens("run", "--no-web", "--frames", 20, "--model", identity_bundle, "--json", "-")
    figures = json.loads(done.stdout)
    assert figures["simulated"] is True
    assert figures["pixel_size_nm"] == pytest.approx(48.148, abs=1e-3)
    assert figures["copies_per_frame"] == 0
    assert "SIMULATED" in done.stderr


def test_run_finds_the_microscope_of_its_model_and_lists_its_outputs(superlens: Run, lens_bundle: Path) -> None:
    done = superlens("run", "--no-web", "--frames", 5, "--model", lens_bundle, "--show", "colour", "--json", "-")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["outputs"], figures["shown"]) == (["enhanced", "inverted", "colour"], "colour")
    assert figures["microscope"] == "20x objective of NA 0.4, no sphere, 332.0 nm/px"
    assert figures["pixel_size_nm"] == pytest.approx(332)
    assert figures["simulated"] is True
    assert (figures["copies_per_frame"], figures["passes_per_frame"]) == (0, 0)
    assert re.search(r"20x objective of NA 0\.4, no sphere.*SIMULATED", done.stderr)


def test_scan_prints_its_figures_and_refuses_to_overwrite(
    superlens: Run, identity_bundle: Path, tmp_path: Path
) -> None:
    arguments = ("scan", "--region-um", 20, 10, "--out", tmp_path / "scan", "--model", identity_bundle, "--json", "-")
    done = superlens(*arguments)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["tiles"], figures["missing"], figures["simulated"]) == (2, 0, True)
    assert figures["rms_position_um"] <= 0.1
    assert tifffile.imread(figures["mosaic"]).shape[0] == 2
    again = superlens(*arguments)
    assert again.returncode == 2
    in_words = superlens("scan", "--region-um", 8, 8, "--out", tmp_path / "small", "--model", identity_bundle)
    assert in_words.stdout == f"{tmp_path}/small/mosaic.ome.tif: 1 of 1 tiles\n"
    assert "not empty" in again.stderr


def test_check_config_prints_what_it_would_use(superlens: Run, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[camera]\nfps = 12\n")
    done = superlens("check-config", tmp_path / "a.toml", "--json", "-")
    assert json.loads(done.stdout)["camera"]["fps"] == 12
    assert superlens("check-config").returncode == 0


def test_doctor_names_versions_and_what_is_missing(superlens: Run) -> None:
    report = json.loads(superlens("doctor", "--json", "-").stdout)
    assert re.match(r"\d+\.\d+", report["packages"]["openvino"])
    assert "tensorrt" in report["optional"]
    assert "'.[" in superlens("doctor").stdout or report["optional"]["gpiozero"][0].isdigit()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "--config", "{tmp}/absent.toml"], 2, "No configuration file"),
        (["run", "--config", "{tmp}/unknown.toml"], 2, "unknown key"),
        (["run", "--config", "{tmp}/range.toml"], 2, r"camera\.fps"),
        (["check-config", "{tmp}/unknown.toml"], 2, "unknown key"),
        (["run", "--no-web", "--fps", "-3"], 2, r"camera\.fps"),
        (["run", "--no-web", "--fps", "nan"], 2, r"camera\.fps"),
        (["run", "--no-web", "--camera", "simulated:foo"], 2, "only replay takes a path"),
        (["run", "--no-web", "--json", "{tmp}/absent/x.json"], 2, "does not exist or is not writable"),
        (
            ["run", "--port", "0", "--frames", "2", "--config", "{tmp}/focus.toml", "--model", "{bundle}"],
            1,
            "absent",
        ),
        (["run", "--no-web", "--camera", "webcam"], 2, r"camera\.driver"),
        (["run", "--no-web", "--camera", "replay:{tmp}/absent.png"], 2, "no file or folder"),
        (["run", "--no-web", "--camera", "replay:{tmp}/empty"], 2, "holds no image"),
        (["run", "--no-web", "--camera", "replay:{tmp}/nan.tif"], 2, "NaN"),
        (["run", "--no-web", "--camera", "replay:{tmp}/tiny.png", "--model", "{bundle}"], 2, "at least 16 x 16"),
        (["run", "--no-web", "--camera", "replay:{tmp}/grey.png", "--bit-depth", "12"], 2, "bit depth"),
        (
            ["run", "--no-web", "--camera", "replay:{tmp}/grey.png", "--pixel-size-nm", "90", "--model", "{bundle}"],
            2,
            r"90 nm/px.*10 %",
        ),
        (["run", "--no-web", "--model", "no-such-model"], 2, "No model"),
        (["run", "--no-web", "--model", "{lens}", "--show", "map"], 2, "Choose one of: enhanced, inverted, colour"),
        (["run", "--no-web", "--model", "{lens}", "--config", "{tmp}/sphere.toml"], 2, r"48.* nm/px.*332 nm/px.*10 %"),
        (["run", "--no-web", "--model", "{lens}", "--pixel-size-nm", "48"], 2, r"given by its optics"),
        (["run", "--no-web", "--model", "{lens}", "--camera", "replay:{tmp}/odd.png"], 2, r"multiples of 32.*32 x 64"),
        (["run", "--host", "0.0.0.0"], 2, "needs a password"),
        (["run", "--port", "0", "--camera", "replay:{tmp}/absent.png", "--model", "{bundle}"], 2, "no file or"),
        (["run", "--port", "{port}", "--model", "{bundle}"], 2, "in use"),
        (["run", "--no-web", "--config", "{tmp}/focus.toml", "--model", "{bundle}"], 1, "/dev/absent-focus"),
        (["run", "--config", "{tmp}/serial.toml", "--model", "{bundle}"], 2, "no driver of a real camera yet"),
        (["check-config", "{tmp}/serial.toml"], 2, "/dev/absent-pzt.*no driver of a real camera yet.*superlens-pzt"),
        (["check-config", "{tmp}/model.toml"], 2, "No model 'nope'"),
        (["check-config", "{tmp}/replay.toml"], 2, "no file or folder absent.png"),
        (["scan", "--region-um", "500", "20", "--out", "{tmp}/s", "--model", "{bundle}"], 2, "Nothing was moved"),
        (["scan", "--region-um", "-5", "20", "--out", "{tmp}/s", "--model", "{bundle}"], 2, "region_um"),
        (
            ["scan", "--region-um", "20", "20", "--overlap", "1.5", "--out", "{tmp}/s", "--model", "{bundle}"],
            2,
            "overlap",
        ),
        (["enhance", "{tmp}/absent.png", "--out", "{tmp}/o"], 2, "no file or folder"),
        (["enhance", "{tmp}/notes.txt", "--out", "{tmp}/o"], 2, "unsupported"),
        (["enhance", "{tmp}/nan.tif", "--out", "{tmp}/o", "--model", "{bundle}"], 2, "NaN"),
        (["enhance", "{tmp}/grey.png", "{tmp}/nan.tif", "--out", "{tmp}/o", "--model", "{bundle}"], 2, "NaN"),
        (["enhance", "{tmp}/grey.png", "--out", "{tmp}/o", "--pixel-size-nm", "90", "--model", "{bundle}"], 2, "10 %"),
        (["enhance", "{tmp}/grey.png", "--out", "{tmp}/o", "--resample", "--model", "{bundle}"], 2, "pixel-size-nm"),
        (["enhance", "{tmp}/grey.png"], 2, "--out"),
        (["bench", "loop", "--camera", "replay:{tmp}/grey.png", "--model", "{bundle}"], 2, "simulated camera"),
    ],
)
def test_a_wrong_input_is_one_clear_error_and_nothing_is_half_written(
    superlens: Run,
    identity_bundle: Path,
    lens_bundle: Path,
    tmp_path: Path,
    used_port: int,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "unknown.toml").write_text("[camera]\nshutter_speed = 3\n")
    (tmp_path / "sphere.toml").write_text("[optics]\nsphere_diameter_um = 57\n")
    (tmp_path / "range.toml").write_text("[camera]\nfps = 0\n")
    (tmp_path / "serial.toml").write_text('[stage]\nport = "/dev/absent-pzt"\n')
    focus = '[focus]\ndriver = "esp301"\nport = "/dev/absent-focus"\naxis = "1"\n'
    (tmp_path / "focus.toml").write_text(focus)
    (tmp_path / "model.toml").write_text('[engine]\nmodel = "nope"\n')
    (tmp_path / "replay.toml").write_text('[camera]\ndriver = "replay"\npath = "absent.png"\n')
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    Image.fromarray(np.full((32, 32), 90, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((15, 32), 90, np.uint8)).save(tmp_path / "tiny.png")
    Image.fromarray(np.full((40, 65), 90, np.uint8)).save(tmp_path / "odd.png")
    tifffile.imwrite(tmp_path / "nan.tif", np.full((32, 32), np.nan, np.float32))
    before = sorted(path.name for path in tmp_path.iterdir())

    values = {"tmp": tmp_path, "bundle": identity_bundle, "lens": lens_bundle, "port": used_port}
    done = superlens(*(argument.format(**values) for argument in arguments))

    assert done.returncode == code, done.stderr
    assert re.search(message, done.stderr, re.DOTALL), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("superlens: ") <= 2  # the error, and the page's address where there is one
    assert done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_appliance_starts_where_torch_and_the_onnx_tools_cannot_be_imported(
    npz: Path, identity_bundle: Path
) -> None:
    """A finder that refuses them stands before all others: an accidental import is an error, not a slow start."""
    blocked = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnxruntime", "onnxscript", "skimage", "safetensors"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Refuse())
runpy.run_module("edge", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run(
        [
            *(sys.executable, "-c", blocked, "run", "--no-web", "--camera", f"replay:{npz}"),
            *("--frames", "3", "--model", str(identity_bundle), "--json", "-"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--overlap", "1"], "overlap: .*less than 0.9.*found 1.0"),
        (["--region-um", "nan", "40"], "region_um: .*finite number.*found nan"),
        (["--settle-s", "-3"], "settle_s: .*greater than or equal to 0.*found -3.0"),
        (["--out", "{tmp}"], "not empty.*--out"),
        (["--out", "{tmp}/notes.txt"], "notes.txt cannot be used.*--out"),
    ],
)
def test_a_scan_that_cannot_be_is_refused_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    opened: list[object] = []
    monkeypatch.setattr("edge.daemon.open_instrument", lambda *args, **kwargs: opened.append(args))
    (tmp_path / "notes.txt").write_text("no folder")
    asked = [argument.format(tmp=tmp_path) for argument in arguments]
    done = CliRunner().invoke(main, ["scan", "--region-um", "20", "20", "--out", str(tmp_path / "s"), *asked])
    assert done.exit_code == 2, done.output
    assert re.search(message, done.stderr), done.stderr
    assert opened == []


@pytest.mark.parametrize("slow", ["pydantic", "edge.daemon"])
def test_ctrl_c_while_the_program_is_still_being_imported_ends_it_without_a_word(slow: str, tmp_path: Path) -> None:
    interrupted = f"""
import runpy, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {slow!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
runpy.run_module("edge", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", interrupted, "scan", "--region-um", "20", "20", "--out", str(tmp_path / "s")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_large_images_are_enhanced_in_tiles(superlens: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tifffile.imwrite(tmp_path / "large.tif", rng.integers(0, 256, (300, 340), np.uint8))
    made = []
    for name, options in (("tiled", ["--tile-px", "256"]), ("whole", [])):
        done = superlens("enhance", tmp_path / "large.tif", "--out", tmp_path / name, *options)
        assert done.returncode == 0, done.stderr
        made.append(tifffile.imread(tmp_path / name / "large_enhanced.ome.tif").astype(int))
    assert np.abs(made[0] - made[1]).max() <= 1
