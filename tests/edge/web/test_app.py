"""Every route and every refusal, without a server."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from edge.errors import BusyError, CameraError, ConfigError, EdgeError
from edge.status import RunState, StatusBoard

ROUTES = ("/", "/api/status", "/healthz", "/metrics", "/static/app.js", "/no-such-page")


@pytest.fixture
def client(box: Any) -> FlaskClient:
    return box.app().test_client()


def problem(response: TestResponse, status: int) -> str:
    """Check that an answer is a problem document; its detail."""
    assert response.status_code == status
    assert response.content_type == "application/problem+json"
    document = response.get_json()
    assert set(document) == {"type", "title", "status", "detail"}
    assert document["status"] == status
    assert len(document["detail"]) > 10
    return str(document["detail"])


def test_the_page_names_the_box_its_state_and_what_is_simulated(client: FlaskClient) -> None:
    html = client.get("/").get_data(as_text=True)
    assert "<title>LIVE · bench 3" in html
    assert re.search(r"SIMULATED<span[^>]*> camera, stage</span>", html)
    assert 'id="scan-form"' in html


def test_the_page_holds_no_inline_script_or_style(client: FlaskClient) -> None:
    html = client.get("/").get_data(as_text=True)
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|https?://(?!www\.w3\.org)", html)
    assert re.findall(r"<script[^>]*>(.*?)</script>", html, re.S) == [""]


def test_a_page_whose_instrument_did_not_start_shows_why(box: Any) -> None:
    box.publish(state=RunState.FAULT, start_error="No answer on /dev/pzt <within> 5 s.", camera=None, simulated=())
    client = box.app(config_text='port = "/dev/pzt"', log_tail=lambda: ["asking *IDN?", "no answer"]).test_client()
    html = client.get("/").get_data(as_text=True)
    assert "No answer on /dev/pzt &lt;within&gt; 5 s." in html
    assert "port = &#34;/dev/pzt&#34;" in html
    assert "asking *IDN?\nno answer" in html
    assert re.search(r'id="view-live"[^>]* hidden>', html)
    assert not re.search(r'id="view-down"[^>]* hidden>', html)


def test_configuration_and_log_are_left_out_where_none_are_given(client: FlaskClient) -> None:
    assert "down-more" not in client.get("/").get_data(as_text=True)


def test_status_is_the_boards_with_the_clock_of_this_moment(box: Any) -> None:
    status = box.board.status()
    box.board = StatusBoard(status, clock_ns=lambda: 77)
    document = box.app().test_client().get("/api/status").get_json()
    assert document["box_monotonic_ns"] == 77
    assert document["box_utc"].endswith("+00:00")
    assert document["flow"]["frames"] == status.flow.frames
    assert document["pixel_size_nm"] == status.pixel_size_nm


@pytest.mark.parametrize("body", [b"", b"{}", b'{"job": "live"}'])
def test_start_begins_the_live_view(client: FlaskClient, box: Any, body: bytes) -> None:
    answer = client.post("/api/start", data=body, content_type="application/json")
    assert answer.get_json() == {"job": "live", "state": "LIVE"}
    assert box.calls == ["start"]


def test_start_begins_a_scan_of_the_region_asked_for(client: FlaskClient, box: Any) -> None:
    answer = client.post("/api/start", json={"job": "scan", "region_um": [60, 40], "overlap": 0.2})
    assert answer.get_json()["job"] == "scan"
    (request,) = box.requests
    assert (request.region_um, request.overlap) == ((60, 40), 0.2)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ('{"job": "dance"}', "job"),
        ('{"speed": 3}', "speed"),
        ("{", "body"),
        ('{"job": "scan"}', "region_um"),
        ('{"job": "live", "region_um": [1, 1]}', "region_um"),
        ('{"job": "scan", "region_um": [-1, 1]}', "region_um"),
        ('{"job": "scan", "region_um": [1, 1], "overlap": 1}', "overlap"),
    ],
)
def test_an_unknown_job_is_refused_and_nothing_starts(client: FlaskClient, box: Any, body: str, names: str) -> None:
    assert names in problem(client.post("/api/start", data=body, content_type="application/json"), 400)
    assert box.calls == []


def test_a_body_that_is_not_json_is_refused(client: FlaskClient) -> None:
    problem(client.post("/api/start", data="job=live", content_type="text/plain"), 415)


def test_a_large_body_is_refused(client: FlaskClient, box: Any) -> None:
    problem(client.post("/api/start", data=b" " * 5000, content_type="application/json"), 413)
    assert box.calls == []


def test_a_busy_instrument_says_so(client: FlaskClient, box: Any) -> None:
    box.refuses = BusyError("The instrument is SCANNING. Stop it first.")
    for path in ("/api/start", "/api/snapshot", "/api/reset"):
        assert problem(client.post(path), 409) == "The instrument is SCANNING. Stop it first."


def test_reset_reaches_the_box_from_its_own_page_only(client: FlaskClient, box: Any) -> None:
    problem(client.post("/api/reset", headers={"Origin": "http://evil.example"}), 403)
    problem(client.post("/api/reset", headers={"Host": "evil.example"}), 421)
    assert client.get("/api/reset").status_code == 405
    assert box.calls == []
    answer = client.post("/api/reset", headers={"Origin": "http://localhost"})
    assert answer.get_json() == {"reset": True, "state": "IDLE"}
    assert box.calls == ["reset"]


def test_the_status_tells_of_the_interlock_and_the_contact_with_their_units(client: FlaskClient) -> None:
    assert client.get("/api/status").get_json()["interlock"] == {
        "state": "armed",
        "why": None,
        "contact_v": 1.002,
        "set_point_v": 1.2,
        "contact_age_s": 0.004,
    }


def test_a_region_the_stage_cannot_reach_is_the_askers_error(client: FlaskClient, box: Any) -> None:
    box.refuses = ConfigError("The region needs x up to 130 um. Nothing was moved.")
    answer = client.post("/api/start", json={"job": "scan", "region_um": [160, 40]})
    assert "Nothing was moved" in problem(answer, 400)


def test_an_instrument_that_cannot_says_why(client: FlaskClient, box: Any) -> None:
    box.refuses = CameraError("No frame came within 5.0 s. Check the cable.")
    for path in ("/api/start", "/api/snapshot", "/api/stop"):
        assert "Check the cable" in problem(client.post(path), 503)


@pytest.fixture
def lens(box: Any) -> FlaskClient:
    """A client of a box whose model has several outputs."""
    engine = box.board.status().engine.model_copy(update={"outputs": ("map", "magnified"), "shown": "map"})
    box.publish(engine=engine)
    return box.app().test_client()


def test_another_output_is_put_on_view_and_the_status_says_so(lens: FlaskClient, box: Any) -> None:
    assert lens.post("/api/show", json={"output": "magnified"}).get_json() == {"shown": "magnified"}
    assert box.calls == ["show magnified"]
    engine = lens.get("/api/status").get_json()["engine"]
    assert (engine["outputs"], engine["shown"]) == (["map", "magnified"], "magnified")


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (ConfigError("gain has no output 'shadows'. Choose one of: map, magnified."), 400),
        (BusyError("The instrument is not open, so there is nothing to choose from."), 409),
    ],
    ids=["no such output", "not open"],
)
def test_what_the_daemon_refuses_to_show_is_said_in_its_words(
    lens: FlaskClient, box: Any, refusal: EdgeError, status: int
) -> None:
    box.refuses = refusal
    assert problem(lens.post("/api/show", json={"output": "shadows"}), status) == str(refusal)
    assert box.board.status().engine.shown == "map"


@pytest.mark.parametrize("body", ["", "{", "{}", '{"output": 3}', '{"output": "map", "for": "me"}'])
def test_a_choice_that_cannot_be_read_is_refused(lens: FlaskClient, box: Any, body: str) -> None:
    assert '{"output": "NAME"}' in problem(lens.post("/api/show", data=body, content_type="application/json"), 400)
    problem(lens.post("/api/show", data=body, content_type="text/plain"), 415)
    assert box.calls == []


def test_the_list_of_outputs_is_on_the_page_only_where_there_is_a_choice(box: Any, client: FlaskClient) -> None:
    hidden = re.compile(r'id="outputs"[^>]* hidden>')
    assert hidden.search(client.get("/").get_data(as_text=True))
    box.publish(engine=box.board.status().engine.model_copy(update={"outputs": ("map", "magnified")}))
    assert not hidden.search(client.get("/").get_data(as_text=True))


def test_stop_is_called_in_the_request_and_answers_with_the_state_after_it(client: FlaskClient, box: Any) -> None:
    assert client.post("/api/stop").get_json() == {"stopped": True, "state": "IDLE"}
    assert box.calls == ["stop"]


@pytest.mark.parametrize(
    ("state", "stopped"),
    [("IDLE", True), ("PAUSED", True), ("FAULT", True), ("LIVE", False), ("SCANNING", False)],
)
def test_stop_claims_only_what_the_state_after_it_shows(
    client: FlaskClient, box: Any, state: str, stopped: bool
) -> None:
    box.after_stop = RunState(state)
    assert client.post("/api/stop").get_json() == {"stopped": stopped, "state": state}


def test_stop_pressed_without_javascript_leads_back_to_the_page(client: FlaskClient, box: Any) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    answer = client.post("/api/stop", headers=browser)
    assert (answer.status_code, answer.location) == (303, "/")
    box.after_stop = RunState.SCANNING
    assert "still SCANNING" in problem(client.post("/api/stop", headers=browser), 503)
    assert box.calls == ["stop", "stop"]
    assert client.post("/api/stop", headers={"Accept": "*/*"}).is_json


def test_a_snapshot_answers_with_its_files(client: FlaskClient) -> None:
    assert client.post("/api/snapshot").get_json() == {"paths": ["shots/1_raw.ome.tif", "shots/1_enhanced.ome.tif"]}


def test_what_changes_something_cannot_be_fetched(client: FlaskClient, box: Any) -> None:
    for path in ("/api/start", "/api/stop", "/api/show", "/api/snapshot"):
        problem(client.get(path), 405)
    assert box.calls == []


def test_healthz_says_that_the_process_is_up_whatever_the_instrument_does(client: FlaskClient, box: Any) -> None:
    box.publish(state=RunState.FAULT)
    assert client.get("/healthz").status_code == 200


def test_readyz_follows_the_age_of_the_newest_frame(client: FlaskClient, box: Any) -> None:
    assert "No frame" in problem(client.get("/readyz"), 503)
    box.show_grey(50, 100)
    assert client.get("/readyz").status_code == 200
    box.show_grey(50, 100, age_s=1.5)
    assert "1.5 s old" in problem(client.get("/readyz"), 503)
    box.publish(camera=box.board.status().camera.model_copy(update={"frame_time_s": 4.0}))
    assert client.get("/readyz").status_code == 200
    box.publish(state=RunState.IDLE)
    assert "IDLE" in problem(client.get("/readyz"), 503)


@pytest.mark.parametrize("path", ROUTES)
def test_every_answer_carries_the_security_headers(client: FlaskClient, path: str) -> None:
    with client.get(path) as response:
        headers = response.headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"  # with no-referrer a form's POST has the Origin "null"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == ("no-cache" if path.startswith("/static") else "no-store")


@pytest.mark.parametrize("path", ROUTES)
def test_a_foreign_host_is_misdirected_on_every_route(client: FlaskClient, path: str) -> None:
    assert "evil.example" in problem(client.get(path, headers={"Host": "evil.example"}), 421)


def test_a_foreign_origin_is_refused_and_nothing_happens(client: FlaskClient, box: Any) -> None:
    for path in ("/api/start", "/api/stop", "/api/show", "/api/snapshot"):
        problem(client.post(path, headers={"Origin": "http://evil.example"}), 403)
    assert box.calls == []


def test_an_allowed_name_is_answered(box: Any) -> None:
    client = box.app(allowed_hosts=("Bench3.lab",)).test_client()
    assert client.get("/healthz", headers={"Host": "bench3.lab:8080"}).status_code == 200


def test_a_missing_page_is_a_problem_document(client: FlaskClient) -> None:
    problem(client.get("/no-such-page"), 404)


def test_a_fault_in_the_program_is_a_problem_document_without_its_innards(
    box: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> list[str]:
        raise RuntimeError("secret innards")

    app = box.app(log_tail=broken)
    app.testing = False
    assert "innards" not in problem(app.test_client().get("/"), 500)
    assert "secret innards" in caplog.text


def test_one_viewer_too_many_is_told_so_and_a_place_becomes_free_again(box: Any) -> None:
    client = box.app(max_viewers=2).test_client()
    open_streams = [client.get("/video") for _ in range(2)]
    assert "at most 2" in problem(client.get("/video"), 503)
    open_streams[0].close()  # its first byte was never asked for
    again = client.get("/video")
    assert again.status_code == 200
    for response in (open_streams[1], again):
        response.close()


def test_a_listener_too_many_gets_the_status_of_the_moment_and_no_place(box: Any) -> None:
    client = box.app(max_viewers=1).test_client()
    with client.get("/api/events"):
        for _ in range(2):
            answer = client.get("/api/events").get_data(as_text=True)
            assert answer.count("event: status") == 1
