"""`superlens run` as a user meets it: one command, a browser, enhanced video that moves, STOP, and a clean end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tifffile

from tests import waiting
from tests.bundles import make_lens_bundle

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

# Mean grey and a checksum of the raw (left) and the enhanced (right) half of the canvas.
READ_HALVES = """() => {
  const view = document.getElementById("view"), {width, height} = view;
  const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
  copy.drawImage(view, 0, 0);
  return [0, width / 2].map((x) => {
    const {data} = copy.getImageData(x, 0, width / 2, height);
    let sum = 7, level = 0, squares = 0;
    for (let i = 0; i < data.length; i += 4) {
      sum = (sum * 31 + data[i]) % 1e9; level += data[i]; squares += data[i] * data[i];
    }
    const n = data.length / 4;
    return {sum, mean: level / n, std: Math.sqrt(squares / n - (level / n) ** 2)};
  });
}"""


# Mean red, green and blue of the right half of the canvas.
READ_COLOURS = """() => {
  const view = document.getElementById("view"), {width, height} = view;
  const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
  copy.drawImage(view, 0, 0);
  const {data} = copy.getImageData(width / 2, 0, width / 2, height);
  const sum = (values) => values.reduce((a, v) => a + v, 0);
  return [0, 1, 2].map((colour) => sum(data.filter((_, i) => i % 4 === colour)) * 4 / data.length);
}"""


until = partial(waiting.until, timeout_s=30.0)  # a process that starts, and a browser


class Box:
    """A running `superlens run`."""

    def __init__(self, *arguments: str, data: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edge", "run", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_DATA_HOME": str(data)},
        )
        said = next(line for line in self.process.stderr if line.startswith("superlens: http"))
        self.url = said.split()[1]

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/api/status", timeout=10) as answer:
            return json.load(answer)

    def post(self, path: str) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.url}{path}", data=b"", method="POST", headers={"Origin": self.url})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def snapshot(self) -> list[Path]:
        """The files of the next picture; asked for again where none came in time, as on a loaded machine."""

        def ask() -> list[Path]:
            try:
                return [Path(path) for path in self.post("/api/snapshot")["paths"]]
            except urllib.error.HTTPError as error:
                if "No frame came within" not in json.load(error)["detail"]:
                    raise
                return []

        return until(ask, timeout_s=120.0)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture
def run_box(tmp_path: Path) -> Iterator[Callable[..., Box]]:
    boxes: list[Box] = []

    def start(*arguments: str) -> Box:
        boxes.append(Box(*arguments, data=tmp_path))
        return boxes[-1]

    yield start
    for box in boxes:
        if box.process.poll() is None:
            box.process.kill()
            box.process.communicate()


def open_page(browser: Browser, box: Box) -> Page:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(box.url)
    return page


def test_a_user_watches_both_halves_change_and_presses_stop(run_box: Callable[..., Box], browser: Browser) -> None:
    box = run_box("--fps", "10")
    page = open_page(browser, box)
    until(lambda: page.locator("#state-word").inner_text() == "LIVE")
    first = until(lambda: (halves := page.evaluate(READ_HALVES)) and halves[0]["mean"] > 10 and halves)
    changed = until(
        lambda: (
            (halves := page.evaluate(READ_HALVES))
            and all(now["sum"] != then["sum"] for now, then in zip(halves, first, strict=True))
            and halves
        )
    )
    raw, enhanced = changed
    assert raw["std"] > 5
    assert enhanced["std"] > 5
    assert "SIMULATED" in page.locator("#sim").inner_text()
    page.locator("#stop").click()
    until(lambda: page.locator("#state-word").inner_text() == "IDLE")
    assert box.status()["state"] == "IDLE"
    page.close()
    assert box.terminate() == 0


def test_a_page_that_stays_open_sees_the_next_job(run_box: Callable[..., Box], browser: Browser) -> None:
    box = run_box("--fps", "10")
    page = open_page(browser, box)
    until(lambda: page.evaluate(READ_HALVES)[0]["mean"] > 10)
    box.post("/api/stop")
    until(lambda: page.locator("#state-word").inner_text() == "IDLE")
    box.post("/api/start")
    until(lambda: page.locator("#state-word").inner_text() == "LIVE")
    before = page.evaluate(READ_HALVES)[0]["sum"]
    until(lambda: page.evaluate(READ_HALVES)[0]["sum"] != before)
    page.close()


def test_a_scan_from_the_page_is_stopped_and_its_tiles_are_kept(run_box: Callable[..., Box], browser: Browser) -> None:
    box = run_box("--fps", "10")
    page = open_page(browser, box)
    until(lambda: page.locator("#state-word").inner_text() == "LIVE")
    page.fill("#scan-width", "80")
    page.fill("#scan-height", "80")
    page.click("#scan-start")
    until(lambda: box.status()["state"] == "SCANNING" and box.status()["scan"]["done"] >= 3)
    page.keyboard.press("Escape")
    until(lambda: page.locator("#state-word").inner_text() == "IDLE")
    scan = box.status()["scan"]
    assert scan["complete"] is False
    assert len(list((Path(scan["folder"]) / "raw").iterdir())) == scan["done"] >= 3
    assert (Path(scan["folder"]) / "mosaic.ome.tif").exists()
    page.close()


def test_an_absent_controller_is_on_the_page_with_what_to_do(
    run_box: Callable[..., Box], browser: Browser, tmp_path: Path
) -> None:
    focus = '[focus]\ndriver = "esp301"\nport = "/dev/absent-focus"\naxis = "1"\n'
    (tmp_path / "real.toml").write_text(focus)
    box = run_box("--config", str(tmp_path / "real.toml"))
    page = open_page(browser, box)
    until(lambda: "/dev/absent-focus" in page.locator("body").inner_text())
    assert "did not start" in page.locator("body").inner_text()
    assert box.process.poll() is None
    with pytest.raises(urllib.error.HTTPError) as refused:
        box.post("/api/start")
    assert refused.value.code == 503
    assert "/dev/absent-focus" in json.load(refused.value)["detail"]
    page.close()


def test_a_snapshot_is_saved_and_its_files_are_named(run_box: Callable[..., Box]) -> None:
    box = run_box("--fps", "10")
    until(lambda: box.status()["flow"]["frames"] > 2)
    paths = box.snapshot()
    assert [path.exists() for path in paths] == [True, True]
    assert all("SIMULATED" in path.name for path in paths)


def test_the_output_that_is_chosen_on_the_page_is_what_everybody_sees(
    run_box: Callable[..., Box], browser: Browser, tmp_path: Path
) -> None:
    box = run_box("--fps", "10", "--model", str(make_lens_bundle(tmp_path / "lens")), "--show", "inverted")
    page = open_page(browser, box)
    until(lambda: page.locator("#state-word").inner_text() == "LIVE")
    until(lambda: page.evaluate(READ_HALVES)[0]["mean"] > 10)
    assert "20x objective of NA 0.4, no sphere" in page.get_attribute("#sim", "title")

    def label() -> list[str]:
        return page.locator(".tag-enh").inner_text().split("\n")

    def looks(output: str) -> bool:
        red, green, blue = page.evaluate(READ_COLOURS)
        if output == "colour":
            return green < 5 and abs(red + blue - 255) < 6
        return max(red, green, blue) - min(red, green, blue) < 1 and red > 5

    until(lambda: label() == ["ENHANCED", "gain", "inverted", "not raw data"])
    grey = {}
    for output in ("colour", "enhanced", "inverted"):
        page.select_option("#output", output)
        until(lambda output=output: label()[2:3] == [output] and looks(output))
        assert box.status()["engine"]["shown"] == output
        grey[output] = page.evaluate(READ_COLOURS)[0]
    assert grey["enhanced"] + grey["inverted"] == pytest.approx(255, abs=6)
    page.select_option("#output", "colour")
    until(lambda: label()[2:3] == ["colour"])
    page.reload()
    until(lambda: page.locator("#output").input_value() == "colour")
    until(lambda: label()[2:3] == ["colour"] and looks("colour"))
    assert page.locator("#output option").all_inner_texts() == ["enhanced", "inverted", "colour"]
    files = box.snapshot()
    assert [tifffile.imread(file).shape for file in files] == [(256, 256)] * 3 + [(256, 256, 3)]
    assert [file.name.split("_")[1:-1] for file in files] == [
        *(["raw"], ["enhanced", "enhanced"], ["enhanced", "inverted"], ["enhanced", "colour"])
    ]
    page.close()
