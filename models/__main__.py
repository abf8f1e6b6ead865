"""`superlens-train`: trains a network from a recipe and leaves a checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from models.errors import DivergedError, ModelsError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train the networks of the superlens box."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the checkpoint."
)
@click.option("--steps", type=click.IntRange(1), help="Instead of the recipe's train.steps.")
@click.option("--scenes", type=click.IntRange(1), help="Instead of the recipe's scenes.count.")
@click.option("--seed", type=click.IntRange(0), help="Instead of the recipe's seed.")
@click.option("--workers", type=click.IntRange(1), help="Processes that draw the specimens; default: one a core.")
def fit(config: Path, out: Path, steps: int | None, scenes: int | None, seed: int | None, workers: int | None) -> None:
    """Train as CONFIG (a TOML recipe) says; writes DIR/ema.safetensors and DIR/log.csv."""
    from models.recipe import read_recipe

    try:
        recipe = read_recipe(config)
        if steps is not None:
            recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": steps})})
        if scenes is not None:
            recipe = recipe.model_copy(update={"scenes": recipe.scenes.model_copy(update={"count": scenes})})
        if seed is not None:
            recipe = recipe.model_copy(update={"seed": seed})
        try:
            from models.train import fit as train
        except ModuleNotFoundError as exc:
            raise ModelsError(
                f"training needs {exc.name}, which is not installed: pip install 'superlens[train]'"
            ) from exc
        print(train(recipe, out, workers=workers))
    except (ModelsError, OSError) as exc:
        click.echo(f"error: {exc}", err=True)
        raise SystemExit(1 if isinstance(exc, DivergedError | OSError) else 2) from exc


if __name__ == "__main__":
    main()
