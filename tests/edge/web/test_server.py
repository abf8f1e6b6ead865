"""The page on a real port."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import simplejpeg

from edge.errors import ConfigError
from edge.web import PageServer, serve

Serve = Callable[..., PageServer]


@contextmanager
def asked(port: int, path: str, method: str = "GET", **headers: str) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def read_picture(stream: http.client.HTTPResponse) -> tuple[dict[str, str], bytes]:
    """The next part of an MJPEG stream, without waiting for the one after it."""
    headers = {}
    while (line := stream.readline().strip()) or not headers:
        name, colon, value = line.decode().partition(": ")
        if colon:
            headers[name] = value
    return headers, stream.read(int(headers["Content-Length"]))


def web_threads() -> set[str]:
    return {
        thread.name for thread in threading.enumerate() if thread.name == "web" or thread.name.startswith("waitress")
    }


def test_a_picture_reaches_the_client_before_the_next_one_exists(box: Any, served: Serve) -> None:
    with asked(served().port, "/video") as stream:
        assert stream.headers["Content-Type"] == "multipart/x-mixed-replace; boundary=frame"
        for raw, enhanced in ((30, 200), (80, 120)):
            preview = box.show_grey(raw, enhanced)
            headers, jpeg = read_picture(stream)
            assert jpeg == preview.jpeg
            assert int(headers["X-Frame-Index"]) == preview.frame_index
            picture = simplejpeg.decode_jpeg(jpeg, colorspace="GRAY")
            left, right = np.hsplit(picture, 2)
            assert abs(float(left.mean()) - raw) < 2
            assert abs(float(right.mean()) - enhanced) < 2


def test_a_client_that_does_not_read_is_not_sent_a_backlog(box: Any, served: Serve) -> None:
    rng = np.random.default_rng(1)
    with asked(served().port, "/video") as stream:
        newest = None
        for _ in range(60):
            raw, enhanced = rng.integers(0, 256, (2, 400, 400), dtype=np.uint8)  # noise: about 300 kB a picture
            newest = box.show(raw, enhanced)
        assert newest is not None
        got = []
        while not got or got[-1] < newest.counter:
            got.append(int(read_picture(stream)[0]["X-Preview-Counter"]))
        assert len(got) < 30


def test_status_events_arrive(box: Any, served: Serve) -> None:
    with asked(served().port, "/api/events") as stream:
        assert stream.headers["Content-Type"] == "text/event-stream"
        lines = [stream.readline().decode() for _ in range(3)]
        assert lines[0] == "event: status\n"
        assert json.loads(lines[1].removeprefix("data: "))["name"] == "bench 3"
        assert lines[2] == "\n"


def test_the_place_of_a_viewer_who_left_is_given_to_the_next(box: Any, served: Serve) -> None:
    port = served(max_viewers=1).port
    with asked(port, "/video") as first:
        assert first.status == 200
        with asked(port, "/video") as second:
            assert second.status == 503
            assert "at most 1" in json.loads(second.read())["detail"]
    for _ in range(50):  # each refusal takes a round trip; the place is free within two polls of the stream
        with asked(port, "/video") as third:
            if third.status == 200:
                break
        box.board.wait_preview(-1, timeout_s=0.1)
    assert third.status == 200


def test_a_forwarded_request_reaches_the_rule_that_refuses_it(served: Serve) -> None:
    with asked(served().port, "/healthz", X_Forwarded_For="10.0.0.7") as answer:
        assert answer.status == 403


def test_a_foreign_host_is_misdirected(served: Serve) -> None:
    with asked(served().port, "/video", Host="evil.example") as answer:
        assert answer.status == 421
        assert answer.headers["Content-Type"] == "application/problem+json"


def test_stop_is_answered_while_every_stream_is_taken(box: Any, served: Serve) -> None:
    port = served(max_viewers=2).port
    with asked(port, "/video"), asked(port, "/video"), asked(port, "/api/events"), asked(port, "/api/events"):
        with asked(port, "/api/stop", "POST") as answer:
            assert json.loads(answer.read()) == {"stopped": True, "state": "IDLE"}
    assert box.calls == ["stop"]


def test_a_port_in_use_is_an_error_at_once(box: Any, served: Serve) -> None:
    port = served().port
    with pytest.raises(ConfigError, match=rf"Port {port} on 127\.0\.0\.1 is already in use.*--port"):
        serve(box.app(), host="127.0.0.1", port=port, threads=4)


def test_an_address_of_another_machine_is_an_error_at_once(box: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        serve(box.app(), host="192.0.2.1", port=0, threads=4)


@pytest.mark.parametrize("board_first", [True, False])
def test_closing_ends_open_streams_frees_the_port_and_leaves_no_thread(box: Any, board_first: bool) -> None:
    before = web_threads()
    server = serve(box.app(), host="127.0.0.1", port=0, threads=6)
    server.start()
    with asked(server.port, "/video") as video, asked(server.port, "/api/events") as events:
        events.readline()
        if board_first:
            box.board.close()
        server.close()
        server.close()
        with suppress(http.client.IncompleteRead):  # cut off in mid-stream, unless the board ended it first
            assert b"JFIF" not in video.read()
    assert web_threads() == before
    with socket.create_server(("127.0.0.1", server.port)):
        pass


def test_a_server_that_was_never_started_closes_too(box: Any) -> None:
    before = web_threads()
    serve(box.app(), host="127.0.0.1", port=0, threads=2).close()
    assert web_threads() == before


def test_a_loop_that_wakes_early_does_not_close_the_pipe_before_it_was_written_to(box: Any) -> None:
    server = serve(box.app(), host="127.0.0.1", port=0, threads=2)
    trigger = server._server.trigger
    write = trigger._physical_pull
    closed = threading.Event()
    close = trigger.close

    def late() -> None:
        write()  # as a worker's, a moment before ours: the loop wakes, and finds what it is to do
        closed.wait(0.2)
        write()

    def told() -> None:
        close()
        closed.set()

    server.start()
    trigger._physical_pull, trigger.close = late, told
    server.close()
    assert closed.wait(5)
    assert not web_threads()
