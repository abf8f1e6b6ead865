"""The losses say what their papers say, at values worked out by hand, and punish what they should."""

import math
import os

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import torch
from torch import Tensor
from torch.nn import functional

from models.losses import contextual_loss, enhancement_loss, gan_loss, patch_features, uneven_l1


def picture(seed: int, size_px: int = 48) -> Tensor:
    """Sharp shapes, no noise."""
    coarse = torch.rand(1, 1, size_px // 6, size_px // 6, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate((coarse > 0.5).float(), scale_factor=6)


def test_a_discriminator_that_knows_nothing_pays_log_two_or_a_quarter() -> None:
    undecided = torch.zeros(2, 1, 3, 3)
    assert gan_loss("log", undecided, True).item() == pytest.approx(math.log(2))
    assert gan_loss("log", undecided, False).item() == pytest.approx(math.log(2))
    assert gan_loss("least-squares", undecided + 0.5, True).item() == pytest.approx(0.25)
    assert gan_loss("least-squares", undecided + 0.5, False).item() == pytest.approx(0.25)


@pytest.mark.parametrize("kind", ["log", "least-squares"])
def test_a_right_score_costs_less_than_a_wrong_one(kind: str) -> None:
    score = torch.full((1, 1, 2, 2), 2.0)
    assert gan_loss(kind, score, True) < gan_loss(kind, score, False)


def test_patches_are_the_pixels_in_reading_order() -> None:
    image = torch.arange(49.0).view(1, 1, 7, 7)
    features = patch_features(image, size_px=3, stride_px=2)
    assert features.shape == (1, 9, 3, 3)
    assert features[0, :, 1, 1].tolist() == image[0, 0, 2:5, 2:5].flatten().tolist()


def test_the_contextual_loss_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(1, 3, 2, 2, generator=generator, dtype=torch.float32) for _ in range(2))
    mean = y.flatten(2).mean(2)[0]
    xs, ys = (list(part.flatten(2)[0].T - mean) for part in (x, y))
    d = [[1 - float(functional.cosine_similarity(a, b, dim=0)) for b in ys] for a in xs]
    w = [[math.exp((1 - value / (min(row) + 1e-5)) / 0.5) for value in row] for row in d]
    cx = [[value / sum(row) for value in row] for row in w]
    expected = -math.log(sum(max(cx[i][j] for i in range(4)) for j in range(4)) / 4)
    assert contextual_loss(x, y).item() == pytest.approx(expected, rel=1e-3)


def test_the_contextual_loss_forgives_a_shift_but_not_a_blur() -> None:
    truth = picture(1)
    features = patch_features(truth, stride_px=1)
    shifted = patch_features(truth.roll((2, 3), (2, 3)), stride_px=1)
    blurred = patch_features(functional.avg_pool2d(truth, 5, 1, 2), stride_px=1)
    same, moved, soft = (contextual_loss(x, features, positions=10_000).item() for x in (features, shifted, blurred))
    assert same <= moved < soft
    assert functional.l1_loss(truth.roll((2, 3), (2, 3)), truth) > functional.l1_loss(
        functional.avg_pool2d(truth, 5, 1, 2), truth
    ), "L1 judges the other way round, which is why the loss exists"


def test_sampled_positions_bound_the_work_and_follow_the_generator() -> None:
    x, y = patch_features(picture(1)), patch_features(picture(2))
    first, again = (
        contextual_loss(x, y, positions=64, generator=torch.Generator().manual_seed(3)).item() for _ in range(2)
    )
    other = contextual_loss(x, y, positions=64, generator=torch.Generator().manual_seed(4)).item()
    assert first == again
    assert first != other


def test_the_contextual_loss_has_gradients_also_where_pictures_agree() -> None:
    x = picture(1).requires_grad_()
    contextual_loss(patch_features(x), patch_features(picture(1))).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_only_what_is_uneven_over_a_picture_is_unevenness() -> None:
    truth = picture(1, 96)
    assert uneven_l1(truth + 0.2, truth).item() == pytest.approx(0, abs=1e-6), "brightness"
    stripes = torch.arange(96).remainder(2).float() * 0.2
    assert uneven_l1(truth + stripes, truth).item() == pytest.approx(0, abs=1e-6), "detail"
    # A ramp of 0.6 has means of squares at -0.25 ... 0.25 in steps of 0.1: 0.15 on average.
    ramp = (torch.arange(96) + 0.5) / 96 * 0.6
    assert uneven_l1(truth + ramp, truth).item() == pytest.approx(0.15)
    plain, with_evenness = (enhancement_loss(truth + ramp, truth, evenness_weight=w).item() for w in (0.0, 2.0))
    assert with_evenness == pytest.approx(plain + 0.3)
