"""The neural lens in stages: a magnifier works only where its type is, and not at all where its type is not."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from models.errors import SpecimenError
from models.lens.networks import NeuralLens, steep_masks


class Box(NamedTuple):
    """A part of the frame, half open."""

    top: int
    bottom: int
    left: int
    right: int


def staged(net: NeuralLens, image: Tensor) -> tuple[Tensor, ...]:
    """What `net(image)` gives, with less work where types are absent or few.

    The light of a type outside its mask is black, so a magnifier sees the same inside a box round the mask, up to
    two differences: the innermost layers of a U-Net see the whole picture they are given, which is now the box, and
    the box is padded with black (or with the frame's other pixels) to multiples of 2^downs. So the result equals the
    merged form exactly where the box is the whole frame, and differs elsewhere.

    Parameters
    ----------
    net
        In evaluation mode.
    image
        (1, 1, h, w) in 0..1.

    Raises
    ------
    SpecimenError
        There is more than one picture, or its sides do not fit.
    """
    if image.shape[0] != 1:
        raise SpecimenError(f"the staged form takes one picture at a time, got {image.shape[0]}; call it for each")
    light = net.light(image)
    maps = steep_masks(net.scores(light))
    masks = net.dilated(maps)
    magnified = torch.zeros_like(masks)
    for index in range(len(net.types)):
        box = mask_box(masks[0, index], net.side_multiple_px)
        if box is not None:
            window = (..., slice(box.top, box.bottom), slice(box.left, box.right))
            part = net.magnified_type(index, light[window], masks[window])
            magnified[:, index : index + 1][window] = part
    return net.joined(maps, magnified)


def mask_box(mask: Tensor, multiple_px: int) -> Box | None:
    """The smallest box of sides that are multiples of `multiple_px` round a mask (h, w); None where it is empty.

    It is moved inside the frame, whose sides are such multiples themselves.
    """
    spans = []
    for axis in (1, 0):
        occupied = torch.nonzero(mask.amax(axis) > 0)
        if not len(occupied):
            return None
        first, last = int(occupied.min()), int(occupied.max()) + 1
        length = -(-(last - first) // multiple_px) * multiple_px
        frame = mask.shape[1 - axis]
        start = min(max((first + last - length) // 2, 0), frame - length)
        spans += [start, start + length]
    return Box(*spans)
