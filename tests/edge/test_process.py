"""The log's tail, as the start-up page shows it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest

from edge.process import LogTail, quit_on_signals


@pytest.fixture
def _own_signals() -> Iterator[None]:
    """Whatever a test does to the signals is taken back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_tail_keeps_the_newest_lines_in_order() -> None:
    tail = LogTail(length=2)
    for number in range(4):
        tail.emit(logging.LogRecord("stage", logging.ERROR, "", 0, "line %d", (number,), None))
    assert [line.split()[-2:] for line in tail.lines()] == [["line", "2"], ["line", "3"]]
    assert "ERROR   stage" in tail.lines()[0]


@pytest.mark.usefixtures("_own_signals")
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_asks_for_the_end_a_second_says_so_and_a_third_ends_the_program(
    first: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    asked: list[str] = []
    quit_on_signals(lambda: asked.append("quit"))
    signal.raise_signal(first)
    assert (asked, capfd.readouterr().err) == (["quit"], "")
    signal.raise_signal(first)
    assert asked == ["quit"]
    assert "Once more ends the program at once" in capfd.readouterr().err
    assert {signal.getsignal(number) for number in numbers} == {signal.SIG_DFL}
