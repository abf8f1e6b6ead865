"""The trigger line: pulses are counted and answered, a missing library names its extra."""

from __future__ import annotations

import sys
import threading
import types

import pytest

from firmware_bridge import gpio
from firmware_bridge.errors import LinkError, LinkTimeoutError, OutOfRangeError, RefusedError
from firmware_bridge.simulator import Simulator
from firmware_bridge.trigger import ExposureLine, Pulse, SimulatedTriggerLine, TriggerLine, open_trigger
from tests.bench import missing


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
    with pytest.raises(RefusedError, match=r"pip install -e '\.\[jetson\]' in the checkout"):
        open_trigger(chip=0, pin=1)


@pytest.mark.parametrize(
    "bad",
    [
        {"chip": -1, "pin": 0},
        {"chip": 0, "pin": -1},
        {"chip": 0, "pin": 0, "pulse_s": 0.0},
        {"chip": 0, "pin": 0, "pulse_s": float("nan")},
        {"chip": 0, "pin": 0, "exposure_timeout_s": float("inf")},
        {"chip": 0, "pin": 0, "exposure_pin": 0},
        {"chip": 0, "pin": 0, "exposure_pin": -3},
        {"chip": 0},
        {"pin": 0},
        {"chip": 0, "pin": 7, "board": "raspberry-pi-5"},
        {"pin": 7, "board": "arduino"},
        {"pin": 6, "board": "raspberry-pi-5"},  # ground
        {"pin": 7, "board": "jetson-orin-nano", "exposure_pin": 1},  # 3.3 V
    ],
)
def test_numbers_that_make_no_sense_are_refused(bad):
    with pytest.raises(OutOfRangeError):
        open_trigger(**bad)


# -- the ledger -------------------------------------------------------------------------------------------------------


def ticking():
    times = iter(range(100, 10**6, 100))
    return lambda: next(times)


def test_every_pulse_stands_in_the_ledger_with_its_instant():
    line = TriggerLine(RecordedOutput(), pulse_s=0.0, clock_ns=ticking())
    for _ in range(3):
        line.fire()
    assert line.pulses == (Pulse(0, 100), Pulse(1, 200), Pulse(2, 300))


def test_a_simulated_line_has_a_ledger_too():
    line = SimulatedTriggerLine(Simulator())
    line.fire()
    line.fire()
    assert [pulse.index for pulse in line.pulses] == [0, 1]
    assert line.pulses[0].t_ns < line.pulses[1].t_ns


# -- the handshake with the camera ------------------------------------------------------------------------------------


class Camera(RecordedOutput):
    """Trigger input and exposure output of a camera that answers at once, or not at all."""

    def __init__(self, *, answers: bool = True) -> None:
        super().__init__()
        self.answers = answers
        self.is_active = False
        self.when_activated = None

    def on(self) -> None:
        super().on()
        if self.answers and self.when_activated:
            self.when_activated()


def test_fire_returns_when_the_camera_exposes_even_if_that_was_over_before_the_pulse():
    camera = Camera()
    clock_ns = ticking()
    exposure = ExposureLine(camera, clock_ns=clock_ns)
    line = TriggerLine(camera, pulse_s=0.0, exposure=exposure, clock_ns=clock_ns)
    line.fire()
    line.fire()
    assert line.pulses == (Pulse(0, 100, 200), Pulse(1, 300, 400))
    assert exposure.edges == 2


def test_a_camera_that_does_not_expose_is_a_time_out_and_the_pulse_is_still_counted():
    camera = Camera(answers=False)
    line = TriggerLine(camera, pulse_s=0.0, exposure=ExposureLine(camera), exposure_timeout_s=0.001, clock_ns=ticking())
    with pytest.raises(LinkTimeoutError, match="did not begin to expose"):
        line.fire()
    assert line.pulses == (Pulse(0, 100, None),)
    camera.answers = True
    line.fire()
    assert line.pulses[1].exposed_ns is not None


def test_a_camera_that_still_exposes_gets_no_pulse():
    camera = Camera()
    line = TriggerLine(camera, pulse_s=0.0, exposure=ExposureLine(camera))
    camera.is_active = True
    with pytest.raises(RefusedError, match="still exposes"):
        line.fire()
    assert camera.levels == []
    assert line.fired == 0


