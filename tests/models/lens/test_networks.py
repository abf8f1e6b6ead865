"""The lens has the published layers, joins its networks as published, and its inference form is the same function."""

import os

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import torch
from torch import Tensor, nn

from models.errors import RecipeError, SpecimenError
from models.lens.networks import NeuralLens, UNet, build, steep_masks, type_colour
from models.network import parameter_count


def wild(**options: object) -> NeuralLens:
    """A small lens whose norms have seen something and whose layers are strong enough to matter."""
    torch.manual_seed(2)
    net = NeuralLens(**({"downs": 4, "ngf": 8, "cap": 16} | options))  # type: ignore[arg-type]
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.weight.mul_(6)
                if module.bias is not None:
                    module.bias.zero_()
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)
                assert module.running_var is not None
                module.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.mark.parametrize(("ngf", "millions"), [(64, 79.6), (32, 19.9)])
def test_ten_downs_at_1024_px_have_the_published_size(ngf: int, millions: float) -> None:
    with torch.device("meta"):
        net = UNet(1, 1, downs=10, ngf=ngf)
        assert net(torch.zeros(1, 1, 1024, 1024)).shape == (1, 1, 1024, 1024)
    assert parameter_count(net) / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_u_net_has_the_layers_of_pix2pix() -> None:
    net = UNet(1, 2, downs=8, ngf=64)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert {(conv.kernel_size, conv.stride, conv.padding) for conv in convolutions} == {((4, 4), (2, 2), (1, 1))}
    assert [layer.conv.out_channels for layer in net.down] == [64, 128, 256, 512, 512, 512, 512, 512]  # type: ignore[union-attr]
    assert [layer.conv.out_channels for layer in net.up] == [512, 512, 512, 512, 256, 128, 64, 2]  # type: ignore[union-attr]
    normed = [[isinstance(layer.norm, nn.BatchNorm2d) for layer in half] for half in (net.down, net.up)]  # type: ignore[union-attr]
    assert normed == [[False, *[True] * 6, False], [True] * 7 + [False]]


def test_the_innermost_layer_of_eight_downs_is_one_pixel() -> None:
    shapes: list[tuple[int, ...]] = []
    net = UNet(1, 1, downs=8, ngf=2).eval()
    net.down[-1].register_forward_hook(lambda module, given, made: shapes.append(tuple(made.shape)))
    net(torch.zeros(1, 1, 256, 512))
    assert shapes == [(1, 16, 1, 2)]


def test_dropout_acts_in_three_layers_while_training_and_never_after() -> None:
    net = NeuralLens(downs=6, ngf=4)
    image = torch.rand(1, 1, 64, 64)
    calls: list[bool] = []
    real = torch.nn.functional.dropout

    def counted(x: Tensor, p: float, training: bool) -> Tensor:
        calls.append(training)
        return real(x, p, training)

    torch.nn.functional.dropout = counted  # type: ignore[assignment]
    try:
        net.train().label(torch.rand(2, 1, 64, 64))
        assert calls == [True] * 3
    finally:
        torch.nn.functional.dropout = real
    net.eval()
    for one, other in zip(net(image), net(image), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_the_outputs_are_named_in_order_and_there_is_one_filtered_picture_per_type() -> None:
    net = wild(types=["spiny", "smooth", "porous"])
    assert [output.name for output in net.outputs] == [
        "shadowed", "magnified", "map", "coloured", "filtered_spiny", "filtered_smooth", "filtered_porous",
    ]  # fmt: skip
    made = net(torch.rand(2, 1, 32, 48))
    assert [tuple(part.shape) for part in made] == [(2, output.channels, 32, 48) for output in net.outputs]
    assert all(part.min() >= 0 and part.max() <= 1 for part in made)
    assert len(net.magnify) == 3


class Copy(nn.Module):
    """A network that returns what it is given: tanh undone, so that pictures pass unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.atanh(x.clamp(-0.9999, 0.9999))


def test_the_pictures_are_joined_as_the_formulas_say() -> None:
    net = NeuralLens(downs=4, ngf=4, margin_px=0).eval()
    net.magnify = nn.ModuleList([Copy(), Copy()])
    net.shadow = Copy()
    light = torch.rand(1, 1, 16, 16) * 1.6 - 0.8
    image = (light + 1) / 2  # as an electron picture
    maps = torch.zeros(1, 2, 16, 16)
    maps[0, 0, :8, :8] = 1
    maps[0, 1, 8:, 8:] = 1
    shadowed, magnified, colours, coloured, first, second = net.joined(maps, net.magnified(light, maps))
    close = {"atol": 2e-4, "rtol": 0.0}
    torch.testing.assert_close(first, image * maps[:, :1], **close)
    torch.testing.assert_close(second, image * maps[:, 1:], **close)
    torch.testing.assert_close(magnified, first + second, **close)
    torch.testing.assert_close(shadowed, magnified, **close)
    assert colours[0, :, 0, 0].tolist() == [1, 0, 0]
    assert colours[0, :, 15, 15].tolist() == [0, 0, 1]
    assert colours[0, :, 0, 15].tolist() == [0, 0, 0]
    red = shadowed[0, 0, 0, 0].item()
    assert coloured[0, :, 0, 0].tolist() == pytest.approx([red, red / 2, red / 2])


def test_a_margin_widens_a_mask_but_not_into_another_type() -> None:
    net = NeuralLens(downs=4, ngf=4, margin_px=2)
    maps = torch.zeros(1, 2, 16, 16)
    maps[0, 0, 8, :8] = 1
    maps[0, 1, 8, 8:] = 1
    wide = net.dilated(maps)
    assert wide[0, 0, 6:11, 0].tolist() == [1] * 5
    assert wide[0, 0, :, 0].sum() == 5
    assert wide[0, 0, 8, 8:].sum() == 0
    assert wide[0, 0, 8, :8].sum() == 8


def test_masks_are_where_a_type_beats_the_background_and_the_others() -> None:
    scores = torch.tensor([[3.0, -1], [3, 5], [-2, -4], [0, 0]]).T.reshape(1, 2, 1, 4)
    assert steep_masks(scores)[0, :, 0].T.tolist() == [[1, 0], [0, 1], [0, 0], [0.5, 0.5]]
    assert steep_masks(scores[:, :1])[0, 0, 0].tolist() == [1, 1, 0, 0.5]


def test_fusing_is_exact_and_leaves_no_norm() -> None:
    net = wild()
    fused = net.fused()
    image = torch.rand(1, 1, 48, 32)
    with torch.inference_mode():
        for expected, got in zip(net(image), fused(image), strict=True):
            torch.testing.assert_close(got, expected, atol=5e-5, rtol=0)
            assert expected.std() > 1e-3
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def test_sides_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(SpecimenError, match=r"40 x 64 px does not fit.*4 times needs multiples of 16 px; crop or pad"):
        wild()(torch.rand(1, 1, 40, 64))
    assert wild().side_multiple_px == 16


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"types": []}, "expected one or more different names"),
        ({"types": ["spiny", "spiny"]}, "expected one or more different names"),
        ({"types": ["Bad name"]}, "expected one or more different names"),
        ({"downs": 1}, "no lens has 1 downs"),
        ({"ngf": 16, "cap": 8}, "16 to 8 maps"),
        ({"colour": 1}, "does not take"),
    ],
)
def test_impossible_lenses_are_refused(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        build("neural-lens", options)


def test_twelve_types_have_twelve_colours() -> None:
    colours = {tuple(round(part, 3) for part in type_colour(index)) for index in range(12)}
    assert len(colours) == 12
