"""Random networks are made for benchmarks, say so, and are the same for the same seed."""

import os
from pathlib import Path

import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [export]")
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")

import onnx
from click.testing import CliRunner

from export import random
from export.__main__ import main
from export.audit import audit
from export.errors import ExportError
from export.manifest import load_bundle
from export.random import random_bundle
from export.runtime import infer_with
from tests.graphs import picture

NAME = "neural-lens-4x32"


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks' own 80 million weights are not what is tested here."""
    monkeypatch.setitem(random.NGF, NAME, 4)


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
def test_a_random_lens_is_int8_runs_and_says_what_it_is(tmp_path: Path) -> None:
    out = tmp_path / "lens"
    result = CliRunner().invoke(
        main, ["random", NAME, "--size", "64", "--precision", "int8", "fp16", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    bundle = load_bundle(out)
    assert bundle.precisions == ("fp16", "int8")
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "bundle.json", "model_fp16.json", "model_fp16.onnx", "model_int8.json", "model_int8.onnx",
    ]  # fmt: skip
    manifest = bundle.manifest("int8")
    assert (manifest.name, manifest.task, manifest.side_multiple_px) == (NAME, "neural-lens", 64)
    assert manifest.training_data.startswith("NONE: random weights of seed 0")
    assert "**Random weights.**" in (out / "README.md").read_text()
    assert audit(onnx.load(str(bundle.model_path("int8")))) == []
    made = infer_with(bundle.model_path("int8"), "openvino", precision="int8")(picture(64))
    assert {name: image.shape for name, image in made.items()}["coloured"] == (64, 64, 3)
    assert all(np.isfinite(image).all() for image in made.values())


@pytest.mark.slow
@pytest.mark.usefixtures("narrow")
def test_the_seed_is_the_weights(tmp_path: Path) -> None:
    hashes = [
        random_bundle(NAME, tmp_path / str(number), size_px=64, seed=seed).manifest("int8").checkpoint_sha256
        for number, seed in enumerate((0, 0, 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("name", "size_px", "complaint"),
    [
        ("resnet", 512, "no random network 'resnet'"),
        (NAME, 500, "500 px, expected a power of two"),
        (NAME, 32, "32 px"),
    ],
)
def test_a_network_that_does_not_exist_is_refused(name: str, size_px: int, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=complaint):
        random_bundle(name, tmp_path / "out", size_px=size_px)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_in_it_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ExportError, match="is not empty and no bundle"):
        random_bundle(NAME, tmp_path, size_px=64)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