def test_an_edge_of_an_earlier_exposure_is_not_taken_for_this_ones():
    camera = Camera(answers=False)
    exposure = ExposureLine(camera)
    line = TriggerLine(camera, pulse_s=0.0, exposure=exposure, exposure_timeout_s=0.001)
    camera.when_activated()  # somebody else triggered it
    with pytest.raises(LinkTimeoutError):
        line.fire()


def test_an_edge_between_the_look_at_the_camera_and_the_pulse_is_not_this_ones_exposure():
    camera = Camera(answers=False)
    exposure = ExposureLine(camera)
    line = TriggerLine(camera, pulse_s=0.0, exposure=exposure, exposure_timeout_s=0.001)
    expect = exposure.expect

    def expected_too_early() -> None:
        expect()
        camera.when_activated()  # the frame of the pulse before

    exposure.expect = expected_too_early
    with pytest.raises(LinkTimeoutError):
        line.fire()
    assert line.pulses[0].exposed_ns is None
    camera.answers = True
    with pytest.raises(LinkError, match="2 exposures for one trigger"):
        line.fire()


def test_two_exposures_for_one_pulse_are_told():
    camera = Camera()
    line = TriggerLine(camera, pulse_s=0.0, exposure=ExposureLine(camera))
    off = camera.off
    camera.off = lambda: (off(), camera.when_activated())
    with pytest.raises(LinkError, match="2 exposures for one trigger"):
        line.fire()
    assert line.fired == 1


def test_a_late_exposure_is_waited_for():
    camera = Camera(answers=False)
    line = TriggerLine(camera, pulse_s=0.0, exposure=ExposureLine(camera), exposure_timeout_s=60.0)
    later = threading.Timer(0.01, camera.when_activated)
    off = camera.off
    camera.off = lambda: (off(), later.start())  # not before the line is expected to answer
    line.fire()
    later.join(5)
    assert line.pulses[0].exposed_ns is not None


class Failing(RecordedOutput):
    """Fails once, where it is told to."""

    where = ""

    def _fail(self, where: str) -> None:
        if self.where == where:
            self.where = ""
            raise OSError("Input/output error")

    def on(self) -> None:
        super().on()
        self._fail("on")

    def off(self) -> None:
        super().off()
        self._fail("off")


@pytest.mark.parametrize("where", ["on", "off"])
def test_a_pulse_of_a_line_that_fails_stands_in_the_ledger_and_is_not_certain(where):
    output = Failing()
    line = TriggerLine(output, pulse_s=0.0, clock_ns=ticking())
    line.fire()
    output.where = where
    with pytest.raises(LinkError, match="Input/output error"):
        line.fire()
    line.fire()
    assert output.levels.count(1) == line.fired == 3
    assert line.pulses == (Pulse(0, 100), Pulse(1, 200, certain=False), Pulse(2, 300))


