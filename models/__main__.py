"""`superlens-train`: trains networks from recipes, judges them, and makes training data of a lab's own images."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from models.errors import CheckpointError, DivergedError, ModelsError
from models.recipe import CONFIGS, Recipe, read_recipe

_folder = click.Path(path_type=Path, file_okay=False)
_file = click.Path(path_type=Path)
_positive = click.FloatRange(0, min_open=True)
_json = click.option("--json", "json_to", metavar="FILE", help="Write the result as JSON to FILE, - is the terminal.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train the networks of the superlens box."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")


@main.command()
def configs() -> None:
    """List the recipes that ship with the program."""
    for path in sorted(CONFIGS.glob("*.toml"), key=lambda path: path.stem):
        recipe = read_recipe(path)
        t = recipe.train
        work = f"{t.steps} steps of {t.crops} x {t.crop_px} px"
        print(f"{recipe.name:18s} {recipe.task:12s} {recipe.network.name:16s} {work}")


@main.command()
@click.argument("config", type=_file)
@click.option("--out", type=_folder, required=True, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out, exactly as if it had not been interrupted.")
@click.option("--init", type=_file, help="Start from the weights of a bundle or checkpoint.")
@click.option("--data", type=_folder, help="Learn from the pairs in this folder (superlens-train pairs).")
@click.option("--tiny", is_flag=True, help="The same code in seconds, to see whether it runs; learns nothing.")
@click.option("--steps", type=click.IntRange(1), help="Instead of the recipe's train.steps.")
@click.option("--seed", type=click.IntRange(0), help="Instead of the recipe's seed.")
@click.option("--until", type=click.IntRange(1), help="Stop after this step as if interrupted.")
@click.option("--workers", type=click.IntRange(1), help="Processes that draw the specimens; default: one a core.")
def fit(
    config: Path,
    out: Path,
    resume: bool,
    init: Path | None,
    data: Path | None,
    tiny: bool,
    steps: int | None,
    seed: int | None,
    until: int | None,
    workers: int | None,
) -> None:
    """Train as CONFIG says: a TOML file, or a name from `superlens-train configs`.

    Leaves DIR/best.safetensors (for superlens-export convert), last.safetensors, log.csv, samples/ and tensorboard/.
    Ctrl-C saves the state first. Several processes: torchrun --nproc-per-node N -m models fit ...
    """
    with _one_clear_error():
        recipe = _changed(read_recipe(config), data, tiny, steps, seed)
        from models.train import fit as train

        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        print(train(recipe, out, resume=resume, init=init, workers=workers, until=until, stop=stop))


@main.command()
@click.argument("checkpoint", type=_file)
@click.option(
    "--data",
    default="synthetic:heldout",
    show_default=True,
    help="synthetic:heldout, real:heldout, or a folder made by superlens-train pairs.",
)
@click.option("--data-dir", type=_folder, help="Folder of images for real:heldout.")
@click.option("--html", type=_file, help="Write the whole report with pictures; takes minutes.")
@_json
def evaluate(checkpoint: Path, data: str, data_dir: Path | None, html: Path | None, json_to: str | None) -> None:
    """Judge CHECKPOINT as superlens-export evaluate judges a bundle, before there is one; torch in FP32."""
    with _one_clear_error():
        from models.checkpoint import load_checkpoint, subject_of
        from models.evaluate import evaluate as judge
        from models.evaluate import text_report

        name, folder = (data, data_dir) if data.endswith(":heldout") else ("pairs", Path(data))
        judgement = judge(subject_of(load_checkpoint(checkpoint)), name, folder=folder, thorough=html is not None)
        if html is not None:
            from models.report import html_report

            html.write_text(html_report(judgement, title=f"{checkpoint} on {data}"), encoding="utf-8")
        _tell(judgement.report, text_report(judgement.report), json_to)


@main.command()
@click.argument("recipes", nargs=-1, metavar="CONFIG CONFIG...")
@click.option("--out", type=_folder, required=True, help="Folder for the runs; those that are there are kept.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), required=True, help="Training time of each run.")
@click.option("--seeds", default="1,2,3", show_default=True, help="Seeds, with commas.")
@click.option("--workers", type=click.IntRange(1), help="As for fit.")
@_json
def compare(
    recipes: tuple[str, ...], out: Path, minutes: float, seeds: str, workers: int | None, json_to: str | None
) -> None:
    """Train recipes for equal time with several seeds: mean and standard deviation of every figure."""
    with _one_clear_error():
        try:
            numbers = [int(seed) for seed in seeds.split(",")]
        except ValueError as exc:
            raise click.BadParameter(f"{seeds!r}, expected whole numbers with commas", param_hint="--seeds") from exc
        from models.compare import compare as run

        result = run([read_recipe(name) for name in recipes], out, seeds=numbers, minutes=minutes, workers=workers)
        lines = []
        for figure, by_recipe in result["figures"].items():
            values = (f"{name} {value['mean']:.3f} ± {value['std']:.3f}" for name, value in by_recipe.items())
            lines.append(f"{figure:60s}" + "   ".join(values))
        _tell(result, "\n".join(lines), json_to)


@main.command()
@click.option("--out", type=_folder, required=True, help="Folder for the runs.")
@click.option("--steps", type=click.IntRange(4), default=800, show_default=True, help="Of each run.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Runs of each variant.")
@click.option("--workers", type=click.IntRange(1), help="As for fit.")
@_json
def ablate(out: Path, steps: int, seeds: int, workers: int | None, json_to: str | None) -> None:
    """System B's ablation at mini size: residual blocks, dropout and norm, one changed at a time, in one table."""
    with _one_clear_error():
        from models.evaluate import text_report
        from models.sem.ablate import ablate as run

        table = run(out, steps=steps, seeds=seeds, workers=workers)
        report = {"model": "ablation of sem-lite", "data": "synthetic:heldout", "tables": {"variant": table}}
        _tell(table, text_report(report), json_to)


