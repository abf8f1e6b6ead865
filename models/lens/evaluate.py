"""Judges a neural lens: spikes against their true places, labels, leak between types, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import metrics
from models.classical import best_matched
from models.errors import RecipeError
from models.evaluate import Infer, Judgement, Picture, Subject
from models.lens import data, spikes
from models.lens.data import PAPER_PIXEL_NM, Conditions, Scene
from models.lens.folder import folder_scenes
from models.lens.recipe import LensPairs, LensRecipe
from models.optics import Optics
from models.pollen import OBJECTIVE_NA, TYPES

Image = NDArray[np.float32]
Labels = NDArray[np.uint8]

HELDOUT_SCENES = 24
_JUDGES = {"psnr_db": metrics.psnr_db, "ssim": metrics.ssim, "epi": metrics.epi}


def evaluate(subject: Subject, data_set: str, *, folder: Path | None, thorough: bool) -> Judgement:
    """Judge a neural lens (see `models.evaluate.evaluate`).

    Positions are scaled to the paper's field: 1 px is 83 nm (Grant-Jacob et al. 2019). `thorough` adds curves over
    light, exposure and grain size.
    """
    recipe = subject.recipe
    if not isinstance(recipe, LensRecipe):
        raise RecipeError(f"{subject.name} is of task {subject.task}, expected neural-lens")
    types, pixel_nm = recipe.data.types, recipe.pixel_size_nm
    if data_set == "synthetic:heldout":
        scenes = data.scenes(
            heldout_conditions(recipe), count=HELDOUT_SCENES, side_px=recipe.train.crop_px, seed=data.HELDOUT_SEED
        )
    elif data_set == "pairs" and folder is not None:
        section = LensPairs(folder=folder, types=types, pixel_size_nm=pixel_nm)
        scenes = folder_scenes(section, "test")
    else:
        raise RecipeError(
            f"a neural lens is not judged on {data_set!r}; choose synthetic:heldout, or pairs with a folder of them"
        )
    report = figures(subject.infer, scenes, types, pixel_nm)
    report["images"] = len(scenes)
    if "spikes" in report:
        report["spikes"] |= spikes.visibility_figures(
            [subject.shown(scene.image) for scene in scenes],
            [labels_of(subject.infer(scene.image)["map"], len(types)) for scene in scenes],
            scenes, number=types.index("spiny") + 1, pixel_size_nm=pixel_nm,
        )  # fmt: skip
        report["notes"] = [
            f"Spike positions in px of the paper's field, {PAPER_PIXEL_NM:g} nm each; one-to-one within"
            f" {spikes.MATCH_RADIUS_PX:g} px of it. {report['spikes']['hidden_share']:.0%} of the spikes are hidden in"
            " the input: no pixel of theirs reaches 2 sigma, although a matched filter over all of them would reach 5."
        ]
    _add_classical(report, scenes, pixel_nm)
    report["tables"] = _tables(report)
    if thorough and data_set == "synthetic:heldout":
        report["curves"] = _curves(subject.infer, recipe)
    return Judgement(report, _pictures(subject, scenes))


def heldout_conditions(recipe: LensRecipe) -> Conditions:
    """The held-out conditions with the recipe's types and pixel, and as many photons on the same area."""
    unknown = set(recipe.data.types) - set(TYPES)
    if unknown:
        raise RecipeError(
            f"synthetic:heldout has no grains of type {', '.join(sorted(unknown))}, which {recipe.name} labels;"
            " judge it on pairs"
        )
    pixel_nm = recipe.data.pixel_size_nm
    photons = [number * (pixel_nm / data.HELDOUT.pixel_size_nm) ** 2 for number in data.HELDOUT.photons]
    own = {"types": recipe.data.types, "pixel_size_nm": pixel_nm, "photons": photons}
    return Conditions.model_validate(data.HELDOUT.model_dump() | own)


