"""The discriminator sees 70 px and has the published layers."""

import os

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import torch
from torch import nn

from models.discriminator import PatchGAN


def test_the_default_discriminator_is_the_70_px_one_with_five_layers() -> None:
    net = PatchGAN(2)
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convolutions] == [64, 128, 256, 512, 1]
    assert {conv.kernel_size for conv in convolutions} == {(4, 4)}
    assert net.receptive_field_px == 70
    assert net(torch.rand(1, 2, 256, 256)).shape == (1, 1, 30, 30)


@pytest.mark.parametrize(("strides", "side_px"), [((2, 2, 2, 1, 1), 70), ((2, 2, 1, 1), 34), ((2, 2, 2, 2, 1), 94)])
def test_the_receptive_field_is_the_one_a_gradient_finds(strides: tuple[int, ...], side_px: int) -> None:
    net = PatchGAN(1, features=2, strides=strides, norm="none")
    assert net.receptive_field_px == side_px
    image = torch.rand(1, 1, 256, 256, requires_grad=True)
    logits = net(image)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    assert image.grad is not None
    rows = image.grad[0, 0].abs().sum(1).nonzero()
    assert int(rows.max() - rows.min()) + 1 == side_px


def test_the_first_and_the_last_layer_have_no_norm() -> None:
    net = PatchGAN(1, norm="batch")
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in layer.modules()) for layer in net.layers]
    assert norms == [0, 1, 1, 1]
    assert sum(isinstance(m, nn.InstanceNorm2d) for m in PatchGAN(1).modules()) == 3


def test_its_hidden_activations_can_be_looked_at() -> None:
    net = PatchGAN(1, features=8)
    assert [tuple(part.shape[1:]) for part in net.features(torch.rand(1, 1, 64, 64))] == [
        (8, 32, 32),
        (16, 16, 16),
        (32, 8, 8),
        (64, 7, 7),
    ]


def test_an_impossible_discriminator_is_refused() -> None:
    with pytest.raises(ValueError, match="no PatchGAN has 0 input channels"):
        PatchGAN(0)
