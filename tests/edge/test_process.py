"""The log's tail, as the start-up page shows it."""

from __future__ import annotations

import logging

from edge.process import LogTail


def test_the_tail_keeps_the_newest_lines_in_order() -> None:
    tail = LogTail(length=2)
    for number in range(4):
        tail.emit(logging.LogRecord("stage", logging.ERROR, "", 0, "line %d", (number,), None))
    assert [line.split()[-2:] for line in tail.lines()] == [["line", "2"], ["line", "3"]]
    assert "ERROR   stage" in tail.lines()[0]
