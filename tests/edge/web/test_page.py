"""The page in a real browser: what a person at the instrument sees and presses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from edge.errors import BusyError, CameraError, ConfigError
from edge.status import BuildStatus, CandidateStatus, InterlockStatus, Problem, RunState, ScanStatus
from edge.web import PageServer

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

DESKTOP = (1440, 900)
PHONE = (390, 844)
PROBLEM = Problem(
    key="job",
    severity="fault",
    title="The live view ended",
    what_to_do="No frame came within 5.0 s. Check the camera and its cable.",
    since_utc="2026-01-01T14:26:00+00:00",
)
OVERLOADED = Problem(
    key="interlock",
    severity="fault",
    title="The interlock stopped the stage",
    what_to_do="Contact overload: 2.604 V, 2 samples in a row. The stage was told to stop and to retract, and nothing "
    "moves any more. Look at sphere and sample, then reset.",
    since_utc="2026-01-01T14:31:00+00:00",
)
LATCHED: dict[str, Any] = {
    "state": RunState.FAULT,
    "note": "see Health",
    "problems": (OVERLOADED,),
    "interlock": InterlockStatus(
        state="fault", why="contact overload: 2.604 V", contact_v=1.004, set_point_v=1.2, contact_age_s=0.003
    ),
}
SCAN = ScanStatus(name="scan1", tiles=144, done=57, missing=1, eta_s=361.0, folder="/data/scan1", complete=None)
ENDED = SCAN.model_copy(update={"complete": False, "eta_s": None})

# Mean grey and a checksum of either side of the split, and the size, from the canvas itself.
READ_HALVES = """() => {
  const view = document.getElementById("view"), {width, height} = view;
  const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
  copy.drawImage(view, 0, 0);
  const sides = [0, width / 2].map((x) => {
    const {data} = copy.getImageData(x, 0, width / 2, height);
    const grey = data.filter((_, i) => i % 4 === 0);
    return {mean: grey.reduce((a, v) => a + v, 0) / grey.length, sum: grey.reduce((a, v) => (a * 31 + v) % 1e9, 7)};
  });
  return {means: sides.map(({mean}) => mean), sums: sides.map(({sum}) => sum), size: [width, height]};
}"""
SET_HIDDEN = """(hidden) => {
  Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}"""
NETWORK = "Failed to load resource"  # the browser reports each refusal and lost link that a test provokes
LIVE = "!document.getElementById('frame').dataset.veil"
OpenPage = Callable[..., "Page"]


@pytest.fixture
def open_page(browser: Browser, served: Callable[..., PageServer]) -> Iterator[OpenPage]:
    """Open the box's page; whatever happens on it, it must be silent and talk to the box alone."""
    contexts, complaints, strangers = [], [], []

    def begin(
        size: tuple[int, int] = DESKTOP,
        *,
        theme: str = "dark",
        server: PageServer | None = None,
        beside: Page | None = None,
        **options: Any,
    ) -> Page:
        """A page in a browser context of its own, made with ``options``, or in that of the page ``beside``."""
        origin = f"http://127.0.0.1:{(server or served()).port}"
        if beside is None:
            viewport = {"width": size[0], "height": size[1]}
            contexts.append(
                browser.new_context(viewport=viewport, color_scheme=theme, reduced_motion="reduce", **options)
            )
        page = (beside.context if beside is not None else contexts[-1]).new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: NETWORK in message.text or complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith(origin) or strangers.append(request.url))
        page.goto(origin)
        return page

    yield begin
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in strangers if not url.startswith("blob:")] == []


