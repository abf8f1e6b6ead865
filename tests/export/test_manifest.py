"""The contract of training and appliance: what is written is read back, nothing else is accepted."""

import json
from pathlib import Path
from typing import Any

import pytest

from export.errors import ExportError, ManifestError
from export.files import sha256_of
from export.manifest import (
    BundleIndex,
    Manifest,
    TensorSpec,
    Verification,
    load_bundle,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"a graph")
    write_manifest(BundleIndex(name="toy", task="enhance", precisions={"fp32": "model.json"}), tmp_path / "bundle.json")
    picture = TensorSpec(name="image", shape=(1, 1, "height", "width"), dtype="float32", range=(0, 1))
    write_manifest(
        Manifest(
            name="toy",
            task="enhance",
            file="model.onnx",
            sha256=sha256_of(tmp_path / "model.onnx"),
            format="onnx",
            precision="fp32",
            inputs=(picture,),
            outputs=(picture.model_copy(update={"name": "enhanced"}),),
            scale=1,
            halo_px=32,
            min_side_px=16,
            pixel_size_nm=48.1,
            training_data="synthetic pairs",
            checkpoint_sha256="0" * 64,
            verify=Verification(against="torch", max_abs_error=1e-6, psnr_db=120, ssim=1, shapes_px=((64, 64),)),
        ),
        tmp_path / "model.json",
    )
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_bundle_that_was_written_is_read_back(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert (loaded.name, loaded.task, loaded.precisions) == ("toy", "enhance", ("fp32",))
    assert loaded.manifest().outputs[0].name == "enhanced"
    assert loaded.manifest() == read_manifest(bundle / "model.json")
    assert loaded.model_path().read_bytes() == b"a graph"
    assert sorted(p.name for p in bundle.iterdir()) == ["bundle.json", "model.json", "model.onnx"]


def test_a_changed_model_file_is_refused_with_the_command_that_rebuilds(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"a grapf")
    with pytest.raises(ManifestError, match=r"SHA-256.*superlens-export convert .*weights\.safetensors --out"):
        load_bundle(bundle).model_path()


def test_a_missing_model_file_is_refused(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    with pytest.raises(ManifestError, match=r"model\.onnx is missing; rebuild"):
        load_bundle(bundle).model_path()


def picture(name: str = "enhanced", channels: Any = 1) -> dict[str, Any]:
    shape = [1, channels, "2*height", "2*width"]
    return {"name": name, "shape": shape, "dtype": "float32", "range": [0, 1]}


def test_a_manifest_that_says_nothing_of_multiples_takes_any_sides(bundle: Path) -> None:
    document = json.loads((bundle / "model.json").read_text())
    del document["side_multiple_px"]
    (bundle / "model.json").write_text(json.dumps(document))
    assert load_bundle(bundle).manifest().side_multiple_px == 1


def test_outputs_are_grey_or_colour_and_the_first_is_shown(bundle: Path) -> None:
    edit(bundle / "model.json", outputs=[picture("map", 3), picture("magnified")], scale=2)
    manifest = load_bundle(bundle).manifest()
    assert manifest.output_names == ("map", "magnified")
    assert [spec.channels for spec in manifest.outputs] == [3, 1]


@pytest.mark.parametrize(
    ("pixel_size_nm", "fits"), [(48.1, True), (52.9, True), (53.0, False), (43.3, True), (43.2, False), (None, True)]
)
def test_a_pixel_up_to_a_tenth_off_or_unknown_is_what_the_model_was_trained_for(
    bundle: Path, pixel_size_nm: float | None, fits: bool
) -> None:
    assert load_bundle(bundle).manifest().pixel_fits(pixel_size_nm) is fits


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"schema_version": 2}, "schema_version"),
        ({"halo_px": -1}, "halo_px"),
        ({"sha256": "abc"}, "sha256"),
        ({"file": "../elsewhere.onnx"}, "file"),
        ({"format": "tensorrt"}, "built_with"),
        ({"precision": "fp8"}, "precision"),
        ({"side_multiple_px": 0}, "side_multiple_px"),
        ({"outputs": [picture(), picture()]}, "two have the same name"),
        ({"outputs": [picture(channels=2)]}, "expected .1, 1 or 3, height, width."),
        ({"outputs": [picture(channels="height")]}, "expected .1, 1 or 3, height, width."),
        ({"outputs": [picture("../map")]}, r"outputs\.0\.name"),
    ],
)
def test_a_manifest_with_a_wrong_key_is_refused(bundle: Path, changes: dict[str, Any], complaint: str) -> None:
    edit(bundle / "model.json", **changes)
    with pytest.raises(ManifestError, match=complaint):
        load_bundle(bundle).manifest()


def test_a_manifest_of_another_precision_than_listed_is_refused(bundle: Path) -> None:
    edit(bundle / "model.json", precision="int8")
    with pytest.raises(ManifestError, match=r"describes toy .* in int8"):
        load_bundle(bundle).manifest()


def test_a_precision_that_is_not_there_is_refused_and_the_present_ones_are_named(bundle: Path) -> None:
    with pytest.raises(ManifestError, match="no precision 'int8', only fp32"):
        load_bundle(bundle).manifest("int8")


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="is not a model bundle"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_file_that_is_no_json_record_is_refused(bundle: Path, text: str) -> None:
    (bundle / "bundle.json").write_text(text)
    with pytest.raises(ManifestError, match=r"bundle\.json is no BundleIndex"):
        load_bundle(bundle)


def test_the_errors_stand_in_one_tree() -> None:
    assert issubclass(ManifestError, ExportError)
    assert issubclass(ManifestError, ValueError)
