"""The bridge's stage and trigger lines against the seams the appliance sees."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from firmware_bridge.pzt import PztStage, open_stage
from firmware_bridge.simulator import Simulator
from firmware_bridge.trigger import SimulatedTriggerLine, TriggerLine
from tests.contracts import PositionerContract, TriggerContract


@pytest.fixture
def pulses() -> list[object]:
    return []


class TestPztStage(PositionerContract):
    @pytest.fixture(params=["e727", "e517"])
    def stage(self, request: pytest.FixtureRequest) -> Iterator[PztStage]:
        with open_stage(f"sim:{request.param}") as stage:
            yield stage


class TestSimulatedTriggerLine(TriggerContract):
    @pytest.fixture
    def trigger(self, pulses: list[object]) -> SimulatedTriggerLine:
        simulator = Simulator()
        simulator.on_pulse(lambda *pulse: pulses.append(pulse))
        return SimulatedTriggerLine(simulator)


class TestGpioTriggerLine(TriggerContract):
    @pytest.fixture
    def trigger(self, pulses: list[object]) -> TriggerLine:
        class Output:
            """A GPIO line whose falling edge ends a pulse."""

            high = False

            def on(self) -> None:
                self.high = True

            def off(self) -> None:
                if self.high:
                    pulses.append(self)
                self.high = False

            def close(self) -> None: ...

        return TriggerLine(Output(), pulse_s=0)
