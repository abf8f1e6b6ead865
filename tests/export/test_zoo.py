"""The committed networks are whole, small, and as good as their cards say."""

import json
import os
from pathlib import Path

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [export]")
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")

from click.testing import CliRunner

import models
from export.__main__ import main
from export.manifest import load_bundle, sha256_of
from models.checkpoint import load_checkpoint
from models.recipe import read_recipe

MODELS = Path(models.__file__).parent
ENHANCE_RT = MODELS / "zoo" / "enhance-rt"


def test_the_bundle_is_what_its_manifest_says() -> None:
    bundle = load_bundle(ENHANCE_RT)
    assert bundle.model_path("fp32").is_file()
    manifest = bundle.manifest("fp32")
    assert manifest.checkpoint_sha256 == sha256_of(ENHANCE_RT / bundle.index.weights)
    assert manifest.verify.max_abs_error < 1e-4
    assert sum(path.stat().st_size for path in ENHANCE_RT.iterdir()) < 8e6


def test_the_bundle_was_made_by_the_committed_recipe() -> None:
    checkpoint = load_checkpoint(ENHANCE_RT / "weights.safetensors")
    assert checkpoint.recipe == read_recipe(MODELS / "configs" / "enhance-rt.toml")
    assert checkpoint.step == checkpoint.recipe.train.steps


def test_the_card_says_synthetic_and_quotes_both_figures() -> None:
    card = (ENHANCE_RT / "README.md").read_text()
    for words in ("synthetic pairs", "PSNR corrected dB", "richardson-lucy-10", "Limits"):
        assert words in card


@pytest.mark.slow
def test_the_default_network_beats_the_input_and_the_best_classical_method() -> None:
    result = CliRunner().invoke(main, ["evaluate", str(ENHANCE_RT), "--data", "synthetic:heldout", "--json", "-"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    raw, fair = report["psnr_db"], report["psnr_corrected_db"]
    assert raw["output"] >= raw["input"] + 4.5
    assert fair["output"] >= fair["best_classical"] + 0.3
    assert report["epi"]["output"] > report["epi"]["input"]
    assert report["ssim"]["output"] > report["ssim"]["input"]
