"""A step of system B changes the networks it should, pairs end when the recipe says, and a lab's folder is a source."""

import os
from pathlib import Path

import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import torch
from torch import Tensor, nn

from models.recipe import read_recipe
from models.sem import train
from models.sem.recipe import SemRecipe
from models.sem.train import SemTrainee, contextual
from tests.pairs import write_pairs


def tiny(**loss: object) -> SemRecipe:
    recipe = read_recipe("sem-lite")
    assert isinstance(recipe, SemRecipe)
    return recipe.tiny().having("scenes", count=3).having("loss", **loss)


class Counting:
    """Takes the optimiser's step and notes whose gradients there were."""

    def __init__(self, trainee: SemTrainee) -> None:
        self.trainee = trainee
        self.calls: list[str] = []

    def __call__(self, name: str, loss: Tensor) -> float:
        self.calls.append(name)
        optimizer = self.trainee.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()


def changed(trainee: SemTrainee, before: dict[str, Tensor]) -> set[str]:
    return {key.split(".")[0] for key, value in trainee.nets.named_parameters() if not torch.equal(value, before[key])}


def weights(trainee: SemTrainee) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in trainee.nets.named_parameters()}


def batch(crops: int = 2, side_px: int = 64) -> dict[str, Tensor]:
    return {name: torch.rand(crops, 1, side_px, side_px) for name in ("optical", "sem")}


def test_a_paired_step_trains_both_generators_and_no_judge() -> None:
    trainee = SemTrainee(tiny())
    trainee.nets.train()
    before, update = weights(trainee), Counting(trainee)
    losses = trainee.train_step(batch(), 4, update)
    assert update.calls == ["generator"]
    assert changed(trainee, before) == {"net", "reverse"}
    assert set(losses) == {"generator", "l1", "contextual"}


@pytest.mark.parametrize("gan", ["log", "least-squares"])
def test_an_unpaired_step_trains_generators_then_judges(gan: str) -> None:
    trainee = SemTrainee(tiny(gan=gan))
    trainee.nets.train()
    before, update = weights(trainee), Counting(trainee)
    losses = trainee.train_step(batch(), 5, update)
    assert update.calls == ["generator", "discriminator"]
    assert changed(trainee, before) == {"net", "reverse", "judge_sem", "judge_optical"}
    assert set(losses) == {"generator", "adversarial", "cycle", "identity", "discriminator"}
    assert int(trainee.nets["pool_sem"].held) == 2


def test_the_generators_step_leaves_the_judges_alone_and_gives_them_back() -> None:
    trainee = SemTrainee(tiny())
    trainee.nets.train()
    trainee.train_step(batch(), 5, Counting(trainee))
    assert all(weight.requires_grad for weight in trainee.nets["judge_sem"].parameters())


def test_batch_norms_keep_the_statistics_of_the_pairs() -> None:
    trainee = SemTrainee(tiny())
    trainee.nets.train()
    trainee.train_step(batch(), 1, Counting(trainee))
    kept = {key: value.clone() for key, value in trainee.nets["net"].named_buffers() if "running" in key}
    assert kept
    trainee.train_step(batch(), 8, Counting(trainee))
    for key, value in trainee.nets["net"].named_buffers():
        if "running" in key:
            assert torch.equal(value, kept[key])


def test_without_its_weight_the_contextual_loss_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(train, "contextual_loss")
    trainee = SemTrainee(tiny(contextual=0))
    assert set(trainee.train_step(batch(), 1, Counting(trainee))) == {"generator", "l1"}


def test_crops_depend_on_seed_step_and_number_only() -> None:
    trainee = SemTrainee(tiny())
    trainee.prepare(workers=1)
    whole, half = trainee.draw(3, range(2)), trainee.draw(3, range(1, 2))
    assert whole["optical"].shape == (2, 1, 64, 64)
    assert whole["optical"].dtype == whole["sem"].dtype == np.float32
    np.testing.assert_array_equal(whole["sem"][1:], half["sem"])
    np.testing.assert_array_equal(whole["optical"][1:], half["optical"])
    assert not np.array_equal(whole["optical"], trainee.draw(4, range(2))["optical"])


def test_the_optimisers_are_the_papers() -> None:
    for optimizer in SemTrainee(tiny()).optimizers.values():
        assert isinstance(optimizer, torch.optim.Adam)
        assert optimizer.param_groups[0]["betas"] == (0.5, 0.999)


def test_validation_and_pictures_work_on_the_exported_form() -> None:
    trainee = SemTrainee(tiny())
    trainee.prepare(workers=1)
    net = trainee.nets["net"].eval()
    assert isinstance(net, nn.Module)
    figures = trainee.validate(net)
    assert list(figures) == ["ssim", "psnr_db", "epi", "contextual"]
    sheet = trainee.pictures(net)
    assert sheet.shape == (6 * 96, 3 * 96)


def test_a_labs_own_pairs_are_a_source(tmp_path: Path) -> None:
    drawn = [tuple(part) for part in np.random.default_rng(0).random((2, 2, 96, 96), dtype=np.float32)]
    recipe = tiny().with_pairs(tmp_path / "pairs")
    write_pairs(tmp_path / "pairs", dict.fromkeys(("train", "validation", "test"), drawn), recipe.pixel_size_nm)
    trainee = SemTrainee(recipe)
    trainee.prepare(workers=1)
    for step in (1, 8):
        assert trainee.draw(step, range(2))["sem"].shape == (2, 1, 64, 64)
    assert trainee.validate(trainee.nets["net"].eval())["psnr_db"] > 0


def test_the_contextual_figure_is_the_same_every_time() -> None:
    a, b = np.random.default_rng(0).random((2, 96, 96), dtype=np.float32)
    assert contextual(a, b) == contextual(a, b)
    assert contextual(a, a) < contextual(a, b)
