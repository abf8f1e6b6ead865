"""A checkpoint becomes a bundle whose graph gives torch's pictures at any size."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [export]")
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")

import onnx
import openvino
import torch
from click.testing import CliRunner

from export import to_onnx
from export.__main__ import main
from export.convert import convert
from export.errors import ExportError, ParityError
from export.manifest import Bundle, load_bundle
from export.runtime import infer_with
from export.to_onnx import graph_of, verify
from models.checkpoint import load_checkpoint, save_checkpoint
from models.enhance.networks import RTNet
from models.enhance.recipe import EnhanceRecipe
from models.network import Network, Output
from models.recipe import read_recipe

RECIPE = EnhanceRecipe.model_validate(
    {
        "name": "toy",
        "task": "enhance",
        "description": "nothing was trained",
        "seed": 0,
        "network": {"name": "rtnet-g", "options": {"features": 8, "blocks": 2}},
        "data": {
            "families": ["dots"],
            "effective_na": [1.0],
            "photons": [1000],
            "axis_offset_um": [[0, 1]],
        },
        "scenes": {"count": 1, "side_px": 64},
        "train": {
            "steps": 1,
            "crops": 1,
            "crop_px": 48,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "clip": 1,
            "ema": 0.9,
            "precision": "fp32",
        },
        "validation": {"images_per_family": 1, "side_px": 96, "every": 1},
    }
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    net = RTNet(features=8, blocks=2, illumination=True)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("checkpoint") / "best.safetensors"
    save_checkpoint(path, net, RECIPE, 1)
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return convert(checkpoint, tmp_path_factory.mktemp("zoo") / "toy").bundle


def test_a_bundle_is_complete_and_its_manifest_tells_the_truth(bundle: Bundle, checkpoint: Path) -> None:
    files = sorted(path.name for path in bundle.folder.iterdir())
    assert files == ["README.md", "bundle.json", "model.json", "model.onnx", "weights.safetensors"]
    assert (bundle.folder / "weights.safetensors").read_bytes() == checkpoint.read_bytes()
    manifest = bundle.manifest()
    assert bundle.model_path().name == "model.onnx"
    assert (manifest.inputs[0].name, manifest.outputs[0].name) == ("image", "enhanced")
    assert manifest.verify.max_abs_error < 1e-5
    assert (171, 128) in manifest.verify.shapes_px
    assert "**synthetic** images only" in (bundle.folder / "README.md").read_text()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("shape_px", [(16, 16), (17, 31), (171, 128), (96, 100)])
def test_every_engine_gives_torchs_picture_at_odd_sizes(
    bundle: Bundle, checkpoint: Path, engine: str, shape_px: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).random(shape_px, dtype=np.float32)
    with torch.inference_mode():
        expected = load_checkpoint(checkpoint).net(torch.from_numpy(image)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(infer_with(bundle.model_path(), engine)(image)["enhanced"], expected, atol=1e-4)


def test_openvino_reshapes_the_graph_to_a_camera(bundle: Bundle) -> None:
    for height, width in ((512, 512), (171, 128)):
        model = openvino.Core().read_model(bundle.model_path())
        model.reshape([1, 1, height, width])
        assert list(model.output("enhanced").shape) == [1, 1, height, width]


def test_the_graph_is_small_and_carries_nothing_of_this_machine(bundle: Bundle) -> None:
    data = bundle.model_path().read_bytes()
    graph = onnx.load_from_string(data)
    assert [opset.version for opset in graph.opset_import] == [18]
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("Conv") == 1 + 2 + 1 + 3 + 2, "head, body, tail, illumination and its two 1x1"
    assert "SpaceToDepth" not in kinds, "the head is one 6x6 convolution"
    assert len(kinds) < 60
    assert b"/work" not in data
    assert str(Path(__file__).parents[2]).encode() not in data


class Coloured(Network):
    """Two outputs, one in colour, twice as large, of sides that must be multiples of 32."""

    outputs = (Output("grey"), Output("colour", 3))
    scale = 2
    side_multiple_px = 32

    def __init__(self) -> None:
        super().__init__()
        self.down = torch.nn.Conv2d(1, 4, 32, stride=32)
        self.grey = torch.nn.ConvTranspose2d(4, 1, 64, stride=64)
        self.colour = torch.nn.ConvTranspose2d(4, 3, 64, stride=64)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low = self.down(image)
        return self.grey(low).clamp(0, 1), self.colour(low).clamp(0, 1)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_several_outputs_keep_their_names_channels_and_sizes(tmp_path: Path, engine: str) -> None:
    torch.manual_seed(4)
    net = Coloured().eval()
    path = tmp_path / "model.onnx"
    path.write_bytes(graph_of(net))
    assert verify(path, net, read_recipe("srcnn")).shapes_px == ((32, 32), (192, 128), (256, 256), (512, 512))
    made = infer_with(path, engine)(np.random.default_rng(0).random((64, 96), dtype=np.float32))
    assert {name: picture.shape for name, picture in made.items()} == {"grey": (128, 192), "colour": (128, 192, 3)}
    shapes = [
        [d.dim_param or d.dim_value for d in put.type.tensor_type.shape.dim] for put in onnx.load(path).graph.output
    ]
    assert shapes == [[1, 1, "2*height", "2*width"], [1, 3, "2*height", "2*width"]]


def test_converting_twice_gives_the_same_file(bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    assert convert(checkpoint, tmp_path / "again").bundle.manifest().sha256 == bundle.manifest().sha256


def test_a_graph_that_differs_from_torch_is_refused(bundle: Bundle, checkpoint: Path) -> None:
    net, recipe = load_checkpoint(checkpoint)[:2]
    with torch.no_grad():
        net.tail.bias += 0.01  # type: ignore[operator]
    with pytest.raises(ParityError, match=r"differs from torch by .* expected at most 1e-04"):
        verify(bundle.model_path(), net, recipe)


def test_a_failed_conversion_leaves_the_old_bundle(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = convert(checkpoint, tmp_path / "toy").bundle.manifest()
    monkeypatch.setattr(to_onnx, "ALLOWED_ERROR", 0.0)
    with pytest.raises(ParityError):
        convert(checkpoint, tmp_path / "toy")
    assert load_bundle(tmp_path / "toy").manifest() == old
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_an_unknown_engine_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ExportError, match="no engine 'abacus'; choose one of onnxruntime, openvino"):
        infer_with(bundle.model_path(), "abacus")


def test_the_command_line_converts_and_prints_json(checkpoint: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["convert", str(checkpoint), "--out", str(tmp_path / "b"), "--json", "-"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["fp32"]["task"] == "enhance"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["convert", "nowhere.safetensors", "--out", "b"], "is not a file"),
        (["evaluate", "nowhere"], "is not a model bundle"),
        (["evaluate", "BUNDLE", "--data", "imagenet"], "imagenet"),
        (["evaluate", "BUNDLE", "--data", "dream:heldout"], "no data set 'dream:heldout'"),
        (["evaluate", "BUNDLE", "--data", "real:heldout"], "--data-dir"),
    ],
)
def test_a_wrong_call_exits_2_with_one_line(bundle: Bundle, arguments: list[str], complaint: str) -> None:
    arguments = [str(bundle.folder) if argument == "BUNDLE" else argument for argument in arguments]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert complaint in result.output
    assert "Traceback" not in result.output


def test_evaluating_a_damaged_model_exits_2_and_names_the_rebuild(checkpoint: Path, tmp_path: Path) -> None:
    damaged = convert(checkpoint, tmp_path / "toy").bundle
    (damaged.folder / "model.onnx").write_bytes(b"")
    result = CliRunner().invoke(main, ["evaluate", str(damaged.folder), "--json", "-"])
    assert result.exit_code == 2
    assert "superlens-export convert" in result.output
