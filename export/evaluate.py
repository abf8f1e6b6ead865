"""Judges a bundle on a named data set."""

from __future__ import annotations

from pathlib import Path

from export.card import model_card, with_precisions
from export.files import write_atomically
from export.manifest import Bundle, Precision
from export.runtime import infer_with
from models.checkpoint import load_checkpoint
from models.evaluate import Judgement, Subject, evaluate


def evaluate_bundle(
    bundle: Bundle,
    data: str,
    *,
    engine: str = "onnxruntime",
    precision: Precision = "fp32",
    folder: Path | None = None,
    thorough: bool = False,
) -> Judgement:
    """Run one of the bundle's models over a data set.

    Parameters
    ----------
    data, folder, thorough
        As `models.evaluate.evaluate`.
    engine, precision
        As `export.runtime.infer_with`.

    Returns
    -------
    The judgement of the system's evaluation; its report also says sha256, engine and precision.
    """
    manifest = bundle.manifest(precision)
    checkpoint = load_checkpoint(bundle.folder / bundle.index.weights)
    subject = Subject(
        name=bundle.name,
        task=bundle.task,
        infer=infer_with(bundle.model_path(precision), engine, precision=precision),
        scale=manifest.scale,
        halo_px=manifest.halo_px,
        pixel_size_nm=manifest.pixel_size_nm,
        outputs=tuple(output.name for output in manifest.outputs),
        recipe=checkpoint.recipe,
    )
    judgement = evaluate(subject, data, folder=folder, thorough=thorough)
    how = {"sha256": manifest.sha256, "engine": engine, "precision": manifest.precision}
    return judgement._replace(report=how | judgement.report)


def write_card(bundle: Bundle, judgement: Judgement) -> None:
    """Write the figures of a report into the bundle's model card."""
    checkpoint = load_checkpoint(bundle.folder / bundle.index.weights)
    card = model_card(checkpoint, bundle.manifest("fp32"), judgement.report)
    card = with_precisions(card, [bundle.manifest(precision) for precision in bundle.precisions])
    write_atomically(bundle.folder / bundle.index.card, card.encode())
