"""The networks of system A: SRCNN with and without attention, and the real-time RTNet family."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models import network
from models.network import Network, padded

# The illumination branch works at 1/8 size; sides are padded inside the graph, and cropped back.
_ILLUMINATION_PX = 8


class Rep3x3(nn.Module):
    """A 3x3 convolution over-parameterised as direct + expanded-and-projected + 1x1 + identity.

    The branches are summed in weight space on every call, so that a step costs one convolution while training
    too (Bhardwaj et al. 2022, SESR, "collapsed" training; Ding et al. 2021, RepVGG). `fused` is exact.
    `collapsed=False` runs the branches one by one: the same function, to be compared with.
    """

    def __init__(self, features: int, expansion: int = 2, *, collapsed: bool = True) -> None:
        super().__init__()
        self.collapsed = collapsed
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
        if self.collapsed:
            return functional.conv2d(x, self.weight(), self.direct.bias, padding=1)
        expanded = functional.conv2d(functional.conv2d(x, self.expand, padding=1), self.project[:, :, None, None])
        out: Tensor = self.direct(x) + expanded + functional.conv2d(x, self.point[:, :, None, None]) + x
        return out

    def fused(self) -> nn.Conv2d:
        """The plain convolution that computes the same."""
        return _conv(self.weight(), self.direct.bias, padding=1)


class Illumination(nn.Module):
    """Gain and offset that even out the light, from the picture at 1/8 size; starts as no change at all.

    (n, 1, h, w) to (n, 2, h, w), sides multiples of 8.
    """

    def __init__(self, features: int = 16) -> None:
        super().__init__()
        # Leaky: with plain ReLU all features were found dead after training, and the branch a constant.
        self.local = nn.Sequential(
            nn.Conv2d(1, features, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(features, features, 3, padding=2, dilation=2),
            nn.LeakyReLU(0.1),
            nn.Conv2d(features, features, 3, padding=4, dilation=4),
            nn.LeakyReLU(0.1),
        )
        # One 1x1 convolution over the local features and the frame's mean, as a sum, so that nothing is expanded.
        self.mix = nn.Conv2d(features, 2, 1)
        self.mix_frame = nn.Conv2d(features, 2, 1, bias=False)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]  # a Conv2d with the default bias=True has one
        nn.init.zeros_(self.mix_frame.weight)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        low = self.local(functional.avg_pool2d(x, _ILLUMINATION_PX))
        gain_offset = self.mix(low) + self.mix_frame(low.mean((2, 3), keepdim=True))
        return functional.interpolate(gain_offset, scale_factor=float(_ILLUMINATION_PX), mode="bilinear")


class SqueezeExcite(nn.Module):
    """Channel attention from the frame's mean (Hu et al. 2018), reduction 8; (n, features, h, w) to the same."""

    def __init__(self, features: int) -> None:
        super().__init__()
        hidden = max(features // 8, 1)
        self.gate = nn.Sequential(nn.Conv2d(features, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, features, 1))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))


