"""What training minimises: Charbonnier plus the error of the gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def charbonnier(output: Tensor, truth: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Mean of sqrt(error^2 + epsilon^2): like L1 for errors above epsilon, smooth below (Charbonnier et al. 1994)."""
    return torch.sqrt((output - truth) ** 2 + epsilon**2).mean()


def gradient_l1(output: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error of the first differences along y and x: edges count, brightness does not."""
    error = output - truth
    return error.diff(dim=-2).abs().mean() + error.diff(dim=-1).abs().mean()


def enhancement_loss(output: Tensor, truth: Tensor, *, gradient_weight: float = 0.5, epsilon: float = 1e-3) -> Tensor:
    """Charbonnier + `gradient_weight` x gradient L1 of two (n, 1, h, w) batches."""
    return charbonnier(output, truth, epsilon) + gradient_weight * gradient_l1(output, truth)
