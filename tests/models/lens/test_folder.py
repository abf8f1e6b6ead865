"""A lab's own labelled pairs train a lens as drawn scenes do, and what is missing in them is said."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from models.errors import PairsError
from models.lens import data
from models.lens.data import HELDOUT, Scene
from models.lens.folder import folder_crop, folder_scenes
from models.lens.recipe import LensPairs, LensRecipe
from models.pairs import PAIRS_FILE, PairSet, Split, read_index
from models.recipe import read_recipe
from tests.pairs import write_pairs

PIXEL_NM = HELDOUT.pixel_size_nm
SCENES = data.scenes(HELDOUT, count=3, side_px=96, seed=4)


def labelled(
    folder: Path, *, scenes: list[Scene] = SCENES, classes: tuple[str, ...] = HELDOUT.types, only: int | None = None
) -> Path:
    """A folder with one scene in every split; `only` keeps one class's labels."""
    splits: tuple[Split, ...] = ("train", "validation", "test")
    write_pairs(folder, {split: [(s.image, s.shadowed) for s in scenes] for split in splits}, PIXEL_NM)
    for split in splits:
        for number, scene in enumerate(scenes):
            labels = scene.labels if only is None else scene.labels * (scene.labels == only)
            tifffile.imwrite(folder / split / f"{number:03d}-labels.tif", labels.astype(np.uint8))
    index = read_index(folder).model_dump() | {"classes": classes}
    (folder / PAIRS_FILE).write_text(PairSet.model_validate(index).model_dump_json())
    return folder


def section(folder: Path) -> LensPairs:
    return LensPairs(folder=folder, types=HELDOUT.types, pixel_size_nm=PIXEL_NM, rotations_deg=(0, 90))


def test_labelled_pairs_are_scenes(tmp_path: Path) -> None:
    about = section(labelled(tmp_path / "pairs"))
    read = folder_scenes(about, "train")
    assert len(read) == 3
    for scene, drawn in zip(read, SCENES, strict=True):
        np.testing.assert_array_equal(scene.labels, drawn.labels)
        np.testing.assert_allclose(scene.shadowed, drawn.shadowed, atol=1e-4)
        assert scene.on_black[drawn.labels == 0].max() == 0
        assert scene.tips_px is None
        assert (scene.grain_of > 0).tolist() == (drawn.labels > 0).tolist()
    crop = folder_crop(about, read, np.random.default_rng(0), crop_px=64)
    assert {name: part.shape for name, part in crop.items()} == {
        "image": (1, 64, 64), "maps": (2, 64, 64), "on_black": (1, 64, 64), "shadowed": (1, 64, 64),
    }  # fmt: skip
    np.testing.assert_allclose(crop["on_black"][0], crop["shadowed"][0] * crop["maps"].sum(0))


def test_a_lens_trains_on_a_folder_and_is_judged_on_it(tmp_path: Path) -> None:
    if os.environ.get("CI") != "true":
        pytest.importorskip("torch", reason="needs the extra [train]")
    from models.evaluate import Subject, evaluate
    from models.lens.networks import NeuralLens
    from models.lens.train import LensTrainee
    from models.network import infer_with

    recipe = read_recipe("neural-lens-mini").with_pairs(labelled(tmp_path / "pairs")).tiny()
    assert isinstance(recipe, LensRecipe)
    assert isinstance(recipe.data, LensPairs)
    trainee = LensTrainee(recipe)
    trainee.prepare(workers=1)
    assert trainee.draw(1, range(2))["maps"].shape == (2, 2, 64, 64)
    assert "f1" not in trainee.validate(trainee.net)
    net = NeuralLens(downs=4, ngf=4)
    names = tuple(output.name for output in net.outputs)
    mine = Subject("mine", "neural-lens", infer_with(net), 1, 0, PIXEL_NM, names, recipe)
    report, _ = evaluate(mine, "pairs", folder=recipe.data.folder)
    assert report["images"] == 3
    assert "spikes" not in report
    assert {"iou", "grain_accuracy"} == set(report["labels"])


def test_pairs_without_labels_or_with_other_classes_are_refused(tmp_path: Path) -> None:
    plain = write_pairs(
        tmp_path / "plain",
        {split: [(SCENES[0].image, SCENES[0].shadowed)] for split in ("train", "validation", "test")},
        PIXEL_NM,
    )
    with pytest.raises(PairsError, match=r"have the classes \[\], expected \['spiny', 'smooth'\]"):
        folder_scenes(section(plain), "train")
    one = labelled(tmp_path / "one", classes=("spiny",))
    with pytest.raises(PairsError, match=r"have the classes \['spiny'\], expected"):
        folder_scenes(section(one), "train")


def test_labels_of_one_class_only_and_empty_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PairsError, match=r"no pixel of the train pairs in .* is labelled smooth"):
        folder_scenes(section(labelled(tmp_path / "one", only=1)), "train")
    with pytest.raises(PairsError, match=r"no pixel of the test pairs in .* is labelled spiny"):
        folder_scenes(section(labelled(tmp_path / "none", only=9)), "test")
