"""A checkpoint or a bundle to a bundle of several precisions: each made, audited, judged, and written if it passes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime

from export import audit, calibration, gate, graph, half, quantize, rewrite, staged
from export.calibration import Method, Pictures, Progress, Sample
from export.card import model_card, with_precisions
from export.errors import CalibrationError, ExportError, GraphError, ManifestError, ParityError
from export.files import move, room, sha256_of
from export.gate import Outputs
from export.manifest import (
    BUNDLE_FILE,
    Bundle,
    BundleIndex,
    Form,
    Manifest,
    Precision,
    Verification,
    check_onnxruntime,
    load_bundle,
    write_manifest,
)
from export.runtime import infer_with
from export.to_onnx import ALLOWED_ERROR, export_fp32, verify
from models.checkpoint import Checkpoint, load_checkpoint

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int8_fp16")
_SEARCHED_PICTURES = 6


class Conversion(NamedTuple):
    """The bundle that was written, and which precisions were not made, and why: it may have older files of these."""

    bundle: Bundle
    refused: dict[Precision, ExportError]


class Made(NamedTuple):
    """A graph of some precision; `spelled_out` is the same in FP32 with its roundings, where there are FP16 ones."""

    model: onnx.ModelProto
    spelled_out: onnx.ModelProto | None = None
    calibration: str | None = None
    scheme: str | None = None


def silent(what: str, done: int, total: int) -> None:
    """No progress."""


def convert(
    source: Path,
    out: Path,
    precisions: Sequence[Precision] = ("fp32",),
    *,
    data: str | None = None,
    bit_depth: int | None = None,
    method: Method = "max",
    form: Form = "merged",
    progress: Progress = silent,
) -> Conversion:
    """Make a bundle: model.onnx, model_PRECISION.onnx, a manifest of each, weights, card, bundle.json.

    The files are made and checked beside `out` and moved there at the end, bundle.json last: a failure, or Ctrl-C,
    leaves `out` as it was. FP32 is always in a bundle: it is what the others are judged by. Of a bundle the FP32 file
    is taken as it is.

    Parameters
    ----------
    source
        A checkpoint, or a bundle with one in it.
    out
        A new or an empty folder, or a bundle of this name and task, such as the same one.
    precisions
        "int8" makes two files of one set of scales: int8, whose remainder is FP32, for OpenVINO, and int8_fp16 for
        TensorRT.
    data, bit_depth, method
        What INT8 scales are measured on, and how: see `export.calibration`. FP16 is judged on
        "synthetic:calibration" where none is given.
    form
        Of a neural lens: "merged" runs all its networks for every picture, "staged" those of types that are there, see
        `export.staged`.

    Raises
    ------
    ExportError
        As its kinds say, where nothing could be written. A precision that fails its audit or its gate is in the
        result's `refused` instead, and the others are written; one of the same network that was in `out` before stays.
    """
    both: tuple[Precision, ...] = ("int8_fp16",) if "int8" in precisions else ()
    wanted = ordered(("fp32", *precisions, *both))
    int8 = any(precision.startswith("int8") for precision in wanted)
    if int8 and data is None:
        raise CalibrationError(
            "INT8 scales are measured on pictures, and none were given; give --calibration with a folder of frames, or"
            f" {calibration.SYNTHETIC}"
        )
    if int8:
        check_onnxruntime("int8", onnxruntime.__version__)
    known = load_bundle(source) if source.is_dir() else None
    weights = source if known is None else known.folder / known.index.weights
    checkpoint = load_checkpoint(weights)
    check_out(out, checkpoint.recipe.name, checkpoint.recipe.task)
    with room(out) as work:
        shutil.copyfile(weights, work / "weights.safetensors")
        manifests: dict[Precision, Manifest] = {"fp32": _fp32(checkpoint, known, work, progress)}
        formed = _former(form, work)
        refused: dict[Precision, ExportError] = {}
        lesser = wanted[1:]
        if lesser:
            pictures = calibration.load(
                data or calibration.SYNTHETIC, manifests["fp32"], checkpoint.recipe, bit_depth=bit_depth
            )
            make = _Maker(work, pictures, method, progress)
            judge = _Judge(work, manifests["fp32"], pictures, formed, progress)
            for precision in lesser:
                try:
                    manifests[precision] = judge(precision, make(precision))
                except (GraphError, ParityError) as exc:
                    refused[precision] = exc
        manifests = {precision: manifest.model_copy(update={"form": form}) for precision, manifest in manifests.items()}
        if form == "staged":
            manifests["fp32"] = _staged_fp32(manifests["fp32"], checkpoint, formed, work)
        for manifest in manifests.values():
            write_manifest(manifest, (work / manifest.file).with_suffix(".json"))
        kept = _kept(out, manifests, refused, in_place=known is not None and known.folder.resolve() == out.resolve())
        card = work / "README.md"
        text = with_precisions(card.read_text(encoding="utf-8"), [*manifests.values(), *kept.values()])
        card.write_text(text, encoding="utf-8")
        index = BundleIndex(
            name=manifests["fp32"].name,
            task=manifests["fp32"].task,
            precisions={
                entry: file_stem(entry) + ".json" for entry in PRECISIONS if entry in manifests or entry in kept
            },
        )
        write_manifest(index, work / BUNDLE_FILE)
        move(work, out, last=BUNDLE_FILE, without=unnamed(index))
    return Conversion(load_bundle(out), refused)


def check_out(out: Path, name: str, task: str) -> None:
    """Refuse to write a bundle among files that are none of its own.

    A bundle whose index cannot be read is nobody's: it is made again by writing over it.

    Raises
    ------
    ExportError
        `out` has something in it and is no bundle, or that of another network.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / BUNDLE_FILE).is_file():
        raise ExportError(f"{out} is not empty and no bundle, nothing in it was touched; give --out another folder")
    try:
        there = load_bundle(out)
    except ManifestError:
        return
    if (there.name, there.task) != (name, task):
        raise ExportError(
            f"{out} is the bundle of {there.name} ({there.task}), not of {name} ({task}), and was not touched; give"
            " --out another folder"
        )


