"""Scales are measured on pictures the network would be given, never on others."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image as Picture

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [export]")
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")

from edge.ometiff import write_ome_tiff
from export import calibration
from export.calibration import PERCENTILE, SYNTHETIC, Sample, load, ranges
from export.errors import CalibrationError
from export.manifest import Manifest, load_bundle
from models.enhance.data import HELDOUT, heldout
from models.lens import data as lens
from models.recipe import read_recipe
from models.sem import data as sem
from tests.bundles import PIXEL_SIZE_NM, make_bundle
from tests.graphs import picture, residual_net

RECIPE = read_recipe("srcnn").tiny().having("data", families=["dots", "grating"])


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return load_bundle(make_bundle(tmp_path / "bundle")).manifest()


def write(folder: Path, *images: NDArray[Any], suffix: str = ".png") -> Path:
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        Picture.fromarray(image).save(folder / f"{number:03d}{suffix}")
    return folder


def grey(side_px: int = 32, value: int = 100) -> NDArray[np.uint8]:
    """Two greys, the first of which is `value`: in one alone there is nothing to see."""
    image = np.full((side_px, side_px), value, np.uint8)
    image[side_px // 2 :] += 50
    return image


def greys(samples: Sequence[Sample]) -> list[int]:
    return [round(float(sample.image[0, 0]) * 255) for sample in samples]


def test_synthetic_pictures_are_the_same_everywhere_and_have_a_truth(manifest: Manifest) -> None:
    first, again = (load("synthetic:calibration", manifest, RECIPE) for _ in range(2))
    judges, judges_again = first.heldout[SYNTHETIC], again.heldout[SYNTHETIC]
    assert (len(first.tuning), len(judges)) == (2, 2)
    for a, b in zip([*first.tuning, *judges], [*again.tuning, *judges_again], strict=True):
        np.testing.assert_array_equal(a.image, b.image)
    assert judges[0].truths["enhanced"].shape == judges[0].image.shape
    assert not np.array_equal(first.tuning[0].image, judges[0].image), "the same family, another specimen"


@pytest.mark.parametrize("name", ["enhance-rt", "enhance-rt-x2", "srcnn", "sem-lite"])
def test_families_and_seeds_are_not_those_of_the_held_out_set(name: str) -> None:
    data: Any = read_recipe(name).data  # type: ignore[attr-defined]
    assert not set(data.families) & {*HELDOUT.families, *sem.HELDOUT.families}
    for held_out in (20_251, 20_253, lens.HELDOUT_SEED):
        assert abs(calibration.SEED - held_out) > 1000


def test_a_held_out_picture_is_no_calibration_picture(manifest: Manifest) -> None:
    shown = heldout(images_per_family=1, side_px=256)
    pictures = load("synthetic:calibration", manifest, RECIPE)
    for sample in [*pictures.tuning, *pictures.heldout[SYNTHETIC]]:
        assert not any(np.array_equal(sample.image, pair.image) for pair in shown)


def test_scenes_of_grains_come_with_the_truth_of_three_outputs(manifest: Manifest) -> None:
    samples = load("synthetic:calibration", manifest, read_recipe("neural-lens-mini").tiny()).heldout[SYNTHETIC]
    assert set(samples[0].truths) == {"shadowed", "magnified", "map"}
    assert samples[0].truths["map"].shape == (*samples[0].image.shape, 3)


def test_a_folder_is_halved_by_name_and_has_no_truth(tmp_path: Path, manifest: Manifest) -> None:
    folder = write(tmp_path / "frames", *(grey(value=10 * n) for n in range(1, 6)))
    (folder / "notes.txt").write_text("not an image")
    pictures = load(str(folder), manifest, RECIPE)
    assert greys(pictures.tuning[:2]) == [10, 20]
    assert greys(pictures.heldout[str(folder)]) == [30, 40, 50]
    assert pictures.heldout[str(folder)][0].truths == {}


def test_the_pictures_that_a_network_knows_are_measured_and_judge_beside_any_folder(
    tmp_path: Path, manifest: Manifest
) -> None:
    folder = write(tmp_path / "frames", grey(value=1), grey(value=2))
    known, pictures = (load(data, manifest, RECIPE) for data in (SYNTHETIC, str(folder)))
    assert pictures.data == f"{folder} and {SYNTHETIC}"
    for mine, theirs in ((pictures.tuning[1:], known.tuning), (pictures.heldout[SYNTHETIC], known.heldout[SYNTHETIC])):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a.image, b.image)
    labs_own = load(str(folder), manifest, RECIPE.with_pairs(tmp_path))
    assert (labs_own.data, len(labs_own.tuning)) == (str(folder), 1), "there is no knowing what a lab's pairs show"


def test_frames_that_show_nothing_are_refused_and_dim_ones_are_not(tmp_path: Path, manifest: Manifest) -> None:
    rng = np.random.default_rng(0)
    dark = [rng.integers(0, 4, (32, 32)).astype(np.uint8) for _ in range(4)]
    dim = grey(value=0) // 8
    for name, frames in (("dark", dark), ("dark first", [*dark, dim, dim]), ("dark last", [dim, dim, *dark])):
        with pytest.raises(CalibrationError, match=r"nothing is to be seen .*expected at least 0\.02"):
            load(str(write(tmp_path / name, *frames)), manifest, RECIPE)
    load(str(write(tmp_path / "dim", *dark, dim, *dark, dim)), manifest, RECIPE)


def test_a_large_folder_is_thinned_evenly(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MOST_PICTURES", 2)
    folder = write(tmp_path / "frames", *(grey(16, n) for n in range(31)))
    pictures = load(str(folder), manifest, RECIPE)
    assert greys([*pictures.tuning[:2], *pictures.heldout[str(folder)]]) == [0, 10, 20, 30]


def test_other_pictures_are_refused_in_words(tmp_path: Path, manifest: Manifest) -> None:
    tagged = tmp_path / "tagged"
    tagged.mkdir()
    for name in ("a.tif", "b.tif"):
        pixel_nm = 2 * PIXEL_SIZE_NM
        tifffile.imwrite(tagged / name, grey(), resolution=(1e7 / pixel_nm,) * 2, resolutionunit="CENTIMETER")
    colour = np.zeros((32, 32, 3), np.uint8)
    lens_like = manifest.model_copy(update={"side_multiple_px": 64, "min_side_px": 64})
    for folder, wanted, complaint in (
        (tmp_path / "nowhere", manifest, "is neither a folder nor synthetic:calibration"),
        (write(tmp_path / "one", grey()), manifest, "has 1 images .* expected at least 2"),
        (
            write(tmp_path / "small", grey(), grey(20)),
            lens_like,
            "is of 32 x 32 px, gain takes sides of at least 64 px",
        ),
        (write(tmp_path / "odd", grey(96), grey(96)), lens_like, "multiples of 64 px"),
        (write(tmp_path / "colour", colour, colour), manifest, "has 3 channels, the network is given 1"),
        (tagged, manifest, r"has pixels of 96.* nm, gain was trained for 48.* nm"),
        (write(tmp_path / "broken", grey(), grey()), manifest, "cannot be read|is no image|not an image"),
    ):
        if folder.name == "broken":
            (folder / "000.png").write_bytes(b"not a picture")
        with pytest.raises(CalibrationError, match=complaint):
            load(str(folder), wanted, RECIPE)


def counts(folder: Path, side_px: int = 32) -> Path:
    """A folder of 12-bit counts in 16-bit files, up to 4095."""
    folder.mkdir()
    slope = np.tile(np.linspace(0, 4095, side_px), (side_px, 1)).astype(np.uint16)
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(folder / name, slope)
    return folder


def test_counts_of_fewer_bits_than_the_file_has_are_refused_until_somebody_says_how_many(
    tmp_path: Path, manifest: Manifest
) -> None:
    folder = counts(tmp_path / "counts")
    with pytest.raises(CalibrationError, match=r"16-bit files is 4095 of 65535.*give its --bit-depth"):
        load(str(folder), manifest, RECIPE)
    for bit_depth, full in ((12, 4095), (16, 65535)):
        pictures = load(str(folder), manifest, RECIPE, bit_depth=bit_depth)
        assert pictures.tuning[0].image.max() == pytest.approx(4095 / full)
    with pytest.raises(CalibrationError, match="full scale 1023 of bit depth 10"):
        load(str(folder), manifest, RECIPE, bit_depth=10)


def test_snapshots_of_the_box_bring_their_bit_depth_along(tmp_path: Path, manifest: Manifest) -> None:
    folder = counts(tmp_path / "counts")
    for path in list(folder.iterdir()):
        facts = {"kind": "raw", "bit_depth": 12}
        write_ome_tiff(path, tifffile.imread(path), channels=("raw",), pixel_size_nm=PIXEL_SIZE_NM, facts=facts)
    assert load(str(folder), manifest, RECIPE).tuning[0].image.max() == 1


def test_what_the_box_enhanced_and_stacks_are_no_frames(tmp_path: Path, manifest: Manifest) -> None:
    for folder in ("snapshots", "stacks"):
        (tmp_path / folder).mkdir()
    for kind in ("raw", "enhanced"):
        write_ome_tiff(
            tmp_path / "snapshots" / f"a_{kind}.ome.tif",
            grey(),
            channels=(kind,),
            pixel_size_nm=PIXEL_SIZE_NM,
            facts={"kind": kind, "bit_depth": 8},
        )
    with pytest.raises(CalibrationError, match=r"a_enhanced\.ome\.tif is enhanced, not raw data"):
        load(str(tmp_path / "snapshots"), manifest, RECIPE)
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / "stacks" / name, np.stack([grey()] * 5), photometric="minisblack")
    with pytest.raises(CalibrationError, match=r"a\.tif is a stack of 5 pictures"):
        load(str(tmp_path / "stacks"), manifest, RECIPE)


def test_a_bit_depth_of_pictures_without_counts_is_refused(manifest: Manifest) -> None:
    with pytest.raises(CalibrationError, match=r"a bit depth of 12 says nothing of synthetic:calibration"):
        load(SYNTHETIC, manifest, RECIPE, bit_depth=12)


def test_a_network_of_a_labs_own_pairs_has_no_families(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(CalibrationError, match="was trained on a lab's own pairs"):
        load("synthetic:calibration", manifest, RECIPE.with_pairs(tmp_path))


def test_max_is_the_largest_absolute_value_over_all_pictures() -> None:
    images = [picture(seed=seed) * np.float32(0.2 * seed) for seed in range(1, 4)]
    told: list[tuple[int, int]] = []
    found = ranges(residual_net(4), ["image", "up"], images, "max", lambda _, done, total: told.append((done, total)))
    assert found["image"] == pytest.approx(max(float(image.max()) for image in images))
    assert found["up"] > 0
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_percentile_and_entropy_cut_rare_peaks() -> None:
    rng = np.random.default_rng(0)
    image = np.abs(rng.normal(0, 0.05, (200, 200))).astype(np.float32)
    image[0, 0] = 1.0
    largest, percentile, entropy = (
        ranges(residual_net(4), ["image"], [image], method, lambda *_: None)["image"]
        for method in ("max", "percentile", "entropy")
    )
    assert largest == 1.0
    assert percentile == pytest.approx(np.percentile(image, PERCENTILE), abs=0.01)
    assert 0.1 < entropy < 0.3


def test_a_value_that_is_always_zero_has_the_range_zero() -> None:
    image = np.zeros((16, 16), np.float32)
    for method in ("max", "percentile", "entropy"):
        assert ranges(residual_net(4), ["image"], [image], method, lambda *_: None)["image"] < 1e-30


def test_a_network_that_overflows_is_refused() -> None:
    image = np.full((16, 16), np.inf, np.float32)
    with pytest.raises(CalibrationError, match="is not finite on these pictures"):
        ranges(residual_net(4), ["image"], [image], "max", lambda *_: None)