def figures(infer: Infer, scenes: Sequence[Scene], types: tuple[str, ...], pixel_size_nm: float) -> dict[str, Any]:
    """The figures of a lens on scenes: spikes, labels, leak, own_energy, psnr_db, ssim, epi, background_std.

    psnr_db, ssim and epi are of the shadowed pictures of scenes with grains. `spikes` is there where the type "spiny"
    is and the true tips are known; `background_std` where scenes are empty. `leak` is the share of a filtered picture's
    energy that lies on other types' grains, `own_energy` the share of the energy that the magnified picture, of all
    types, has on its own grains and the filtered one kept; `contrast` how strong the filtered picture is on its own
    grains against the truth, sum(F T) / sum(T^2). All for the worst type.
    """
    outputs = [infer(scene.image) for scene in scenes]
    found = [labels_of(out["map"], len(types)) for out in outputs]
    leaks, kept, contrasts = zip(
        *(_energies(kind, number, outputs, scenes) for number, kind in enumerate(types, 1)), strict=True
    )
    report: dict[str, Any] = {}
    pairs = [(s.image, o["shadowed"], s.shadowed) for s, o in zip(scenes, outputs, strict=True) if s.labels.any()]
    for name, judge in _JUDGES.items():
        report[name] = {
            "input": float(np.mean([judge(image, truth) for image, _, truth in pairs])),
            "output": float(np.mean([judge(output, truth) for _, output, truth in pairs])),
        }
    empty = [(s.image, o["shadowed"]) for s, o in zip(scenes, outputs, strict=True) if not s.labels.any()]
    if empty:
        report["background_std"] = {
            name: float(np.mean([pair[place].std() for pair in empty]))
            for place, name in enumerate(("input", "output"))
        }
    if "spiny" in types and all(scene.tips_px is not None for scene in scenes):
        report["spikes"] = spikes.figures(
            [out["shadowed"] for out in outputs], found, scenes,
            number=types.index("spiny") + 1, pixel_size_nm=pixel_size_nm,
        )  # fmt: skip
    report["labels"] = {
        "iou": _iou(found, [s.labels for s in scenes], len(types)),
        "grain_accuracy": _grain_accuracy(found, scenes),
    }
    return report | {"leak": max(leaks), "own_energy": min(kept), "contrast": min(contrasts)}


def _add_classical(report: dict[str, Any], scenes: Sequence[Scene], pixel_size_nm: float) -> None:
    """What a Wiener filter told the PSF makes of the scenes, given the grey values of their truths: an oracle."""
    scenes = [scene for scene in scenes if scene.labels.any()]
    drawn = all(scene.light is not None for scene in scenes)
    psf = Optics(effective_na=OBJECTIVE_NA).psf(pixel_size_nm) if drawn else None
    truths = [scene.shadowed for scene in scenes]
    classical = best_matched([scene.image for scene in scenes], truths, [psf] * len(scenes))
    for name, judge in _JUDGES.items():
        scores = [judge(image, truth) for image, truth in zip(classical.images, truths, strict=True)]
        report[name]["best_classical"] = float(np.mean(scores))


def labels_of(picture: Image, types: int) -> Labels:
    """The label map (0 background, 1 + type) of a map picture (h, w, 3): the nearest colour, black being none."""
    from models.lens.networks import type_colour

    colours = np.array([(0.0, 0.0, 0.0), *(type_colour(index) for index in range(types))], np.float32)
    distance = ((picture[..., None, :] - colours) ** 2).sum(-1)
    return np.asarray(distance.argmin(-1), dtype=np.uint8)


def labels_picture(labels: Labels) -> Image:
    """The inverse of `labels_of`."""
    from models.lens.networks import type_colour

    colours = np.array([(0.0, 0.0, 0.0), *(type_colour(index) for index in range(int(labels.max())))], np.float32)
    return colours[labels]


def _iou(found: list[Labels], true: list[Labels], types: int) -> float:
    """Mean over the types of intersection over union, all scenes as one picture."""
    a, b = np.stack(found), np.stack(true)
    shares = []
    for number in range(1, types + 1):
        union = np.count_nonzero((a == number) | (b == number))
        shares.append(np.count_nonzero((a == number) & (b == number)) / union if union else 1.0)
    return float(np.mean(shares))


