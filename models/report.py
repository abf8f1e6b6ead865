"""A judgement as one HTML file that needs nothing else: tables, curves and pictures, for the screen and for paper."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image as Picturing

from models.evaluate import Judgement, Picture

_SUBJECTS = ("input", "best_classical", "output")
_HIDDEN = {"tables", "curves", "notes"}  # shown in sections of their own

# Okabe & Ito's colours are told apart with every kind of colour vision; dashes and marks need no colour at all.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00")
_DASHES = ("", "7 4", "2 3", "10 3 2 3", "5 2", "1 4")
_MARKS = ("circle", "square", "triangle", "diamond", "cross", "ring")
_UNITS = {"db": "dB", "nm": "nm", "um": "µm", "px": "px", "deg": "degrees", "s": "s"}
_ACRONYMS = {"psnr", "ssim", "epi", "frc"}

_WIDTH, _HEIGHT = 560, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 28, 16, 84
_WIDE = 30.0  # positive values whose extremes are this far apart stand on a logarithmic axis

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 76rem; margin: 0 auto;
  padding: 1rem 1.5rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .6rem 0 .2rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid #8a8a8a; padding-bottom: .2rem; }
.facts { color: #404040; margin: 0 0 1rem; overflow-wrap: anywhere; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; }
a { color: #00508f; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0 1.6rem; font-size: .95rem; }
caption { text-align: left; font-weight: 600; padding: .2rem 0 .4rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #c4c4c4; text-align: right; vertical-align: top;
  font-variant-numeric: tabular-nums; }
thead th { border-bottom: 2px solid #555; }
th:first-child, td.text { text-align: left; }
tbody th { font-weight: 400; }
tbody tr:nth-child(even) { background: #f5f5f5; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 1rem 2rem; }
figure { margin: 0 0 1.2rem; break-inside: avoid; }
figure h3, figure figcaption strong { font-size: 1rem; margin: 0 0 .3rem; }
figcaption { font-size: .9rem; color: #404040; max-width: 70rem; }
svg { width: 100%; height: auto; max-width: 40rem; }
img { max-width: 100%; height: auto; image-rendering: pixelated; border: 1px solid #999; }
details { font-size: .9rem; }
.notes li { margin-bottom: .5rem; max-width: 62rem; }
@media print {
  body { font-size: 10pt; max-width: none; padding: 0; }
  nav, details { display: none; }
  h2, caption { break-after: avoid; }
  tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  .curves { grid-template-columns: 1fr 1fr; }
  tbody tr:nth-child(even) { background: none; }
}
"""


def html_report(judgement: Judgement, title: str) -> str:
    """One self-contained HTML page.

    Parameters
    ----------
    judgement
        Its report's figures of {input, best_classical, output} become the first table, "tables", "curves" and "notes"
        sections of their own, single values the line under the title; pictures are embedded as PNG.
    title
        Of the page.

    Returns
    -------
    HTML with its style inside; no script, and nothing is loaded.
    """
    report = judgement.report
    sections = {
        "Figures": _figures(report),
        "Tables": "".join(_table(name, rows) for name, rows in report.get("tables", {}).items()),
        "Curves": _curves(report.get("curves", {})),
        "Pictures": "".join(_picture(picture) for picture in judgement.pictures),
        "How to read this": _notes(report.get("notes", ())),
    }
    sections = {name: body for name, body in sections.items() if body}
    links = "".join(f'<li><a href="#{_anchor(name)}">{escape(name)}</a></li>' for name in sections)
    parts = "".join(
        f'<section id="{_anchor(name)}"><h2>{escape(name)}</h2>{body}</section>' for name, body in sections.items()
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="facts">{_facts(report)}</p></header>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav><main>{parts}</main></body></html>\n'
    )


def _facts(report: Mapping[str, Any]) -> str:
    """The single values of a report."""
    return " · ".join(
        f"{escape(_words(name))}: {escape(_cell(value))}"
        for name, value in report.items()
        if name not in _HIDDEN and not isinstance(value, Mapping | list | tuple)
    )


def _figures(report: Mapping[str, Any]) -> str:
    """The figures that are judged for input and output, then every other group of single values."""
    compared, groups = {}, ""
    for name, value in report.items():
        if name in _HIDDEN or not isinstance(value, Mapping):
            continue
        if set(value) <= set(_SUBJECTS):
            compared[name] = {who: value[who] for who in _SUBJECTS if who in value}
        elif not any(isinstance(entry, Mapping) for entry in value.values()):
            groups += _table(name, {key: {"value": entry} for key, entry in value.items()})
    return (_table("Means over the set", compared) if compared else "") + groups