def ordered(precisions: Sequence[Precision]) -> tuple[Precision, ...]:
    """The precisions without doubles, the most exact first; ExportError where there is none of that name."""
    if unknown := set(precisions).difference(PRECISIONS):
        raise ExportError(f"there is no precision {', '.join(sorted(unknown))}; choose from {', '.join(PRECISIONS)}")
    return tuple(precision for precision in PRECISIONS if precision in precisions)


def file_stem(precision: Precision) -> str:
    """The name of a precision's files in a bundle, without the suffix."""
    return "model" if precision == "fp32" else f"model_{precision}"


def unnamed(index: BundleIndex) -> list[str]:
    """Files that an earlier bundle in the same folder may have had, of precisions that this one does not name."""
    stems = [file_stem(precision) for precision in PRECISIONS if precision not in index.precisions]
    return [f"{stem}{suffix}" for stem in stems for suffix in (".onnx", ".json")]


def _kept(
    out: Path, made: Mapping[Precision, Manifest], refused: dict[Precision, ExportError], *, in_place: bool
) -> dict[Precision, Manifest]:
    """What the bundle in `out` has beside those made, if it is of this network; damaged ones are refused."""
    try:
        before = load_bundle(out)
        fp32 = before.manifest("fp32")
    except ManifestError:
        return {}  # there is none, or one that this conversion mends
    new = made["fp32"]
    if not in_place and (fp32.sha256, fp32.checkpoint_sha256) != (new.sha256, new.checkpoint_sha256):
        return {}
    kept: dict[Precision, Manifest] = {}
    for precision in before.precisions:
        if precision in made:
            continue
        try:
            before.model_path(precision)
            kept[precision] = before.manifest(precision)
        except ManifestError as exc:
            refused.setdefault(precision, exc)
    return kept


