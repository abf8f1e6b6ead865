"""The configuration: what it accepts, and that every refusal names the key, the value and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.config import Config, load_config
from edge.errors import ConfigError
from firmware_bridge.position import Box, PositionUm
from firmware_bridge.rules import Rules


@pytest.fixture
def write(tmp_path: Path):
    def write_toml(text: str) -> Path:
        path = tmp_path / "superlens.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_toml


def test_no_file_is_a_wholly_simulated_instrument() -> None:
    config = load_config()
    assert (config.camera.driver, config.stage.port, config.web.host) == ("simulated", "sim:e727", "127.0.0.1")


def test_a_file_is_read_and_the_command_line_lies_over_it(write) -> None:
    path = write('[camera]\nfps = 10\n[box]\nname = "bench 3"\n')
    config = load_config(path, {"camera": {"fps": 20.0, "bit_depth": None}})
    assert (config.camera.fps, config.camera.bit_depth, config.box.name) == (20.0, None, "bench 3")


def test_without_a_word_the_interlock_is_there_and_neither_contact_nor_focus_is() -> None:
    config = load_config()
    rules = Rules(config.sphere.mount, Box(PositionUm(0, 0, 0), PositionUm(1, 1, 1)), **config.interlock.model_dump())
    assert rules == Rules("cantilever", rules.limits_um)
    assert (config.contact.driver, config.contact.thresholds, config.focus.driver) == ("none", None, "none")


def test_tensorrt_falls_back_only_where_the_file_says_so(write) -> None:
    assert load_config(write('[engine]\nbackend = "tensorrt"\n')).engine.fallback is None
    config = load_config(write('[engine]\nbackend = "tensorrt"\nfallback = "openvino"\n'))
    assert (config.engine.backend, config.engine.fallback) == ("tensorrt", "openvino")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[camera]\nfpss = 10\n", r"camera\.fpss: unknown key; known here: .*fps"),
        ("[lens]\nx = 1\n", r"lens: unknown key; known here: .*camera"),
        ("[camera]\nfps = -1\n", r"camera\.fps: .*greater than or equal to 0.01.*found -1"),
        ("[camera]\nshape_px = [8, 512]\n", r"camera\.shape_px\.0: .*16.*found 8"),
        ('[engine]\nbackend = "tflite"\n', r"engine\.backend: .*openvino.*found 'tflite'"),
        ('[engine]\nfallback = "onnxruntime"\n', r"engine\.fallback: .*openvino.*found 'onnxruntime'"),
        ('[web]\nhost = "0.0.0.0"\n', r"web\.host: .*needs a password"),
        ("[web]\nport = 70000\n", r"web\.port: .*65535"),
        ("not toml", "no valid TOML"),
        ("camera = 3\n", r"camera: expected a table: a line \[camera\], and its keys below \(found 3\)"),
        ("[[camera]]\nfps = 3\n", "camera: "),
        ("[sphere]\ncentre_px = [nan, 3]\n", r"centre_px\.0: .*finite"),
        ("[sphere]\ndistortion = []\n", "at least two pairs"),
        ("[sphere]\ndistortion = [[0, 0], [5, 0.1], [4, 0.2]]\n", "radius grows"),
        ("[sphere]\ncamera_from_stage_px_per_um = [[1, 2], [2, 4]]\n", "same line"),
        ('[stage]\nport = ""\n', r"stage\.port"),
        ("[stage]\nz_sign = 0\n", r"stage\.z_sign: .*found 0"),
        ('[sphere]\nmount = "tripod"\n', r"sphere\.mount: .*cantilever.*objective.*found 'tripod'"),
        ("[interlock]\nmax_step_um = 0\n", r"interlock\.max_step_um: .*greater than 0.*found 0"),
        ("[interlock]\npoll_timeout_s = 0.1\n", r"interlock\.poll_timeout_s: .*0\.5.*found 0\.1"),
        ('[contact]\ndriver = "ads1115"\n', r"contact: set_point_v and overload_v are needed"),
        (
            '[contact]\ndriver = "simulated"\nset_point_v = 2\noverload_v = 1\n',
            r"contact: .*set point < overload < 3\.3 V",
        ),
        ("[contact]\naddress = 0x50\n", r"contact\.address: .*found 80"),
        ('[focus]\ndriver = "xps"\naxis = "FOCUS.Pos"\n', r"focus: port and axis are needed"),
        ("[focus]\nlimits_um = [100, 0]\n", r"focus: limits_um: expected the lower limit first"),
        ('[trigger]\ndriver = "gpio"\nchip = 0\n', r"trigger: .*needs pin, and either chip or board"),
        ('[trigger]\ndriver = "gpio"\nchip = 0\nboard = "raspberry-pi-5"\npin = 12\n', r"either chip or board"),
        ('[trigger]\nboard = "raspberry-pi-1"\npin = 12\n', r"trigger: .*expected one of jetson-orin-nano"),
        ('[trigger]\nboard = "raspberry-pi-5"\npin = 12\nexposure_pin = 1\n', r"pin 1 .*header is no GPIO"),
        ("[camera]\nfps = true\n", r"camera\.fps: true and false mean nothing here \(found True\)"),
        ('[stage]\nport = "foo"\n', r"stage\.port: expected /dev/ttyUSB0, tcp://.*found 'foo'"),
        ('[stage]\nport = "tcp://localhost"\n', r"stage\.port: expected .*found 'tcp://localhost'"),
        ('[stage]\nport = "tcp://localhost:99999"\n', r"stage\.port: expected"),
        ('[stage]\nport = "sim:e999"\n', r"stage\.port: expected"),
        ('[focus]\ndriver = "xps"\naxis = "A"\nport = "foo"\n', r"focus\.port: expected"),
        ("[stage]\nlimits_low_um = [0, 0, 0]\n", r"stage: limits_low_um and limits_high_um: expected both"),
        (
            "[stage]\nlimits_low_um = [0, 50, 0]\nlimits_high_um = [10, 10, 10]\n",
            r"stage: y of limits_low_um, 50, is not below that of limits_high_um, 10",
        ),
        (
            "[interlock]\nmax_step_um = 1\nengaged_step_um = 500\n",
            r"interlock: engaged_step_um = 500 is above max_step_um = 1",
        ),
        ("[contact]\nset_point_v = 1\noverload_v = 2\n", r"contact: .*set_point_v, overload_v would guard nothing"),
        ("[sphere]\ncentre_px = [600, 3]\n", r"sphere\.centre_px: .*\(600, 3\) .*outside the frame of 512 x 512 px"),
        ("[trigger]\npin = 18\nexposure_pin = 18\n", r"exposure_pin is the pin of the trigger"),
    ],
)
def test_a_wrong_file_is_refused_with_what_was_expected(write, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(text))


def test_the_command_line_does_not_hide_a_section_that_is_no_table(write) -> None:
    with pytest.raises(ConfigError, match="camera: "):
        load_config(write("camera = 3\n"), {"camera": {"fps": 3.0}})


def test_all_faults_are_listed_at_once(write) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write("[camera]\nfps = -1\n[web]\nport = -1\n"))
    assert "camera.fps" in str(caught.value)
    assert "web.port" in str(caught.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No configuration file at"):
        load_config(tmp_path / "absent.toml")


def test_a_configuration_cannot_be_changed_later() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().camera.fps = 3  # type: ignore[misc]