def _table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    head = "".join(f'<th scope="col">{escape(_words(column))}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(_words(name))}</th>'
        + "".join(_td(row.get(column)) for column in columns)
        + "</tr>"
        for name, row in rows.items()
    )
    return (
        f'<div class="scroll"><table><caption>{escape(_words(title))}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _td(value: Any) -> str:
    return f'<td class="text">{escape(value)}</td>' if isinstance(value, str) else f"<td>{escape(_cell(value))}</td>"


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if abs(value) < 1 else f"{value:#.4g}".rstrip(".")


def _words(name: str) -> str:
    """A key as words, its unit in brackets.

    Examples
    --------
    >>> _words("psnr_corrected_db"), _words("epi against defocus_um"), _words("false_features_per_1e6_px")
    ('PSNR corrected (dB)', 'EPI against defocus (µm)', 'false features per 1e6 px')
    """
    with_unit = re.sub(r"(?<!1e6)_(db|nm|um|px|deg|s)\b", lambda unit: f" ({_UNITS[unit[1]]})", name)
    words = with_unit.replace("_", " ").split(" ")
    return " ".join(word.upper() if word in _ACRONYMS else word for word in words)


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _notes(notes: Sequence[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>' if notes else ""


def _picture(picture: Picture) -> str:
    pixels = np.rint(np.clip(picture.image, 0, 1) * 255).astype(np.uint8)
    stored = io.BytesIO()
    Picturing.fromarray(pixels).save(stored, format="PNG", optimize=True)
    data = base64.b64encode(stored.getvalue()).decode()
    return (
        f'<figure><img alt="{escape(f"{picture.title}: {picture.caption}")}" width="{pixels.shape[1]}"'
        f' height="{pixels.shape[0]}" src="data:image/png;base64,{data}">'
        f"<figcaption><strong>{escape(picture.title)}</strong> {escape(picture.caption)}</figcaption></figure>"
    )


def _curves(curves: Mapping[str, Mapping[str, Any]]) -> str:
    if not curves:
        return ""
    return f'<div class="curves">{"".join(_curve(title, curve) for title, curve in curves.items())}</div>'


def _curve(title: str, curve: Mapping[str, Any]) -> str:
    x_name, x_values = curve["x"]["name"], [float(value) for value in curve["x"]["values"]]
    series: Mapping[str, Sequence[float | None]] = curve["series"]
    known = [value for values in series.values() for value in values if value is not None and math.isfinite(value)]
    rows = {
        f"{x:g}": {name: values[index] for name, values in series.items()} for index, x in enumerate(x_values)
    }  # fmt: skip
    numbers = f"<details><summary>Values</summary>{_table(x_name, rows)}</details>"
    drawing = _svg(title, x_name, curve["y"], x_values, series, known) if known else "<p>Nothing could be measured.</p>"
    return f"<figure><h3>{escape(_words(title))}</h3>{drawing}{numbers}</figure>"


def _svg(
    title: str, x_name: str, y_name: str, x_values: list[float], series: Mapping[str, Sequence[float | None]],
    known: list[float],
) -> str:  # fmt: skip
    logarithmic = min(x_values) > 0 and max(x_values) / min(x_values) > _WIDE
    along = [math.log10(x) if logarithmic else x for x in x_values]
    x_low, x_high = _room(along, 0.0)
    y_low, y_high = _room(known, 0.06)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (x - x_low) / (x_high - x_low) * (right - _LEFT),
            bottom - (y - y_low) / (y_high - y_low) * (bottom - _TOP),
        )

    parts = []
    for tick in _ticks(y_low, y_high):
        _, y = place(x_low, tick)
        parts.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#d0d0d0"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    x_ticks = [(math.log10(x), x) for x in x_values] if logarithmic else [(x, x) for x in _ticks(x_low, x_high)]
    for at, tick in x_ticks:
        x, _ = place(at, y_low)
        parts.append(
            f'<line x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 5}" stroke="#333"/>'
            f'<text x="{x:.1f}" y="{bottom + 19}" text-anchor="middle">{tick:g}</text>'
        )
    parts.append(
        f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#333"/>'
        f'<text x="{(_LEFT + right) / 2}" y="{bottom + 38}" text-anchor="middle">{escape(_words(x_name))}'
        f"{' (logarithmic)' if logarithmic else ''}</text>"
        f'<text transform="translate(14 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(_words(y_name))}</text>"
    )
    legend_px = (right - _LEFT) / max(len(series), 1)
    for number, (name, values) in enumerate(series.items()):
        points = [
            place(x, y) for x, y in zip(along, values, strict=True) if y is not None and math.isfinite(y)
        ]  # fmt: skip
        colour, dash = _COLOURS[number % 6], _DASHES[number % 6]
        stroke = f'fill="none" stroke="{colour}" stroke-width="2"' + (f' stroke-dasharray="{dash}"' if dash else "")
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        key_x, key_y = _LEFT + number * legend_px, _HEIGHT - 16
        parts.append(
            f'<polyline points="{line}" {stroke}/>'
            + "".join(_mark(number, x, y) for x, y in points)
            + f'<line x1="{key_x:.1f}" y1="{key_y}" x2="{key_x + 30:.1f}" y2="{key_y}" {stroke}/>'
            + _mark(number, key_x + 15, key_y)
            + f'<text x="{key_x + 36:.1f}" y="{key_y + 4}">{escape(name)}</text>'
        )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-size="12" fill="#1b1b1b"'
        f' aria-label="{escape(_words(f"{title}: {y_name} over {x_name}"))}"><title>{escape(_words(title))}</title>'
        f"{''.join(parts)}</svg>"
    )


def _room(values: Sequence[float], share: float) -> tuple[float, float]:
    """Lowest and highest with some room around them; an interval even where all are equal."""
    low, high = min(values), max(values)
    margin = (high - low) * share if high > low else max(abs(high) * 0.1, 0.5)
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers.

    Examples
    --------
    >>> _ticks(0.03, 0.52)
    [0.1, 0.2, 0.3, 0.4, 0.5]
    """
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 2.5, 5, 10)), key=lambda size: abs(size - rough))
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _mark(number: int, x: float, y: float) -> str:
    """A point's mark: another shape for every series."""
    shapes = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"',
        "square": f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"',
        "triangle": f'<path d="M{x:.1f} {y - 5:.1f}l5 9h-10z"',
        "diamond": f'<path d="M{x:.1f} {y - 5.5:.1f}l5 5.5l-5 5.5l-5 -5.5z"',
        "cross": f'<path d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8" stroke-width="2"',
        "ring": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" stroke-width="2"',
    }
    shape = _MARKS[number % 6]
    fill = "#fff" if shape == "ring" else _COLOURS[number % 6]
    return f'{shapes[shape]} fill="{fill}" stroke="{_COLOURS[number % 6] if shape in ("cross", "ring") else "#fff"}"/>'
