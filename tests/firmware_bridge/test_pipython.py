"""PI's own client drives the simulated controller: it was written for the real ones."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Slow, so that it is left out where the appliance is tested without its development tools.
pytestmark = [pytest.mark.slow]


@pytest.fixture(params=["e727", "e517"])
def device(request):
    try:
        from pipython import GCSDevice
        from pipython.pidevice.interfaces.pisocket import PISocket
    except ImportError as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(f"pipython is part of the dev extra: {exc}")
        pytest.skip(f"pipython is not installed ({exc}): pip install 'superlens[dev]'")

    class Gateway(PISocket):
        def close(self):
            # GCSDevice closes its gateway again when it is collected; PISocket's own close fails the second time.
            if self.connected:
                super().close()

    process = subprocess.Popen(
        [sys.executable, "-m", "firmware_bridge", "simulate", "--profile", request.param, "--tcp", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = int(process.stdout.readline().split()[3].rstrip(";").rpartition(":")[2])
        # The context manager matters: PIPython's list of connect callbacks belongs to the class.
        with GCSDevice(gateway=Gateway(host="127.0.0.1", port=port)) as device:
            yield device
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0
        process.stdout.close()


def test_pipython_starts_up_moves_waits_reads_back_and_is_refused_beyond_the_limits(device):
    from pipython import GCSError, gcserror, pitools

    pitools.startup(device)
    axes = device.axes
    assert axes == (["1", "2", "3"] if "E-727" in device.qIDN() else ["A", "B", "C"])
    assert all(device.qSVO().values())
    assert list(device.qTMX().values()) == [100.0, 100.0, 10.0]
    if "VCO" in device.qHLP():
        device.VCO(axes, [True] * 3)

    targets = dict(zip(axes, (12.5, 80.0, 3.25), strict=True))
    device.MOV(targets)
    pitools.waitontarget(device)
    assert device.qONT() == dict.fromkeys(axes, True)
    assert not any(device.IsMoving().values())
    assert list(device.qPOS().values()) == pytest.approx(list(targets.values()), abs=0.005)

    for beyond in (-0.5, 100.5):
        with pytest.raises(GCSError) as refused:
            device.MOV(axes[0], beyond)
        assert refused.value == gcserror.E7_PI_CNTR_POS_OUT_OF_LIMITS
    assert device.qPOS(axes[0])[axes[0]] == pytest.approx(12.5, abs=0.005)

    assert device.qSPA(axes[0], 0x07000900)[axes[0]][0x07000900] == 0.002
    with pytest.raises(GCSError) as unknown:
        device.VEL(axes[0], -1.0)
    assert unknown.value == gcserror.E8_PI_CNTR_VEL_OUT_OF_LIMITS
    device.StopAll(noraise=True)
    assert device.qERR() == 0
