"""The networks have the published shapes and sizes, and their inference forms are the same functions."""

import os
from typing import Any

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.checkpoint import build_network
from models.enhance.networks import Rep3x3, RTNet, build
from models.errors import RecipeError
from models.network import Network, parameter_count
from models.recipe import read_recipe


def wild(name: str = "rtnet-g", **options: Any) -> Network:
    """A network whose layers all do something: as built, its tail and illumination branch are zero."""
    torch.manual_seed(1)
    net = build(name, options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    return net.eval()


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("rtnet-g", {}, 62_694),
        ("rtnet", {}, 57_828),
        ("rtnet", {"features": 16, "blocks": 4}, 10_452),
        ("srcnn", {}, 8_129),  # 9-1-5 with 64 and 32 maps, Dong et al. 2014
        ("srcnn-attention", {}, 9_251),
    ],
)
def test_the_networks_have_the_published_number_of_parameters_once_fused(
    name: str, options: dict[str, Any], count: int
) -> None:
    assert parameter_count(build(name, options).fused()) == count


def test_srcnn_has_the_published_layers() -> None:
    layers = [layer for layer in build("srcnn", {}).modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [(layer.kernel_size[0], layer.out_channels) for layer in layers] == [(9, 64), (1, 32), (5, 1)]


def test_an_untrained_network_returns_its_input() -> None:
    image = torch.rand(2, 1, 40, 48)
    torch.testing.assert_close(RTNet(illumination=True).eval()(image), image)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rtnet-g", {}),
        ("rtnet-g", {"scale": 2}),
        ("rtnet", {"attention": "span"}),
        ("rtnet", {"attention": "se", "scale": 2}),
        ("srcnn", {"scale": 2}),
        ("srcnn-attention", {}),
    ],
)
@settings(max_examples=5, deadline=None)
@given(height=st.integers(16, 70), width=st.integers(16, 70))
def test_fusing_is_exact_at_any_size(name: str, options: dict[str, Any], height: int, width: int) -> None:
    net = wild(name, **options)
    image = torch.rand(1, 1, height, width)
    with torch.inference_mode():
        expected, fused = net(image), net.fused()(image)
    assert fused.shape == (1, 1, net.scale * height, net.scale * width)
    torch.testing.assert_close(fused, expected, atol=5e-6, rtol=0)


def test_branches_summed_in_weight_space_are_the_same_function() -> None:
    torch.manual_seed(2)
    layer, x = Rep3x3(8), torch.rand(1, 8, 20, 24)
    torch.nn.init.normal_(layer.point)
    together = layer(x)
    layer.collapsed = False
    torch.testing.assert_close(layer(x), together, atol=1e-5, rtol=0)


def test_the_fused_network_has_plain_convolutions_only() -> None:
    kinds = {type(module).__name__ for module in wild().fused().modules()}
    assert kinds == {"RTNet", "Illumination", "Sequential", "ModuleList", "Conv2d", "LeakyReLU"}


def test_attention_turns_maps_and_places_down() -> None:
    net = wild("srcnn-attention")
    seen: list[torch.Tensor] = []
    net.attention.register_forward_hook(lambda _, x, y: seen.extend((x[0], y)))
    net(torch.rand(1, 1, 32, 32))
    before, after = seen
    ratio = (after / before)[before > 0.05]
    assert 0 < ratio.min() < ratio.max() < 1


def test_the_output_is_clamped_only_outside_training() -> None:
    net = wild()
    image = torch.full((1, 1, 32, 32), 0.999)
    with torch.no_grad():
        net.tail.bias.fill_(0.5)
    assert net(image).max() == 1
    assert net.train()(image).max() > 1


@pytest.mark.parametrize(("name", "scale"), [("rtnet-g", 1), ("rtnet-g", 2), ("srcnn", 1), ("srcnn-attention", 1)])
def test_a_pixel_does_not_reach_further_than_the_halo(name: str, scale: int) -> None:
    net = wild(name, scale=scale)
    image = torch.rand(1, 1, 160, 160, requires_grad=True)
    # Illumination and channel attention see the whole frame on purpose; the halo is about the structure.
    for module in net.modules():
        for part in (getattr(module, attribute, None) for attribute in ("mix", "mix_frame", "excite")):
            if isinstance(part, torch.nn.Conv2d):
                torch.nn.init.zeros_(part.weight)
    net.train()(image)[0, 0, 80 * scale, 80 * scale].backward()
    assert image.grad is not None
    reached = image.grad[0, 0].nonzero()
    assert int((reached - 80).abs().max()) <= net.halo_px


@pytest.mark.parametrize("name", ["enhance-rt", "enhance-rt-x2", "srcnn", "srcnn-attention", "enhance-tiny"])
def test_recipes_give_networks_of_their_scale(name: str) -> None:
    recipe = read_recipe(name)
    with torch.device("meta"):
        net = build_network(recipe)
        image = torch.empty(1, 1, 512, 512)
    assert net.scale == recipe.data.scale
    assert net(image).shape == (1, 1, 512 * net.scale, 512 * net.scale)


def test_an_unknown_network_or_option_is_refused() -> None:
    with pytest.raises(RecipeError, match="no network 'resnet'; choose one of rtnet, rtnet-g"):
        build("resnet", {})
    with pytest.raises(RecipeError, match="does not take"):
        build("rtnet-g", {"colour": 1})
    with pytest.raises(RecipeError, match="scale 3"):
        build("srcnn", {"scale": 3})
