"""The contact monitor: what it tells the guard, and when, in a time that the test owns."""

from __future__ import annotations

import logging
import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_bridge.contact import ContactMonitor, Thresholds
from firmware_bridge.errors import LinkError, LinkTimeoutError, OutOfRangeError, RefusedError
from tests.waiting import until

LIMITS = Thresholds(set_point_v=2.0, overload_v=2.5, broken_v=0.2, debounce=2)


class Guard:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.ticks = 0
        self.called = threading.Event()

    def sampled(self, asked_s: float, *, touches: bool) -> None:
        self.told.append("sampled")
        self.asked_s, self.touches = asked_s, touches

    def overload(self, why: str) -> None:
        self.told.append(why)
        self.called.set()

    def tick(self) -> None:
        self.ticks += 1


class Reader:
    """Reads what the test puts in: volts, or an error to raise."""

    def __init__(self, *values) -> None:
        self.values = list(values)

    def read_v(self) -> float:
        value = self.values.pop(0) if len(self.values) > 1 else self.values[0]
        if isinstance(value, BaseException):
            raise value
        return value

    def close(self) -> None:
        pass


class Bench:
    def __init__(self, *values, limits: Thresholds = LIMITS) -> None:
        self.now_s = 10.0
        self.guard = Guard()
        self.monitor = ContactMonitor(
            Reader(*values), limits, guard=self.guard, period_s=0.005, clock=lambda: self.now_s
        )

    def step(self, count: int = 1) -> list[str]:
        before = len(self.guard.told)
        for _ in range(count):
            self.now_s += 0.005
            self.monitor.step()
        return self.guard.told[before:]


def test_a_quiet_contact_is_reported_alive_and_the_guard_looks_at_its_clock():
    bench = Bench(1.0)
    assert bench.step(3) == ["sampled"] * 3
    assert bench.guard.ticks == 3
    assert bench.monitor.latest().value_v == 1.0
    assert bench.monitor.latest().index == 2


def test_an_overload_is_told_at_the_second_sample_and_not_at_the_first():
    bench = Bench(1.0, 2.6, 2.6)
    assert bench.step(2) == ["sampled"]
    (why,) = bench.step()
    assert why == "contact overload: 2.600 V, 2 samples in a row"


def test_a_single_glitch_is_no_overload():
    bench = Bench(1.0, 2.6, 1.0, 2.6, 1.0)
    assert bench.step(5) == ["sampled"] * 3


@pytest.mark.parametrize("value", [0.1, math.nan, OutOfRangeError("5 V")])
def test_what_no_healthy_sensor_says_counts_as_an_overload(value):
    bench = Bench(1.0, value, value)
    (told, why) = bench.step(3)
    assert told == "sampled"
    assert "2 samples in a row" in why


def test_a_wire_that_is_cut_is_told_apart_from_an_overload():
    assert "sensor broken: 0.000 V" in Bench(0.0).step(2)[0]


def test_a_sensor_that_stops_answering_is_stale_after_two_and_a_half_periods():
    bench = Bench(1.0, LinkError("bus error"))
    assert bench.step(3) == ["sampled"]
    (why,) = bench.step()
    assert "stale" in why
    assert "bus error" in why
    with pytest.raises(LinkError, match="bus error"):
        bench.monitor.latest()


def test_a_sample_that_comes_too_late_does_not_hide_that_there_was_none():
    bench = Bench(1.0)
    bench.step()
    bench.now_s += 0.09  # the thread was held up
    (why, told) = bench.step()
    assert "stale for 0.095 s: the ADC or the machine is held up" in why
    assert told == "sampled"
    assert bench.step() == ["sampled"]


def test_the_guard_is_told_when_a_sample_was_asked_for_and_whether_it_touches():
    bench = Bench(1.0, 2.1)
    bench.step()
    assert (bench.guard.asked_s, bench.guard.touches) == (bench.now_s, False)
    bench.step()
    assert (bench.guard.asked_s, bench.guard.touches) == (bench.now_s, True)


def test_a_sensor_that_does_not_answer_is_logged_once_and_when_it_answers_again(caplog):
    caplog.set_level(logging.INFO)
    bench = Bench(1.0, *[LinkError("bus error")] * 50, 1.0, LinkError("bus error"), 1.0)
    bench.step(60)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "no contact sample: bus error",
        "contact samples again, after 50 without one",
        "no contact sample: bus error",
        "contact samples again, after 1 without one",
    ]


def test_a_sensor_that_never_answered_is_stale_too():
    assert "stale" in Bench(LinkError("bus error")).step(3)[0]


def test_a_sample_that_is_old_is_not_the_latest():
    bench = Bench(1.0)
    bench.step()
    bench.now_s += 0.02  # as when the reader hangs in the thread
    with pytest.raises(LinkError, match=r"no contact sample for 0\.020 s"):
        bench.monitor.latest()


volts = st.sampled_from([0.0, 0.1, 0.2, 1.0, 2.4999, 2.5, 3.0, math.nan])
readings = st.lists(st.one_of(volts, st.just("out of range"), st.just("silent")), max_size=30)


