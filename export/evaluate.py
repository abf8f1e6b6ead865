"""Judges a bundle on a named data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export.card import model_card
from export.manifest import Bundle, write_atomically
from export.runtime import infer_with
from models.checkpoint import load_checkpoint
from models.enhance.evaluate import by_family, data_set, evaluate


def evaluate_bundle(
    bundle: Bundle, data: str, *, engine: str = "onnxruntime", folder: Path | None = None
) -> dict[str, Any]:
    """Run the bundle's FP32 model over a data set.

    Parameters
    ----------
    data, folder
        As `models.enhance.evaluate.data_set`.
    engine
        As `export.runtime.infer_with`.

    Returns
    -------
    The report of `models.enhance.evaluate.evaluate`, with model, sha256, data, engine, precision and figures by family.
    """
    pairs = data_set(data, folder=folder)
    manifest = bundle.manifest("fp32")
    infer = infer_with(bundle.model_path("fp32"), engine)
    report = {
        "model": bundle.name,
        "sha256": manifest.sha256,
        "data": data,
        "engine": engine,
        "precision": manifest.precision,
    }
    report |= evaluate(infer, pairs, halo_px=manifest.halo_px)
    return report | {"families": by_family(infer, pairs, halo_px=manifest.halo_px)}


def write_card(bundle: Bundle, report: dict[str, Any]) -> None:
    """Write the figures of a report into the bundle's model card."""
    checkpoint = load_checkpoint(bundle.folder / bundle.index.weights)
    card = model_card(checkpoint, bundle.manifest("fp32"), report)
    write_atomically(bundle.folder / bundle.index.card, card.encode())