def test_a_pulse_that_was_interrupted_stands_in_the_ledger_and_ends_low(monkeypatch):
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    output = RecordedOutput()
    line = TriggerLine(output, clock_ns=ticking())
    monkeypatch.setattr("firmware_bridge.trigger.time.sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        line.fire()
    assert output.levels == [1, 0]
    assert line.pulses == (Pulse(0, 100, certain=False),)


def test_an_exposure_line_that_cannot_be_read_is_a_link_error_and_no_pulse():
    class Unreadable(Camera):
        @property
        def is_active(self) -> bool:
            raise OSError("Input/output error")

        @is_active.setter
        def is_active(self, _: bool) -> None:
            pass

    camera = Unreadable()
    line = TriggerLine(camera, pulse_s=0.0, exposure=ExposureLine(camera))
    with pytest.raises(LinkError, match="Input/output error"):
        line.fire()
    assert (line.fired, camera.levels) == (0, [])


def test_closing_a_line_that_fails_gives_the_other_one_back_all_the_same():
    class Stuck(RecordedOutput):
        def close(self) -> None:
            raise OSError("Input/output error")

    camera = Camera()
    line = TriggerLine(Stuck(), pulse_s=0.0, exposure=ExposureLine(camera))
    with pytest.raises(LinkError, match="Input/output error"):
        line.close()
    assert camera.closed == 1


def test_closing_gives_both_lines_back():
    output, camera = RecordedOutput(), Camera()
    line = TriggerLine(output, pulse_s=0.0, exposure=ExposureLine(camera))
    line.close()
    line.close()
    assert (output.closed, camera.closed) == (1, 1)
    assert camera.when_activated is None


# -- lgpio's timed pulses ---------------------------------------------------------------------------------------------


class Lgpio:
    """What TimedOutput needs of lgpio; is busy for as many looks as it is told."""

    TX_PWM = 0

    class error(Exception):  # noqa: N801, N818 - lgpio's own name
        pass

    def __init__(self, *, busy: int = 2, broken: str = "") -> None:
        self.calls, self.busy, self.broken = [], busy, broken

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, *arguments))
            if name == self.broken:
                raise self.error(f"{name} failed")
            if name == "tx_busy":
                self.busy -= 1
                return int(self.busy >= 0)
            return 7

        return call


def timed(library: Lgpio) -> gpio.TimedOutput:
    return gpio.TimedOutput(library, 3, 12, sleep=lambda _: None)


def test_a_timed_pulse_is_one_cycle_and_waited_for():
    library = Lgpio()
    line = TriggerLine(timed(library), pulse_s=1e-3)
    line.fire()
    assert ("gpio_claim_output", 7, 12, 0) in library.calls
    assert ("tx_pulse", 7, 12, 1000, 1000, 0, 1) in library.calls
    assert library.calls[-1] == ("gpio_write", 7, 12, 0)
    assert line.fired == 1


def test_a_train_has_its_period_and_stands_in_the_ledger():
    library = Lgpio()
    line = TriggerLine(timed(library), pulse_s=1e-3, clock_ns=ticking())
    line.train(3, period_s=0.01)
    assert ("tx_pulse", 7, 12, 1000, 9000, 0, 3) in library.calls
    assert line.pulses == (Pulse(0, 100), Pulse(1, 10_000_100), Pulse(2, 20_000_100))


@pytest.mark.parametrize("broken", ["tx_pulse", "tx_busy", "gpio_write"])
def test_a_train_that_fails_stands_in_the_ledger_and_is_not_certain(broken):
    line = TriggerLine(timed(Lgpio(broken=broken)), pulse_s=1e-3)
    with pytest.raises(LinkError, match=broken):
        line.train(5, period_s=0.01)
    assert [pulse.certain for pulse in line.pulses] == [False] * 5
    assert line.fired == 5


def test_a_train_that_the_output_refuses_is_not_in_the_ledger():
    line = TriggerLine(timed(Lgpio()), pulse_s=1e-7)
    with pytest.raises(OutOfRangeError):
        line.train(5, period_s=0.01)
    assert (line.fired, line.pulses) == (0, ())


def test_a_train_that_is_interrupted_does_not_go_on():
    library = Lgpio(busy=10**6)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    line = TriggerLine(gpio.TimedOutput(library, 3, 12, sleep=interrupt), pulse_s=1e-3)
    with pytest.raises(KeyboardInterrupt):
        line.train(5, period_s=0.01)
    assert library.calls[-1] == ("tx_pulse", 7, 12, 0, 0)
    assert line.fired == 5


@pytest.mark.parametrize(("count", "period_s"), [(0, 0.01), (3, 1e-3), (3, float("nan"))])
def test_a_train_that_makes_no_sense_is_refused(count, period_s):
    library = Lgpio()
    with pytest.raises(OutOfRangeError):
        TriggerLine(timed(library), pulse_s=1e-3).train(count, period_s=period_s)
    assert not [call for call in library.calls if call[0] == "tx_pulse"]


def test_an_output_that_cannot_time_itself_makes_no_train():
    with pytest.raises(RefusedError, match="timed=True"):
        TriggerLine(RecordedOutput(), pulse_s=1e-3).train(2, period_s=0.01)