@given(readings, st.integers(1, 4))
def test_an_overload_is_told_exactly_when_the_last_readings_all_say_so_or_there_is_none(values, debounce):
    limits = Thresholds(set_point_v=2.0, overload_v=2.5, broken_v=0.2, debounce=debounce)
    errors = {"out of range": OutOfRangeError("5 V"), "silent": LinkError("bus error")}
    bench = Bench(*[errors.get(value, value) for value in values], 1.0, limits=limits)
    bad, good_s = 0, bench.now_s
    for value in values:
        told = bench.step()
        if value != "silent":
            over = value == "out of range" or not 0.2 <= value < 2.5
            bad = bad + 1 if over else 0
        stale = bench.now_s - good_s > bench.monitor.stale_s + 1e-12  # also where this one is good
        if value not in ("silent", "out of range"):
            good_s = bench.now_s
        confirmed = value != "silent" and bad >= debounce
        assert any(why != "sampled" for why in told) == (stale or confirmed)
        assert ("sampled" in told) == (value != "silent" and bad == 0)


@pytest.mark.parametrize(
    "bad",
    [
        {"set_point_v": 2.5, "overload_v": 2.0},
        {"set_point_v": 2.0, "overload_v": 3.3},
        {"set_point_v": 2.0, "overload_v": 2.5, "broken_v": 2.0},
        {"set_point_v": 0.0, "overload_v": 2.5},
        {"set_point_v": math.nan, "overload_v": 2.5},
        {"set_point_v": 2.0, "overload_v": 2.5, "debounce": 0},
    ],
)
def test_thresholds_that_make_no_sense_are_refused(bad):
    with pytest.raises(OutOfRangeError):
        Thresholds(**bad)


@pytest.mark.parametrize("bad_s", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["period_s", "stale_s"])
def test_a_time_that_makes_no_sense_is_refused(name, bad_s):
    with pytest.raises(OutOfRangeError, match=name):
        ContactMonitor(Reader(1.0), LIMITS, **{name: bad_s})


# -- the thread -------------------------------------------------------------------------------------------------------


def test_the_thread_samples_until_it_is_left_and_has_a_name():
    with ContactMonitor(Reader(1.0), LIMITS, period_s=0.001) as monitor:
        first, second = monitor.wait(2)
        assert second.index > first.index
        assert any(thread.name == "contact" for thread in threading.enumerate())
    assert not any(thread.name == "contact" for thread in threading.enumerate())
    with pytest.raises(RefusedError, match="runs once"):
        monitor.__enter__()


def test_samples_are_a_period_apart():
    with ContactMonitor(Reader(1.0), LIMITS, period_s=0.02) as monitor:
        samples = monitor.wait(21, timeout_s=60.0)
    # One that was late may come close before the next; the first may have been late by half of all of it.
    assert samples[-1].t_s - samples[0].t_s > 0.5 * 20 * 0.02


def test_a_monitor_that_was_made_long_before_it_runs_is_not_stale_at_once():
    now_s = [0.0]
    guard = Guard()
    monitor = ContactMonitor(Reader(LinkError("bus error")), LIMITS, guard=guard, period_s=1.0, clock=lambda: now_s[0])
    now_s[0] = 100.0
    with monitor:
        while not guard.ticks:
            threading.Event().wait(0.001)
    assert guard.told == []


def test_a_sample_that_is_waited_for_was_asked_for_after_the_call():
    with ContactMonitor(Reader(1.0), LIMITS, period_s=0.001) as monitor:
        (first,) = monitor.wait()
        (second,) = monitor.wait()
        assert second.index > first.index


def test_waiting_for_a_sensor_that_does_not_answer_is_a_time_out():
    with ContactMonitor(Reader(LinkError("bus error")), LIMITS, guard=Guard(), period_s=0.001) as monitor:
        assert until(lambda: monitor._guard.ticks > 0)
        with pytest.raises(LinkTimeoutError, match="bus error"):
            monitor.wait(timeout_s=0.02)


def test_a_thread_that_dies_tells_the_guard_and_the_caller():
    guard = Guard()
    monitor = ContactMonitor(Reader(ZeroDivisionError("a bug")), LIMITS, guard=guard, period_s=0.001)
    threading.excepthook, hook = lambda _: None, threading.excepthook
    try:
        monitor.__enter__()
        assert guard.called.wait(5)
        monitor._thread.join(5)
    finally:
        threading.excepthook = hook
    assert "died" in guard.told[0]
    with pytest.raises(LinkError, match="a bug"):
        monitor.latest()
    with pytest.raises(LinkError, match="a bug"):
        monitor.wait(timeout_s=1.0)
    with pytest.raises(LinkError, match="a bug"):
        monitor.__exit__(None, None, None)


def test_a_hanging_reader_does_not_keep_latest_from_noticing():
    goes_on, hangs = threading.Event(), threading.Event()

    class Hanging(Reader):
        def read_v(self) -> float:
            hangs.set()
            goes_on.wait(5)
            return 1.0

    with ContactMonitor(Hanging(1.0), LIMITS, period_s=0.001) as monitor:
        assert hangs.wait(5)
        with pytest.raises(LinkError, match="no contact sample"):
            monitor.latest()
        goes_on.set()
