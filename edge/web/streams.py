"""The two endless answers: pictures as MJPEG, and status as server-sent events.

Each generator ends by itself when the board is closed or the client has left, and gives every client the newest value
only: a slow client sees fewer pictures, never older ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from edge.status import StatusBoard

BOUNDARY = "frame"
POLL_S = 0.5  # a quiet stream looks this often whether its client has left
STATUS_INTERVAL_S = 0.2  # at most five events a second
STATUS_REPEAT_S = 1.0  # with POLL_S: an event at least every 2 s, so that silence means a lost link


def pictures(board: StatusBoard, client_left: Callable[[], bool]) -> Iterator[bytes]:
    """Each new preview as one part of ``multipart/x-mixed-replace``.

    A part ends with the *next* boundary, so a reader need not wait for the following picture to know it has all of it.
    """
    boundary = f"--{BOUNDARY}\r\n".encode()
    yield boundary
    after = -1
    while not (board.closed or client_left()):
        preview = board.wait_preview(after, timeout_s=POLL_S)
        if preview is None:
            continue
        after = preview.counter
        head = (
            "Content-Type: image/jpeg\r\n"
            f"Content-Length: {len(preview.jpeg)}\r\n"
            f"X-Frame-Index: {preview.frame_index}\r\n"
            f"X-Preview-Counter: {preview.counter}\r\n"
            f"X-Exposure-End-Ns: {preview.t_exposure_end_ns}\r\n"
            f"X-Output: {preview.output}\r\n\r\n"
        )
        yield b"".join((head.encode(), preview.jpeg, b"\r\n", boundary))


def status_events(board: StatusBoard, client_left: Callable[[], bool]) -> Iterator[str]:
    """The status as published, as ``status`` events.

    The clock fields stay those of publication: a reader can then tell a daemon that no longer publishes from a lively
    one, although this stream goes on.
    """
    counter, sent_s = -1, float("-inf")
    while not (board.closed or client_left()):
        newest, _ = board.wait_status(counter, timeout_s=POLL_S)
        if newest == counter and time.monotonic() - sent_s < STATUS_REPEAT_S:
            continue
        time.sleep(max(0.0, sent_s + STATUS_INTERVAL_S - time.monotonic()))
        counter, status = board.wait_status(-1, timeout_s=0.0)  # the newest, after the pause
        sent_s = time.monotonic()
        yield f"event: status\ndata: {status.model_dump_json()}\n\n"
