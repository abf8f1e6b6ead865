"""The routes of the status page. They read the board and call what the daemon gave them; they hold no state.

Every refusal and failure is a problem document (RFC 9457), and every answer carries the same security headers.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from flask import Flask, Response, abort, render_template, request
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from werkzeug.exceptions import HTTPException

from edge.errors import BusyError, ConfigError, EdgeError
from edge.status import RunState, Status, StatusBoard
from edge.utc import utc_now
from edge.web.access import LOOPBACK_NAMES, refusal
from edge.web.metrics import registry_of
from edge.web.streams import BOUNDARY, pictures, status_events

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 4096
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # no-referrer would make the STOP form's own Origin "null"
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class JobRequest(BaseModel):
    """What ``POST /api/start`` may ask for. An empty body asks for the live view.

    A scan needs ``region_um`` (width x height, stage axes); whether the stage can reach it is for the daemon to say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    job: Literal["live", "scan"] = "live"
    region_um: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    overlap: Annotated[float, Field(ge=0, lt=0.9)] = 0.15

    @model_validator(mode="after")
    def _a_scan_has_a_region(self) -> JobRequest:
        if (self.job == "scan") != (self.region_um is not None):
            raise ValueError('a scan needs region_um, [width, height] in um, and "live" takes none')
        return self


