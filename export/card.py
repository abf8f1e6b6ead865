"""The model card: what a bundle is, what it was trained on, how good it is, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.manifest import Manifest
from models.checkpoint import Checkpoint
from models.enhance.data import Conditions
from models.enhance.networks import parameter_count

_UNJUDGED = "Not judged yet: `superlens-export evaluate BUNDLE --data synthetic:heldout --write-card`."


def model_card(checkpoint: Checkpoint, manifest: Manifest, figures: Mapping[str, Any] | None) -> str:
    """Markdown text of a bundle's README.md; `figures` is a report of `export.evaluate.evaluate_bundle`."""
    recipe, net = checkpoint.recipe, checkpoint.net.fused()
    train = recipe.train
    return f"""# {manifest.name}

Trained on **synthetic pairs**. No real microscope image was used, and no claim about real specimens follows from
the figures below.

* Task: {manifest.task}; blind (it is told neither the point-spread function nor the illumination), scale \
{manifest.scale}.
* Network: {recipe.network.name} {dict(recipe.network.options)}, {parameter_count(net):,} parameters once fused.
* Input: `{manifest.inputs[0].name}`, float32 (1, 1, height, width), 0..1 = counts / full scale, any size from \
{manifest.min_side_px} px; padding and clamping are inside the graph.
* Output: `{manifest.outputs[0].name}`, same shape, 0..1 = reflectivity.
* Made for pixels of {manifest.pixel_size_nm} nm on the specimen; a result depends on {manifest.halo_px} px around it.

## Data

{manifest.training_data}

Truth is the drawn reflectivity, averaged over each pixel. Training: {checkpoint.step:,} steps of {train.crops} crops \
of {train.crop_px} px, seed {recipe.seed}, {train.precision}; loss Charbonnier + {train.gradient_weight} x gradient L1.

The training data and `synthetic:heldout` share what one instrument keeps the same: {_shared(recipe.data)}.
These ranges were narrowed once during development, after wider ones had been judged on the held-out set; the raw
figures below hold for them only: outside them the absolute level becomes ambiguous.

## Figures

{_figures(figures) if figures else _UNJUDGED}

Exported file against torch: largest error {manifest.verify.max_abs_error:.1e} of full scale \
({manifest.verify.against}).

## Limits

* Structure finer than about half the width of the point-spread function is not in the light; what is drawn there is
  a guess from the training families. Do not measure line widths or count features below that on the enhanced picture.
* On crops of real micrographs seen through the same simulated optics (`real:heldout`, docs/models.md) it gains nothing
  measurable: their structure and noise are unlike the drawn specimens.
* Absolute reflectivity is a guess where veil and exposure are unknown: trust contrast, not level.
* Specimens unlike lines, dots, layers, grains and text, other sphere sizes or media, other pixel sizes (more than
  10 % off), defocus, motion and coherent fringes were not in the data.
* Keep the raw frames: they are the measurement.

## Rebuild

`make zoo MODEL={manifest.name}` trains it from `models/configs/{manifest.name}.toml`.
"""


def _shared(data: Conditions) -> str:
    """The conditions that do not tell training from held-out."""
    (veil_low, veil_high), (dim, bright), (narrow, wide) = data.veil, data.exposure, data.light_scale
    return (
        f"a veil of {veil_low:g} to {veil_high:g} of the light, a white specimen at {dim:g} to {bright:g} of full"
        f" scale, a field of {narrow:g} to {wide:g} times the traced one, and lamp slopes up to {data.light_slope:g}"
    )


def _figures(report: Mapping[str, Any]) -> str:
    rows = [
        f"| {name} | {row['psnr_db']:.2f} | {row['psnr_corrected_db']:.2f} | {row['ssim']:.3f} | {row['epi']:.2f} |"
        for name, row in report["methods"].items()
    ]
    families = [
        f"| {name} | {row['psnr_db']:.2f} | {row['psnr_corrected_db']:.2f} | {row['ssim']:.3f} | {row['epi']:.2f} |"
        for name, row in report["families"].items()
    ]
    return "\n".join(
        [
            f"`{report['data']}`: {report['images']} images of families, apertures, vignette centres and noise levels",
            f"that the training data do not contain; a border of {report['halo_px']} px left out; FP32,"
            f" {report['engine']}.",
            "",
            "| | PSNR dB | PSNR corrected dB | SSIM | EPI |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "PSNR is raw. Corrected gives every method the best gain, offset and flat-field, so it shows deblurring",
            "and not brightening. Classical methods are told the true PSF (unsharp excepted) and illumination, and use",
            "the settings that are best for this set; their SSIM and EPI are after division by the true illumination.",
            "",
            "| output by family | PSNR dB | PSNR corrected dB | SSIM | EPI |",
            "|---|---|---|---|---|",
            *families,
        ]
    )
