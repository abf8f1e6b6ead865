"""Another open driver of PI controllers, qmi's (for the one-axis E-873), drives a simulator with one axis left.

qmi wants much that nobody else here does (h5py, pydwf, USB), so it lives in the environment of `make bench-peers`.
"""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from pathlib import Path

import pytest

from firmware_bridge.simulator import Simulator, serve_pty, serve_tcp

pytestmark = [pytest.mark.slow]
PYTHON = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
SCRIPT = textwrap.dedent("""
    import json, sys, time
    import qmi
    from qmi.core.exceptions import QMI_InstrumentException
    from qmi.instruments.pi import PI_E873

    qmi.start("superlens", config_file=None)
    pi = qmi.make_instrument("pi", PI_E873, sys.argv[1])
    pi.open()
    said = {
        "model": pi.get_idn().model,
        "stage": pi.get_stage_info().type,
        "unit": pi.get_physical_unit(),
        "range": pi.get_position_range(),
    }
    pi.set_servo_mode(True)
    pi.set_velocity(500.0)
    pi.move_absolute(12.5)
    deadline = time.monotonic() + 5.0
    while abs(pi.get_position() - 12.5) > 0.005 and time.monotonic() < deadline:
        time.sleep(0.01)
    said["target"], said["position"] = pi.get_target_position(), pi.get_position()
    try:
        pi.move_absolute(101.0)
    except QMI_InstrumentException as exc:
        said["refused"] = str(exc)
    pi.stop_all()
    said["servo"], said["error"] = pi.get_servo_mode(), pi.get_error()
    pi.close()
    qmi.stop()
    print(json.dumps(said))
""")


@pytest.fixture(scope="module")
def peers():
    if not PYTHON.exists() or subprocess.run([PYTHON, "-c", "import qmi.instruments.pi"], check=False).returncode:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("qmi is not installed: make bench-peers")
    return PYTHON


@pytest.mark.parametrize("serve", [serve_tcp, serve_pty])
@pytest.mark.parametrize(("profile", "others"), [("e727", "2 ZERO 3 ZERO"), ("e517", "A 1 B ZERO C ZERO")])
def test_qmi_connects_moves_and_is_refused_beyond_the_limits(peers, serve, profile, others):
    simulator = Simulator(profile)
    if profile == "e517":
        simulator.feed(b"ONL 1 1\nVCO A 1\n")
    assert simulator.feed(f"SAI {others}\nERR?\n".encode()) == b"0\n"
    with serve(simulator) as server:
        address = server.address.replace("//", "") if serve is serve_tcp else f"serial:{server.address}:baudrate=115200"
        done = subprocess.run([peers, "-c", SCRIPT, address], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["model"] == simulator.profile.model
    assert said["stage"] == "P-733.3CL"
    assert said["unit"] == "um"
    assert said["range"] == [0.0, 100.0]
    assert said["target"] == 12.5
    assert said["position"] == pytest.approx(12.5, abs=0.005)
    assert "error 7 " in said["refused"]
    assert (said["servo"], said["error"]) == (True, 0)
    assert simulator.pose_um().x == pytest.approx(12.5, abs=0.005)