class ShowRequest(BaseModel):
    """What ``POST /api/show`` asks for: the name of one of the model's outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: str


_RequestT = TypeVar("_RequestT", bound=BaseModel)


def _no_log() -> Sequence[str]:
    return ()


def create_app(
    board: StatusBoard,
    *,
    submit: Callable[[JobRequest], None],
    stop: Callable[[], None],
    show: Callable[[str], None],
    snapshot: Callable[[], Sequence[Path]],
    reset: Callable[[], None],
    allowed_hosts: Sequence[str] = (),
    max_viewers: int = 8,
    log_tail: Callable[[], Sequence[str]] = _no_log,
    config_text: str = "",
) -> Flask:
    """Build the page.

    Parameters
    ----------
    board
        All the page knows of the instrument.
    submit
        Begins a job; raises BusyError (answered 409), ConfigError (400) or another EdgeError (503) at once.
    stop
        STOP. Called in the request's own thread, ahead of everything queued.
    show
        Puts one of the model's outputs on view, for everybody who watches; raises BusyError or ConfigError.
    snapshot
        Saves the next frame and returns the files.
    reset
        Unlatches the interlock's fault; raises BusyError where that is not to be.
    allowed_hosts
        Names besides loopback that a request may be addressed to, without port.
    max_viewers
        Pictures are streamed to so many clients at once, and status to as many. The server needs a thread for each. One
        more is refused pictures, and is sent one status for each time it asks.
    log_tail, config_text
        Shown when the instrument did not start.
    """
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    allowed = LOOPBACK_NAMES | {name.lower() for name in allowed_hosts}
    registry = registry_of(board)
    viewers = threading.BoundedSemaphore(max_viewers)
    listeners = threading.BoundedSemaphore(max_viewers)

    @app.before_request
    def check_access() -> Response | None:
        refused = refusal(request.method, dict(request.headers.items()), allowed_hosts=allowed)
        return None if refused is None else problem(refused.status, refused.detail)

    @app.after_request
    def secure(response: Response) -> Response:
        response.headers.update(SECURITY_HEADERS)
        if request.endpoint != "static":
            response.headers["Cache-Control"] = "no-store"
        return response

    @app.errorhandler(EdgeError)
    def refused_by_the_box(error: EdgeError) -> Response:
        status = 409 if isinstance(error, BusyError) else 400 if isinstance(error, ConfigError) else 503
        log.info("%s answered %d: %s", request.path, status, error)
        return problem(status, str(error))

    @app.errorhandler(HTTPException)
    def http_problem(error: HTTPException) -> Response:
        detail = "The box failed to answer; its log says why." if error.code == 500 else error.description or ""
        return problem(error.code or 500, detail)

    @app.get("/")
    def page() -> str:
        return render_template(
            "index.html", status=board.status(), config_text=config_text, log_text="\n".join(log_tail())
        )

    @app.get("/video")
    def video() -> Response:
        if not viewers.acquire(blocking=False):
            return problem(
                503, f"The box sends its pictures to at most {max_viewers} at once. Close another page first."
            )
        return stream(viewers, pictures(board, client_left()), f"multipart/x-mixed-replace; boundary={BOUNDARY}")

    @app.get("/api/events")
    def events() -> Response:
        statuses = status_events(board, client_left())
        if listeners.acquire(blocking=False):
            return stream(listeners, statuses, "text/event-stream")
        return Response(islice(statuses, 1), content_type="text/event-stream")  # one too many: it asks again and again

    def stream(seats: threading.BoundedSemaphore, body: Iterator[bytes] | Iterator[str], content_type: str) -> Response:
        response = Response(body, content_type=content_type)
        response.call_on_close(seats.release)  # runs even if the client left before the first byte
        return response

    @app.get("/api/status")
    def status() -> Response:
        return _json(_with_clock(board))

    @app.post("/api/start")
    def start() -> Response:
        wanted = asked(JobRequest, 'Send {"job": "live"}, or nothing.') if request.get_data() else JobRequest()
        submit(wanted)
        return _json({"job": wanted.job, "state": board.status().state.value})

    @app.post("/api/show")
    def show_output() -> Response:
        wanted = asked(ShowRequest, 'Send {"output": "NAME"}.')
        show(wanted.output)
        return _json({"shown": wanted.output})

    @app.post("/api/stop")
    def stop_now() -> Response:
        stop()
        state = board.status().state
        stopped = state not in (RunState.LIVE, RunState.SCANNING)
        if request.accept_mimetypes.best_match(("application/json", "text/html")) != "text/html":
            return _json({"stopped": stopped, "state": state.value})
        if not stopped:  # the form, in a browser without JavaScript
            return problem(
                503, f"STOP was not confirmed: the box is still {state.value}. Go back and press STOP again."
            )
        return Response(status=303, headers={"Location": "/"})

    @app.post("/api/snapshot")
    def save_snapshot() -> dict[str, Any]:
        return {"paths": [str(path) for path in snapshot()]}

    @app.post("/api/reset")
    def reset_fault() -> dict[str, Any]:
        reset()
        return {"reset": True, "state": board.status().state.value}

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        return {"up": True}

    @app.get("/readyz")
    def readyz() -> Response:
        reason = not_ready(board)
        return _json({"ready": True}) if reason is None else problem(503, reason)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)

    return app


def asked(what: type[_RequestT], remedy: str) -> _RequestT:
    """The body of the request that is being answered; a body that is not ``what`` ends it with a problem document."""
    if not request.is_json:
        abort(415, "The body has to be application/json.")
    try:
        return what.model_validate_json(request.get_data())
    except ValidationError as exc:
        fault = exc.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        abort(400, f"{where or 'body'}: {message}. {remedy}")


def problem(status: int, detail: str) -> Response:
    """A problem document (RFC 9457): what happened, in words."""
    title = HTTPStatus(status).phrase
    response = _json({"type": "about:blank", "title": title, "status": status, "detail": detail})
    response.status_code = status
    response.content_type = "application/problem+json"
    return response


def client_left() -> Callable[[], bool]:
    """A question that waitress answers; other servers do not know, and say no."""
    asked: Callable[[], bool] = request.environ.get("waitress.client_disconnected", lambda: False)
    return asked


def not_ready(board: StatusBoard) -> str | None:
    """Why frames do not flow through the engine to the page, or None when they do."""
    status, preview = board.status(), board.preview()
    if status.state not in (RunState.LIVE, RunState.SCANNING):
        return f"The state is {status.state.value}; frames flow only while LIVE or SCANNING."
    if preview is None:
        return "No frame has come since the job began."
    frame_time_s = (status.camera.frame_time_s if status.camera is not None else None) or 0.0
    limit_s = max(2 * frame_time_s, 1.0)
    age_s = (board.clock_ns() - preview.t_exposure_end_ns) / 1e9
    return None if age_s <= limit_s else f"The newest frame is {age_s:.1f} s old; at most {limit_s:.1f} s is live."


def _with_clock(board: StatusBoard) -> Status:
    """The status with the clock of this very moment: what a page compares its own clock with."""
    return board.status().model_copy(update={"box_utc": utc_now(), "box_monotonic_ns": board.clock_ns()})


def _json(value: Status | dict[str, Any]) -> Response:
    text = value.model_dump_json() if isinstance(value, Status) else json.dumps(value)
    return Response(text, content_type="application/json")
