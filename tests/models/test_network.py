"""Batch norms vanish into the convolutions before them without changing what is computed."""

import os

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import torch
from torch import nn

from models.network import fold_batch_norm


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
