"""Judges a neural lens: spikes against their true places, labels, leak between types, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import metrics, pollen
from models.detection import Matches, match, pooled
from models.errors import RecipeError
from models.evaluate import Infer, Judgement, Picture, Subject
from models.lens import data
from models.lens.data import PAPER_PIXEL_NM, Conditions, Scene
from models.lens.recipe import LensRecipe
from models.lens.spikes import find_spikes
from models.optics import Sensor

Image = NDArray[np.float32]
Labels = NDArray[np.uint8]

# A found spike may lie this far from the true one, on the paper's field of 1024 px.
MATCH_RADIUS_PX = 20.0
_CHANCE_DRAWS = 20


def evaluate(subject: Subject, data_set: str, *, folder: Path | None, thorough: bool) -> Judgement:
    """Judge a neural lens (see `models.evaluate.evaluate`).

    Positions are scaled to the paper's field: 1 px is 83 nm (Grant-Jacob et al. 2019). `thorough` adds curves over
    light, exposure and grain size.
    """
    recipe = subject.recipe
    if not isinstance(recipe, LensRecipe):
        raise RecipeError(f"{subject.name} is of task {subject.task}, expected neural-lens")
    if data_set != "synthetic:heldout":
        raise RecipeError(f"a neural lens is not judged on {data_set!r}; choose synthetic:heldout")
    conditions = heldout_conditions(recipe)
    side_px = recipe.train.crop_px
    scenes = data.scenes(conditions, count=24, side_px=side_px, seed=data.HELDOUT_SEED)
    report = figures(subject.infer, scenes, conditions)
    report["spikes"] |= visibility_figures(subject.infer, scenes, conditions)
    report["images"] = len(scenes)
    report["tables"] = _tables(report)
    if thorough:
        report["curves"] = _curves(subject.infer, conditions, side_px)
    report["notes"] = [
        f"Spike positions in px of the paper's field, {PAPER_PIXEL_NM:g} nm each; one-to-one within"
        f" {MATCH_RADIUS_PX:g} px of it. {report['spikes']['hidden_share']:.0%} of the spikes are hidden in the input:"
        " no pixel of theirs reaches 2 sigma, although a matched filter over all of them would reach 5."
    ]
    return Judgement(report, _pictures(subject, scenes))


def heldout_conditions(recipe: LensRecipe) -> Conditions:
    """The held-out conditions with the recipe's types and pixel, and as many photons on the same area."""
    pixel_nm = recipe.data.pixel_size_nm
    photons = [number * (pixel_nm / data.HELDOUT.pixel_size_nm) ** 2 for number in data.HELDOUT.photons]
    own = {"types": recipe.data.types, "pixel_size_nm": pixel_nm, "photons": photons}
    return Conditions.model_validate(data.HELDOUT.model_dump() | own)


def figures(infer: Infer, scenes: Sequence[Scene], conditions: Conditions) -> dict[str, Any]:
    """The figures of a lens on scenes: spikes, labels, leak, own_energy, psnr_db, ssim, epi, background_std.

    `leak` is the share of a filtered picture's energy that lies on other types' grains, `own_energy` the filtered
    picture's amplitude on its own grains as a share of the truth's, sum(F T) / sum(T^2): both for the worst type.
    """
    outputs = [infer(scene.image) for scene in scenes]
    found = [labels_of(out["map"], len(conditions.types)) for out in outputs]
    leaks, kept = zip(
        *(_energies(kind, number, outputs, scenes) for number, kind in enumerate(conditions.types, 1)), strict=True
    )
    report: dict[str, Any] = {}
    for name, judge in (("psnr_db", metrics.psnr_db), ("ssim", metrics.ssim), ("epi", metrics.epi)):
        pairs = [(s.image, o["shadowed"], s.shadowed) for s, o in zip(scenes, outputs, strict=True)]
        report[name] = {
            "input": float(np.mean([judge(image, truth) for image, _, truth in pairs])),
            "output": float(np.mean([judge(output, truth) for _, output, truth in pairs])),
        }
    empty = [(s.image, o["shadowed"]) for s, o in zip(scenes, outputs, strict=True) if not s.grains]
    if empty:
        report["background_std"] = {
            name: float(np.mean([pair[place].std() for pair in empty]))
            for place, name in enumerate(("input", "output"))
        }
    if "spiny" in conditions.types:
        number = conditions.types.index("spiny") + 1
        matches, chances = _spikes([o["shadowed"] for o in outputs], found, number, scenes, conditions)
        report["spikes"] = spike_figures(matches, conditions) | {"f1_of_chance": float(np.mean(chances))}
    report["labels"] = {
        "iou": _iou(found, [s.labels for s in scenes], len(conditions.types)),
        "grain_accuracy": _grain_accuracy(found, scenes),
    }
    return report | {"leak": max(leaks), "own_energy": min(kept)}


