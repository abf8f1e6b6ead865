"""PI's own client drives the simulated controller, over a serial line and TCP: it was written for the real ones."""

from __future__ import annotations

import os
import threading

import pytest

from firmware_bridge.position import PositionUm
from firmware_bridge.simulator import Simulator, serve_pty, serve_tcp

# Slow, so that it is left out where the appliance is tested without its development tools.
pytestmark = [pytest.mark.slow]


class Bench:
    """A simulator on a wire, PIPython at its other end, and the pulses that the camera would hear."""

    def __init__(self, simulator, device):
        self.simulator, self.device, self.heard = simulator, device, []
        self.axes = device.axes
        simulator.on_pulse(lambda *pulse: self.heard.append(pulse))

    def offline(self):
        return "ONL" in self.device.qHLP()


@pytest.fixture(params=["e727", "e517"])
def profile(request):
    return request.param


@pytest.fixture(params=["tcp", "pty"])
def bench(request, profile):
    try:
        from pipython import GCSDevice
        from pipython.pidevice.interfaces.piserial import PISerial
        from pipython.pidevice.interfaces.pisocket import PISocket
    except ImportError as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(f"pipython is part of the dev extra: {exc}")
        pytest.skip(f"pipython is not installed ({exc}): .venv/bin/pip install -e '.[dev]' in the checkout")

    class Socket(PISocket):
        def close(self):
            # GCSDevice closes its gateway again when it is collected; PISocket's own close fails the second time.
            if self.connected:
                super().close()

    simulator = Simulator(profile)
    with (serve_tcp if request.param == "tcp" else serve_pty)(simulator) as server:
        if request.param == "tcp":
            gateway = Socket(host="127.0.0.1", port=int(server.address.rpartition(":")[2]))
        else:
            gateway = PISerial(port=server.address, baudrate=115200)
        # The context manager matters: PIPython's list of connect callbacks belongs to the class.
        with GCSDevice(gateway=gateway) as device:
            yield Bench(simulator, device)
        server.check()


@pytest.fixture
def ready(bench):
    """After pitools.startup, on line, with velocity control."""
    from pipython import pitools

    pitools.startup(bench.device)
    if bench.offline():
        bench.device.ONL([1, 2, 3], [True] * 3)
        bench.device.VCO(bench.axes, [True] * 3)
    return bench


def rows(device):
    """What is read in the background, as columns, once it is there."""
    while device.bufstate is not True:
        threading.Event().wait(0.005)  # it has no event of its own
    return device.bufdata


def test_it_starts_up_moves_waits_reads_back_and_is_refused_beyond_the_limits(ready):
    from pipython import GCSError, gcserror, pitools

    device, axes = ready.device, ready.axes
    assert axes == (["1", "2", "3"] if "E-727" in device.qIDN() else ["A", "B", "C"])
    assert all(device.qSVO().values())
    assert list(device.qTMX().values()) == [100.0, 100.0, 10.0]

    targets = dict(zip(axes, (12.5, 80.0, 3.25), strict=True))
    device.MOV(targets)
    pitools.waitontarget(device)
    assert device.qONT() == dict.fromkeys(axes, True)
    assert not any(device.IsMoving().values())
    assert list(device.qPOS().values()) == pytest.approx(list(targets.values()), abs=0.005)
    pitools.moveandwait(device, axes[0], 14.0)
    assert device.qPOS(axes[0])[axes[0]] == pytest.approx(14.0, abs=0.005)

    for beyond in (-0.5, 100.5):
        with pytest.raises(GCSError) as refused:
            device.MOV(axes[0], beyond)
        assert refused.value == gcserror.E7_PI_CNTR_POS_OUT_OF_LIMITS
    assert device.qSPA(axes[0], 0x07000900)[axes[0]][0x07000900] == 0.002
    with pytest.raises(GCSError) as unknown:
        device.VEL(axes[0], -1.0)
    assert unknown.value == gcserror.E8_PI_CNTR_VEL_OUT_OF_LIMITS
    device.StopAll(noraise=True)
    assert device.qERR() == 0
    assert device.IsControllerReady()
    assert "SIMULATED" not in device.qVER()
    assert len(device.qVOL()) == 3
    assert not any(device.qOVF().values())


def test_a_parameter_behind_a_command_level(ready):
    from pipython import GCSError, gcserror

    with pytest.raises(GCSError) as refused:
        ready.device.SPA("1", 0x18000401, 0.001)
    assert refused.value == gcserror.E60_PI_CNTR_PARAM_PROTECTION
    ready.device.CCL(1, "advanced")
    ready.device.SPA("1", 0x18000401, 0.001)
    assert ready.device.getparam(0x18000401, "1") == 0.001


