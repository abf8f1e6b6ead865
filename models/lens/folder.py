"""A lab's own labelled pairs as scenes: a folder made by `superlens-train pairs` with label maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from models.errors import PairsError
from models.lens.data import Scene
from models.lens.recipe import LensPairs
from models.pairs import Split, read_index

Image = NDArray[np.float32]

_LABEL_IT = "draw them with: superlens-train pairs ... --labels"


def folder_scenes(section: LensPairs, split: Split) -> list[Scene]:
    """The pairs of one split as scenes; each connected region of a label counts as one grain.

    The picture on black is the SEM image where something is labelled. Tips, grains and light are not known.

    Raises
    ------
    PairsError
        There are no labels, the classes are not the types in their order, a type occurs nowhere in the split, or the
        pixel is more than 2 % off.
    """
    folder, types = section.folder, section.types
    index = read_index(folder)
    if index.classes != types:
        raise PairsError(
            f"the pairs in {folder} have the classes {list(index.classes)}, expected {list(types)} in this order;"
            f" {_LABEL_IT}, or name their classes in network.options.types and data.types"
        )
    scenes = []
    for pair in section.pairs(split):
        labels = np.zeros(pair.image.shape, np.uint8) if pair.labels is None else pair.labels
        grain_of = np.zeros(labels.shape, np.uint8)
        for number in range(1, len(types) + 1):
            regions, count = label(labels == number)
            if count + int(grain_of.max()) > 255:
                raise PairsError(f"{pair.name} has more than 255 labelled regions; remove the specks from its labels")
            grain_of = np.where(regions > 0, regions + grain_of.max(), grain_of).astype(np.uint8)
        on_black = np.where(labels > 0, pair.truth, np.float32(0))
        scenes.append(Scene(pair.name, pair.image, labels, grain_of, on_black, pair.truth, None, None, None))
    for number, kind in enumerate(types, 1):
        if not any((scene.labels == number).any() for scene in scenes):
            raise PairsError(
                f"no pixel of the {split} pairs in {folder} is labelled {kind}: there is nothing to learn of it; label"
                " some, or leave the type out of network.options.types and data.types"
            )
    return scenes


def folder_crop(section: LensPairs, scenes: list[Scene], rng: np.random.Generator, *, crop_px: int) -> dict[str, Image]:
    """One random crop of one scene, as `models.lens.data.crop` gives it."""
    scene = scenes[rng.integers(len(scenes))]
    image, labels, shadowed = section.cut([scene.image, scene.labels, scene.shadowed], rng, crop_px=crop_px)
    return {
        "image": image[None],
        "maps": np.stack([labels == number for number in range(1, len(section.types) + 1)]).astype(np.float32),
        "on_black": (shadowed * (labels > 0))[None].astype(np.float32),
        "shadowed": shadowed[None],
    }
