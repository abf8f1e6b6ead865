"""What training leaves: checkpoints (weights and recipe), and the state to go on from; safetensors, never a pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.errors import CheckpointError, ModelsError
from models.evaluate import Subject
from models.network import Network, infer_with
from models.recipe import Recipe, parse_recipe
from models.systems import SYSTEMS, imported

# One entry: safetensors writes several in an order that differs from run to run, and the file's hash with it.
_ENTRY = "superlens"


class Checkpoint(NamedTuple):
    """A network with its weights, in evaluation mode, and where it came from."""

    net: Network
    recipe: Recipe
    step: int


class State(NamedTuple):
    """Where a run stands after `step`; `best` is the best validation figure, `stale` the validations since."""

    step: int
    best: float | None
    stale: int


def build_network(recipe: Recipe) -> Network:
    """The network of a recipe, with random weights."""
    net: Network = imported(SYSTEMS[recipe.task].build)(recipe.network.name, recipe.network.options)
    return net


def save_checkpoint(path: Path, net: Network, recipe: Recipe, step: int) -> None:
    """Write a checkpoint; a reader sees the old file or the new one."""
    weights = {name: _stored(value) for name, value in net.state_dict().items()}
    _save(path, weights, {"recipe": recipe.model_dump(mode="json"), "step": step})


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Rebuild the network of a checkpoint.

    Raises
    ------
    CheckpointError
        The file is absent, no safetensors file, has no recipe, or its weights are not its network's.
    """
    path = Path(path)
    weights, about = _load(path)
    try:
        recipe = parse_recipe(about["recipe"], source=str(path))
        step = int(about["step"])
    except (KeyError, ValueError) as exc:
        raise CheckpointError(f"{path} has no recipe of ours in it ({exc}); train it again") from exc
    try:
        net = build_network(recipe)
        net.load_state_dict(weights)
    except (ModelsError, RuntimeError) as exc:
        raise CheckpointError(f"{path} does not fit its network {recipe.network.name}: {exc}; train it again") from exc
    return Checkpoint(net.eval(), recipe, step)


def subject_of(checkpoint: Checkpoint) -> Subject:
    """The checkpoint as somebody to judge, run by torch in FP32."""
    net, recipe = checkpoint.net, checkpoint.recipe
    return Subject(
        name=recipe.name,
        task=recipe.task,
        infer=infer_with(net),
        scale=net.scale,
        halo_px=net.halo_px,
        pixel_size_nm=recipe.pixel_size_nm,
        outputs=tuple(output.name for output in net.outputs),
        recipe=recipe,
    )


def load_weights(net: Network, path: Path) -> None:
    """Start a network from another run's weights (`--init`): a checkpoint, or a bundle folder with one in it.

    Raises
    ------
    CheckpointError
        The weights are not those of such a network: every name and shape must fit.
    """
    file = path / "weights.safetensors" if path.is_dir() else path
    try:
        net.load_state_dict(_load(file)[0])
    except RuntimeError as exc:
        raise CheckpointError(
            f"{file} does not fit the network of this recipe ({str(exc).splitlines()[-1].strip()}); use the same"
            " [network] as the recipe it was trained with"
        ) from exc


def save_state(
    path: Path,
    recipe: Recipe,
    nets: nn.ModuleDict,
    ema: Network,
    optimizers: Mapping[str, torch.optim.Optimizer],
    state: State,
) -> None:
    """Write everything that the next step depends on."""
    tensors = {f"nets/{name}": _stored(value) for name, value in nets.state_dict().items()}
    tensors |= {f"ema/{name}": _stored(value) for name, value in ema.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{name}/{index}/{key}": _stored(value) for key, value in moments.items()}
    _save(path, tensors, state._asdict() | {"recipe": recipe.model_dump(mode="json")})


def load_state(
    path: Path, recipe: Recipe, nets: nn.ModuleDict, ema: Network, optimizers: Mapping[str, torch.optim.Optimizer]
) -> State:
    """Put a run back to where `save_state` saw it.

    Raises
    ------
    CheckpointError
        There is no state, or it is of another recipe, by any key, or of another release.
    """
    tensors, about = _load(path)
    begun, now = (_flat(content) for content in (about.pop("recipe", {}), recipe.model_dump(mode="json")))
    if other := sorted(key for key in begun.keys() | now.keys() if begun.get(key) != now.get(key)):
        said = ", ".join(f"{key} was {begun.get(key)!r} and is {now.get(key)!r}" for key in other[:5])
        raise CheckpointError(
            f"{path} is of a run with another recipe: {said}; resume with the same recipe and options, or begin anew in"
            " another folder"
        )
    parts: dict[str, dict[str, Tensor]] = {"nets": {}, "ema": {}, "optimizer": {}}
    try:
        for name, value in tensors.items():
            part, key = name.split("/", 1)
            parts[part][key] = value
        nets.load_state_dict(parts["nets"])
        ema.load_state_dict(parts["ema"])
        for name, optimizer in optimizers.items():
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in parts["optimizer"].items():
                owner, index, moment = key.split("/")
                if owner == name:
                    moments.setdefault(int(index), {})[moment] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments, "param_groups": groups})
        return State(**about)
    except (KeyError, RuntimeError, TypeError, ValueError) as exc:
        raise CheckpointError(
            f"{path} is no state of this recipe ({exc}); resume with the recipe it was begun with, or begin anew"
            " in another folder"
        ) from exc


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors for a person to look at, such as the batch that broke a run."""
    _save(path, {name: _stored(value) for name, value in tensors.items()}, about)


def _stored(value: Tensor) -> Tensor:
    return value.detach().to("cpu").contiguous()


def _save(path: Path, tensors: dict[str, Tensor], about: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}")
    try:
        save_file(tensors, temporary, {_ENTRY: json.dumps(about)})
        temporary.replace(path)
    except (SafetensorError, OSError) as exc:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path} could not be saved ({exc}); what was there before is untouched: make room, then go on with"
            " --resume"
        ) from exc


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is not a file; make one with: superlens-train fit CONFIG --out DIR")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # no dict
    except (SafetensorError, OSError) as exc:
        raise CheckpointError(f"{path} is no safetensors file ({exc}); train it again") from exc
    try:
        about = json.loads(metadata[_ENTRY])
    except (KeyError, ValueError) as exc:
        raise CheckpointError(f"{path} was not written by this program ({exc}); train it again") from exc
    return tensors, about
