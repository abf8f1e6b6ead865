"""Training learns, repeats itself, stops when it diverges, and says clearly what is wrong with its input."""

import csv
import os
from pathlib import Path

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import torch
from click.testing import CliRunner

from models.__main__ import main
from models.checkpoint import load_checkpoint, save_checkpoint
from models.errors import CheckpointError, DivergedError, RecipeError
from models.losses import charbonnier, enhancement_loss, gradient_l1
from models.recipe import Recipe, parse_recipe, read_recipe
from models.train import fit

TOY = """
name = "toy"
task = "enhance"
seed = 4
description = "dots for a test"
network = { name = "rtnet-g", options = { features = 8, blocks = 2 } }
scenes = { count = 4, side_px = 64 }
validation = { images_per_family = 1, side_px = 96, every = 10 }
[data]
families = ["dots", "ic-metal"]
effective_na = [1.0]
photons = [4000]
axis_offset_um = [[0, 2]]
[train]
steps = 20
crops = 2
crop_px = 48
learning_rate = 5e-3
warmup_steps = 2
clip = 1.0
ema = 0.9
gradient_weight = 0.5
epsilon = 1e-3
precision = "fp32"
log_every = 5
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(TOY)
    return path


@pytest.fixture
def recipe(config: Path) -> Recipe:
    return read_recipe(config)


def test_twenty_steps_reduce_the_loss(recipe: Recipe, tmp_path: Path) -> None:
    fit(recipe, tmp_path / "out", workers=1)
    with (tmp_path / "out" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["5", "10", "15", "20"]
    assert float(rows[-1]["loss"]) < 0.9 * float(rows[0]["loss"])
    assert rows[0]["validation_psnr_db"] == ""
    assert float(rows[-1]["validation_psnr_db"]) > 5


def test_the_same_recipe_gives_the_same_weights(recipe: Recipe, tmp_path: Path) -> None:
    first = load_checkpoint(fit(recipe, tmp_path / "a", workers=1))
    second = load_checkpoint(fit(recipe, tmp_path / "b", workers=1))
    assert first.recipe == recipe
    assert first.step == 20
    for name, value in first.net.state_dict().items():
        torch.testing.assert_close(value, second.net.state_dict()[name], atol=0, rtol=0)


def test_a_loss_that_is_no_number_stops_with_a_clear_error(recipe: Recipe, tmp_path: Path) -> None:
    explosive = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"learning_rate": 1e30, "clip": 1e30, "warmup_steps": 0})}
    )
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) at step \d+ of 20.*lower train.learning_rate"):
        fit(explosive, tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "ema.safetensors").exists()


def test_the_losses_are_what_their_names_say() -> None:
    truth = torch.zeros(1, 1, 4, 4)
    assert charbonnier(truth + 3, truth, 4.0).item() == pytest.approx(5)
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert gradient_l1(ramp, truth).item() == pytest.approx(1)
    assert gradient_l1(ramp + 5, ramp).item() == pytest.approx(0)
    both = enhancement_loss(ramp, truth, gradient_weight=0.5, epsilon=1e-6).item()
    assert both == pytest.approx(1.5 + 0.5, abs=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("steps = 20", "steps = 0", "train.steps"),
        ("seed = 4", "seed = 4\ncolour = 'red'", "colour: Extra inputs"),
        ('"dots"', '"unicorn"', "no specimen family unicorn"),
        ('task = "enhance"', "", "task: Field required"),
        ("[data]", "[data", "is not TOML"),
    ],
)
def test_a_wrong_recipe_exits_2_with_one_line(config: Path, old: str, new: str, complaint: str) -> None:
    config.write_text(TOY.replace(old, new))
    result = CliRunner().invoke(main, ["fit", str(config), "--out", str(config.parent / "out")])
    assert result.exit_code == 2
    assert complaint in result.output
    assert result.output.startswith("error: ")
    assert "Traceback" not in result.output
    assert not (config.parent / "out").exists()


def test_a_missing_recipe_exits_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["fit", str(tmp_path / "no.toml"), "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "cannot be read" in result.output


def test_an_unknown_network_option_exits_2(config: Path) -> None:
    config.write_text(TOY.replace("blocks = 2", "blobs = 2"))
    result = CliRunner().invoke(main, ["fit", str(config), "--out", str(config.parent / "out"), "--workers", "1"])
    assert result.exit_code == 2
    assert "does not take" in result.output


def test_the_command_line_trains_with_fewer_steps(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["fit", str(config), "--out", str(out), "--steps", "3", "--seed", "8", "--workers", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    checkpoint = load_checkpoint(out / "ema.safetensors")
    assert (checkpoint.step, checkpoint.recipe.seed) == (3, 8)


def test_files_that_are_no_checkpoints_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a file"):
        load_checkpoint(tmp_path / "no.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights here")
    with pytest.raises(CheckpointError, match="no safetensors file"):
        load_checkpoint(tmp_path / "text.safetensors")
    save_checkpoint(tmp_path / "other.safetensors", torch.nn.Linear(2, 2), recipe, 1)
    with pytest.raises(CheckpointError, match="does not fit its network"):
        load_checkpoint(tmp_path / "other.safetensors")


def test_a_recipe_survives_its_checkpoint(recipe: Recipe) -> None:
    assert parse_recipe(recipe.model_dump(mode="json"), source="memory") == recipe
    with pytest.raises(RecipeError, match="recipe memory: "):
        parse_recipe([], source="memory")
