"""The neural lens: a network of networks, all the same U-Net (Grant-Jacob et al. 2019).

A labelling net says which type is where; one magnifying net per type turns the light that belongs to its type into an
electron picture on black; their sum goes through a shadowing net, which draws the substrate. They are joined by
pixel-wise multiplication (masks) and image addition, so a type is added by adding a magnifier.
"""

from __future__ import annotations

import colorsys
import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models import network
from models.errors import RecipeError, SpecimenError
from models.network import Network, Output, fold_batch_norm

# Decoder layers with dropout, counted from the one after the innermost (Isola et al. 2017, section 6.1.1).
_DROPPED = (1, 2, 3)
# Grains scatter a tenth of the light, spikes less: the networks get the difference from the picture's mean, enlarged.
_LIGHT_GAIN = 4.0
# How steeply a mask rises where its score overtakes the others: between 0 and 1 within two units of the score, of some
# 20. Steeper ones enlarge the last digits, in which runtimes differ.
_STEEPNESS = 0.5


class _Layer(nn.Module):
    """A 4x4 (transposed) convolution of stride 2, and its norm."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, normalised: bool) -> None:
        super().__init__()
        self.conv: nn.Module = conv
        self.norm: nn.Module = nn.BatchNorm2d(conv.out_channels, momentum=0.05) if normalised else nn.Identity()
        nn.init.normal_(conv.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to half or twice the sides."""
        out: Tensor = self.norm(self.conv(x))
        return out

    def fold(self) -> None:
        """Take the norm into the convolution."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fold_batch_norm(self.conv, self.norm), nn.Identity()


class UNet(nn.Module):
    """The generator of pix2pix with any number of down-samplings (Isola et al. 2017, section 6.1.1).

    Parameters
    ----------
    in_channels, out_channels
        Of the pictures.
    downs
        How often the sides are halved; 10 take 1024 px to one.
    ngf, cap
        Maps of the first layer; they double from layer to layer up to `cap`. None: 8 times `ngf`.
    dropout
        Probability in the three decoder layers after the innermost.

    (n, in_channels, h, w), sides multiples of 2^downs, to raw scores (n, out_channels, h, w).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        downs: int = 8,
        ngf: int = 64,
        cap: int | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        widths = [min(ngf * 2**level, cap or 8 * ngf) for level in range(downs)]
        self.dropout = dropout
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, (before, after) in enumerate(zip([in_channels, *widths], widths, strict=False)):
            normalised = 0 < level < downs - 1
            self.down.append(_Layer(nn.Conv2d(before, after, 4, 2, 1, bias=not normalised), normalised))
        for level in range(downs):
            # All but the innermost get the skip beside what comes from below.
            before = widths[-1 - level] * (1 if level == 0 else 2)
            outermost = level == downs - 1
            after = out_channels if outermost else widths[-2 - level]
            self.up.append(_Layer(nn.ConvTranspose2d(before, after, 4, 2, 1, bias=outermost), not outermost))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        skips: list[Tensor] = []
        for level, layer in enumerate(self.down):
            x = layer(functional.leaky_relu(x, 0.2) if level else x)  # (n, widths[level], h / 2^(level + 1), ...)
            skips.append(x)
        skips.pop()
        for level, layer in enumerate(self.up):
            x = layer(functional.relu(x))
            if level in _DROPPED and skips:
                x = functional.dropout(x, self.dropout, self.training)
            if skips:
                x = torch.cat([skips.pop(), x], 1)
        return x

    def fold(self) -> None:
        """Fold every norm into its convolution."""
        for layer in [*self.down, *self.up]:
            assert isinstance(layer, _Layer)  # noqa: S101
            layer.fold()


