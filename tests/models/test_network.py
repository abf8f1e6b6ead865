"""Batch norms vanish into the convolutions before them, and sides are filled up, without changing what is computed."""

import os

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import torch
from torch import nn

from models.network import fold_batch_norm, padded


def lived_in(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    for part in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert part is not None
        nn.init.uniform_(part, 0.3, 1.7)
    return norm.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_folding_is_exact(bias: bool, transposed: bool) -> None:
    torch.manual_seed(3)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    conv, norm = kind(3, 5, 4, stride=2, padding=1, bias=bias), lived_in(nn.BatchNorm2d(5))
    x = torch.rand(2, 3, 12, 14)
    with torch.no_grad():
        torch.testing.assert_close(fold_batch_norm(conv, norm)(x), norm(conv(x)), atol=1e-6, rtol=0)


def test_what_cannot_be_folded_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot fold InstanceNorm2d into Conv2d"):
        fold_batch_norm(nn.Conv2d(1, 1, 1), nn.InstanceNorm2d(1))
    with pytest.raises(TypeError, match="keeps no running statistics"):
        fold_batch_norm(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, track_running_stats=False))


@pytest.mark.parametrize(("shape_px", "wanted_px"), [((7, 12), (8, 12)), ((8, 9), (8, 12)), ((4, 4), (4, 4))])
def test_sides_are_filled_up_to_a_multiple_with_the_last_column_and_row(
    shape_px: tuple[int, int], wanted_px: tuple[int, int]
) -> None:
    image = torch.rand(1, 1, *shape_px)
    height, width = shape_px
    found = padded(image, 4)
    assert tuple(found.shape[-2:]) == wanted_px
    torch.testing.assert_close(found[..., :height, :width], image)
    assert (found[..., height:, :width] == image[..., -1:, :]).all()
    assert (found[..., :height, width:] == image[..., -1:]).all()
