"""System B's networks: the paper's generator, a light one, and the pool of pictures that a discriminator is shown."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models import network
from models.network import Network, Output, fold_batch_norm, padded

Norm = Literal["batch", "instance", "none"]

# Two generators halve twice; sides are padded to a multiple of this inside the graph and cropped back.
MULTIPLE_PX = 4
_SLOPE = 0.2


class Preparation(nn.Module):
    """What the paper does before the network: less noise, more edge and contrast, here inside the graph.

    Parameters
    ----------
    denoise_px
        Standard deviation of the Gaussian that takes the noise; 0 leaves it.
    edge
        Amount of unsharp masking, of radius 2 px; 0 is none.
    contrast
        Whether the picture's mean goes to 0.5 and its standard deviation to 0.2, with a gain of 4 at most, so that
        an empty field's noise is not blown up.

    (n, 1, h, w) to the same shape.
    """

    def __init__(self, denoise_px: float = 0.7, edge: float = 1.0, contrast: bool = True) -> None:
        super().__init__()
        self.edge, self.contrast = edge, contrast
        self.denoise: Tensor
        self.surround: Tensor
        self.register_buffer("denoise", _gaussian(denoise_px), persistent=False)
        self.register_buffer("surround", _gaussian(2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = _blurred(x, self.denoise)
        if self.edge:
            x = x + self.edge * (x - _blurred(x, self.surround))
        if self.contrast:
            mean = x.mean((2, 3), keepdim=True)
            deviation = ((x - mean) ** 2).mean((2, 3), keepdim=True).sqrt()
            x = 0.5 + (x - mean) * 0.2 / deviation.clamp_min(0.05)
        return x


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip; LeakyReLU between them, and dropout if asked for."""

    def __init__(self, features: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(features, features, 3, padding=1)
        self.first_norm = _norm(norm, features)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Conv2d(features, features, 3, padding=1)
        self.second_norm = _norm(norm, features)

    def forward(self, x: Tensor) -> Tensor:
        """(n, features, h, w) to the same shape."""
        h = functional.leaky_relu(self.first_norm(self.first(x)), _SLOPE)
        out: Tensor = x + self.second_norm(self.second(self.dropout(h)))
        return out

    def fused(self) -> ResidualBlock:
        """The same function for inference: batch norms folded, dropout gone."""
        block = copy.deepcopy(self).eval()
        block.dropout = nn.Identity()  # type: ignore[assignment]  # computes what dropout does in inference
        for conv, norm in (("first", "first_norm"), ("second", "second_norm")):
            if isinstance(getattr(block, norm), nn.BatchNorm2d):
                setattr(block, conv, fold_batch_norm(getattr(block, conv), getattr(block, norm)))
                setattr(block, norm, nn.Identity())
        return block


class Generator(Network):
    """Down-sampling head, residual blocks with a long skip, sub-pixel up-sampling tail.

    Parameters
    ----------
    features, blocks
        Maps and number of residual blocks; the paper has 64 and 9.
    norm, dropout
        In the blocks. Instance norm makes seams between tiles and quantises badly: it is there for the ablation.
    prepare
        Options of `Preparation`; None leaves the picture as it is.

    Input and output are (n, 1, h, w) in 0..1.
    """

    outputs = (Output("sem"),)
    halo_px = 32  # measured: sem-lite cut off there differs by 0.002 of full scale at most, at 48 px by 2e-6

    def __init__(
        self,
        features: int = 64,
        blocks: int = 9,
        norm: Norm = "batch",
        dropout: float = 0.0,
        prepare: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if features < 4 or features % 4 or blocks < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"features is {features}, blocks {blocks}, dropout {dropout}; expected a multiple of 4, 1 or more,"
                " and 0 to below 1"
            )
        self.prepare: nn.Module = nn.Identity() if prepare is None else Preparation(**prepare)
        self.head = self._head(features)
        self.blocks = nn.ModuleList(ResidualBlock(features, norm, dropout) for _ in range(blocks))
        self.tail = self._tail(features)

    def _head(self, features: int) -> nn.Module:
        raise TypeError(f"{type(self).__name__} is no network by itself; use SSUM or SemLite")

    def _tail(self, features: int) -> nn.Module:
        raise TypeError(f"{type(self).__name__} is no network by itself; use SSUM or SemLite")

    def _in_range(self, x: Tensor) -> Tensor:
        return x

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        height, width = image.shape[-2:]
        x = padded(self.prepare(image), MULTIPLE_PX)
        head = self.head(x)  # (n, features, h/4, w/4)
        h = head
        for block in self.blocks:
            h = block(h)
        out = self._in_range(self.tail(h + head))[..., :height, :width]
        return out if self.training else out.clamp(0, 1)

    def fused(self) -> Network:
        """A copy for inference with the same function: batch norms folded, dropout gone."""
        net = copy.deepcopy(self).eval()
        net.blocks = nn.ModuleList(block.fused() for block in self.blocks if isinstance(block, ResidualBlock))
        return net.requires_grad_(False)


class SSUM(Generator):
    """The paper's generator: a 7x7 and two strided 3x3 convolutions, two sub-pixel steps, a 7x7 and tanh.

    64 maps and 9 blocks with batch norm have 1.04 M parameters.
    """

    def _head(self, features: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, features, 7, padding=3),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(features, features, 3, stride=2, padding=1),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(features, features, 3, stride=2, padding=1),
            nn.LeakyReLU(_SLOPE),
        )

    def _tail(self, features: int) -> nn.Module:
        def double() -> list[nn.Module]:
            return [nn.Conv2d(features, 4 * features, 3, padding=1), nn.PixelShuffle(2), nn.LeakyReLU(_SLOPE)]

        return nn.Sequential(*double(), *double(), nn.Conv2d(features, 1, 7, padding=3), nn.Tanh())

    def _in_range(self, x: Tensor) -> Tensor:
        return (x + 1) / 2