def spike_figures(matches: Sequence[Matches], conditions: Conditions) -> dict[str, float | None]:
    """f1, precision, recall, std_x_px, std_y_px (of the paper's field), std_x_nm, std_y_nm."""
    own = pooled(list(matches)).figures(conditions.pixel_size_nm)
    for axis in "xy":
        nm = own[f"std_{axis}_nm"]
        own[f"std_{axis}_px"] = None if nm is None else nm / PAPER_PIXEL_NM
    return own


def match_spikes(picture: Image, labels: Labels, number: int, scene: Scene, conditions: Conditions) -> Matches:
    """Find spikes in one picture, inside what is labelled `number`, and match them with the true tips."""
    pixel_nm = conditions.pixel_size_nm
    spikes = find_spikes(picture, labels == number, pixel_size_nm=pixel_nm)
    return match(spikes, scene.tips_px, MATCH_RADIUS_PX * PAPER_PIXEL_NM / pixel_nm)


def _spikes(
    pictures: list[Image], found: list[Labels], number: int, scenes: Sequence[Scene], conditions: Conditions
) -> tuple[list[Matches], list[float]]:
    """The matches of every scene, and the F1 of as many points strewn blindly over the same regions."""
    radius_px = MATCH_RADIUS_PX * PAPER_PIXEL_NM / conditions.pixel_size_nm
    matches = [
        match_spikes(picture, labels, number, scene, conditions)
        for picture, labels, scene in zip(pictures, found, scenes, strict=True)
    ]
    chances = []
    for draw in range(_CHANCE_DRAWS):
        blind = []
        for one, labels, scene in zip(matches, found, scenes, strict=True):
            places = np.argwhere(labels == number)
            rng = np.random.default_rng([draw, one.found_count])
            chosen = places[rng.integers(0, len(places), one.found_count)] if len(places) else np.empty((0, 2))
            blind.append(match(chosen.astype(np.float64), scene.tips_px, radius_px))
        chances.append(pooled(blind).f1)
    return matches, chances


def visibility_figures(infer: Infer, scenes: Sequence[Scene], conditions: Conditions) -> dict[str, float]:
    """hidden_share, inferable_share (matched filter from 5), recall_of_hidden; f1_on_truth: the true picture's."""
    if "spiny" not in conditions.types:
        return {}
    number = conditions.types.index("spiny") + 1
    sensor = Sensor()
    hidden, inferable, hit, on_truth = [], [], [], []
    for scene in scenes:
        seen = [
            pollen.visibility(
                grain,
                pixel_size_nm=conditions.pixel_size_nm,
                exposure=scene.light.exposure,
                veil=scene.light.veil,
                electrons=scene.light.photons * sensor.quantum_efficiency,
                read_noise_e=sensor.read_noise_e,
            )
            for grain in scene.grains
            if grain.spikes
        ]
        on_truth.append(match_spikes(scene.shadowed, scene.labels, number, scene, conditions))
        if not seen:
            continue
        hidden.append(np.concatenate([one.hidden for one in seen]))
        inferable.append(np.concatenate([one.snr >= 5 for one in seen]))
        out = infer(scene.image)
        matches = match_spikes(out["shadowed"], labels_of(out["map"], len(conditions.types)), number, scene, conditions)
        hit.append(np.isin(np.arange(len(hidden[-1])), matches.true))
    concealed = np.concatenate(hidden)
    return {
        "hidden_share": float(concealed.mean()),
        "inferable_share": float(np.concatenate(inferable).mean()),
        "recall_of_hidden": float(np.concatenate(hit)[concealed].mean()),
        "f1_on_truth": pooled(on_truth).f1,
    }


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
        for index in range(1, len(scene.grains) + 1):
            here = scene.grain_of == index
            if here.any():
                right.append(np.bincount(labels[here]).argmax() == np.bincount(scene.labels[here]).argmax())
    return float(np.mean(right)) if right else 1.0