class RTNet(Network):
    """The real-time enhancer: 3x3 layers at half resolution, a head skip and a global skip.

    Parameters
    ----------
    features, blocks
        Width and number of the re-parameterised layers; 32 x 6 has 57 828 parameters once fused, 16 x 4 10 452.
    expansion
        How much wider the over-parameterised branch is while training.
    scale
        1, or 2: twice as many pixels along each side.
    illumination
        Whether a branch at 1/8 size evens out the light first ("RTNetG", 62 694 parameters).
    attention
        Inside every layer: "span" (Wan et al. 2024, parameter-free) or "se" (Hu et al. 2018).
    collapsed
        See `Rep3x3`.

    Any size from 16 px: sides are padded inside the graph.
    """

    def __init__(
        self,
        features: int = 32,
        blocks: int = 6,
        expansion: int = 2,
        scale: Literal[1, 2] = 1,
        illumination: bool = False,
        attention: Literal["none", "span", "se"] = "none",
        collapsed: bool = True,
    ) -> None:
        super().__init__()
        if scale not in (1, 2) or attention not in ("none", "span", "se"):
            raise ValueError(f"scale {scale} and attention {attention!r}, expected 1 or 2 and none, span or se")
        self.scale = scale
        self.halo_px = max(32, 2 * blocks + 6)  # a layer reaches 2 px, head and tail 5 together
        self.attention = attention
        self.illumination = Illumination() if illumination else None
        self.head: nn.Module = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, features, 3, padding=1))
        self.body = nn.ModuleList(Rep3x3(features, expansion, collapsed=collapsed) for _ in range(blocks))
        self.gates = nn.ModuleList(SqueezeExcite(features) for _ in range(blocks if attention == "se" else 0))
        self.tail = nn.Conv2d(features, 4 * scale**2, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        nn.init.zeros_(self.tail.bias)  # type: ignore[arg-type]  # as above

    def forward(self, image: Tensor) -> Tensor:
        """Enhance (n, 1, h, w) in 0..1."""
        height, width = image.shape[-2:]
        multiple = 2 if self.illumination is None else _ILLUMINATION_PX
        x = padded(image, multiple)
        if self.illumination is not None:
            gain, offset = self.illumination(x).chunk(2, 1)
            x = x * (1 + gain) + offset
        head = self.head(x)  # (n, features, h/2, w/2)
        h = head
        for index, layer in enumerate(self.body):
            h = self._activated(layer(h), h, index)
        detail = functional.pixel_shuffle(self.tail(h + head), 2 * self.scale)
        if self.scale > 1:
            x = functional.interpolate(x, scale_factor=float(self.scale), mode="bilinear")
        out: Tensor = (x + detail)[..., : self.scale * height, : self.scale * width]
        return out if self.training else out.clamp(0, 1)

    def _activated(self, y: Tensor, x: Tensor, index: int) -> Tensor:
        if self.attention == "span":
            # Attention from the features themselves: odd symmetric activation around zero, with the block's input.
            return (functional.relu(y) + x) * (torch.sigmoid(y) - 0.5)
        y = functional.relu(y)
        return self.gates[index](y) if self.attention == "se" else y

    def fused(self) -> RTNet:
        """A copy for inference with the same function: plain convolutions, and the head as one 6x6 of stride 2."""
        net = super().fused()
        assert isinstance(net, RTNet)  # noqa: S101
        assert isinstance(self.head, nn.Sequential)  # noqa: S101  # a fused network is not fused again
        net.head = _unshuffled(self.head[1])
        net.body = nn.ModuleList(layer.fused() for layer in self.body if isinstance(layer, Rep3x3))
        return net


class Cbam(nn.Module):
    """Channel, then spatial attention (Woo et al. 2018, CBAM), reduction 8; (n, features, h, w) to the same."""

    def __init__(self, features: int) -> None:
        super().__init__()
        hidden = features // 8
        self.squeeze = nn.Conv2d(features, hidden, 1, bias=False)
        self.excite = nn.Conv2d(hidden, features, 1, bias=False)
        self.where = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        means, peaks = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        x = x * torch.sigmoid(sum(self.excite(functional.relu(self.squeeze(v))) for v in (means, peaks)))
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        out: Tensor = x * torch.sigmoid(self.where(summary))
        return out


class Srcnn(Network):
    """SRCNN 9-1-5 with 64 and 32 maps (Dong et al. 2014), optionally with CBAM after its first layer.

    Scale 2 up-samples bicubically first, as there. 8 129 parameters; 9 251 with attention. The border is continued
    by its edge once, so that no layer sees invented zeros.
    """

    halo_px = 6  # 4 + 0 + 2

    def __init__(self, scale: Literal[1, 2] = 1, attention: bool = False) -> None:
        super().__init__()
        if scale not in (1, 2):
            raise ValueError(f"scale {scale}, expected 1 or 2")
        self.scale = scale
        self.features = nn.Conv2d(1, 64, 9)
        self.attention = Cbam(64) if attention else None
        self.mapping = nn.Conv2d(64, 32, 1)
        self.reconstruction = nn.Conv2d(32, 1, 5)
        if attention:
            self.halo_px = 9  # the 7x7 of the spatial attention; its channel attention sees the whole frame
        nn.init.kaiming_normal_(self.features.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.mapping.weight, nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Enhance (n, 1, h, w) in 0..1."""
        x = image
        if self.scale > 1:
            x = functional.interpolate(x, scale_factor=float(self.scale), mode="bicubic")
        x = functional.pad(x, (6, 6, 6, 6), mode="replicate")
        x = functional.relu(self.features(x))
        if self.attention is not None:
            x = self.attention(x)
        out: Tensor = self.reconstruction(functional.relu(self.mapping(x)))
        return out if self.training else out.clamp(0, 1)


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


NETWORKS: dict[str, Callable[..., Network]] = {
    "rtnet": RTNet,
    "rtnet-g": functools.partial(RTNet, illumination=True),
    "srcnn": Srcnn,
    "srcnn-attention": functools.partial(Srcnn, attention=True),
}


def build(name: str, options: Mapping[str, Any]) -> Network:
    """Construct a network of system A; RecipeError if there is none like it."""
    return network.build(NETWORKS, name, options)
