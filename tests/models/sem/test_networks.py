"""The generators are the published ones, any size passes, and the form for inference computes the same."""

import os

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import torch
from torch import nn

from models.errors import RecipeError
from models.network import parameter_count
from models.sem.networks import SSUM, Generator, ImagePool, Preparation, ResidualBlock, SemLite, build


def test_the_papers_generator_has_its_layers_and_a_million_parameters() -> None:
    net = SSUM()
    assert parameter_count(net) == pytest.approx(1.04e6, rel=0.005)
    assert len(net.blocks) == 9
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.kernel_size[0] for conv in convolutions] == [7, 3, 3, *[3] * 18, 3, 3, 7]
    assert [conv.out_channels for conv in convolutions] == [64] * 21 + [256, 256, 1]
    assert [conv.stride[0] for conv in convolutions][:3] == [1, 2, 2]
    assert sum(isinstance(module, nn.PixelShuffle) for module in net.modules()) == 2


def test_the_light_generator_has_three_quarters_of_a_million_parameters() -> None:
    net = SemLite()
    assert parameter_count(net) == pytest.approx(0.75e6, rel=0.005)
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert [(conv.in_channels, conv.out_channels) for conv in convolutions] == [
        (16, 64), *[(64, 64)] * 18, (64, 128), (32, 4),
    ]  # fmt: skip


def small(kind: type[Generator], **options: object) -> Generator:
    torch.manual_seed(0)
    return kind(features=8, blocks=2, **options)


@pytest.mark.parametrize("kind", [SSUM, SemLite])
@pytest.mark.parametrize("shape", [(16, 16), (17, 23), (64, 50), (33, 96)])
def test_every_size_passes_and_comes_back_in_range(kind: type[Generator], shape: tuple[int, int]) -> None:
    net = small(kind).eval()
    with torch.inference_mode():
        out = net(torch.rand(2, 1, *shape))
    assert out.shape == (2, 1, *shape)
    assert 0 <= out.min() <= out.max() <= 1


@pytest.mark.parametrize("kind", [SSUM, SemLite])
@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("prepare", [None, {"denoise_px": 0.7, "edge": 1.0, "contrast": True}])
def test_the_form_for_inference_computes_the_same(
    kind: type[Generator], norm: str, prepare: dict[str, object] | None
) -> None:
    net = small(kind, norm=norm, dropout=0.5, prepare=prepare).train()
    for _ in range(5):  # running statistics that are not those of the start
        net(torch.rand(2, 1, 32, 32))
    net.eval()
    fused = net.fused()
    image = torch.rand(1, 1, 37, 42)
    with torch.inference_mode():
        torch.testing.assert_close(fused(image), net(image), atol=1e-5, rtol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d | nn.Dropout) for module in fused.modules())


def test_dropout_is_random_in_training_only() -> None:
    net = small(SemLite, dropout=0.5)
    image = torch.rand(1, 1, 32, 32)
    net.train()
    assert not torch.equal(net(image), net(image))
    net.eval()
    assert torch.equal(net(image), net(image))


def test_without_a_norm_there_is_none() -> None:
    block = ResidualBlock(8, "none", 0.0)
    assert parameter_count(block) == 2 * (8 * 8 * 9 + 8)


def test_preparation_sharpens_edges_takes_noise_and_fixes_contrast() -> None:
    torch.manual_seed(0)
    step = torch.zeros(1, 1, 64, 64)
    step[..., 32:] = 0.2
    sharp = Preparation(denoise_px=0.5, edge=1.0, contrast=False)(step)
    assert sharp.max() > 0.21
    assert sharp.min() < -0.01
    noise = 0.3 + 0.05 * torch.randn(1, 1, 64, 64)
    assert Preparation(denoise_px=1.0, edge=0.0, contrast=False)(noise).std() < 0.4 * noise.std()
    even = Preparation(denoise_px=0, edge=0.0, contrast=True)(step * 0.7)
    assert even.mean().item() == pytest.approx(0.5, abs=1e-5)
    assert even.std(correction=0).item() == pytest.approx(0.2, abs=1e-3)
    empty = Preparation(denoise_px=0, edge=0.0, contrast=True)(0.5 + 0.01 * torch.randn(1, 1, 64, 64))
    assert empty.std() < 0.05, "the noise of an empty field is not blown up to full contrast"


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("resnet", {}, "there is no network 'resnet'"),
        ("ssum", {"norm": "layer"}, "norm is 'layer'"),
        ("ssum", {"maps": 3}, "does not take"),
        ("sem-lite", {"features": 6}, "features is 6"),
        ("sem-lite", {"dropout": 1.0}, "dropout 1.0"),
        ("sem-lite", {"prepare": {"denoise_px": -1}}, "denoise_px is -1"),
    ],
)
def test_a_network_that_does_not_exist_is_refused(name: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        build(name, options)


def test_the_pool_gives_back_what_it_gets_until_it_is_full_and_then_half_old_ones() -> None:
    torch.manual_seed(0)
    pool = ImagePool(4, 8)
    first = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    assert torch.equal(pool(first), first)
    shown = torch.cat([pool(torch.full((2, 1, 8, 8), 10.0 + step)) for step in range(50)])
    old = sum(float(picture.mean()) < 10 + index // 2 for index, picture in enumerate(shown))
    assert 30 < old < 70
    again = ImagePool(4, 8)
    again.load_state_dict(pool.state_dict())
    assert torch.equal(again.pictures, pool.pictures)
    assert int(again.held) == 4


def test_a_pool_of_no_size_shows_what_is_new() -> None:
    new = torch.rand(2, 1, 8, 8)
    assert torch.equal(ImagePool(0, 8)(new), new)


@pytest.mark.parametrize("kind", [SSUM, SemLite])
def test_full_size_shapes_hold_on_the_meta_device(kind: type[Generator]) -> None:
    with torch.device("meta"):
        assert kind()(torch.empty(1, 1, 512, 512)).shape == (1, 1, 512, 512)
