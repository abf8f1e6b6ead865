"""A checkpoint: weights and the recipe they came from in one safetensors file, never a pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from models.enhance.networks import RTNetG, build
from models.errors import CheckpointError, ModelsError
from models.recipe import Recipe, parse_recipe


class Checkpoint(NamedTuple):
    """A network with its weights, in evaluation mode, and where it came from."""

    net: RTNetG
    recipe: Recipe
    step: int


def save_checkpoint(path: Path, net: nn.Module, recipe: Recipe, step: int) -> None:
    """Write a checkpoint; a reader sees the old file or the new one."""
    weights = {name: value.detach().float().contiguous() for name, value in net.state_dict().items()}
    temporary = path.with_name(f".{path.name}")
    save_file(weights, temporary, {"recipe": recipe.model_dump_json(), "step": str(step)})
    temporary.replace(path)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Rebuild the network of a checkpoint.

    Raises
    ------
    CheckpointError
        The file is absent, no safetensors file, has no recipe, or its weights are not its network's.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is not a file; make one with: superlens-train fit CONFIG --out DIR")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # no dict
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path} is no safetensors file ({exc}); train it again") from exc
    try:
        recipe = parse_recipe(json.loads(metadata["recipe"]), source=str(path))
        step = int(metadata["step"])
    except (KeyError, ValueError) as exc:
        raise CheckpointError(f"{path} has no recipe of ours in it ({exc}); train it again") from exc
    try:
        net = build(recipe.network.name, recipe.network.options)
        net.load_state_dict(weights)
    except (ModelsError, RuntimeError) as exc:
        raise CheckpointError(f"{path} does not fit its network {recipe.network.name}: {exc}; train it again") from exc
    return Checkpoint(net.eval(), recipe, step)
