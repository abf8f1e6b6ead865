"""The PatchGAN discriminator: judges overlapping patches of a picture, not the picture as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

Norm = Literal["instance", "batch", "none"]

_KERNEL_PX = 4


class PatchGAN(nn.Module):
    """4x4 convolutions, then one number a patch, real or generated (Isola et al. 2017, pix2pix, section 3.2.2).

    Parameters
    ----------
    in_channels
        Channels of what is judged; a conditional discriminator gets the input beside the output.
    features
        Maps of the first layer; they double from layer to layer up to eight times as many.
    strides
        One entry a layer. (2, 2, 2, 1, 1) is the 70x70 PatchGAN 64-128-256-512-1; four layers of stride 2, as some
        descriptions say, would see 94 px.
    norm
        Of all layers but the first and the last.

    (n, in_channels, h, w) to logits (n, 1, about h / 8, about w / 8).
    """

    def __init__(
        self,
        in_channels: int,
        features: int = 64,
        strides: Sequence[int] = (2, 2, 2, 1, 1),
        norm: Norm = "instance",
    ) -> None:
        super().__init__()
        if in_channels < 1 or features < 1 or len(strides) < 2 or min(strides) < 1:
            raise ValueError(
                f"no PatchGAN has {in_channels} input channels, {features} maps and the strides {tuple(strides)};"
                " give at least 1, 1 and two strides of at least 1"
            )
        self.strides = tuple(strides)
        widths = [features * min(2**layer, 8) for layer in range(len(strides) - 1)]
        self.layers = nn.ModuleList()
        before = in_channels
        for layer, (width, stride) in enumerate(zip(widths, strides[:-1], strict=True)):
            normalised = layer > 0 and norm != "none"
            # A norm takes the mean away, and a bias with it.
            conv = nn.Conv2d(before, width, _KERNEL_PX, stride, padding=1, bias=not normalised)
            self.layers.append(nn.Sequential(conv, *_norm(norm, width, normalised), nn.LeakyReLU(0.2)))
            before = width
        self.verdict = nn.Conv2d(before, 1, _KERNEL_PX, strides[-1], padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def receptive_field_px(self) -> int:
        """Side of the patch one logit depends on.

        Examples
        --------
        >>> PatchGAN(1, features=1).receptive_field_px
        70
        """
        side = 1
        for stride in reversed(self.strides):
            side = (side - 1) * stride + _KERNEL_PX
        return side

    def features(self, x: Tensor) -> list[Tensor]:
        """The activations of every hidden layer, finest first."""
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.verdict(self.features(x)[-1])
        return logits


def _norm(kind: Norm, width: int, normalised: bool) -> list[nn.Module]:
    if not normalised:
        return []
    return [nn.InstanceNorm2d(width)] if kind == "instance" else [nn.BatchNorm2d(width)]
