"""The networks, built by name from a configuration."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import RecipeError

# Sides are padded to a multiple of this inside the graph, and cropped back: the illumination branch halves thrice.
MULTIPLE_PX = 8
MIN_SIDE_PX = 16


class Rep3x3(nn.Module):
    """A 3x3 convolution over-parameterised as direct + expanded-and-projected + 1x1 + identity.

    The branches are summed in weight space on every call, so that a step costs one convolution while training
    too (Bhardwaj et al. 2022, SESR, "collapsed" training; Ding et al. 2021, RepVGG). `fused` is exact.
    """

    def __init__(self, features: int, expansion: int = 2) -> None:
        super().__init__()
        self.direct = nn.Conv2d(features, features, 3, padding=1)
        self.expand = nn.Parameter(torch.empty(expansion * features, features, 3, 3))
        self.project = nn.Parameter(torch.empty(features, expansion * features))
        self.point = nn.Parameter(torch.zeros(features, features))
        nn.init.kaiming_normal_(self.expand)
        nn.init.normal_(self.project, std=0.1 / (expansion * features) ** 0.5)

    def weight(self) -> Tensor:
        """The (features, features, 3, 3) kernel all branches add up to."""
        features = self.project.shape[0]
        expanded = (self.project @ self.expand.flatten(1)).view(features, features, 3, 3)
        centre = self.point + torch.eye(features, device=self.point.device)
        return self.direct.weight + expanded + functional.pad(centre[:, :, None, None], (1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(n, features, h, w) to the same shape."""
        return functional.conv2d(x, self.weight(), self.direct.bias, padding=1)

    def fused(self) -> nn.Conv2d:
        """The plain convolution that computes the same."""
        return _conv(self.weight(), self.direct.bias, padding=1)


class Illumination(nn.Module):
    """Gain and offset that even out the light, from the picture at 1/8 size; starts as no change at all.

    (n, 1, h, w) to (n, 2, h, w), sides multiples of 8.
    """

    def __init__(self, features: int = 16) -> None:
        super().__init__()
        self.local = nn.Sequential(
            nn.Conv2d(1, features, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(features, features, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv2d(features, features, 3, padding=4, dilation=4),
            nn.ReLU(),
        )
        # One 1x1 convolution over the local features and the frame's mean, as a sum, so that nothing is expanded.
        self.mix = nn.Conv2d(features, 2, 1)
        self.mix_frame = nn.Conv2d(features, 2, 1, bias=False)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]  # a Conv2d with the default bias=True has one
        nn.init.zeros_(self.mix_frame.weight)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        low = self.local(functional.avg_pool2d(x, MULTIPLE_PX))
        gain_offset = self.mix(low) + self.mix_frame(low.mean((2, 3), keepdim=True))
        return functional.interpolate(gain_offset, scale_factor=float(MULTIPLE_PX), mode="bilinear")


class RTNetG(nn.Module):
    """The real-time enhancer: illumination branch, then six 3x3 layers at half resolution, then a global skip.

    Parameters
    ----------
    features, blocks
        Width and number of the re-parameterised layers; 32 x 6 has 62 694 parameters once fused.
    expansion
        How much wider the over-parameterised branch is while training.

    Input and output are (n, 1, h, w) in 0..1 with sides of at least 16 px. While training the output is not
    clamped, so that a pixel beyond the range still has a gradient.
    """

    halo_px = 32  # the body reaches 17 px; the illumination branch sees the whole frame anyway
    scale = 1

    def __init__(self, features: int = 32, blocks: int = 6, expansion: int = 2) -> None:
        super().__init__()
        self.illumination = Illumination()
        self.head: nn.Module = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, features, 3, padding=1))
        self.body = nn.ModuleList(Rep3x3(features, expansion) for _ in range(blocks))
        self.tail = nn.Conv2d(features, 4, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]  # as above

    def forward(self, image: Tensor) -> Tensor:
        """Enhance (n, 1, h, w) in 0..1."""
        height, width = image.shape[-2:]
        x = functional.pad(image, (0, _missing(width), 0, _missing(height)), mode="replicate")
        gain, offset = self.illumination(x).chunk(2, 1)
        x = x * (1 + gain) + offset
        head = self.head(x)  # (n, features, h/2, w/2)
        h = head
        for layer in self.body:
            h = functional.relu(layer(h))
        x = x + functional.pixel_shuffle(self.tail(h + head), 2)
        x = x[..., :height, :width]
        out: Tensor = x if self.training else x.clamp(0, 1)
        return out

    def fused(self) -> RTNetG:
        """A copy for inference with the same function: plain convolutions, and the head as one 6x6 of stride 2."""
        net = copy.deepcopy(self).eval()
        assert isinstance(self.head, nn.Sequential)  # noqa: S101  # a fused network is not fused again
        net.head = _unshuffled(self.head[1])
        net.body = nn.ModuleList(layer.fused() for layer in self.body if isinstance(layer, Rep3x3))
        return net


def _missing(side_px: int) -> int:
    """Pixels up to the next multiple; no remainder of a negative number, in which graph runtimes disagree."""
    return (MULTIPLE_PX - side_px % MULTIPLE_PX) % MULTIPLE_PX


def _unshuffled(conv: nn.Module) -> nn.Conv2d:
    """PixelUnshuffle(2) and a 3x3 convolution as one 6x6 convolution of stride 2.

    Channel 2 dy + dx of the unshuffled picture holds pixel (2y + dy, 2x + dx), so tap (ky, kx) of that channel is
    tap (2 ky + dy, 2 kx + dx) of the 6x6 kernel.
    """
    assert isinstance(conv, nn.Conv2d)  # noqa: S101
    out = conv.out_channels
    kernel = conv.weight.view(out, 2, 2, 3, 3).permute(0, 3, 1, 4, 2).reshape(out, 1, 6, 6)
    return _conv(kernel, conv.bias, padding=2, stride=2)


def _conv(weight: Tensor, bias: Tensor | None, *, padding: int, stride: int = 1) -> nn.Conv2d:
    outputs, inputs, size, _ = weight.shape
    conv = nn.Conv2d(inputs, outputs, size, stride, padding)
    with torch.no_grad():
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)  # type: ignore[union-attr, arg-type]
    return conv.requires_grad_(False)


NETWORKS: dict[str, Callable[..., RTNetG]] = {"rtnet-g": RTNetG}


def build(name: str, options: Mapping[str, Any]) -> RTNetG:
    """Construct a network by the name and options of a training configuration; RecipeError if it does not exist."""
    try:
        constructor = NETWORKS[name]
    except KeyError:
        raise RecipeError(f"there is no network {name!r}; choose one of {', '.join(NETWORKS)}") from None
    try:
        return constructor(**options)
    except TypeError as exc:
        raise RecipeError(f"network {name!r} does not take {dict(options)}: {exc}; correct [network]") from exc


def parameter_count(net: nn.Module) -> int:
    """How many numbers the network consists of."""
    return sum(parameter.numel() for parameter in net.parameters())
