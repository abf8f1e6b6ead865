"""The committed networks are whole, small, and as good as their cards say."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [export]")
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")

import onnx
import torch
from click.testing import CliRunner
from scipy.ndimage import gaussian_filter, zoom

import models
from export import audit, gate
from export.__main__ import main
from export.files import sha256_of
from export.manifest import Precision, load_bundle
from export.runtime import infer_with
from models import metrics
from models.checkpoint import load_checkpoint
from models.enhance.data import heldout
from models.enhance.networks import RTNet
from models.recipe import read_recipe

MODELS = Path(models.__file__).parent
NAMES = ("enhance-rt", "enhance-rt-x2", "srcnn", "sem-lite", "neural-lens-mini")
# The weights twice: as they were trained, and in the ONNX file.
LARGEST_BYTES = dict.fromkeys(NAMES, 8e6) | {"neural-lens-mini": 32e6}

LESS_THAN_FP32 = [
    (name, precision)
    for name in NAMES
    for precision in load_bundle(MODELS / "zoo" / name).precisions
    if precision != "fp32"
]


def judged(name: str) -> dict[str, Any]:
    result = CliRunner().invoke(
        main, ["evaluate", str(MODELS / "zoo" / name), "--data", "synthetic:heldout", "--json", "-"]
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_these_are_all() -> None:
    assert {path.name for path in (MODELS / "zoo").iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_is_what_its_manifest_says(name: str) -> None:
    bundle = load_bundle(MODELS / "zoo" / name)
    assert bundle.model_path("fp32").is_file()
    manifest = bundle.manifest("fp32")
    assert manifest.name == name
    assert manifest.checkpoint_sha256 == sha256_of(bundle.folder / bundle.index.weights)
    assert manifest.verify.max_abs_error < 1e-4
    assert sum(path.stat().st_size for path in bundle.folder.iterdir()) < LARGEST_BYTES[name]


def test_the_small_networks_come_in_int8_too() -> None:
    every, no_int8 = ("fp32", "fp16", "int8", "int8_fp16"), ("fp32", "fp16")
    shipped = {name: load_bundle(MODELS / "zoo" / name).precisions for name in NAMES}
    assert shipped == {name: no_int8 if name in ("sem-lite", "neural-lens-mini") else every for name in NAMES}


@pytest.mark.parametrize(("name", "precision"), LESS_THAN_FP32)
def test_a_file_of_less_precision_is_whole_and_what_its_manifest_says_passes_the_gate(
    name: str, precision: Precision
) -> None:
    bundle = load_bundle(MODELS / "zoo" / name)
    bundle.model_path(precision)  # the hash
    manifest = bundle.manifest(precision)
    assert manifest.verify.gate is not None
    assert manifest.verify.gate.data == "synthetic:calibration"
    gate.check(precision, manifest.verify)
    of_this_file = {"file", "sha256", "precision", "verify"}
    assert manifest.model_dump(exclude=of_this_file) == bundle.manifest().model_dump(exclude=of_this_file)


@pytest.mark.parametrize(("name", "precision"), LESS_THAN_FP32)
def test_tensorrt_would_take_a_file_of_less_precision_as_it_is_meant(name: str, precision: Precision) -> None:
    model = onnx.load(load_bundle(MODELS / "zoo" / name).model_path(precision))
    findings = audit.audit(model) if precision.startswith("int8") else audit.unreadable(model)
    assert findings == []


@pytest.mark.parametrize(("name", "precision"), LESS_THAN_FP32)
def test_a_file_of_less_precision_shows_what_fp32_shows(name: str, precision: Precision) -> None:
    """On another picture than any it was judged on: a wrong file with a right manifest is found out.

    Of a contrast that micrographs have: black-and-white noise is outside the ranges that INT8 was measured on.
    """
    bundle = load_bundle(MODELS / "zoo" / name)
    side_px = max(96, bundle.manifest().min_side_px)
    noise = gaussian_filter(np.random.default_rng(11).standard_normal((side_px, side_px)), 4)
    image = np.clip(0.5 + 0.08 * noise / noise.std(), 0, 1).astype(np.float32)
    found, wanted = (infer_with(bundle.model_path(one), precision=one)(image) for one in (precision, "fp32"))
    worst = min(gate.psnr_db([found], [wanted]).values())
    assert gate.LEAST_PSNR_DB <= worst < 200, "equal pictures would be FP32 itself"


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_was_made_by_the_committed_recipe(name: str) -> None:
    checkpoint = load_checkpoint(MODELS / "zoo" / name / "weights.safetensors")
    assert checkpoint.recipe == read_recipe(name)
    assert 0 < checkpoint.step <= checkpoint.recipe.train.steps


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_synthetic_and_quotes_figures_and_limits(name: str) -> None:
    card = (MODELS / "zoo" / name / "README.md").read_text()
    for words in ("**synthetic** images only", "psnr_db", "## Limits", f"make zoo MODEL={name}"):
        assert words in card
    assert "Not judged yet" not in card


@pytest.mark.slow
def test_the_default_network_beats_the_input_and_the_best_classical_method() -> None:
    report = judged("enhance-rt")
    raw, fair = report["psnr_db"], report["psnr_corrected_db"]
    assert raw["output"] >= raw["input"] + 5.0
    assert fair["output"] >= fair["best_classical"] + 0.3
    assert report["epi"]["output"] >= 0.45
    assert report["ssim"]["output"] > report["ssim"]["input"]
    assert report["background_std"]["output"] <= report["background_std"]["input"]


@pytest.mark.parametrize("name", ["enhance-rt", "enhance-rt-x2"])
def test_the_light_of_an_empty_field_is_evened_out(name: str) -> None:
    """By the illumination branch, which once had learned to death: a constant, whatever the picture."""
    net = load_checkpoint(MODELS / "zoo" / name / "weights.safetensors").net
    assert isinstance(net, RTNet)
    assert net.illumination is not None
    ramp = np.linspace(0.4, 0.7, 256, dtype=np.float32)
    falling = torch.from_numpy(np.tile(ramp, (256, 1)))[None, None]
    with torch.inference_mode():
        gain, offset = net.illumination(falling).chunk(2, 1)
        evened, made = falling * (1 + gain) + offset, net(falling)
    assert float(evened.std()) < 0.4 * float(falling.std())
    assert float(made.std()) < 0.6 * float(falling.std())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), [("enhance-rt-x2", 2), ("srcnn", 1)])
def test_the_other_enhancers_beat_their_input(name: str, scale: Literal[1, 2]) -> None:
    bundle = load_bundle(MODELS / "zoo" / name)
    infer, border_px = infer_with(bundle.model_path()), scale * bundle.manifest().halo_px
    before, after = [], []
    for pair in heldout(images_per_family=1, side_px=160, scale=scale):
        enlarged = zoom(pair.image, scale, order=3, grid_mode=True, mode="nearest") if scale > 1 else pair.image
        before.append(metrics.psnr_db(enlarged, pair.truth, border_px=border_px))
        after.append(metrics.psnr_db(infer(pair.image)["enhanced"], pair.truth, border_px=border_px))
    assert np.mean(after) > np.mean(before) + 2.0


@pytest.mark.slow
def test_sem_lite_beats_the_best_histogram_matched_wiener_result() -> None:
    report = judged("sem-lite")
    assert report["psnr_db"]["output"] >= report["psnr_db"]["best_classical"] + 2.0
    assert report["epi"]["output"] >= report["epi"]["input"] + 0.3


@pytest.mark.slow
def test_the_neural_lens_finds_spikes_and_labels_grains() -> None:
    report = judged("neural-lens-mini")
    spikes = report["spikes"]
    assert spikes["f1"] >= 0.8 > 2 * spikes["f1_of_chance"]
    assert spikes["hidden_share"] >= 0.5, "in the input"
    assert spikes["std_x_px"] <= 5.0, "the paper's figure"
    assert spikes["std_y_px"] <= 4.3, "the paper's figure"
    assert report["labels"]["iou"] >= 0.85
    assert report["labels"]["grain_accuracy"] >= 0.95
    assert report["leak"] < 0.01
    assert report["own_energy"] >= 0.95
