"""What training minimises: errors of pixels and gradients, adversaries, and likeness that tolerates misalignment."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

GanLoss = Literal["log", "least-squares"]

# Feature pairs compared at once, per crop: time and memory grow with the square, and 512 take as long as a fifth of
# a small network's step.
_POSITIONS = 512


def charbonnier(output: Tensor, truth: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Mean of sqrt(error^2 + epsilon^2): like L1 for errors above epsilon, smooth below (Charbonnier et al. 1994)."""
    return torch.sqrt((output - truth) ** 2 + epsilon**2).mean()


def gradient_l1(output: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error of the first differences along y and x: edges count, brightness does not."""
    error = output - truth
    return error.diff(dim=-2).abs().mean() + error.diff(dim=-1).abs().mean()


def uneven_l1(output: Tensor, truth: Tensor, size_px: int = 16) -> Tensor:
    """Mean absolute error of the means over squares of `size_px`, less the picture's own error of brightness.

    What is left of vignette and lamp: the brightness of a whole picture cannot be known, its evenness can. (n, 1, h, w)
    of at least twice `size_px`.
    """
    error = functional.avg_pool2d(output - truth, size_px)
    return (error - error.mean((-2, -1), keepdim=True)).abs().mean()


def enhancement_loss(
    output: Tensor,
    truth: Tensor,
    *,
    gradient_weight: float = 0.5,
    evenness_weight: float = 0.0,
    epsilon: float = 1e-3,
) -> Tensor:
    """Charbonnier + `gradient_weight` x gradient L1 + `evenness_weight` x uneven L1 of two (n, 1, h, w) batches."""
    loss = charbonnier(output, truth, epsilon) + gradient_weight * gradient_l1(output, truth)
    return loss + evenness_weight * uneven_l1(output, truth) if evenness_weight else loss


def gan_loss(kind: GanLoss, prediction: Tensor, real: bool) -> Tensor:
    """How far a discriminator's map of scores is from calling every patch real (or generated).

    Parameters
    ----------
    kind
        "log": -log D for real, -log(1 - D) for generated, D = sigmoid(prediction) (Goodfellow et al. 2014; a
        generator asks for `real=True`, their non-saturating form). "least-squares": (prediction - target)^2
        (Mao et al. 2017).
    prediction
        (n, 1, h, w) raw scores, no sigmoid.
    real
        What the scores should say.
    """
    target = torch.full_like(prediction, float(real))
    if kind == "log":
        return functional.binary_cross_entropy_with_logits(prediction, target)
    return functional.mse_loss(prediction, target)


def patch_features(image: Tensor, *, size_px: int = 5, stride_px: int = 2) -> Tensor:
    """The patches of (n, c, h, w) as features: (n, c size^2, h', w'), every `stride_px` pixels."""
    n, channels, height, width = image.shape
    rows, columns = (height - size_px) // stride_px + 1, (width - size_px) // stride_px + 1
    patches = functional.unfold(image, size_px, stride=stride_px)
    return patches.view(n, channels * size_px**2, rows, columns)


def contextual_loss(
    output: Tensor,
    truth: Tensor,
    *,
    bandwidth: float = 0.5,
    positions: int = _POSITIONS,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Whether every feature of the truth occurs in the output, wherever (Mechrez et al. 2018, eqs. 2 to 5).

    d_ij = 1 - cos(x_i - mu_y, y_j - mu_y); d~_ij = d_ij / (min_k d_ik + 1e-5); w_ij = exp((1 - d~_ij) / bandwidth);
    CX_ij = w_ij / sum_k w_ik; the loss is -log mean_j max_i CX_ij, averaged over the batch. No position enters, so
    pairs may be misaligned.

    Parameters
    ----------
    output, truth
        (n, c, h, w) features: `patch_features`, or a layer of a discriminator.
    bandwidth
        h in the paper: smaller is stricter.
    positions
        At most so many positions of each map are compared, drawn at random, the same in both: bounds the memory.
    generator
        Where the positions are drawn; None is torch's own.

    Returns
    -------
    0 or more; 0 when every feature has exactly one likeness.
    """
    count = output.shape[2] * output.shape[3]
    x, y = output.flatten(2).float(), truth.flatten(2).float()  # (n, c, positions)
    if count > positions:
        chosen = torch.randperm(count, generator=generator)[:positions].to(x.device)
        x, y = x[..., chosen], y[..., chosen]
    mean = y.mean((0, 2), keepdim=True)
    x, y = functional.normalize(x - mean, dim=1), functional.normalize(y - mean, dim=1)
    distance = (1 - x.transpose(1, 2) @ y).clamp_min(0)  # (n, i, j)
    relative = distance / (distance.amin(2, keepdim=True) + 1e-5)
    # w_ij / sum_k w_ik with w = exp((1 - relative) / bandwidth) is a softmax.
    context = torch.softmax((1 - relative) / bandwidth, dim=2)
    return -torch.log(context.amax(1).mean(1)).mean()
