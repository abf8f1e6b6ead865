"""The page holds everything that was judged, loads nothing, runs nothing, and needs no colour."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from models.evaluate import Judgement, Picture
from models.report import html_report

GRADIENT = np.linspace(0, 1, 40 * 30, dtype=np.float32).reshape(30, 40)
REPORT = {
    "model": "tested <net>",
    "data": "synthetic:heldout",
    "images": 25,
    "psnr_db": {"input": 14.9, "output": 20.18, "best_classical": 16.65},
    "background_std": {"input": 0.04, "output": 0.05},
    "labels": {"iou": 0.9, "grain_accuracy": 0.95},
    "by_size": {"50-60 nm": {"f1": {"input": 0.5}}},
    "tables": {"methods": {"wiener & co": {"psnr_db": 16.1, "setting": "noise=0.01"}, "none": {"psnr_db": None}}},
    "curves": {
        "epi against photons": {
            "x": {"name": "photons", "values": [100, 1000, 10000]},
            "y": "epi",
            "series": {"input": [0.1, 0.2, 0.3], "output": [0.2, None, 0.5]},
        },
        "flat": {"x": {"name": "defocus_um", "values": [0.0, 0.5]}, "y": "epi", "series": {"only": [0.3, 0.3]}},
        "unmeasured": {"x": {"name": "defocus_um", "values": [0.0]}, "y": "epi", "series": {"only": [None]}},
    },
    "notes": ["Say what < means."],
}
JUDGEMENT = Judgement(
    REPORT, [Picture("grey", GRADIENT, "a ramp"), Picture("red", np.dstack([GRADIENT, GRADIENT * 0, GRADIENT * 0]), "")]
)


class _Reader(HTMLParser):
    """Collects tags, and fails where they are not closed in order."""

    void = ("meta", "img", "line", "polyline", "circle", "rect", "path")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


@pytest.fixture(scope="module")
def page() -> _Reader:
    reader = _Reader()
    reader.feed(html_report(JUDGEMENT, "A judgement of <net>"))
    assert reader.open == []
    return reader


def test_nothing_is_loaded_and_nothing_runs() -> None:
    html = html_report(JUDGEMENT, "title")
    assert "<script" not in html
    assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org)[a-z]", re.sub(r'src="data:[^"]*"', "", html))
    assert not re.findall(r"url\(|@import|\son\w+=", re.sub(r'src="data:[^"]*"', "", html))


def test_figures_tables_and_notes_are_all_there_and_escaped(page: _Reader) -> None:
    for text in ("tested <net>", "20.18", "16.65", "wiener & co", "noise=0.01", "grain accuracy", "0.95", "means."):
        assert text in page.text, text
    assert page.text.count("–") >= 2, "what was not measured is a dash"


def test_every_table_has_a_caption_and_scoped_heads(page: _Reader) -> None:
    tags = [tag for tag, _ in page.seen]
    assert tags.count("table") == tags.count("caption")
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.seen if tag == "th")


def test_curves_have_names_axes_and_marks_that_differ_without_colour(page: _Reader) -> None:
    drawings = [attributes for tag, attributes in page.seen if tag == "svg"]
    assert len(drawings) == 2
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)
    lines = [attributes for tag, attributes in page.seen if tag == "polyline"]
    assert lines[0].get("stroke-dasharray") != lines[1].get("stroke-dasharray")
    assert len((lines[0]["points"] or "").split()) == 3
    assert len((lines[1]["points"] or "").split()) == 2, "what was not measured is not drawn"
    assert {"circle", "rect"} <= {tag for tag, _ in page.seen}
    assert "photons (logarithmic)" in page.text
    assert "Nothing could be measured" in page.text


def test_higher_values_are_drawn_higher(page: _Reader) -> None:
    line = next(attributes for tag, attributes in page.seen if tag == "polyline")
    ys = [float(point.split(",")[1]) for point in (line["points"] or "").split()]
    assert ys == sorted(ys, reverse=True)


def test_pictures_are_embedded_pixel_by_pixel_with_a_text(page: _Reader) -> None:
    grey, red = (attributes for tag, attributes in page.seen if tag == "img")
    assert grey["alt"] == "grey: a ramp"
    for picture, expected in ((grey, (30, 40)), (red, (30, 40, 3))):
        data = base64.b64decode((picture["src"] or "").removeprefix("data:image/png;base64,"))
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        assert pixels.shape == expected
        np.testing.assert_allclose(pixels.reshape(30, 40, -1)[..., 0] / 255, GRADIENT, atol=0.003)


def test_a_report_with_figures_only_is_a_page_too() -> None:
    html = html_report(Judgement({"model": "m", "psnr_db": {"input": 1.0, "output": 2.0}}, []), "small")
    assert "<h2>Figures</h2>" in html
    assert "<h2>Curves</h2>" not in html