def _grain_accuracy(found: list[Labels], scenes: Sequence[Scene]) -> float:
    """Share of the grains most of whose pixels got the right label."""
    right = []
    for labels, scene in zip(found, scenes, strict=True):
        for index in range(1, int(scene.grain_of.max()) + 1):
            here = scene.grain_of == index
            if here.any():
                right.append(np.bincount(labels[here]).argmax() == np.bincount(scene.labels[here]).argmax())
    return float(np.mean(right)) if right else 1.0


def _energies(
    kind: str, number: int, outputs: Sequence[Mapping[str, Image]], scenes: Sequence[Scene]
) -> tuple[float, float, float]:
    """(leak, own energy, contrast) of one filtered picture over all scenes; see `figures`."""
    parts = []
    for out, scene in zip(outputs, scenes, strict=True):
        filtered, magnified = (out[name].astype(np.float64) for name in (f"filtered_{kind}", "magnified"))
        mine, truth = scene.labels == number, scene.on_black.astype(np.float64)
        parts.append(
            [
                (filtered**2)[(scene.labels > 0) & ~mine].sum(),
                (filtered**2).sum(),
                (filtered**2)[mine].sum(),
                (magnified**2)[mine].sum(),
                (filtered * truth)[mine].sum(),
                (truth**2)[mine].sum(),
            ]
        )
    other, total, kept, own, along, true = (float(part) for part in np.sum(parts, axis=0))
    # What is not there at all has leaked nothing, and nothing of it was kept.
    return (
        other / total if total else 0.0,
        kept / own if own else float(not true),
        along / true if true else 1.0,
    )


def _tables(report: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float | None]]]:
    pictures = {name: report[name] for name in (*_JUDGES, "background_std") if name in report}
    labels = {"all types": {**report["labels"], **{name: report[name] for name in ("leak", "own_energy", "contrast")}}}
    tables: dict[str, dict[str, dict[str, float | None]]] = {"picture": pictures, "labels": labels}
    if "spikes" in report:
        tables["spikes"] = {"generated": report["spikes"]}
    return tables


def _curves(infer: Infer, recipe: LensRecipe) -> dict[str, Any]:
    """F1 of spikes and IoU of labels against light, exposure and grain size, the rest as held out."""
    conditions = heldout_conditions(recipe)
    dark, bright = conditions.photons[0], conditions.photons[-1]
    changes: dict[str, list[tuple[float, dict[str, Any]]]] = {
        "photons": [(n, {"photons": (n,)}) for n in (dark / 4, dark / 2, dark, bright, bright * 2, bright * 4)],
        "exposure": [(e, {"exposure": (e, e)}) for e in (0.4, 0.55, 0.7, 0.85)],
        "radius_um": [(r, {"radius_um": ((r, r),)}) for r in (5.0, 6.5, 8.0, 9.5, 11.0)],
    }
    curves = {}
    for name, points in changes.items():
        series: dict[str, list[float]] = {"spikes f1": [], "labels iou": []}
        for _, change in points:
            changed = Conditions.model_validate(conditions.model_dump() | change)
            scenes = data.scenes(changed, count=6, side_px=recipe.train.crop_px, seed=data.HELDOUT_SEED + 1)
            made = figures(infer, scenes, changed.types, changed.pixel_size_nm)
            series["spikes f1"].append(made["spikes"]["f1"] if "spikes" in made else 1.0)
            series["labels iou"].append(made["labels"]["iou"])
        curves[f"against {name}"] = {
            "x": {"name": name, "values": [value for value, _ in points]}, "y": "share", "series": series,
        }  # fmt: skip
    return curves


def _pictures(subject: Subject, scenes: Sequence[Scene]) -> list[Picture]:
    out = []
    for scene in scenes[:3]:
        made = subject.infer(scene.image)
        out += [
            Picture(f"{scene.name}: input", scene.image, "what the camera delivered"),
            Picture(f"{scene.name}: shadowed", made["shadowed"], "generated"),
            Picture(f"{scene.name}: truth", scene.shadowed, "simulated electron picture"),
            Picture(f"{scene.name}: coloured", made["coloured"], "generated, tinted by type"),
            Picture(f"{scene.name}: difference", np.abs(made["shadowed"] - scene.shadowed), "generated against truth"),
        ]
    return out
