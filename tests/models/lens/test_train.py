"""Each network of the lens learns from its own pairs, and a run that was cut off goes on exactly."""

import os
from pathlib import Path

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import torch
from torch import Tensor

from models.checkpoint import load_checkpoint
from models.lens.recipe import LensRecipe
from models.lens.train import LensTrainee
from models.recipe import read_recipe
from models.train import fit

CROPS = 6  # enough for grains of both types


@pytest.fixture(scope="module")
def recipe() -> LensRecipe:
    tiny = read_recipe("neural-lens-mini").tiny()
    assert isinstance(tiny, LensRecipe)
    return tiny.having("train", precision="fp32")  # in bf16 two gradients may cancel to nothing


@pytest.fixture
def trainee(recipe: LensRecipe) -> LensTrainee:
    torch.manual_seed(1)
    trainee = LensTrainee(recipe)
    trainee.prepare(workers=1)
    trainee.nets.train()
    return trainee


def batch(trainee: LensTrainee) -> dict[str, Tensor]:
    return {name: torch.from_numpy(part) for name, part in trainee.draw(1, range(CROPS)).items()}


def step(trainee: LensTrainee, number: int) -> dict[str, float]:
    def update(name: str, loss: Tensor) -> float:
        optimizer = trainee.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(loss.detach())

    return trainee.train_step(batch(trainee), number, update)


def test_a_step_moves_every_generator_and_every_discriminator(trainee: LensTrainee) -> None:
    before = {name: value.clone() for name, value in trainee.nets.named_parameters()}
    losses = step(trainee, 8)
    assert set(losses) == {"label", "shadow", "magnify_spiny", "magnify_smooth", "generators", "discriminators"}
    still = [name for name, value in trainee.nets.named_parameters() if torch.equal(value, before[name])]
    assert still == []
    assert set(trainee.discriminators) == {"shadow", "magnify_spiny", "magnify_smooth"}


def test_a_network_that_rests_is_not_moved(trainee: LensTrainee) -> None:
    before = {name: value.clone() for name, value in trainee.net.named_parameters()}
    losses = step(
        trainee, 7
    )  # the recipe's labelling net takes every second step, the shadowing and the smooth net every fourth
    assert {"label", "shadow", "magnify_smooth"}.isdisjoint(losses)
    moved = {
        name.split(".up")[0].split(".down")[0]
        for name, p in trainee.net.named_parameters()
        if not torch.equal(p, before[name])
    }
    assert moved == {"magnify.0"}


def test_before_their_share_of_the_steps_the_discriminators_rest(recipe: LensRecipe) -> None:
    trainee = LensTrainee(recipe.having("loss", adversary_from=0.5))
    trainee.prepare(workers=1)
    before = {name: value.clone() for name, value in trainee.discriminators.named_parameters()}
    assert "discriminators" not in step(trainee, 4)
    for name, value in trainee.discriminators.named_parameters():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)
    assert "discriminators" in step(trainee, 8)


def test_the_networks_first_get_the_truth_and_later_also_what_they_predict(trainee: LensTrainee) -> None:
    seen: list[Tensor] = []
    trainee.net.shadow.register_forward_hook(lambda module, given, made: seen.append(given[0]))
    for own in (False, True):
        torch.manual_seed(0)  # which crops are chosen
        trainee.generator_step(batch(trainee), lambda name, loss: 0.0, due={"shadow"}, own=own, adversary=0.0)
    truth = batch(trainee)["on_black"] * 2 - 1
    torch.testing.assert_close(seen[0], truth)
    changed = [not torch.allclose(seen[1][crop], truth[crop], atol=1e-3) for crop in range(CROPS)]
    chosen = (torch.manual_seed(0), torch.rand(CROPS, 1, 1, 1) < 0.5)[1].flatten().tolist()
    assert changed == chosen


def test_four_steps_and_four_are_eight(recipe: LensRecipe, tmp_path: Path) -> None:
    whole = load_checkpoint(fit(recipe, tmp_path / "whole", workers=1).with_name("last.safetensors"))
    fit(recipe, tmp_path / "parts", workers=1, until=4)
    parts = load_checkpoint(fit(recipe, tmp_path / "parts", workers=1, resume=True).with_name("last.safetensors"))
    assert whole.step == parts.step == 8
    for name, value in whole.net.state_dict().items():
        torch.testing.assert_close(parts.net.state_dict()[name], value, atol=0, rtol=0)
