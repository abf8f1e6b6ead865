"""open_trigger through gpiozero as it is, over an lgpio that keeps its lines in memory: no board, no kernel."""

from __future__ import annotations

import sys
import types

import pytest

from firmware_bridge import boards
from firmware_bridge.errors import LinkError, LinkTimeoutError, RefusedError
from firmware_bridge.trigger import open_trigger
from tests.bench import missing

pytestmark = pytest.mark.slow  # so that it is left out where the appliance is tested without its development tools


class Chips:
    """What gpiozero's lgpio pins call. Lines are (chip, number); `loops` wires an output to an input."""

    OUT = 1 << 1

    def __init__(self) -> None:
        self.chips = {0, 3}
        self.open: dict[int, int] = {}
        self.levels: dict[tuple[int, int], int] = {}
        self.modes: dict[tuple[int, int], int] = {}
        self.callbacks: dict[tuple[int, int], object] = {}
        self.loops: dict[tuple[int, int], tuple[int, int]] = {}
        self.history: list[tuple[tuple[int, int], int]] = []

    def module(self) -> types.ModuleType:
        module = types.ModuleType("lgpio")

        class error(Exception):  # noqa: N801, N818 - lgpio's own name
            pass

        module.error = error
        for name in ("SET_PULL_NONE", "SET_PULL_UP", "SET_PULL_DOWN"):
            setattr(module, name, 0)
        module.RISING_EDGE, module.FALLING_EDGE, module.BOTH_EDGES, module.TX_PWM = 1, 2, 3, 0

        def gpiochip_open(chip: int) -> int:
            if chip not in self.chips:
                raise error("can not open gpiochip")
            handle = 100 + len(self.open)
            self.open[handle] = chip
            return handle

        def claim_output(handle: int, line: int, level: int = 0, flags: int = 0) -> int:
            self.modes[self.open[handle], line] = self.OUT
            write(handle, line, level)
            return 0

        def claim_input(handle: int, line: int, flags: int = 0) -> int:
            self.modes[self.open[handle], line] = 0
            return 0

        def write(handle: int, line: int, level: int) -> int:
            where = (self.open[handle], line)
            before = self.levels.get(where, 0)
            self.levels[where] = int(level)
            self.history.append((where, int(level)))
            target = self.loops.get(where)
            if target is not None and int(level) != before:
                self.levels[target] = int(level)
                if target in self.callbacks:
                    self.callbacks[target](target[0], target[1], int(level), 1)
            return 0

        def callback(handle: int, line: int, edges: int, function: object) -> object:
            where = (self.open[handle], line)
            self.callbacks[where] = function
            return types.SimpleNamespace(cancel=lambda: self.callbacks.pop(where, None))

        module.gpiochip_open, module.gpiochip_close = gpiochip_open, lambda handle: self.open.pop(handle)
        module.gpio_claim_output, module.gpio_claim_input = claim_output, claim_input
        module.gpio_claim_alert = lambda handle, line, edges, flags=0: 0
        module.gpio_write, module.callback = write, callback
        module.gpio_read = lambda handle, line: self.levels.get((self.open[handle], line), 0)
        module.gpio_get_mode = lambda handle, line: self.modes.get((self.open[handle], line), 0)
        module.gpio_free = lambda handle, line: 0
        module.gpio_set_debounce_micros = lambda handle, line, us: 0
        module.tx_pulse = lambda handle, line, on, off, offset, cycles: [
            write(handle, line, level) for _ in range(cycles) for level in (1, 0)
        ]
        module.tx_busy = lambda *_: 0
        return module


@pytest.fixture
def chips(monkeypatch, tmp_path) -> Chips:
    try:
        import gpiozero  # noqa: F401
    except ImportError as exc:
        missing(f"gpiozero is part of the dev extra: {exc}")
    chips = Chips()
    monkeypatch.setenv("LG_WD", str(tmp_path))
    monkeypatch.setitem(sys.modules, "lgpio", chips.module())
    monkeypatch.delitem(sys.modules, "gpiozero.pins.lgpio", raising=False)
    yield chips
    sys.modules.pop("gpiozero.pins.lgpio", None)  # it holds on to this lgpio


def test_a_line_of_an_explicit_chip_is_pulsed_and_given_back_off_a_pi(chips):
    line = open_trigger(chip=3, pin=43, pulse_s=1e-4)
    line.fire()
    line.fire()
    pulses = [level for where, level in chips.history if where == (3, 43)]
    assert pulses[-4:] == [1, 0, 1, 0]
    assert line.fired == 2
    line.close()
    assert chips.open == {}


def test_a_camera_that_is_wired_to_answer_is_waited_for(chips):
    chips.loops[3, 43] = (3, 44)  # its exposure lasts as long as the pulse
    line = open_trigger(chip=3, pin=43, exposure_pin=44, pulse_s=1e-4, exposure_timeout_s=1.0)
    line.fire()
    line.fire()
    assert all(pulse.exposed_ns is not None for pulse in line.pulses)
    chips.loops.clear()
    line._exposure_timeout_s = 0.01
    with pytest.raises(LinkTimeoutError, match="did not begin to expose"):
        line.fire()
    chips.levels[3, 44] = 1
    with pytest.raises(RefusedError, match="still exposes"):
        line.fire()
    line.close()
    assert chips.open == {}


def test_a_pin_of_a_boards_header_is_the_line_of_its_chip(chips, monkeypatch):
    monkeypatch.setattr("firmware_bridge.trigger.find_chip", {"tegra234-gpio": 0, "tegra234-gpio-aon": 3}.__getitem__)
    line = open_trigger(board="jetson-agx-orin", pin=32, exposure_pin=7, pulse_s=1e-4, exposure_timeout_s=1.0)
    chips.loops[3, 8] = (0, 106)
    line.fire()
    assert line.pulses[0].exposed_ns is not None
    line.close()
    assert boards.line_of("jetson-agx-orin", 32) == ("tegra234-gpio-aon", 8)


def test_timed_pulses_are_lgpios_own(chips):
    line = open_trigger(chip=0, pin=5, pulse_s=1e-3, timed=True)
    line.fire()
    line.train(3, period_s=0.01)
    assert [level for where, level in chips.history if where == (0, 5)].count(1) == 4
    line.close()
    assert chips.open == {}


@pytest.mark.parametrize("timed", [False, True])
def test_a_chip_that_is_not_there_is_one_clear_error(chips, timed):
    with pytest.raises(LinkError, match=r"no line 5 on /dev/gpiochip9"):
        open_trigger(chip=9, pin=5, timed=timed)


def test_an_exposure_line_that_cannot_be_opened_gives_the_trigger_back(chips, monkeypatch):
    from firmware_bridge import gpio

    def broken(chip: int, line: int) -> None:
        raise LinkError("in use")

    monkeypatch.setattr(gpio, "open_input", broken)
    with pytest.raises(LinkError, match="in use"):
        open_trigger(chip=3, pin=43, exposure_pin=44)
    assert chips.open == {}
