"""The default network has the published shape and size, and its inference form is the same function."""

import os

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.enhance.networks import RTNetG, build, parameter_count
from models.errors import RecipeError


def wild(**options: int) -> RTNetG:
    """A network whose layers all do something: as built, its tail and illumination branch are zero."""
    torch.manual_seed(1)
    net = RTNetG(**options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    return net.eval()


def test_the_default_network_has_62694_parameters_once_fused() -> None:
    assert parameter_count(RTNetG().fused()) == 62_694


def test_an_untrained_network_returns_its_input() -> None:
    image = torch.rand(2, 1, 40, 48)
    torch.testing.assert_close(RTNetG().eval()(image), image)


@settings(max_examples=12, deadline=None)
@given(height=st.integers(16, 70), width=st.integers(16, 70))
def test_fusing_is_exact_at_any_size(height: int, width: int) -> None:
    net = wild()
    image = torch.rand(1, 1, height, width)
    with torch.inference_mode():
        expected, fused = net(image), net.fused()(image)
    assert fused.shape == image.shape
    torch.testing.assert_close(fused, expected, atol=2e-6, rtol=0)


def test_the_fused_network_has_plain_convolutions_only() -> None:
    kinds = {type(module).__name__ for module in wild().fused().modules()}
    assert kinds == {"RTNetG", "Illumination", "Sequential", "ModuleList", "Conv2d", "ReLU"}


def test_the_output_is_clamped_only_outside_training() -> None:
    net = wild()
    image = torch.full((1, 1, 32, 32), 0.999)
    with torch.no_grad():
        net.tail.bias.fill_(0.5)  # type: ignore[union-attr]
    assert net(image).max() == 1
    assert net.train()(image).max() > 1


def test_a_pixel_does_not_reach_further_than_the_halo() -> None:
    net = wild()
    image = torch.rand(1, 1, 160, 160, requires_grad=True)
    # The illumination branch sees the whole frame on purpose; the halo is about the structure.
    for part in (net.illumination.mix, net.illumination.mix_frame):
        torch.nn.init.zeros_(part.weight)
    net.train()(image)[0, 0, 80, 80].backward()
    assert image.grad is not None
    reached = image.grad[0, 0].nonzero()
    assert int((reached - 80).abs().max()) <= net.halo_px


def test_an_unknown_network_or_option_is_refused() -> None:
    with pytest.raises(RecipeError, match="no network 'resnet'; choose one of rtnet-g"):
        build("resnet", {})
    with pytest.raises(RecipeError, match="does not take"):
        build("rtnet-g", {"colour": 1})
