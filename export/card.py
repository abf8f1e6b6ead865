"""The model card: what a bundle is, what it was trained on, how good it is, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from export.manifest import Manifest
from models.checkpoint import Checkpoint
from models.network import parameter_count

_UNJUDGED = "Not judged yet: `superlens-export evaluate BUNDLE --data synthetic:heldout --write-card`."

_PRECISIONS = "## Precisions"

_WHAT = {
    "enhance": "sharpens a picture and evens out its light; it is told neither the point-spread function nor the light",
    "sem": "makes a picture like a scanning electron micrograph from an optical one",
    "neural-lens": "labels the types of grains in an optical picture, and draws each as an electron microscope would",
}
_LIMITS = {
    "enhance": """\
* Structure finer than about half the width of the point-spread function is not in the light; what is drawn there is
  a guess from the training families. Do not measure line widths or count features below that on the enhanced picture.
* Single particles of less than 100 nm on a plain substrate can get lost: see the table of object sizes, and look at the
  raw picture too.
* Absolute reflectivity is a guess where veil and exposure are unknown: trust contrast, not level.
* The training data and `synthetic:heldout` share what one instrument keeps the same: a veil of 0.2 to 0.4 of the light,
  a white specimen at 0.75 to 0.95 of full scale, a field of 0.9 to 1.1 times the traced one, lamp slopes up to 0.15.
  These ranges were narrowed once during development, after wider ones had been judged on the held-out set: the raw
  figures hold for them only.
* On crops of real micrographs seen through the same simulated optics (`real:heldout`, docs/models.md) it gains little
  or nothing: train on your own pairs before you trust it on your specimen.
* Specimens unlike lines, dots, layers, grains and text, other sphere sizes or media, other pixel sizes (more than
  10 % off), motion and coherent fringes were not in the data.""",
    "sem": """\
* It shows what an electron microscope might have seen, judging by the training specimens: heights, edges and materials
  are inferred, not measured. Never measure a width, a height or a count on this picture alone.
* Structure below the optical resolution is a guess. Charging, contamination and tilt are not modelled.
* Other sphere sizes or media, other pixel sizes (more than 10 % off) and coherent fringes were not in the data.""",
    "neural-lens": """\
* Spikes and surfaces are drawn from what the training grains looked like: their number and place are inferred from
  what little light they scatter. Count and measure on a real electron micrograph.
* It knows only the types it was trained on, and gives one of them to anything that stands out.
* Drawn grains, drawn optics: no real pollen was used.""",
}


def model_card(checkpoint: Checkpoint, manifest: Manifest, figures: Mapping[str, Any] | None) -> str:
    """Markdown text of a bundle's README.md; `figures` is the report of `export.evaluate.evaluate_bundle`."""
    recipe, net = checkpoint.recipe, checkpoint.net.fused()
    train = recipe.train
    outputs = ", ".join(f"`{put.name}`{' (RGB)' if put.shape[1] == 3 else ''}" for put in manifest.outputs)
    sides = (
        f"any size from {manifest.min_side_px} px; padding and clamping are inside the graph"
        if manifest.side_multiple_px == 1
        else f"sides multiples of {manifest.side_multiple_px} px"
    )
    loss = ", ".join(f"{key} {value}" for key, value in recipe.model_dump().get("loss", {}).items())
    remarks = f"\n{' '.join(recipe.remarks.split())}\n" if recipe.remarks else ""
    return f"""# {manifest.name}

Trained on **synthetic** images only. No real microscope image was used, and no claim about real specimens follows from
the figures below.

* Task: {manifest.task}. It {_WHAT[manifest.task]}; scale {manifest.scale}.
* Network: {recipe.network.name} {dict(recipe.network.options)}, {parameter_count(net):,} parameters in use.
* Input: `{manifest.inputs[0].name}`, float32 (1, 1, height, width), 0..1 = counts / full scale, {sides}.
* Outputs: {outputs}; 0..1, the first is the one shown.
* Made for pixels of {manifest.pixel_size_nm} nm on the specimen; a result depends on {_reach(manifest.halo_px)}.

## Data

{manifest.training_data}

Training: {checkpoint.step:,} of {train.steps:,} steps of {train.crops} crops of {train.crop_px} px, seed {recipe.seed},
{train.precision}; loss: {loss}.

## Figures

{_figures(figures) if figures else _UNJUDGED}
{remarks}
Exported file against torch: largest error {manifest.verify.max_abs_error:.1e} of full scale \
({manifest.verify.against}).

## Limits

{_LIMITS[manifest.task]}
* Keep the raw frames: they are the measurement.

## Rebuild

`make zoo MODEL={manifest.name}` trains it from `models/configs/{manifest.name}.toml`.
"""


def with_precisions(card: str, manifests: Sequence[Manifest]) -> str:
    """The card with a section on the files of less than FP32, in place of the one it has."""
    before, _, after = card.partition(_PRECISIONS)
    card = before + after[after.index("## ") :] if after else card
    rows: dict[str, list[Any]] = {
        manifest.precision: [
            manifest.verify.psnr_db,
            manifest.verify.gate.loss_db,
            manifest.verify.gate.data,
            manifest.verify.gate.scheme,
        ]
        for manifest in manifests
        if manifest.verify.gate is not None
    }
    if not rows:
        return card
    columns = ["PSNR to FP32, dB", "loss of PSNR, dB", "on the held-out part of", "kept in float"]
    before, limits, after = card.partition("## Limits")
    return f"{before}{_PRECISIONS}\n\n{_table('file', columns, rows)}\n\n{limits}{after}"


def _figures(report: Mapping[str, Any]) -> str:
    """Tables, curves and remarks of a report, as the system's evaluation wrote them."""
    parts = [f"`{report['data']}`, {report['precision'].upper()}, {report['engine']}."]
    for title, rows in report.get("tables", {}).items():
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        body = {name: [row.get(column) for column in columns] for name, row in rows.items()}
        parts.append(_table(title, columns, body))
    for title, curve in report.get("curves", {}).items():
        columns = [f"{curve['x']['name']} {value:g}" for value in curve["x"]["values"]]
        parts.append(_table(f"{title} ({curve['y']})", columns, curve["series"]))
    parts.extend(report.get("notes", ()))
    return "\n\n".join(parts)


def _table(title: str, columns: list[str], rows: Mapping[str, list[Any]]) -> str:
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(map(_cell, values))} |" for name, values in rows.items()]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"
    return str(value)


def _reach(halo_px: int) -> str:
    """How far a network looks: a halo of 0 is what one has whose reach is no number of pixels."""
    if not halo_px:
        return "the whole picture"
    frame = "where light is evened out or channels are weighed on the whole frame's light"
    return f"structure within {halo_px} px, and {frame}"