@main.command()
@click.argument("config", type=_file)
@click.option("--option", help="Time the network with this option too, such as collapsed=false.")
@_json
def bench(config: Path, option: str | None, json_to: str | None) -> None:
    """Training steps per second of CONFIG, and of a variant in turns with it: their ratio is the figure to quote."""
    with _one_clear_error():
        from models.compare import step_times_s

        recipe = read_recipe(config)
        recipes = {recipe.name: recipe}
        if option is not None:
            name, _, value = option.partition("=")
            try:
                options = recipe.network.options | {name: json.loads(value)}
            except ValueError as exc:
                raise click.BadParameter(f"{option!r}, expected NAME=VALUE", param_hint="--option") from exc
            recipes[f"{recipe.name} {option}"] = recipe.having("network", options=options)
        rates = {label: round(1 / time_s, 2) for label, time_s in step_times_s(recipes, workers=1).items()}
        first, *others = rates.values()
        result = {"steps_per_s": rates, "ratio": [round(first / other, 3) for other in others]}
        _tell(result, json.dumps(result, indent=2), json_to)


@main.command()
@click.option("--optical", type=_file, required=True, help="The mosaic; exactly 0 where no tile lies.")
@click.option("--sem", "sems", type=_file, required=True, multiple=True, help="An SEM image of it; may be repeated.")
@click.option("--out", type=_folder, required=True, help="Folder to make; must not exist.")
@click.option("--optical-nm-per-px", type=_positive, help="Pixel of the mosaic; default: what its file says.")
@click.option("--sem-nm-per-px", type=_positive, help="Pixel of the SEM images; default: what their files say.")
@click.option("--pixel-nm", type=_positive, help="Pixel of the pairs; default: the mosaic's.")
@click.option("--landmarks", type=_file, multiple=True, help="JSON of points seen in both, instead of a search.")
@click.option("--labels", type=_file, multiple=True, help="Label map of the SEM image (superlens-train labels).")
@click.option("--crop-px", type=click.IntRange(16), default=512, show_default=True, help="Side of a crop.")
@click.option("--gap-px", type=click.IntRange(0), default=32, show_default=True, help="Distance between crops.")
@_json
def pairs(
    optical: Path,
    sems: tuple[Path, ...],
    out: Path,
    optical_nm_per_px: float | None,
    sem_nm_per_px: float | None,
    pixel_nm: float | None,
    landmarks: tuple[Path, ...],
    labels: tuple[Path, ...],
    crop_px: int,
    gap_px: int,
    json_to: str | None,
) -> None:
    """Register a lab's SEM images with its mosaic and write pairs of crops, split by region, for fit and evaluate.

    Landmarks and labels are given in the order of the SEM images, one for each.
    """
    with _one_clear_error():
        from models.make_pairs import make_pairs, report

        made = make_pairs(
            optical,
            sems,
            out,
            optical_nm=optical_nm_per_px,
            sem_nm=sem_nm_per_px,
            pixel_nm=pixel_nm,
            crop_px=crop_px,
            gap_px=gap_px,
            landmarks=landmarks,
            labels=labels,
        )
        result = {"out": str(out), **report(made)}
        lines = [
            f"{fit_.file}: scale {fit_.scale:.4f}, rotation {fit_.rotation_deg:.2f} degrees, residual"
            f" {fit_.residual_px:.2f} px, {len(fit_.burned_in)} burned-in boxes masked"
            for fit_ in made.registrations
        ]
        counts = ", ".join(f"{count} {split}" for split, count in result["counts"].items())
        lines.append(
            f"{out}: {counts} pairs of {crop_px} px at {made.pixel_size_nm:.2f} nm; {len(made.rejected)} left out"
        )
        _tell(result, "\n".join(lines), json_to)