def wait_until(page: Page, expression: str) -> None:
    """Wait for an expression to hold. Playwright's own wait would need eval, which the page's CSP forbids."""
    for _ in range(1200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(25)
    pytest.fail(f"still false after 30 s: {expression}")


def wait_calls(page: Page, box: Any, calls: list[str]) -> None:
    """Wait for the box to have been called, while the browser goes on."""
    for _ in range(1500):  # 30 s, for a browser on a loaded machine
        if len(box.calls) >= len(calls):
            break
        page.wait_for_timeout(20)
    assert box.calls == calls


def test_both_halves_show_changing_pixels_of_their_own(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    page = open_page()
    wait_until(page, LIVE)
    first = page.evaluate(READ_HALVES)
    raw, enhanced = first["means"]
    assert first["size"] == [128, 128]
    assert abs(raw - 54.5) < 3  # the fake camera's mean, and what its engine makes of it
    assert abs(enhanced - 174.5) < 3
    index = page.get_attribute("#frame", "data-index")
    wait_until(page, f"document.getElementById('frame').dataset.index !== '{index}'")
    later = page.evaluate(READ_HALVES)
    assert all(a != b for a, b in zip(first["sums"], later["sums"], strict=True))


def test_latency_is_from_exposure_to_screen_by_the_boxs_clock(box: Any, open_page: OpenPage) -> None:
    page = open_page()
    wait_until(page, "performance.getEntriesByType('resource').filter(e => e.name.endsWith('/api/status')).length >= 5")
    box.publish()
    for _ in range(4):
        box.show_grey(40, 160, age_s=0.6)  # the only delay known beforehand
        page.wait_for_timeout(60)
    wait_until(page, "document.getElementById('s-lat').textContent !== '–'")
    assert 600 <= int(page.inner_text("#s-lat")) < 900


def test_modes_are_raw_enhanced_and_split_by_click_and_by_key(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    page = open_page()
    wait_until(page, LIVE)
    for key, mode, means in (("1", "raw", (54.5, 54.5)), ("2", "enh", (174.5, 174.5)), ("3", "split", (54.5, 174.5))):
        page.keyboard.press(key)
        wait_until(page, f"document.getElementById('frame').dataset.mode === '{mode}'")
        index = page.get_attribute("#frame", "data-index")
        wait_until(page, f"document.getElementById('frame').dataset.index !== '{index}'")
        assert all(abs(a - b) < 3 for a, b in zip(page.evaluate(READ_HALVES)["means"], means, strict=True))
        assert page.is_visible(".tag-raw") == (mode != "enh")
        assert page.is_visible(".tag-enh") == (mode != "raw")
    assert page.inner_text(".tag-enh").split("\n") == ["ENHANCED", "enhance-rt", "not raw data"]
    page.focus("#frame")
    page.keyboard.down("Space")
    assert page.get_attribute("#frame", "data-mode") == "raw"
    page.keyboard.up("Space")
    assert page.get_attribute("#frame", "data-mode") == "split"


LENS = {"outputs": ("sample-map", "magnified-on-black", "colour-labelled"), "shown": "sample-map"}


def as_lens(box: Any) -> None:
    """Give the box a model of several outputs."""
    box.publish(engine=box.board.status().engine.model_copy(update=LENS))


def test_an_engine_that_stands_in_for_another_says_so_and_what_is_being_made(
    box: Any, rhythm: Any, open_page: OpenPage
) -> None:
    engine = box.board.status().engine.model_copy(update={"fallback": True, "model_precision": "int8"})
    making = Problem(
        key="engine",
        severity="note",
        title="enhance-rt runs on openvino in bf16 while an engine is made",
        what_to_do="enhance-rt for TensorRT, fp16: Building engine, 40 of 100.",
        since_utc="2026-11-21T17:00:00+00:00",
    )
    box.publish(engine=engine, problems=(making,))
    page = open_page()
    words = "document.getElementById('vitals').textContent.includes('openvino int8 in bf16, for want of TensorRT')"
    wait_until(page, words)
    wait_until(page, "document.body.textContent.includes('Building engine, 40 of 100')")
    overlaps = """[...document.querySelectorAll("#vitals div")].filter((row) => row.scrollWidth > row.clientWidth)"""
    assert page.evaluate(f"{overlaps}.map((row) => row.textContent)") == []


CANDIDATES = (
    CandidateStatus(precision="fp16", median_s=0.00412, p99_s=0.0046, psnr_db=61.24, problem=None),
    CandidateStatus(precision="int8_fp16", median_s=0.00455, p99_s=0.0049, psnr_db=48.1, problem=None),
    CandidateStatus(
        precision="int8", median_s=0.002, p99_s=0.0021, psnr_db=31.2, problem="31.2 dB from FP32, expected at least 35"
    ),
    CandidateStatus(precision="fp32", median_s=None, p99_s=None, psnr_db=None, problem="not built (no memory)"),
)
NOTE = "fp16 runs: 4.12 ms a frame, 61.24 dB from FP32; int8: 31.2 dB from FP32, expected at least 35"
ON_TENSORRT = {"backend": "tensorrt", "precision": "fp16", "model_precision": "fp16", "note": NOTE}
ROWS = (
    "[...document.getElementById('plans').rows].map((row) => [...row.cells].map((cell) => cell.textContent).join(' '))"
)


def with_engine(box: Any, **changes: Any) -> dict[str, Any]:
    """A change of the status: the engine's."""
    return {"engine": box.board.status().engine.model_copy(update=changes)}


@pytest.mark.parametrize(("size", "theme"), [(DESKTOP, "dark"), (DESKTOP, "light"), (PHONE, "dark")])
def test_each_precision_has_its_figures_and_why_it_runs_or_does_not(
    box: Any, rhythm: Any, open_page: OpenPage, size: tuple[int, int], theme: str
) -> None:
    page = open_page(size, theme=theme)
    wait_until(page, LIVE)
    if size == PHONE:
        page.click(".dock [data-tab=health]")
    assert page.is_hidden("#plans")
    box.publish(**with_engine(box, **ON_TENSORRT, candidates=CANDIDATES))
    page.wait_for_selector("#plans:not([hidden])")
    assert page.evaluate(ROWS) == [
        "fp16 4.1 ms 61.2 dB runs",
        "int8_fp16 4.5 ms 48.1 dB slower",
        "int8 2.0 ms 31.2 dB refused",
        "31.2 dB from FP32, expected at least 35",
        "fp32 not measured not used",
        "not built (no memory)",
    ]
    shapes = page.locator("#plans use").evaluate_all("(uses) => uses.map((use) => use.getAttribute('href'))")
    assert shapes == ["#i-ok", "#i-idle", "#i-warn", "#i-warn"]
    assert page.get_by_title(NOTE).inner_text() == "tensorrt fp16"
    texts = page.evaluate("[...document.querySelectorAll('#plans *')].map((node) => node.textContent.trim())")
    assert [text for text, _ in page.evaluate(POOR_TEXTS) if text in texts] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_what_stands_in_for_tensorrt_has_its_reason_and_what_is_made_its_progress(
    box: Any, rhythm: Any, open_page: OpenPage
) -> None:
    page = open_page()
    reason = "OpenVINO runs in place of TensorRT: No TensorRT plan was chosen yet for enhance-rt."
    building = BuildStatus(precision="int8_fp16", phase="Building engine", fraction=0.405)
    box.publish(**with_engine(box, fallback=True, note=reason, building=building))
    wait_until(page, f"{ROWS}.length === 2")
    assert page.evaluate(ROWS) == [reason, "int8_fp16 Building engine 40 %"]
    box.publish(**with_engine(box, building=building.model_copy(update={"phase": "Measuring", "fraction": None})))
    wait_until(page, f"{ROWS}[1] === 'int8_fp16 Measuring'")
    box.publish(**with_engine(box, **ON_TENSORRT, fallback=False, building=None, candidates=CANDIDATES[:1]))
    wait_until(page, f"{ROWS}[0] === 'fp16 4.1 ms 61.2 dB runs'")
    box.publish(**with_engine(box, backend="openvino", note=None, candidates=()))
    page.wait_for_selector("#plans", state="hidden")


def test_an_output_is_chosen_by_keys_and_the_label_names_what_is_in_the_picture(
    box: Any, rhythm: Any, open_page: OpenPage
) -> None:
    as_lens(box)
    page = open_page()
    wait_until(page, LIVE)
    choice = page.get_by_role("combobox", name="Output")
    wait_until(page, "document.getElementById('tag-output').textContent === 'sample-map'")
    choice.focus()
    page.keyboard.press("ArrowDown")
    wait_calls(page, box, ["show magnified-on-black"])
    wait_until(page, "document.getElementById('tag-output').textContent === 'magnified-on-black'")
    assert page.inner_text(".tag-enh").split("\n") == ["ENHANCED", "enhance-rt", "magnified-on-black", "not raw data"]
    assert choice.input_value() == "magnified-on-black"


def test_a_choice_that_is_refused_is_said_and_the_list_goes_back(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    as_lens(box)
    page = open_page()
    wait_until(page, LIVE)
    box.refuses = BusyError("The instrument is not open.")
    page.select_option("#output", "colour-labelled")
    page.wait_for_selector("#plate:not([hidden])")
    assert page.inner_text("#plate") == "The instrument is not open."
    wait_until(page, "document.getElementById('output').value === 'sample-map'")


def test_where_there_is_nothing_to_choose_there_is_no_list(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    page = open_page()
    wait_until(page, LIVE)
    assert page.is_hidden("#outputs")
    assert page.inner_text(".tag-enh").split("\n") == ["ENHANCED", "enhance-rt", "not raw data"]


@pytest.mark.parametrize("size", [DESKTOP, (1024, 768), PHONE, (320, 640)])
def test_the_list_of_outputs_fits_and_its_label_stays_in_the_right_half(
    box: Any, rhythm: Any, open_page: OpenPage, size: tuple[int, int]
) -> None:
    as_lens(box)
    page = open_page(size)
    wait_until(page, LIVE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    place, image, label = (page.locator(part).bounding_box() for part in ("#output", "#view", ".tag-enh"))
    assert 0 <= place["x"] <= place["x"] + place["width"] <= size[0]
    assert place["height"] >= 32
    assert label["x"] >= image["x"] + image["width"] / 2
    assert label["x"] + label["width"] <= image["x"] + image["width"]


def test_the_split_handle_is_a_slider_for_keys(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    page = open_page()
    wait_until(page, LIVE)
    handle = page.get_by_role("slider", name="Split between raw and enhanced")
    for key, percent in (("ArrowRight", 52), ("PageDown", 42), ("End", 100), ("Home", 0)):
        handle.press(key)
        assert handle.get_attribute("aria-valuenow") == str(percent)
    assert not page.is_visible(".tag-raw")
    assert page.is_visible(".tag-enh")


def test_stop_stops_once_by_click(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    page = open_page()
    wait_until(page, LIVE)
    page.click("#stop")
    wait_calls(page, box, ["stop"])
    wait_until(page, "document.getElementById('state-word').textContent === 'IDLE'")
    assert page.inner_text("#veil-big") == "CAMERA READY"


def test_escape_stops_and_closes_an_open_menu_or_dialog_first(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    page = open_page()
    wait_until(page, LIVE)
    page.click("#menu summary")
    page.keyboard.press("Escape")
    assert not page.is_visible("#keys-btn")
    page.keyboard.press("?")
    assert page.is_visible("#keys")
    page.keyboard.press("Escape")
    assert not page.is_visible("#keys")
    assert box.calls == []
    page.keyboard.press("Escape")
    wait_calls(page, box, ["stop"])


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_stop_can_be_pressed_while_menu_and_dialog_are_open(
    box: Any, open_page: OpenPage, size: tuple[int, int]
) -> None:
    page = open_page(size)
    page.keyboard.press("?")
    page.click("#menu summary")
    page.click("#stop")  # playwright refuses to click what is covered
    wait_calls(page, box, ["stop"])


def test_a_stop_that_is_not_confirmed_says_so(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    page = open_page()
    wait_until(page, LIVE)
    box.refuses = CameraError("The stage does not answer.")
    page.click("#stop")
    page.wait_for_selector("#plate:not([hidden])")
    assert page.inner_text("#plate") == "STOP was not confirmed. The stage does not answer."
    assert "STOP was not confirmed" in page.inner_text("#probs")
    assert page.inner_text("#bell") == "1\nproblem"


def test_a_stop_after_which_the_job_still_runs_is_not_confirmed(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    page = open_page()
    wait_until(page, LIVE)
    box.after_stop = RunState.SCANNING
    page.click("#stop")
    page.wait_for_selector("#plate:not([hidden])")
    assert page.inner_text("#plate") == "STOP was not confirmed. The box is still SCANNING. Press STOP again."


def test_a_stop_without_an_answer_is_not_confirmed_and_says_what_to_do(
    box: Any, rhythm: Any, open_page: OpenPage
) -> None:
    page = open_page()
    wait_until(page, LIVE)
    page.context.route("**/api/stop", lambda route: None)  # neither answered nor refused
    page.click("#stop")
    page.wait_for_selector("#plate:not([hidden])")
    assert "not confirmed. The box did not answer within 3 s. Close other tabs of this page" in page.inner_text(
        "#plate"
    )
    assert "STOP was not confirmed" in page.inner_text("#probs")
    wait_until(page, LIVE)  # the streams that made way are open again


def test_stop_gets_through_from_the_last_of_four_pages(
    box: Any, rhythm: Any, served: Callable[..., PageServer], open_page: OpenPage
) -> None:
    server = served()
    pages = [open_page(server=server)]
    for _ in range(3):
        wait_until(pages[-1], LIVE)
        pages[-1].evaluate(SET_HIDDEN, True)  # as a tab behind the next one
        pages.append(open_page(server=server, beside=pages[0]))
    wait_until(pages[-1], LIVE)
    for page in pages[:3]:
        page.evaluate(SET_HIDDEN, False)  # four windows: eight streams for the browser's six connections to a host
    wait_until(pages[0], LIVE)
    pages[-1].click("#stop")
    wait_calls(pages[-1], box, ["stop"])
    wait_until(pages[-1], "document.getElementById('state-word').textContent === 'IDLE'")


def test_stop_gets_through_from_a_page_that_got_no_connection_at_all(
    box: Any, rhythm: Any, served: Callable[..., PageServer], open_page: OpenPage
) -> None:
    server = served()
    starved = open_page(server=server)
    wait_until(starved, LIVE)
    starved.evaluate(SET_HIDDEN, True)
    for _ in range(3):
        wait_until(open_page(server=server, beside=starved), LIVE)  # these take all six
    starved.evaluate(SET_HIDDEN, False)
    wait_until(starved, "document.body.hasAttribute('data-lost')")
    starved.click("#stop")
    wait_calls(starved, box, ["stop"])


def test_stop_works_without_javascript_and_shows_the_page_again(box: Any, open_page: OpenPage) -> None:
    page = open_page(java_script_enabled=False)
    with page.expect_navigation():
        page.click("#stop")
    assert box.calls == ["stop"]
    assert page.text_content("#state-word") == "IDLE"
    assert page.is_visible("#stop")


def test_start_and_snapshot_reach_the_box_and_answer_in_words(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    page = open_page()
    wait_until(page, LIVE)
    page.keyboard.press("c")
    page.wait_for_selector("#plate:not([hidden])")
    assert page.inner_text("#plate") == "Saved shots/1_raw.ome.tif and shots/1_enhanced.ome.tif"
    box.publish(state=RunState.IDLE, note="ready")
    page.get_by_role("button", name="Start live").first.wait_for()
    page.click("#veil-btn")
    wait_calls(page, box, ["snapshot", "start"])


def test_the_button_over_the_image_names_its_act_and_stop_is_the_red_ones_word(
    box: Any, rhythm: Any, open_page: OpenPage
) -> None:
    page = open_page()
    for state, act in ((RunState.LIVE, "End live"), (RunState.SCANNING, "End scan"), (RunState.IDLE, "Start live")):
        box.publish(state=state)
        wait_until(page, f"document.getElementById('run').ariaLabel === '{act}'")
        assert page.inner_text("#run-text") == act
    assert page.get_by_role("button", name="stop").count() == 1
    box.publish(state=RunState.LIVE)
    wait_until(page, "document.getElementById('run').ariaLabel === 'End live'")
    page.wait_for_timeout(600)  # a click within half a second would be a second one on what it was
    page.click("#run")
    wait_calls(page, box, ["stop"])


def test_what_is_simulated_is_named_as_long_as_it_is(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    page = open_page()
    assert page.inner_text("#sim") == "SIMULATED camera, stage"
    box.publish(simulated=())
    page.wait_for_selector("#sim", state="hidden")


def test_when_pictures_cease_the_last_one_is_veiled_with_its_age(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    page = open_page()
    wait_until(page, LIVE)
    rhythm.frames.clear()
    wait_until(page, "document.getElementById('frame').hasAttribute('data-stale')")
    age = float(re.fullmatch(r"LAST FRAME (\d+\.\d) s AGO", page.inner_text("#veil-big"))[1])
    assert 1.0 <= age < 2.0
    assert [page.inner_text(cell) for cell in ("#s-cap", "#s-dis", "#s-lat")] == ["0.0", "0.0", "–"]
    assert page.is_visible(".tag-raw")
    assert page.is_visible(".tag-enh")
    assert "grayscale" in page.evaluate("getComputedStyle(document.getElementById('view')).filter")
    wait_until(page, "document.getElementById('state-note').textContent === 'no new frame'")
    rhythm.frames.set()
    wait_until(page, LIVE)


def test_an_old_picture_is_never_shown_as_live(box: Any, open_page: OpenPage) -> None:
    box.publish()
    box.show_grey(40, 160, age_s=30.0)
    page = open_page()
    wait_until(page, "document.getElementById('veil-big').textContent.startsWith('LAST FRAME 3')")


def test_a_lost_link_makes_everything_stale(
    box: Any, rhythm: Any, served: Callable[..., PageServer], open_page: OpenPage
) -> None:
    server = served()
    page = open_page(server=server)
    wait_until(page, LIVE)
    server.close()
    wait_until(page, "document.body.hasAttribute('data-lost')")
    assert page.inner_text("#state-word") == "–"
    assert page.inner_text("#veil-why") == "The page has lost its link to the box."
    assert page.inner_text("#s-cap") == "–"
    assert page.title().startswith("NO LINK")
    page.click("#stop")
    page.wait_for_selector("#plate:not([hidden])")
    assert "STOP was not confirmed. The box does not answer." in page.inner_text("#plate")


def test_a_daemon_that_no_longer_beats_makes_everything_stale(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    page = open_page()
    wait_until(page, LIVE)
    rhythm.close()
    box.publish(box_monotonic_ns=box.board.clock_ns() - 6_000_000_000)
    wait_until(page, "document.body.hasAttribute('data-lost')")
    assert page.inner_text("#veil-why") == "The box no longer updates its status."


def test_the_start_error_takes_the_place_of_the_image_until_it_is_mended(
    box: Any, rhythm: Any, open_page: OpenPage
) -> None:
    box.publish(state=RunState.FAULT, note="not started", start_error="No answer on /dev/pzt within 5 s.")
    page = open_page()
    assert page.inner_text("#h-down") == "The instrument did not start"
    assert page.inner_text("#down-error") == "No answer on /dev/pzt within 5 s."
    assert page.is_visible("#stop")
    assert not page.is_visible("#frame")
    box.refuses = CameraError("still dead")
    page.click("#again")
    wait_until(page, "document.getElementById('again-note').textContent.startsWith('Tried at')")
    box.refuses = None
    with page.expect_response("**/api/start"):
        page.click("#again")
    assert box.calls == ["start", "start"]
    wait_until(page, "!document.getElementById('view-live').hidden")
    wait_until(page, LIVE)


STATES: dict[str, dict[str, Any]] = {
    "live": {},
    "idle": {"state": RunState.IDLE, "note": "ready"},
    "scanning": {"state": RunState.SCANNING, "note": "tile 57 of 144", "scan": SCAN},
    "paused": {"state": RunState.PAUSED, "note": "disk nearly full", "problems": (PROBLEM,) * 3},
    "fault": {"state": RunState.FAULT, "note": "see Health", "problems": (PROBLEM,)},
    "latched": {**LATCHED, "note": "latched"},
    "ended": {"scan": ENDED, "simulated": ()},
    "not started": {"state": RunState.FAULT, "note": "not started", "start_error": "No answer.", "stage": None},
}


@pytest.mark.parametrize("size", [DESKTOP, (1024, 768), PHONE, (320, 640)])
def test_nothing_moves_between_states(box: Any, rhythm: Any, open_page: OpenPage, size: tuple[int, int]) -> None:
    page = open_page(size)
    wait_until(page, LIVE)
    engines = {"note": "40.1 frames/s", **with_engine(box, **ON_TENSORRT, candidates=CANDIDATES)}
    states = STATES | {"engines": engines}
    healthy = {key: getattr(box.board.status(), key) for changes in states.values() for key in changes}
    places: dict[str, set[str]] = {}
    for name, changes in states.items():
        box.publish(**{**healthy, **changes})
        word = box.board.status().state.value
        note = box.board.status().note
        wait_until(
            page,
            f"document.getElementById('state-word').textContent === '{word}' "
            f"&& document.getElementById('state-note').textContent === '{note}'",
        )
        for part in ("#stop", "#bell", "#state", "#menu", "#frame", "#stage", "#scan", "#run", "#snap", "#hist"):
            if (place := page.locator(part).bounding_box()) is not None:
                places.setdefault(part, set()).add(str(place))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
    assert {part: len(seen) for part, seen in places.items()} == dict.fromkeys(places, 1)


def test_a_phone_has_everything_within_reach(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    page = open_page(PHONE)
    wait_until(page, LIVE)
    for tab, part in (("stage", "#axes"), ("scan", "#scan-form"), ("health", "#vitals"), ("view", "#hist")):
        page.click(f".dock [data-tab={tab}]")
        assert page.is_visible(part)
        assert page.is_visible("#stop")
        assert page.is_visible("#view")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    stop = page.locator("#stop").bounding_box()
    assert stop["width"] >= 44
    assert stop["height"] >= 44


def test_on_a_phone_the_button_for_a_new_scan_covers_nothing_and_moves_nothing(
    box: Any, rhythm: Any, open_page: OpenPage
) -> None:
    page = open_page(PHONE, has_touch=True, is_mobile=True)
    wait_until(page, LIVE)
    page.tap(".dock [data-tab=scan]")
    bodies, titles = [], set()
    for scan, body, shown in (
        (None, "#scan-form", "!document.getElementById('scan-form').hidden"),
        (SCAN, "#scan-run", "document.getElementById('k-tile').textContent === '57'"),
        (ENDED, "#scan-run", "!document.getElementById('scan-new').hidden"),
    ):
        box.publish(scan=scan)
        wait_until(page, shown)
        bodies.append(page.locator(body).bounding_box()["y"])
        titles.add(str(page.locator("#h-scan").bounding_box()))
    assert len(set(bodies)) == len(titles) == 1
    button = page.locator("#scan-new").bounding_box()
    row = page.locator("#scan-run .wide").bounding_box()
    assert button["height"] >= 44
    assert button["y"] + button["height"] <= row["y"]
    assert button["y"] >= page.locator("#scan").bounding_box()["y"]


def test_stage_scan_and_health_read_as_the_status_says(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    box.publish(state=RunState.SCANNING, scan=SCAN, problems=(PROBLEM,))
    page = open_page()
    wait_until(page, "document.getElementById('k-tile').textContent === '57'")
    assert page.inner_text(".axis").split("\n") == ["x", "set 48.120", "48.121", "µm"]
    assert page.inner_text("#lamp").split("\n") == ["On target", "1 nm"]
    assert page.inner_text("#k-folder") == "/data/scan1"
    assert "in 7 min" in page.inner_text("#k-eta")
    assert "FAULT" in page.inner_text("#probs li")
    assert page.inner_text("#scale-text") == "1 µm"
    box.publish(pixel_size_nm=None)
    wait_until(page, "document.getElementById('scale-text').textContent === 'pixel size unknown'")
    assert page.is_disabled("#o-field")


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_a_latched_fault_is_reset_by_the_button_in_its_row_and_by_nothing_else(
    box: Any, rhythm: Any, open_page: OpenPage, size: tuple[int, int]
) -> None:
    box.publish(problems=(PROBLEM,))
    page = open_page(size)
    page.click("#bell")
    wait_until(page, "document.querySelectorAll('#probs li').length === 1")
    assert page.locator("#probs button").count() == 0
    box.publish(**LATCHED)
    page.wait_for_selector("text=Reset after looking at the sphere")
    assert not page.is_visible("#veil-btn")  # a start would be refused
    page.click("text=Reset after looking at the sphere")
    wait_calls(page, box, ["reset"])
    wait_until(page, "document.getElementById('plate').textContent.startsWith('The fault is reset')")
    wait_until(page, "document.querySelector('#probs li').textContent === 'No problems'")


def test_a_reset_that_is_refused_says_why(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    box.publish(**LATCHED)
    page = open_page()
    box.refuses = BusyError("Not reset: the contact is still overloaded: lift the sphere, then reset.")
    page.click("text=Reset after looking at the sphere")
    wait_until(page, "document.getElementById('plate').textContent.includes('still overloaded')")
    assert page.is_visible("text=Reset after looking at the sphere")


def test_the_row_of_the_interlock_tells_what_may_move_and_the_contact(
    box: Any, rhythm: Any, open_page: OpenPage
) -> None:
    page = open_page()
    rows = {
        "armed · contact 1.002 V, set point 1.200 V": {},
        "armed · contact – V, set point 1.200 V": {"contact_age_s": 3.0},
        "disarmed · no contact sensor": {"state": "disarmed", "contact_v": None, "set_point_v": None},
        "fault · contact 1.002 V, set point 1.200 V": {"state": "fault", "why": "overload"},
    }
    interlock = box.board.status().interlock
    for words, changes in rows.items():
        box.publish(interlock=interlock.model_copy(update=changes))
        wait_until(page, f"document.getElementById('guard-text').textContent === '{words}'")
    assert page.get_attribute("#guard", "title") == "overload"
    box.publish(interlock=None)
    wait_until(page, "document.getElementById('guard-text').textContent === '–'")


def test_the_form_starts_a_scan_and_gives_way_to_its_progress(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    page = open_page()
    wait_until(page, LIVE)
    page.fill("#scan-width", "30")
    page.fill("#scan-overlap", "20")
    with page.expect_response("**/api/start"):
        page.click("#scan-start")
    (request,) = box.requests
    assert (request.job, request.region_um, request.overlap) == ("scan", (30, 40), 0.2)
    box.publish(state=RunState.SCANNING, scan=SCAN)
    wait_until(page, "document.getElementById('scan-form').hidden")
    assert page.is_hidden("#scan-new")
    box.publish(state=RunState.IDLE, scan=SCAN.model_copy(update={"complete": True, "done": 144}))
    wait_until(page, "!document.getElementById('scan-new').hidden")
    assert "COMPLETE" in page.inner_text("#seal")
    page.click("#scan-new")
    assert page.is_visible("#scan-start")


REFUSAL = (
    "The region 900 x 20 µm (x, y) around x 50, y 50 µm needs the stage at x -393.06, y 45.00 µm, outside its travel "
    "of x 0 to 100, y 0 to 100 µm. Choose a smaller region. Nothing was moved."
)


@pytest.mark.parametrize("size", [DESKTOP, (1024, 768)])
def test_a_scan_that_is_refused_says_why_at_its_form_until_another_begins(
    box: Any, rhythm: Any, open_page: OpenPage, size: tuple[int, int]
) -> None:
    page = open_page(size)
    wait_until(page, LIVE)
    places = {part: page.locator(part).bounding_box() for part in ("#scan-start", "#problems")}
    box.refuses = ConfigError(REFUSAL)
    page.click("#scan-start")
    wait_until(page, "document.getElementById('scan-why').hasAttribute('data-refused')")
    assert page.inner_text("#scan-why") == REFUSAL
    assert page.is_hidden("#plate")
    assert {part: page.locator(part).bounding_box() for part in places} == places
    box.refuses = None
    page.click("#scan-start")
    wait_until(page, "!document.getElementById('scan-why').hasAttribute('data-refused')")


def test_what_was_refused_leaves_the_image_once_something_succeeds(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    page = open_page()
    box.publish(state=RunState.IDLE, note="ready")
    page.get_by_role("button", name="Start live").first.wait_for()
    box.refuses = BusyError("The instrument is being started. Wait a moment.")
    page.click("#veil-btn")
    page.wait_for_selector("#plate:not([hidden])")
    box.refuses = None
    page.click("#veil-btn")
    page.wait_for_selector("#plate", state="hidden", timeout=4000)  # by itself it goes after 8 s


def test_without_a_stage_the_form_says_why_it_cannot_start(box: Any, rhythm: Any, open_page: OpenPage) -> None:
    box.publish(stage=None)
    page = open_page()
    wait_until(page, "document.getElementById('scan-start').disabled")
    assert page.inner_text("#scan-why") == "A replay has no stage."


def test_a_hidden_tab_streams_nothing_and_comes_back_with_the_newest(
    box: Any, rhythm: Any, served: Callable[..., PageServer], open_page: OpenPage
) -> None:
    server = served(max_viewers=1)
    page = open_page(server=server)
    wait_until(page, LIVE)
    page.evaluate(SET_HIDDEN, True)
    wait_until(page, "document.getElementById('frame').hasAttribute('data-stale')")
    wait_until(page, "document.body.hasAttribute('data-lost')")
    assert page.inner_text("#veil-why") == "This tab was in the background."
    assert page.title().startswith("– ·")
    wait_until(open_page(server=server), LIVE)  # both of the only viewer's places were given back
    page.context.browser.contexts[-1].close()
    box.publish(note="meanwhile")
    page.evaluate(SET_HIDDEN, False)
    wait_until(page, LIVE)
    wait_until(page, "document.getElementById('state-note').textContent === 'meanwhile'")


def test_a_page_too_many_shows_the_status_and_says_why_it_has_no_picture(
    box: Any, rhythm: Any, served: Callable[..., PageServer], open_page: OpenPage
) -> None:
    server = served(max_viewers=1)
    first = open_page(server=server)
    wait_until(first, LIVE)
    page = open_page(server=server)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    wait_until(page, "document.getElementById('veil-why').textContent.includes('pictures to at most 1 at once')")
    assert page.is_hidden("#veil-btn")  # a restart would help nobody
    while sum(url.endswith("/api/events") for url in asked) < 8:  # in 4 s: silent for 3 s, the link would be lost
        page.wait_for_timeout(100)
    box.publish(state=RunState.SCANNING, note="tile 57 of 144", scan=SCAN)
    wait_until(page, "document.getElementById('state-word').textContent === 'SCANNING'")
    assert page.title().startswith("SCANNING")
    assert not page.evaluate("document.body.hasAttribute('data-lost')")
    assert page.inner_text("#probs") == "No problems"
    first.close()
    wait_until(page, LIVE)


# Texts on the page's own grounds (not on the image) with a contrast under 4.5 or smaller than 12 px. WCAG 2.1, 1.4.3.
POOR_TEXTS = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = (node) => {
    const colour = rgb(getComputedStyle(node).backgroundColor);
    return colour[3] === 0 ? ground(node.parentElement) : colour;
  };
  const poor = [];
  for (const node of document.querySelectorAll(".bar *, .tools *, .histo *, .rail *, #view-down *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility({visibilityProperty: true})) continue;
    const [a, b] = [rgb(getComputedStyle(node).color), ground(node)].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5 || parseFloat(getComputedStyle(node).fontSize) < 12) poor.push([node.textContent.trim(), ratio]);
  }
  return poor;
}"""


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("state", ["live", "scanning", "fault", "not started"])
def test_text_is_readable_in_either_theme(box: Any, rhythm: Any, open_page: OpenPage, theme: str, state: str) -> None:
    box.publish(**STATES[state])
    page = open_page(theme=theme)
    wait_until(page, "document.getElementById('vitals').childElementCount > 0")
    assert page.evaluate(POOR_TEXTS) == []
