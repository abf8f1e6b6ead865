"""The staged form is the merged form where it looks at the whole frame, and skips what is not there."""

import os

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import torch
from torch import Tensor, nn

from models.errors import SpecimenError
from models.lens.networks import NeuralLens
from models.lens.staged import Box, mask_box, staged


class Given(nn.Module):
    """A labelling net that has made up its mind."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, x: Tensor) -> Tensor:
        return self.scores


def lens(*boxes: tuple[slice, slice] | None, side_px: int = 64) -> NeuralLens:
    """A lens that labels these boxes, one per type, and nothing else."""
    torch.manual_seed(3)
    net = NeuralLens(downs=4, ngf=8, cap=16, margin_px=2).eval()
    scores = torch.full((1, 2, side_px, side_px), -9.0)
    for index, box in enumerate(boxes):
        if box is not None:
            scores[0, index][box] = 9
    net.label = Given(scores)  # type: ignore[assignment]
    return net


def test_it_equals_the_merged_form_where_the_boxes_are_the_frame() -> None:
    corners = slice(0, 64, 63)
    net = lens((corners, corners), (slice(1, 63, 61), slice(1, 63, 61)))
    image = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        for merged, in_stages in zip(net(image), staged(net, image), strict=True):
            torch.testing.assert_close(in_stages, merged, atol=0, rtol=0)


def test_a_magnifier_without_its_type_does_not_run() -> None:
    net = lens((slice(10, 20), slice(10, 20)), None)
    ran: list[int] = []
    for index, magnifier in enumerate(net.magnify):
        magnifier.register_forward_hook(lambda module, given, made, index=index: ran.append(index))
    made = staged(net, torch.rand(1, 1, 64, 64))
    assert ran == [0]
    assert made[5].max() == 0
    assert made[4].max() > 0


def test_a_magnifier_sees_its_box_only() -> None:
    net = lens((slice(20, 40), slice(3, 9)), None)
    seen: list[tuple[int, ...]] = []
    net.magnify[0].register_forward_hook(lambda module, given, made: seen.append(tuple(made.shape)))
    merged, in_stages = net(torch.rand(1, 1, 64, 64)), staged(net, torch.rand(1, 1, 64, 64))
    assert seen == [(1, 1, 64, 64), (1, 1, 32, 16)]
    assert [part.shape for part in merged] == [part.shape for part in in_stages]


@pytest.mark.parametrize(
    ("occupied", "box"),
    [
        ((slice(0, 1), slice(0, 1)), Box(0, 16, 0, 16)),
        ((slice(63, 64), slice(30, 34)), Box(48, 64, 24, 40)),
        ((slice(10, 30), slice(0, 64)), Box(4, 36, 0, 64)),
    ],
)
def test_a_box_is_the_smallest_multiple_inside_the_frame(occupied: tuple[slice, slice], box: Box) -> None:
    mask = torch.zeros(64, 64)
    mask[occupied] = 1
    assert mask_box(mask, 16) == box


def test_an_empty_mask_has_no_box() -> None:
    assert mask_box(torch.zeros(64, 64), 16) is None


def test_several_pictures_at_once_are_refused() -> None:
    with pytest.raises(SpecimenError, match="one picture at a time, got 2"):
        staged(lens(), torch.rand(2, 1, 64, 64))