@main.command()
@click.option("--sem", type=_file, required=True, help="The image whose outlines count.")
@click.option("--classes", type=_file, required=True, help="Polygons (.json) or a mask (an image, value = class).")
@click.option("--out", type=_file, required=True, help="Label map to write, a .png.")
@click.option("--blur-px", type=_positive, default=2.0, show_default=True, help="More for a noisier image.")
def labels(sem: Path, classes: Path, out: Path, blur_px: float) -> None:
    """Turn a person's rough marks into a label map that follows the outlines in an SEM image."""
    with _one_clear_error():
        from models.labels import label_map, read_strokes, write_labels
        from models.micrographs import read_micrograph

        image = read_micrograph(sem, pixel_size_nm=1.0).image  # the size of a pixel does not matter here
        strokes, names = read_strokes(classes, image.shape)
        found = label_map(image, strokes, blur_px=blur_px)
        write_labels(out, found, names)
        shares = ", ".join(f"{name} {(found == number).mean():.1%}" for number, name in enumerate(names, 1))
        print(f"{out}: {shares}")


def _changed(recipe: Recipe, data: Path | None, tiny: bool, steps: int | None, seed: int | None) -> Recipe:
    if data is not None:
        recipe = recipe.with_pairs(data)
    if tiny:
        recipe = recipe.tiny()
    if steps is not None:
        recipe = recipe.having("train", steps=steps)
    return recipe if seed is None else recipe.model_copy(update={"seed": seed})


def _tell(result: Mapping[str, Any], text: str, json_to: str | None) -> None:
    """The result as text; or as JSON, in the terminal or (beside the text) in a file."""
    if json_to is not None and json_to != "-":
        Path(json_to).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2) if json_to == "-" else text)


@contextmanager
def _one_clear_error() -> Iterator[None]:
    """What went wrong in one line: exit 2 where the call or its files are wrong, 1 where the run failed."""
    try:
        yield
    except ModuleNotFoundError as exc:
        click.echo(
            f"error: this needs {exc.name}, which is not installed: run make install-dev in the checkout", err=True
        )
        raise SystemExit(2) from exc
    except (ModelsError, OSError) as exc:
        click.echo(f"error: {exc}", err=True)
        raise SystemExit(1 if isinstance(exc, CheckpointError | DivergedError | OSError) else 2) from exc


if __name__ == "__main__":
    main()
