"""On a real kernel: GPIO lines, a USB serial port that is pulled, and the service under its own user and watchdog.

One Debian machine under QEMU, built by `make machine` and switched on once for all tests here. What stands behind its
serial port is the simulated controller on the host; its GPIO chip is the kernel's gpio-sim, with the label and lines of
a Jetson Orin Nano's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firmware_bridge.simulator import Simulator, serve_tcp
from tests.bench import missing
from tests.system.machine import machine as switched
from tests.system.machine.machine import CHECKOUT, GUEST, Machine, Program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
SUPERLENS_PZT = f"{CHECKOUT}/.venv/bin/superlens-pzt"
SERIAL_NUMBER = "0123456789"
PZT = f"/dev/superlens/pzt-{SERIAL_NUMBER}"
# Pins 33 and 29 of the header, and which lines of its chip they are.
BOARD, TRIGGER, TRIGGER_LINE, EXPOSURE, EXPOSURE_LINE = "jetson-orin-nano", "33", "43", "29", "105"

# An E-517's FTDI chip has PI's number, QEMU's has FTDI's: the one thing in the rules that the machine changes.
PI, FTDI = "1a72", "0403"

# A start may take minutes where every instruction is emulated. The watchdog's minute is the one that is shipped: the
# program does not beat while it opens the instrument, which took half of it here on a busy host.
SLOW_MACHINE = "[Service]\nTimeoutStartSec=600\nTimeoutStopSec=600\n"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Switched on, with the simulated controller behind its USB serial port, which is not plugged in."""
    if (why := switched.missing()) is not None:
        missing(why)
    with serve_tcp(Simulator("e517")) as server:
        on = Machine(
            tmp_path_factory.mktemp("machine"),
            serial=server.address.removeprefix("tcp://"),
            serial_number=SERIAL_NUMBER,
        )
        yield on
        on.close()


