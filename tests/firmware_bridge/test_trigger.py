"""The trigger line: pulses are counted, a missing library names its extra."""

from __future__ import annotations

import sys

import pytest

from firmware_bridge.errors import LinkError, OutOfRangeError, RefusedError
from firmware_bridge.simulator import Simulator
from firmware_bridge.trigger import SimulatedTriggerLine, TriggerLine, open_trigger


class RecordedOutput:
    def __init__(self) -> None:
        self.levels: list[int] = []
        self.closed = 0

    def on(self) -> None:
        self.levels.append(1)

    def off(self) -> None:
        self.levels.append(0)

    def close(self) -> None:
        self.closed += 1


def wired():
    output = RecordedOutput()
    return TriggerLine(output, pulse_s=0.0), lambda: output.levels.count(1)


def simulated():
    simulator = Simulator()
    heard = []
    simulator.on_pulse(lambda *pulse: heard.append(pulse))
    return SimulatedTriggerLine(simulator), lambda: len(heard)


@pytest.mark.parametrize("make", [wired, simulated])
def test_each_call_is_one_pulse_and_counted(make):
    line, pulses = make()
    for _ in range(3):
        line.fire()
    assert line.fired == pulses() == 3
    line.close()
    line.close()
    with pytest.raises(LinkError, match="closed"):
        line.fire()
    assert line.fired == pulses() == 3


def test_a_pulse_ends_low_and_the_line_is_given_back_once():
    output = RecordedOutput()
    line = TriggerLine(output, pulse_s=0.0)
    line.fire()
    line.close()
    line.close()
    assert output.levels == [1, 0]
    assert output.closed == 1


def test_a_missing_library_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lgpio", None)
    with pytest.raises(RefusedError, match=r"pip install 'superlens\[jetson\]'"):
        open_trigger(chip=0, pin=1)


@pytest.mark.parametrize(("chip", "pin", "pulse_s"), [(-1, 0, 1e-3), (0, -1, 1e-3), (0, 0, 0.0), (0, 0, float("nan"))])
def test_numbers_that_make_no_sense_are_refused(chip, pin, pulse_s):
    with pytest.raises(OutOfRangeError):
        open_trigger(chip=chip, pin=pin, pulse_s=pulse_s)