def _fp32(checkpoint: Checkpoint, known: Bundle | None, work: Path, progress: Progress) -> Manifest:
    if known is None:
        progress("exporting fp32", 0, 1)
        manifest = export_fp32(checkpoint, work)
        (work / "README.md").write_text(model_card(checkpoint, manifest, figures=None), encoding="utf-8")
        progress("exporting fp32", 1, 1)
        return manifest
    manifest = known.manifest("fp32")
    if sha256_of(work / "weights.safetensors") != manifest.checkpoint_sha256:
        raise ManifestError(
            f"{known.folder}: {known.index.weights} is not the checkpoint that {manifest.file} was made from; rebuild"
            f" it: superlens-export convert {known.folder / known.index.weights} --out {known.folder}"
        )
    shutil.copyfile(known.model_path("fp32"), work / "model.onnx")
    shutil.copyfile(known.folder / known.index.card, work / "README.md")
    path = work / "model.onnx"
    if manifest.form == "staged":
        path.write_bytes(staged.merged(graph.read_model(path)).SerializeToString(deterministic=True))
    return manifest.model_copy(update={"file": path.name, "sha256": sha256_of(path)})


def _former(form: Form, work: Path) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """What brings a graph of any precision into its form."""
    if form == "merged":
        return lambda model: model
    parts = staged.magnifiers(graph.read_model(work / "model.onnx"))
    return lambda model: staged.staged(model, parts)


def _staged_fp32(
    manifest: Manifest, checkpoint: Checkpoint, formed: Callable[[onnx.ModelProto], onnx.ModelProto], work: Path
) -> Manifest:
    """Put the FP32 file into staged form, and compare it with torch, and with the merged one where nothing is there."""
    merged, path = work / "merged.onnx", work / manifest.file
    path.replace(merged)
    path.write_bytes(formed(graph.read_model(merged)).SerializeToString(deterministic=True))
    blank = np.full((manifest.min_side_px, 2 * manifest.min_side_px), 0.5, np.float32)
    both = [infer_with(file)(blank) for file in (merged, path)]
    error = max(float(np.abs(both[1][name] - picture).max()) for name, picture in both[0].items())
    if not error <= ALLOWED_ERROR:
        raise ParityError(
            f"the staged form differs from the merged one by {error:.1e} of full scale, expected at most"
            f" {ALLOWED_ERROR:.0e}; leave --form out"
        )
    merged.unlink()
    verification = verify(path, checkpoint.net.fused(), checkpoint.recipe)
    return manifest.model_copy(update={"sha256": sha256_of(path), "verify": verification})


class _Maker:
    """Makes the graph of a precision; INT8 is calibrated once for both of its files."""

    def __init__(self, work: Path, pictures: Pictures, method: Method, progress: Progress) -> None:
        self._work, self._pictures, self._method, self._progress = work, pictures, method, progress
        self._fp32 = graph.read_model(work / "model.onnx")
        if findings := audit.unreadable(self._fp32):
            raise GraphError(f"no other precision can be made of the FP32 graph: {'; '.join(findings)}")

    def __call__(self, precision: Precision) -> Made:
        if precision == "fp16":
            model = half.half(self._fp32)
            return Made(model, half.emulated(model))
        words = f"{self._method} of {len(self._pictures.tuning)} pictures"
        if self._pictures.data != calibration.SYNTHETIC:
            words += f" of {self._pictures.data}"
        model, scheme, ranges = self._calibrated
        if precision == "int8":
            made = rewrite.for_openvino(quantize.quantized(model, scheme, ranges, paired_weights=False))
            return Made(made, None, words, scheme.name)
        model = half.half(quantize.quantized(model, scheme, ranges, paired_weights=True))
        return Made(model, half.emulated(model), words, scheme.name)

    @cached_property
    def _calibrated(self) -> tuple[onnx.ModelProto, quantize.Scheme, dict[str, float]]:
        """The graph that is quantized, what of it stays in float, and how large its values become."""
        values = quantize.measured_values(self._fp32)
        images = [sample.image for sample in self._pictures.tuning]
        ranges = calibration.ranges(self._fp32, values, images, self._method, self._progress)
        subpixel = rewrite.subpixel(self._fp32)
        return subpixel, _best(subpixel, ranges, self._pictures.tuning, self._work, self._progress), ranges


