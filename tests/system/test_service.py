"""The box as a service: systemd's own tools read its files, and the program answers as the unit says it does."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edge.config import Config, load_config
from tests.bench import missing

SYSTEMD = Path(__file__).parents[2] / "systemd"


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, with a program that this machine has."""
    if shutil.which("systemd-analyze") is None:
        missing("systemd-analyze is not installed: it is in the package systemd")
    text = (SYSTEMD / "superlens.service").read_text(encoding="utf-8")
    assert text.count("/opt/superlens/.venv/bin/superlens run") == 1
    path = tmp_path / "superlens.service"
    path.write_text(text.replace("/opt/superlens/.venv/bin/superlens", sys.executable), encoding="utf-8")
    return path


def test_systemd_understands_every_line_of_the_unit(unit: Path) -> None:
    # A key that is mistyped is a line on stderr and exit code 0.
    result = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_mistyped_key_would_be_found(unit: Path) -> None:
    unit.write_text(unit.read_text(encoding="utf-8").replace("WatchdogSec", "WatchDogSec"), encoding="utf-8")
    result = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert "WatchDogSec" in result.stderr


def test_the_exposure_is_two_at_most(unit: Path) -> None:
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", unit],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout
    assert re.search(r"Overall exposure level for superlens.service: [01]\.\d", result.stdout)


def test_it_may_open_the_gpu_of_a_jetson_and_so_may_the_container() -> None:
    """Tegra's devices belong to video and render; nvmap is of the class misc, so only its path lets it through."""
    unit = (SYSTEMD / "superlens.service").read_text(encoding="utf-8")
    groups = re.search(r"^SupplementaryGroups=(.*)$", unit, re.MULTILINE)
    assert groups is not None
    assert {"video", "render", "dialout"} <= set(groups.group(1).split())
    assert {"char-nv* rw", "/dev/nvmap rw"} <= set(re.findall(r"^DeviceAllow=(.*)$", unit, re.MULTILINE))
    container = (SYSTEMD.parent / "Dockerfile.jetson").read_text(encoding="utf-8")
    assert "--groups video" in container
    assert "--group-add" in container


def test_the_user_of_the_service_can_be_made() -> None:
    if shutil.which("systemd-sysusers") is None:
        missing("systemd-sysusers is not installed: it is in the package systemd")
    command = ["systemd-sysusers", "--dry-run", SYSTEMD / "superlens.sysusers.conf"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "Creating user 'superlens'" in result.stdout + result.stderr


def test_the_configuration_of_a_box_is_in_order_and_as_it_comes_is_simulated() -> None:
    config = load_config(SYSTEMD / "superlens.toml")
    assert config == Config()


def test_every_line_that_waits_in_it_to_be_used_may_be_used(tmp_path: Path) -> None:
    lines = (SYSTEMD / "superlens.toml").read_text(encoding="utf-8").splitlines()
    waiting = {line.partition("=")[0].strip("# ") for line in lines if re.match(r"# \w+ = ", line)}
    assert len(waiting) >= 8
    real = [line for line in lines if line.partition("=")[0].strip() not in waiting]
    path = tmp_path / "superlens.toml"
    path.write_text("\n".join(re.sub(r"^# (?=\w+ = )", "", line) for line in real), encoding="utf-8")
    config = load_config(path)
    assert (config.trigger.driver, config.engine.backend, config.stage.enable_servo) == ("gpio", "tensorrt", True)
    assert (config.sphere.mount, config.contact.driver, config.focus.driver) == ("objective", "ads1115", "xps")


def test_each_udev_rule_matches_something_and_does_something() -> None:
    rules = [line for line in (SYSTEMD / "70-superlens.rules").read_text().splitlines() if not line.startswith("#")]
    assert rules
    for rule in rules:
        assignments = [re.fullmatch(r'[A-Z_]+(\{\w+\})?(==|!=|=|\+=)"[^"]*"', part) for part in rule.split(", ")]
        operators = [found and found.group(2) for found in assignments]
        assert None not in operators, rule
        assert "==" in operators, rule
        assert {"=", "+="} & set(operators), rule


@pytest.mark.slow
def test_the_program_says_when_its_page_answers_that_it_lives_and_that_it_stops(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        wanted = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}
        command = [sys.executable, "-m", "edge", "run", "--port", "0"]
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(command, env=os.environ | wanted, stderr=log)
        try:
            assert systemd.recv(100) == b"READY=1"
            (port,) = re.findall(
                r"^superlens: http://127\.0\.0\.1:(\d+)$", (tmp_path / "log").read_text(), re.MULTILINE
            )
            with socket.create_connection(("127.0.0.1", int(port)), timeout=10):
                pass
            assert [systemd.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            process.send_signal(signal.SIGTERM)
            while (message := systemd.recv(100)) == b"WATCHDOG=1":
                pass
            assert message == b"STOPPING=1"
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
            process.wait()