def _energies(
    kind: str, number: int, outputs: Sequence[Mapping[str, Image]], scenes: Sequence[Scene]
) -> tuple[float, float]:
    """(leak, own energy) of one filtered picture over all scenes."""
    other, total, along, own = 0.0, 0.0, 0.0, 0.0
    for out, scene in zip(outputs, scenes, strict=True):
        filtered = out[f"filtered_{kind}"].astype(np.float64)
        mine = scene.labels == number
        other += float((filtered**2)[(scene.labels > 0) & ~mine].sum())
        total += float((filtered**2).sum())
        along += float((filtered * scene.on_black)[mine].sum())
        own += float((scene.on_black.astype(np.float64) ** 2)[mine].sum())
    return other / total if total else 0.0, along / own if own else 1.0


def _tables(report: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float | None]]]:
    pictures = {
        name: {side: report[name][side] for side in ("input", "output")}
        for name in ("psnr_db", "ssim", "epi", "background_std")
        if name in report
    }
    labels = {"all types": {**report["labels"], "leak": report["leak"], "own_energy": report["own_energy"]}}
    tables: dict[str, dict[str, dict[str, float | None]]] = {"picture": pictures, "labels": labels}
    if "spikes" in report:
        tables["spikes"] = {"generated": report["spikes"]}
    return tables


def _curves(infer: Infer, conditions: Conditions, side_px: int) -> dict[str, Any]:
    """F1 of spikes and IoU of labels against light, exposure and grain size, the rest as held out."""
    changes: dict[str, list[tuple[float, dict[str, Any]]]] = {
        "photons": [(n, {"photons": (n,)}) for n in (100.0, 200.0, 400.0, 800.0, 1600.0)],
        "exposure": [(e, {"exposure": (e, e)}) for e in (0.4, 0.55, 0.7, 0.85)],
        "radius_um": [(r, {"radius_um": ((r, r),)}) for r in (5.0, 6.5, 8.0, 9.5, 11.0)],
    }
    curves = {}
    for name, points in changes.items():
        series: dict[str, list[float]] = {"spikes f1": [], "labels iou": []}
        for _, change in points:
            changed = Conditions.model_validate(conditions.model_dump() | change)
            made = figures(infer, data.scenes(changed, count=6, side_px=side_px, seed=data.HELDOUT_SEED + 1), changed)
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


def lens_outputs(net: Any) -> Callable[[Image], Mapping[str, Image]]:
    """A network as a function of one picture (h, w) to its outputs by name, (h, w) or (h, w, 3)."""
    import torch  # here, because judging a bundle needs none

    fused = net.fused()

    def infer(image: Image) -> Mapping[str, Image]:
        with torch.inference_mode():
            made = fused(torch.from_numpy(np.ascontiguousarray(image))[None, None])
        arrays = [part[0].numpy() for part in made]
        names = [output.name for output in fused.outputs]
        return {
            name: part[0] if len(part) == 1 else np.moveaxis(part, 0, -1)
            for name, part in zip(names, arrays, strict=True)
        }

    return infer