class NeuralLens(Network):
    """The four networks (for two types) and how they are joined.

    Parameters
    ----------
    types
        Names of the grain types, in the order of the label maps.
    downs, ngf, cap, dropout
        Of every `UNet`.
    margin_px
        How far a magnifier's mask reaches beyond its type. A spike that the labelling net missed is dark to the
        magnifier too, unless the mask reaches beyond it: make it the length of what may stick out.

    (n, 1, h, w) in 0..1, sides multiples of 2^downs, to the pictures named in `outputs`: "shadowed" (grains on
    their substrate), "magnified" (grains on black), "map" (types as colours on black), "coloured" (shadowed, grains
    tinted by type) and "filtered_TYPE" (on black, the grains of one type only).
    """

    colours: Tensor

    def __init__(
        self,
        types: Sequence[str] = ("spiny", "smooth"),
        downs: int = 8,
        ngf: int = 64,
        cap: int | None = None,
        dropout: float = 0.5,
        margin_px: int = 12,
    ) -> None:
        super().__init__()
        if not types or len(set(types)) < len(types) or not all(re.fullmatch(r"[a-z][a-z0-9-]*", t) for t in types):
            raise RecipeError(f"types are {list(types)}, expected one or more different names of letters and digits")
        if downs < 2 or ngf < 1 or (cap is not None and cap < ngf) or not 0 <= dropout < 1 or margin_px < 0:
            raise RecipeError(
                f"no lens has {downs} downs, {ngf} to {cap} maps, a dropout of {dropout} and a margin of {margin_px}"
                " px; expected at least 2 downs, ngf from 1, cap from ngf, dropout from 0 to below 1, margin from 0"
            )
        self.margin_px = margin_px
        self.types = tuple(types)
        self.side_multiple_px = self.min_side_px = 2**downs
        self.outputs = (
            Output("shadowed"), Output("magnified"), Output("map", 3), Output("coloured", 3),
            *(Output(f"filtered_{kind}") for kind in types),
        )  # fmt: skip
        self.label = UNet(1, len(types), downs, ngf, cap, dropout)
        self.magnify = nn.ModuleList(UNet(1, 1, downs, ngf, cap, dropout) for _ in types)
        self.shadow = UNet(1, 1, downs, ngf, cap, dropout)
        for part in (self.label, *self.magnify):
            # Most of a field is empty: begin with that.
            nn.init.constant_(part.up[-1].conv.bias, -1.0)
        colours = torch.tensor([type_colour(index) for index in range(len(types))])
        self.register_buffer("colours", colours.view(len(types), 3, 1, 1), persistent=False)

    def light(self, image: Tensor) -> Tensor:
        """(n, 1, h, w): how each pixel differs from the picture's mean, about -1 to 1; what the networks look at.

        So what a mask blacks out is not the darkest there is, but of no difference.
        """
        height, width = image.shape[-2:]
        multiple = self.side_multiple_px
        if height % multiple or width % multiple:
            raise SpecimenError(
                f"a picture of {height} x {width} px does not fit: a U-Net that halves its sides"
                f" {multiple.bit_length() - 1} times needs multiples of {multiple} px; crop or pad it"
            )
        # In steps: runtimes that add up a whole picture in one go lose its last digits.
        mean = functional.avg_pool2d(image, min(multiple, 16)).mean(3, keepdim=True).mean(2, keepdim=True)
        return (image - mean) * _LIGHT_GAIN

    def scores(self, light: Tensor) -> Tensor:
        """(n, types, h, w): the logit of each type against the background, whose logit is 0."""
        out: Tensor = self.label(light)
        return out

    def masks(self, scores: Tensor) -> Tensor:
        """(n, types, h, w) in 0..1: what each magnifier gets to see, from scores."""
        return self.dilated(steep_masks(scores))

    def dilated(self, maps: Tensor) -> Tensor:
        """Maps (n, types, h, w) of 0..1 widened by the margin, but not into another type."""
        margin = self.margin_px
        wide = functional.max_pool2d(maps, (2 * margin + 1, 1), 1, (margin, 0))
        wide = functional.max_pool2d(wide, (1, 2 * margin + 1), 1, (0, margin))
        others = maps.sum(1, keepdim=True) - maps
        return wide * (1 - others).clamp(0, 1)

    def magnified(self, light: Tensor, masks: Tensor) -> Tensor:
        """(n, types, h, w) in 0..1: the electron picture of each type, on black, from its share of the light."""
        return torch.cat([self.magnified_type(index, light, masks) for index in range(len(self.types))], 1)

    def magnified_type(self, index: int, light: Tensor, masks: Tensor) -> Tensor:
        """(n, 1, h, w): one entry of `magnified`."""
        return _unsigned(self.magnify[index](light * masks[:, index : index + 1]))

    def shadowed(self, on_black: Tensor) -> Tensor:
        """(n, 1, h, w) in 0..1: grains on black to grains on a substrate, with the shadows they cast."""
        return _unsigned(self.shadow(_signed(on_black)))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The pictures of `outputs`, from one pass through every network."""
        light = self.light(image)
        maps = steep_masks(self.scores(light))
        return self.joined(maps, self.magnified(light, self.dilated(maps)))

    def joined(self, maps: Tensor, magnified: Tensor) -> tuple[Tensor, ...]:
        """The pictures of `outputs` from type maps and magnified types, (n, types, h, w) each."""
        filtered = magnified * self.dilated(maps)
        on_black = filtered.sum(1, keepdim=True).clamp(0, 1)
        shadowed = self.shadowed(on_black)
        coloured = maps[:, :, None] * self.colours  # (n, types, 3, h, w)
        # A tint halves what is not of the type's colour, so that the picture stays readable.
        tint = 1 - 0.5 * (maps[:, :, None] - coloured).sum(1)
        pictures = (shadowed, on_black, coloured.sum(1), shadowed * tint, *filtered.chunk(len(self.types), 1))
        return tuple(picture.clamp(0, 1) for picture in pictures)

    def fused(self) -> NeuralLens:
        """A copy for inference with the same function: every batch norm folded, dropout gone."""
        net = copy.deepcopy(self).eval().requires_grad_(False)
        for module in net.modules():
            if isinstance(module, UNet):
                module.fold()
        return net


def steep_masks(scores: Tensor) -> Tensor:
    """Where each type's score exceeds the background's 0 and all others: 1 above, 0 below, a short ramp between.

    The ramp keeps the result independent of the last digits, in which runtimes differ.
    """
    if scores.shape[1] == 1:
        margin = scores
    else:
        rivals = [
            torch.cat([scores[:, :k], scores[:, k + 1 :]], 1).amax(1, keepdim=True).clamp_min(0)
            for k in range(scores.shape[1])
        ]
        margin = scores - torch.cat(rivals, 1)
    return (0.5 + _STEEPNESS * margin).clamp(0, 1)


def type_colour(index: int) -> tuple[float, float, float]:
    """The colour of a type on the map, (red, green, blue): red, blue, green, then the hues between.

    Examples
    --------
    >>> type_colour(0), type_colour(1)
    ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    """
    round_, place = divmod(index, 3)
    # Halves, quarters, eighths ... of the gap between two primary hues.
    between, share = 0.0, 0.5
    while round_:
        round_, bit = divmod(round_, 2)
        between, share = between + bit * share, share / 2
    red, green, blue = colorsys.hsv_to_rgb((-place % 3 + between) / 3, 1.0, 1.0)
    return (red, green, blue)


def _signed(picture: Tensor) -> Tensor:
    """0..1 to -1..1, in which the networks live."""
    return picture * 2 - 1


def _unsigned(scores: Tensor) -> Tensor:
    """Raw scores through tanh to 0..1."""
    return (torch.tanh(scores) + 1) / 2


NETWORKS: dict[str, Callable[..., NeuralLens]] = {"neural-lens": NeuralLens}


def build(name: str, options: Mapping[str, Any]) -> Network:
    """Construct a network by the name and options of a recipe; RecipeError if that cannot be."""
    return network.build(NETWORKS, name, options)