def _best(
    model: onnx.ModelProto, ranges: dict[str, float], samples: Sequence[Sample], work: Path, progress: Progress
) -> quantize.Scheme:
    """The scheme whose worst output is nearest to FP32 on pictures of calibration; the first of equals."""
    some = samples[:: max(1, len(samples) // _SEARCHED_PICTURES)]
    fp32 = gate.outputs_of(infer_with(work / "model.onnx"), some, "running fp32", progress)
    scores = {}
    for scheme in quantize.schemes(model):
        made = quantize.quantized(model, scheme, ranges, paired_weights=False)
        found = _run(made, "int8", some, work, f"trying {scheme.name}", progress)
        scores[scheme] = min(gate.psnr_db(found, fp32).values())
    return max(scores, key=lambda scheme: scores[scheme])


def _run(
    model: onnx.ModelProto, precision: Precision, samples: Sequence[Sample], work: Path, what: str, progress: Progress
) -> list[Outputs]:
    """The outputs of a graph, computed as written by ONNX Runtime."""
    path = work / "trial.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        return gate.outputs_of(infer_with(path, precision=precision), samples, what, progress)
    finally:
        path.unlink()


class _Judge:
    """Writes a graph into the work folder, audits it, compares it with FP32, and gives its manifest."""

    def __init__(
        self,
        work: Path,
        fp32: Manifest,
        pictures: Pictures,
        formed: Callable[[onnx.ModelProto], onnx.ModelProto],
        progress: Progress,
    ) -> None:
        self._work, self._fp32, self._pictures, self._formed, self._progress = work, fp32, pictures, formed, progress
        infer = infer_with(work / "model.onnx")
        self._wanted = {
            data: gate.outputs_of(infer, samples, "running fp32", progress)
            for data, samples in pictures.heldout.items()
        }

    def __call__(self, precision: Precision, made: Made) -> Manifest:
        findings = audit.audit(made.model) if precision.startswith("int8") else audit.unreadable(made.model)
        if findings:
            raise GraphError(f"TensorRT would not run {precision} as it is meant: {'; '.join(findings)}")
        path = self._work / f"{file_stem(precision)}.onnx"
        path.write_bytes(self._formed(made.model).SerializeToString(deterministic=True))
        try:
            verification = self._verified(precision, made, path)
            gate.check(precision, verification)
        except ExportError:
            path.unlink()
            raise
        return self._fp32.model_copy(
            update={
                "file": path.name,
                "sha256": sha256_of(path),
                "precision": precision,
                "verify": verification,
            }
        )

    def _verified(self, precision: Precision, made: Made, path: Path) -> Verification:
        """The figures of the worst of the ways to run the file, on the data where it is worst."""
        what = f"judging {precision}"
        runs = {f"ONNX Runtime {onnxruntime.__version__}": infer_with(path, precision=precision)}
        if precision == "int8":
            runs["OpenVINO"] = infer_with(path, "openvino", precision=precision)
        judged = []
        for data, samples in self._pictures.heldout.items():
            found = {by: gate.outputs_of(infer, samples, what, self._progress) for by, infer in runs.items()}
            if made.spelled_out is not None:
                by = f"ONNX Runtime {onnxruntime.__version__}, every FP16 value rounded"
                found[by] = _run(self._formed(made.spelled_out), precision, samples, self._work, what, self._progress)
            judged += [
                gate.judged(
                    outputs,
                    self._wanted[data],
                    samples,
                    border_px=self._fp32.halo_px * self._fp32.scale,
                    data=data,
                    against=f"{self._fp32.file}, by {by}",
                )
                for by, outputs in found.items()
            ]
        worst = min(judged, key=lambda verification: verification.psnr_db)
        if worst.gate is None:
            return worst
        losses = [entry.gate.loss_db for entry in judged if entry.gate is not None and entry.gate.loss_db is not None]
        told = {
            "calibration": made.calibration,
            "scheme": made.scheme,
            "loss_db": max(losses, default=None),
        }
        return worst.model_copy(update={"gate": worst.gate.model_copy(update=told)})