@pytest.fixture(scope="module")
def installed(machine: Machine) -> Machine:
    """With the files of the box in their places: the commands of docs/bring-up.md, as they stand there."""
    text = (ROOT / "docs/bring-up.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if re.match(r"sudo .*\bsystemd/\S", line)]
    assert all(any(file.name in line for line in lines) for file in (ROOT / "systemd").iterdir()), lines
    machine.check("modprobe", "-a", "ftdi_sio", "gpio-sim")
    machine.check(*GUEST, "chip", "tegra234-gpio", "164")
    for line in lines:
        machine.check("sh", "-xc", f"cd {CHECKOUT} && " + line.replace("sudo ", ""))
    machine.check("udevadm", "settle", "--timeout=200")
    return machine


@pytest.fixture(scope="module")
def plugged(installed: Machine) -> Machine:
    """With the serial port plugged in, and a rule for QEMU's chip."""
    change = f"sed s/{PI}/{FTDI}/ {CHECKOUT}/systemd/70-superlens.rules > /etc/udev/rules.d/71-ftdi.rules"
    installed.check("sh", "-euc", f"{change}; udevadm control --reload")
    installed.plug()
    installed.check("udevadm", "wait", "--timeout=200", PZT)
    return installed


def test_the_group_of_the_box_may_open_gpio_chips(installed: Machine) -> None:
    assert installed.check("stat", "--format", "%G %a", "/dev/gpiochip0") == "superlens 660"


def test_as_many_edges_reach_the_kernel_as_pulses_were_asked_for(installed: Machine) -> None:
    fire = (SUPERLENS_PZT, "fire", "--board", BOARD, "--pin", TRIGGER, "--pulses", "25")
    with installed.running(*GUEST, "watch", TRIGGER_LINE) as kernel:
        kernel.said()
        assert installed.check(*fire, user="superlens") == "fired 25"
        kernel.say()
        assert kernel.said() == {"edges": 25, "level": 0}


@contextmanager
def handshake(machine: Machine, *, timeout_s: int = 300) -> Iterator[Program]:
    """A trigger line with an exposure-active input, open; `timeout_s` is how long the camera may take."""
    command = (*GUEST, "handshake", BOARD, TRIGGER, EXPOSURE, str(timeout_s))
    with machine.running(*command, user="superlens") as line:
        assert line.said() == {"open": True}
        yield line


def test_a_camera_that_answers_each_pulse_is_in_the_ledger_with_each(installed: Machine) -> None:
    camera = installed.running(*GUEST, "watch", TRIGGER_LINE, EXPOSURE_LINE)
    with handshake(installed) as line, camera as kernel:
        kernel.said()
        for pulse in range(1, 11):
            line.say("fire")
            assert line.said() == {"fired": pulse, "exposed": pulse, "error": ""}
            kernel.say("frame")
            assert kernel.said() == {"frame": True}
        kernel.say()
        assert kernel.said() == {"edges": 10, "level": 0}


def test_a_camera_that_never_exposes_is_an_error_by_name_and_its_pulse_stands_in_the_ledger(installed: Machine) -> None:
    with handshake(installed, timeout_s=1) as line, installed.running(*GUEST, "watch", TRIGGER_LINE) as kernel:
        kernel.said()
        line.say("fire")
        said = line.said()
        assert (said["fired"], said["exposed"]) == (1, 0)
        assert said["error"].startswith("LinkTimeoutError: the camera did not begin to expose within 1 s of trigger 0")
        kernel.say()
        assert kernel.said() == {"edges": 1, "level": 0}


def test_a_camera_that_still_exposes_gets_no_pulse(installed: Machine) -> None:
    with handshake(installed, timeout_s=1) as line, installed.running(*GUEST, "watch", TRIGGER_LINE) as kernel:
        kernel.said()
        installed.check(*GUEST, "pull", EXPOSURE_LINE, "1")
        line.say("fire")
        said = line.said()
        assert said["fired"] == 0
        assert said["error"].startswith("RefusedError: the camera still exposes")
        kernel.say()
        assert kernel.said() == {"edges": 0, "level": 0}


def test_a_line_that_another_program_has_is_a_link_error(installed: Machine) -> None:
    with handshake(installed):
        done = installed.run(SUPERLENS_PZT, "fire", "--chip", "0", "--pin", TRIGGER_LINE, user="superlens")
    assert (done.code, done.out) == (1, [])
    assert "no line 43 on /dev/gpiochip0" in done.errors[-1]


def test_linux_knows_the_usb_numbers_of_an_e517(machine: Machine) -> None:
    assert "usb:v1A72p1005d*" in machine.check("modinfo", "--field", "alias", "ftdi_sio")


def test_a_plugged_controller_has_its_stable_name_and_answers_there(plugged: Machine) -> None:
    assert plugged.check("readlink", "--canonicalize", PZT) == "/dev/ttyUSB0"
    assert plugged.check("stat", "--dereference", "--format", "%G %a", PZT) == "dialout 660"
    latency = "/sys/bus/usb-serial/devices/ttyUSB0/latency_timer"
    before = plugged.check("cat", latency)
    status = json.loads(plugged.check(SUPERLENS_PZT, "status", "--port", PZT, "--json", "-", user="superlens"))
    assert (status["profile"], status["simulated"]) == ("e517", True)
    assert (before, plugged.check("cat", latency)) == ("0", "1")  # QEMU's chip begins with 0, FTDI's with 16


def test_a_move_through_the_usb_port_arrives(plugged: Machine) -> None:
    allowed = ("--enable-servo", "--sphere-lifted", "--nearer", "--timeout-s", "60")
    where = ("--x", "50", "--y", "40", "--z", "5")
    report = json.loads(plugged.check(SUPERLENS_PZT, "move", "--port", PZT, *allowed, *where, "--json", "-"))
    assert report["position_um"] == pytest.approx([50, 40, 5], abs=0.02)


def test_a_cable_that_is_pulled_in_mid_poll_is_noticed_and_put_back_it_is_not_armed(plugged: Machine) -> None:
    with plugged.running(*GUEST, "poll", PZT) as poll:
        polling = poll.said()
        assert polling["ready"]
        plugged.unplug()
        lost = poll.said()
        assert (lost["lost"], lost["ready"]) == ("LinkError", False)  # and no time-out: it does not wait for a reply
        assert f"{PZT} is gone" in lost["why"]
        plugged.check("udevadm", "wait", "--timeout=200", "--removed", PZT)
        plugged.plug()
        plugged.check("udevadm", "wait", "--timeout=200", PZT)
        poll.say()
        assert poll.said() == {"identity": polling["identity"], "ready": False}
        refused = poll.said()
        assert "the servo is off" in refused["refused"]
        assert refused["at"] == pytest.approx([10, 20, 5], abs=0.02)  # it did not move, and was not sent the move again
        armed = poll.said()
        assert armed["ready"]
        assert armed["at"] == pytest.approx([30, 20, 5], abs=0.02)
        assert poll.wait().code == 0


def shown(machine: Machine, *names: str) -> dict[str, str]:
    """What systemd says of the service."""
    text = machine.check("systemctl", "show", "superlens", *(f"--property={name}" for name in names))
    return dict(line.split("=", 1) for line in text.splitlines())


def test_the_service_is_up_as_its_own_user_outlives_a_hang_and_ends_cleanly(installed: Machine) -> None:
    drop_in = "/etc/systemd/system/superlens.service.d"
    installed.check("sh", "-euc", f"mkdir {drop_in}; printf '{SLOW_MACHINE}' > {drop_in}/slow.conf")
    installed.check("systemctl", "daemon-reload")
    with installed.running("journalctl", "--unit=superlens", "--follow", "--output=cat") as journal:
        installed.check("systemctl", "enable", "--now", "superlens")
        journal.until("^Started superlens.service")
        first = shown(installed, "ActiveState", "MainPID", "User")
        assert (first["ActiveState"], first["User"]) == ("active", "superlens")
        owner = installed.check("stat", "--format", "%U", f"/proc/{first['MainPID']}")
        assert owner == "superlens"
        ask = (
            "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/healthz', timeout=200).read().decode())"
        )
        assert json.loads(installed.check("python3", "-c", ask)) == {"up": True}
        journal.until("LIVE begins")

        installed.check("sh", "-c", f"kill -STOP {first['MainPID']}")
        journal.until("Watchdog timeout")
        journal.until("^Started superlens.service")
        journal.until("LIVE begins")
        second = shown(installed, "ActiveState", "MainPID", "NRestarts")
        assert (second["ActiveState"], second["NRestarts"]) == ("active", "1")
        assert second["MainPID"] != first["MainPID"]
        assert json.loads(installed.check("python3", "-c", ask)) == {"up": True}

        installed.check("systemctl", "stop", "superlens")
        last = shown(installed, "ActiveState", "Result", "ExecMainStatus", "ExecMainCode")
        assert last == {"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0", "ExecMainCode": "1"}