def test_a_pulse_that_never_ends_is_a_time_out_and_is_switched_off():
    library = Lgpio(busy=10**6)
    times = iter(range(1000))
    output = gpio.TimedOutput(library, 3, 12, clock=lambda: next(times) * 0.1, sleep=lambda _: None)
    with pytest.raises(LinkTimeoutError, match="not over"):
        output.train(1, period_s=0.01, width_s=0.001)
    assert library.calls[-1] == ("tx_pulse", 7, 12, 0, 0)


@pytest.mark.parametrize("broken", ["gpiochip_open", "gpio_claim_output"])
def test_a_line_that_is_not_there_says_what_to_check(broken):
    library = Lgpio(broken=broken)
    with pytest.raises(LinkError, match=r"no line 12 on /dev/gpiochip3 .*pinmux"):
        timed(library)
    assert ("gpiochip_close", 7) in library.calls or broken == "gpiochip_open"


def test_a_line_that_fails_is_a_link_error():
    with pytest.raises(LinkError, match="tx_pulse failed"):
        timed(Lgpio(broken="tx_pulse")).train(1, period_s=0.01, width_s=0.001)


def test_a_timed_line_is_given_back_low_and_once():
    library = Lgpio()
    output = timed(library)
    output.close()
    output.close()
    assert library.calls[-2:] == [("gpio_write", 7, 12, 0), ("gpiochip_close", 7)]
    with pytest.raises(LinkError, match="closed"):
        output.train(1, period_s=0.01, width_s=0.001)


@pytest.mark.parametrize("broken", ["gpio_write", "gpiochip_close"])
def test_a_timed_line_that_fails_at_closing_gives_its_chip_back_all_the_same(broken):
    library = Lgpio(broken=broken)
    with pytest.raises(LinkError, match=broken):
        timed(library).close()
    assert library.calls[-1] == ("gpiochip_close", 7)


# -- gpiozero's own pins ----------------------------------------------------------------------------------------------


@pytest.fixture
def pins():
    """gpiozero's mock pins: its devices as they are, without a board."""
    try:
        from gpiozero.pins.mock import MockFactory
    except ImportError as exc:
        missing(f"gpiozero is part of the dev extra: {exc}")
    factory = MockFactory()
    yield factory
    factory.reset()


@pytest.mark.slow  # so that it is left out where the appliance is tested without its development tools
def test_gpiozeros_devices_are_our_output_and_our_input(pins):
    import gpiozero

    output = gpiozero.OutputDevice(18, pin_factory=pins)
    camera = gpiozero.DigitalInputDevice(23, pin_factory=pins)
    line = TriggerLine(output, pulse_s=0.0, exposure=ExposureLine(camera), exposure_timeout_s=60.0)
    pins.pin(18).when_changed = None
    states = pins.pin(18).states
    answer = threading.Timer(0.01, pins.pin(23).drive_high)
    off = output.off
    output.off = lambda: (off(), answer.start())  # not before the line is expected to answer
    line.fire()
    answer.join(5)
    del output.off
    assert [bool(state.state) for state in states][-2:] == [True, False]
    assert line.pulses[0].exposed_ns is not None
    with pytest.raises(RefusedError, match="still exposes"):
        line.fire()
    line.close()
    assert output.closed
    assert camera.closed


def test_a_chip_that_does_not_exist_is_one_clear_error(monkeypatch):
    class GPIOZeroError(Exception):
        pass

    class Factory:
        def __init__(self, chip) -> None:
            raise Lgpio.error("can not open gpiochip")

    modules = {
        "lgpio": types.SimpleNamespace(error=Lgpio.error),
        "gpiozero": types.SimpleNamespace(OutputDevice=object),
        "gpiozero.exc": types.SimpleNamespace(GPIOZeroError=GPIOZeroError),
        "gpiozero.pins": types.SimpleNamespace(PinInfo=tuple),
        "gpiozero.pins.lgpio": types.SimpleNamespace(LGPIOFactory=Factory),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(LinkError, match=r"no line 5 on /dev/gpiochip99 .*group gpio"):
        open_trigger(chip=99, pin=5)
