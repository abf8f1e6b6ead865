"""What every network of the three systems is: an input picture, named outputs, and a form for inference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.errors import RecipeError

Image = NDArray[np.float32]


class Output(NamedTuple):
    """A named picture a network makes: 1 channel is grey, 3 are red, green and blue."""

    name: str
    channels: int = 1


class Network(nn.Module):
    """Base of everything that can be trained, exported and run.

    `forward` takes (n, 1, h, w) in 0..1 and gives one tensor, or a tuple in the order of `outputs`, each
    (n, channels, scale h, scale w). In evaluation mode every output is clamped to 0..1, inside the graph; while
    training it is not, so that a pixel beyond the range still has a gradient.

    `halo_px` is how far a result reaches into its surroundings; `side_multiple_px` what the sides of the input must
    be multiples of (1: the graph pads by itself).
    """

    outputs: tuple[Output, ...] = (Output("enhanced"),)
    scale: int = 1
    halo_px: int = 0
    min_side_px: int = 16
    side_multiple_px: int = 1

    def fused(self) -> Network:
        """A copy for inference that computes the same with fewer layers."""
        return copy.deepcopy(self).eval().requires_grad_(False)


def build(networks: Mapping[str, Callable[..., Network]], name: str, options: Mapping[str, Any]) -> Network:
    """Construct a network by the name and options of a recipe; RecipeError if that cannot be."""
    try:
        constructor = networks[name]
    except KeyError:
        raise RecipeError(f"there is no network {name!r}; choose one of {', '.join(networks)}") from None
    try:
        return constructor(**options)
    except (TypeError, ValueError) as exc:
        raise RecipeError(f"network {name!r} does not take {dict(options)}: {exc}; correct [network]") from exc


def infer_with(net: Network) -> Callable[[Image], dict[str, Image]]:
    """The network as a function of one picture (h, w) in 0..1 to its outputs by name, (h, w) or (h, w, 3)."""
    fused = net.fused()

    def infer(image: Image) -> dict[str, Image]:
        with torch.inference_mode():
            made = fused(torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None, None])
        tensors = (made,) if isinstance(made, Tensor) else made
        return {
            output.name: np.asarray(tensor[0, 0] if output.channels == 1 else tensor[0].permute(1, 2, 0))
            for output, tensor in zip(fused.outputs, tensors, strict=True)
        }

    return infer


def padded(image: Tensor, multiple_px: int) -> Tensor:
    """(n, channels, h, w) with its last column and row repeated until both sides are multiples."""
    height, width = image.shape[-2:]
    # No remainder of a negative number, in which graph runtimes disagree.
    right, below = ((multiple_px - side_px % multiple_px) % multiple_px for side_px in (width, height))
    return functional.pad(image, (0, right, 0, below), mode="replicate")


def parameter_count(net: nn.Module) -> int:
    """How many numbers the network consists of."""
    return sum(parameter.numel() for parameter in net.parameters())


def fold_batch_norm(conv: nn.Module, norm: nn.Module) -> nn.Module:
    """The (transposed) convolution that computes `norm(conv(x))` in evaluation mode.

    Jacob et al. 2018, section 3.2: scale = gamma / sqrt(variance + epsilon) goes into the kernel, the rest into
    the bias.
    """
    if not isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) or not isinstance(norm, nn.BatchNorm2d):
        raise TypeError(f"cannot fold {type(norm).__name__} into {type(conv).__name__}")
    if norm.running_mean is None or norm.running_var is None:
        raise TypeError("cannot fold a batch norm that keeps no running statistics")
    folded = copy.deepcopy(conv)
    with torch.no_grad():
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        # A transposed convolution has its outputs in the second axis.
        outputs = (1, -1, 1, 1) if isinstance(conv, nn.ConvTranspose2d) else (-1, 1, 1, 1)
        bias: Tensor = torch.zeros_like(norm.running_mean) if conv.bias is None else conv.bias
        folded.weight = nn.Parameter(conv.weight * scale.view(outputs))
        folded.bias = nn.Parameter((bias - norm.running_mean) * scale + norm.bias)
    return folded.requires_grad_(False)
