"""`superlens-train`: trains networks from recipes, judges them, and makes training data of a lab's own images."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from models.errors import CheckpointError, DivergedError, ModelsError
from models.recipe import CONFIGS, Recipe, read_recipe

_folder = click.Path(path_type=Path, file_okay=False)
_file = click.Path(path_type=Path)


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
@click.option("--json", "json_to", metavar="FILE", help="Write the report as JSON to FILE, - is the terminal.")
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
        if json_to not in (None, "-"):
            Path(json_to).write_text(json.dumps(judgement.report, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(judgement.report, indent=2) if json_to == "-" else text_report(judgement.report))


@main.command()
@click.argument("recipes", nargs=-1, metavar="CONFIG CONFIG...")
@click.option("--out", type=_folder, required=True, help="Folder for the runs; those that are there are kept.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), required=True, help="Training time of each run.")
@click.option("--seeds", default="1,2,3", show_default=True, help="Seeds, with commas.")
@click.option("--workers", type=click.IntRange(1), help="As for fit.")
@click.option("--json", "json_to", metavar="FILE", help="Write the result as JSON to FILE, - is the terminal.")
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
        if json_to not in (None, "-"):
            Path(json_to).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        if json_to == "-":
            print(json.dumps(result, indent=2))
            return
        for figure, by_recipe in result["figures"].items():
            values = (f"{name} {value['mean']:.3f} ± {value['std']:.3f}" for name, value in by_recipe.items())
            print(f"{figure:48s}" + "   ".join(values))


@main.command()
@click.argument("config", type=_file)
@click.option("--option", help="Time the network with this option too, such as collapsed=false.")
@click.option("--json", "json_to", metavar="FILE", help="Write the result as JSON to FILE, - is the terminal.")
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
        if json_to not in (None, "-"):
            Path(json_to).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(result, indent=2))


def _changed(recipe: Recipe, data: Path | None, tiny: bool, steps: int | None, seed: int | None) -> Recipe:
    if data is not None:
        recipe = recipe.with_pairs(data)
    if tiny:
        recipe = recipe.tiny()
    if steps is not None:
        recipe = recipe.having("train", steps=steps)
    return recipe if seed is None else recipe.model_copy(update={"seed": seed})


@contextmanager
def _one_clear_error() -> Iterator[None]:
    """What went wrong in one line: exit 2 where the call or its files are wrong, 1 where the run failed."""
    try:
        yield
    except ModuleNotFoundError as exc:
        click.echo(f"error: this needs {exc.name}, which is not installed: pip install 'superlens[train]'", err=True)
        raise SystemExit(2) from exc
    except (ModelsError, OSError) as exc:
        click.echo(f"error: {exc}", err=True)
        raise SystemExit(1 if isinstance(exc, CheckpointError | DivergedError | OSError) else 2) from exc


if __name__ == "__main__":
    main()
