"""A bundle as a package of bioimage.io: what it says of its tensors is true."""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [export]")
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")

from click.testing import CliRunner

from export.__main__ import main
from export.files import sha256_of
from export.manifest import load_bundle
from models.checkpoint import build_network, save_checkpoint
from models.recipe import read_recipe
from tests.bundles import make_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = make_bundle(tmp_path / "gain", gain=0.5, outputs=("enhanced", "colour"), scale=2, halo_px=10)
    recipe = read_recipe("srcnn")
    save_checkpoint(made / "weights.safetensors", build_network(recipe), recipe, 1)
    (made / "README.md").write_text("# gain\n")
    return made


def packed(folder: Path) -> dict[str, bytes]:
    out = folder.parent / "new" / "gain.zip"
    result = CliRunner().invoke(main, ["package", str(folder), "--out", str(out)])
    assert result.exit_code == 0, result.output
    with zipfile.ZipFile(out) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_package_is_complete_and_its_test_tensors_are_the_networks(folder: Path) -> None:
    files = packed(folder)
    assert set(files) == {
        "bioimageio.yaml", "README.md", "gain_fp32.onnx", "test_image.npy", "test_enhanced.npy", "test_colour.npy",
    }  # fmt: skip
    tensors = {name: np.load(io.BytesIO(data)) for name, data in files.items() if name.endswith(".npy")}
    image, made = tensors["test_image.npy"], tensors["test_enhanced.npy"]
    assert (image.shape, made.shape) == ((1, 1, 128, 128), (1, 1, 256, 256))
    assert tensors["test_colour.npy"].shape == (1, 3, 256, 256)
    np.testing.assert_allclose(made[..., ::2, ::2], image / 2, atol=1e-6)


def test_a_package_describes_channels_sizes_pixels_and_halo(folder: Path) -> None:
    files = packed(folder)
    about: dict[str, Any] = json.loads(files["bioimageio.yaml"])
    assert about["weights"]["onnx"]["sha256"] == sha256_of(folder / "gain_fp32.onnx")
    assert about["weights"]["onnx"]["opset_version"] == 17
    (image,), (enhanced, colour) = about["inputs"], about["outputs"]
    assert image["axes"][1] == {"type": "channel", "channel_names": ["intensity"]}
    assert colour["axes"][1]["channel_names"] == ["red", "green", "blue"]
    assert image["axes"][2]["size"] == {"min": 21, "step": 1}
    pixel_nm = load_bundle(folder).manifest().pixel_size_nm
    assert enhanced["axes"][3] == {
        "type": "space", "id": "x", "unit": "nanometer", "scale": pixel_nm / 2, "halo": 20,
        "size": {"tensor_id": "image", "axis_id": "x"},
    }  # fmt: skip


def test_packing_twice_gives_the_same_file(folder: Path) -> None:
    assert packed(folder) == packed(folder)


def test_a_damaged_bundle_is_not_packed(folder: Path) -> None:
    (folder / "gain_fp32.onnx").write_bytes(b"")
    result = CliRunner().invoke(main, ["package", str(folder), "--out", str(folder / "x.zip")])
    assert result.exit_code == 2
    assert "SHA-256" in result.output
    assert not (folder / "x.zip").exists()