def test_a_fly_line_by_the_trigger_output(ready):
    from pipython import pitools

    device, axis = ready.device, ready.axes[0]
    pitools.moveandwait(device, axis, 8.0)
    if "E-727" in device.qIDN():
        device.CTO([1] * 6, [2, 3, 1, 8, 9, 7], [axis, 0, 0.5, 10, 20, 1])
        assert not device.HasTRO()
        expected = [10 + 0.5 * n for n in range(21)]
    else:
        device.CTO([1] * 3, [2, 3, 1], [axis, 0, 0.5])
        device.TRO(1, True)
        assert device.qTRO(1)[1] is True
        expected = [8.5 + 0.5 * n for n in range(27)]
    assert float(device.qCTO(1, 1)[1][1]) == 0.5
    assert len(device.qCTO()) == 3
    pitools.moveandwait(device, axis, 22.0)
    assert [pose_um.x for _, _, pose_um in ready.heard][: len(expected)] == pytest.approx(expected, abs=0.01)
    assert len(ready.heard) in (len(expected), len(expected) + 1)  # a pulse on the very target may be one


def test_a_wave_with_its_trigger_points_and_the_recorder(ready):
    from pipython import pitools

    device, axis = ready.device, ready.axes[0]
    pitools.moveandwait(device, axis, 10.0)
    device.WAV_LIN(
        table=1, firstpoint=0, numpoints=500, append="X", speedupdown=50, amplitude=40, offset=10, seglength=500
    )
    device.WAV_SIN_P(
        table=2, firstpoint=0, numpoints=200, append="X", center=100, amplitude=4, offset=40, seglength=200
    )
    pitools.writewavepoints(device, 3, [5.0 + 0.01 * n for n in range(60)], bunchsize=10)
    assert {table: values[1] for table, values in device.qWAV([1, 2, 3], [1, 1, 1]).items()} == {1: 500, 2: 200, 3: 60}
    device.qGWD(tables=1, offset=1, numvalues=500)
    (points,) = rows(device)
    assert (points[0], points[-1]) == pytest.approx((10, 50), abs=1e-3)

    device.WSL(1, 1)
    device.WGC(1, 1)
    device.WTR(0, 10, 1)
    device.TWC()
    device.TWS([1, 1, 1], [100, 250, 400], [1, 1, 1])
    device.CTO([1, 1], [2, 3], [axis, 4])
    if device.HasTRO():
        device.TRO(1, True)
    device.RTR(10)
    device.DRC([1, 2], [axis, axis], [1, 2])
    device.WGO(1, 1)
    assert device.IsGeneratorRunning()[1]
    pitools.waitonwavegen(device)
    device.WGO(1, 0)

    assert len(ready.heard) == 3
    seconds = [(t_ns - ready.heard[0][1]) / 1e9 for _, t_ns, _ in ready.heard]
    assert seconds == pytest.approx([0, 150 * 500e-6, 300 * 500e-6], abs=1e-6)

    recorded = device.qDRL(1)[1]
    assert recorded >= 500
    header = device.qDRR([1, 2], 1, 500)
    assert header["NDATA"] == 500
    assert header["SAMPLE_TIME"] == pytest.approx(0.0005)
    target, position = rows(device)
    assert max(target) == pytest.approx(50, abs=0.01)
    assert max(abs(a - b) for a, b in zip(target, position, strict=True)) < 0.5
    assert device.qRTR() == 10
    assert device.qDRC(1)[1] == [axis, 1]


def test_its_data_recorder_tool_records_a_step(ready):
    from pipython import datarectools, pitools

    device, axis = ready.device, ready.axes[0]
    pitools.moveandwait(device, axis, 10.0)
    device.timeout = 500  # ms, for it asks for a parameter that an E-727 does not have
    # Again a context manager, for it registers with the class of all gateways.
    with datarectools.Datarecorder(device) as recorder:
        recorder.numvalues = 200
        recorder.samplefreq = 2000
        recorder.options = [
            datarectools.RecordOptions.COMMANDED_POSITION_1,
            datarectools.RecordOptions.ACTUAL_POSITION_2,
        ]
        recorder.sources = axis
        recorder.trigsources = datarectools.TriggerSources.NEXT_COMMAND_WITH_RESET_2
        recorder.arm()
        device.MOV(axis, 15.0)
        _, (target, position) = recorder.getdata()
    assert len(position) == 200
    assert target[-1] == pytest.approx(15.0, abs=1e-3)
    assert position[-1] == pytest.approx(15.0, abs=0.005)


def test_autozero_and_what_waits_for_it(ready):
    from pipython import pitools

    ready.device.ATZ(ready.axes, [0.0] * 3)
    pitools.waitonready(ready.device)
    assert all(ready.device.qATZ().values())
    assert ready.simulator.pose_um() == pytest.approx(PositionUm(0, 0, 0), abs=0.01)