class SemLite(Generator):
    """The same blocks between a pixel-unshuffle by 4 and narrow tails: less than half of the work of SSUM.

    64 maps and 9 blocks with batch norm have 0.75 M parameters.
    """

    def _head(self, features: int) -> nn.Module:
        return nn.Sequential(
            nn.PixelUnshuffle(MULTIPLE_PX), nn.Conv2d(MULTIPLE_PX**2, features, 3, padding=1), nn.LeakyReLU(_SLOPE)
        )

    def _tail(self, features: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(features, 2 * features, 3, padding=1),
            nn.PixelShuffle(2),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(features // 2, 4, 3, padding=1),
            nn.PixelShuffle(2),
        )


class ImagePool(nn.Module):
    """The last `size` generated pictures; half of the time a discriminator is shown an old one (Shrivastava 2017).

    What it holds are buffers, so that they are saved and restored with everything else.
    """

    def __init__(self, size: int, crop_px: int) -> None:
        super().__init__()
        self.held: Tensor
        self.pictures: Tensor
        self.register_buffer("held", torch.zeros((), dtype=torch.int64))
        self.register_buffer("pictures", torch.zeros(size, 1, crop_px, crop_px))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(n, 1, crop, crop) new pictures in, as many to judge out: the same ones, or some from before."""
        size, shown = len(self.pictures), []
        for image in images.detach().float():
            if self.held < size:
                self.pictures[self.held] = image
                self.held += 1
                shown.append(image)
            elif size and torch.rand(()) < 0.5:
                old = int(torch.randint(size, ()))
                shown.append(self.pictures[old].clone())
                self.pictures[old] = image
            else:
                shown.append(image)
        return torch.stack(shown)


NETWORKS: dict[str, Callable[..., Network]] = {"ssum": SSUM, "sem-lite": SemLite}


def build(name: str, options: Mapping[str, Any]) -> Network:
    """Construct a network by the name and options of a recipe; RecipeError if it does not exist."""
    return network.build(NETWORKS, name, options)


def _norm(norm: Norm, features: int) -> nn.Module:
    if norm == "batch":
        # Batches are a few crops: statistics for inference must be means over many of them.
        return nn.BatchNorm2d(features, momentum=0.02)
    if norm == "instance":
        return nn.InstanceNorm2d(features, affine=True)
    if norm == "none":
        return nn.Identity()
    raise ValueError(f"norm is {norm!r}, expected batch, instance or none")


def _gaussian(sigma_px: float) -> Tensor:
    """(1, 1, k, k), sums to 1; a single 1 for sigma 0."""
    if not 0 <= sigma_px <= 8:
        raise ValueError(f"denoise_px is {sigma_px}, expected 0 to 8 px")
    half = int(3 * sigma_px + 0.5)
    profile = torch.exp(-0.5 * (torch.arange(-half, half + 1) / max(sigma_px, 1e-3)) ** 2)
    profile = profile / profile.sum()
    return torch.outer(profile, profile)[None, None]


def _blurred(x: Tensor, kernel: Tensor) -> Tensor:
    half = kernel.shape[-1] // 2
    return functional.conv2d(functional.pad(x, (half,) * 4, mode="replicate"), kernel)
