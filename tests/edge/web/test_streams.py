"""The two endless answers, driven by hand."""

from __future__ import annotations

import json
import threading
from typing import Any

from edge.status import Status
from edge.web.streams import pictures, status_events


def never() -> bool:
    return False


def test_a_picture_comes_whole_with_its_times_and_the_next_boundary(box: Any) -> None:
    stream = pictures(box.board, never)
    assert next(stream) == b"--frame\r\n"
    preview = box.show_grey(40, 160)
    head, _, rest = next(stream).partition(b"\r\n\r\n")
    headers = dict(line.split(": ") for line in head.decode().split("\r\n"))
    assert headers == {
        "Content-Type": "image/jpeg",
        "Content-Length": str(len(preview.jpeg)),
        "X-Frame-Index": str(preview.frame_index),
        "X-Preview-Counter": str(preview.counter),
        "X-Exposure-End-Ns": str(preview.t_exposure_end_ns),
        "X-Output": "enhanced",
    }
    assert rest == preview.jpeg + b"\r\n--frame\r\n"


def test_a_slow_client_gets_the_newest_picture_only(box: Any) -> None:
    stream = pictures(box.board, never)
    next(stream)
    for _ in range(5):
        newest = box.show_grey(40, 160)
    assert f"X-Preview-Counter: {newest.counter}\r\n".encode() in next(stream)


def test_streams_end_when_the_board_is_closed(box: Any) -> None:
    waiting = [pictures(box.board, never), status_events(box.board, never)]
    threads = [threading.Thread(target=list, args=(stream,), daemon=True) for stream in waiting]
    for thread in threads:
        thread.start()
    box.board.close()
    for thread in threads:
        thread.join(2.0)
        assert not thread.is_alive()


def test_streams_end_when_the_client_has_left(box: Any) -> None:
    assert list(pictures(box.board, lambda: True)) == [b"--frame\r\n"]
    assert list(status_events(box.board, lambda: True)) == []


def test_status_events_hold_the_newest_status_as_published(box: Any) -> None:
    stream = status_events(box.board, never)
    first = next(stream)
    box.publish(note="older")
    box.publish(note="newest")
    event, data = next(stream).rstrip("\n").split("\n")
    assert event == "event: status"
    assert first.endswith("\n\n")
    status = Status.model_validate(json.loads(data.removeprefix("data: ")))
    assert status == box.board.status()
    assert status.note == "newest"


def test_status_events_come_also_when_nothing_changes(box: Any) -> None:
    stream = status_events(box.board, never)
    assert next(stream) == next(stream)
