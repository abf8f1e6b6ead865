"""Training learns, repeats itself, stops when it diverges, and says clearly what is wrong with its input."""

import csv
import os
import resource
import threading
from pathlib import Path

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image as Picture
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models.__main__ import main
from models.checkpoint import build_network, load_checkpoint, save_checkpoint
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


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same_weights(a: Path, b: Path) -> bool:
    return a.read_bytes() == b.read_bytes()


def test_twenty_steps_reduce_the_loss(recipe: Recipe, tmp_path: Path) -> None:
    fit(recipe, tmp_path / "out", workers=1)
    rows = rows_of(tmp_path / "out")
    assert [row["step"] for row in rows] == ["5", "10", "15", "20"]
    assert float(rows[-1]["loss"]) < 0.9 * float(rows[0]["loss"])
    assert rows[0]["validation_psnr_db"] == ""
    assert float(rows[-1]["validation_psnr_db"]) > 5


def test_a_run_leaves_samples_and_curves(recipe: Recipe, tmp_path: Path) -> None:
    fit(recipe, tmp_path, workers=1)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["000010.png", "000020.png"]
    sheet = np.asarray(Picture.open(tmp_path / "samples" / "000020.png"))
    assert sheet.shape == (2 * 96, 3 * 96)  # two families; input, output, truth
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss", "learning_rate", "validation_psnr_db"} <= set(curves.Tags()["scalars"])
    assert curves.Tags()["images"] == ["samples"]


def test_the_same_recipe_gives_the_same_file(recipe: Recipe, tmp_path: Path) -> None:
    first, second = (fit(recipe, tmp_path / name, workers=1) for name in "ab")
    assert load_checkpoint(first).recipe == recipe
    assert same_weights(first, second)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(recipe: Recipe, tmp_path: Path) -> None:
    fit(recipe, tmp_path / "whole", workers=1)
    fit(recipe, tmp_path / "cut", workers=1, until=7)
    fit(recipe, tmp_path / "cut", workers=1, resume=True, until=12)
    fit(recipe, tmp_path / "cut", workers=1, resume=True)
    for name in ("best", "last", "state"):
        assert same_weights(tmp_path / "whole" / f"{name}.safetensors", tmp_path / "cut" / f"{name}.safetensors"), name
    whole, cut = ([row["step"] for row in rows_of(tmp_path / name)] for name in ("whole", "cut"))
    assert whole == cut


def test_a_stop_from_outside_saves_the_state_after_the_step(recipe: Recipe, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    fit(recipe, tmp_path, workers=1, stop=stop)
    fit(recipe, tmp_path, workers=1, resume=True, until=2)
    assert not (tmp_path / "best.safetensors").exists()
    fit(recipe, tmp_path, workers=1, resume=True)
    assert load_checkpoint(tmp_path / "last.safetensors").step == 20


def test_a_run_is_not_overwritten_by_another(recipe: Recipe, tmp_path: Path) -> None:
    fit(recipe, tmp_path, workers=1, until=2)
    with pytest.raises(CheckpointError, match="holds a run already; go on with --resume"):
        fit(recipe, tmp_path, workers=1)


def test_there_is_nothing_to_resume_in_an_empty_folder(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a file"):
        fit(recipe, tmp_path, workers=1, resume=True)


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("network", "options", {"features": 12, "blocks": 2}, "network.options.features was 8 and is 12"),
        ("train", "steps", 30, "train.steps was 20 and is 30"),
        ("data", "photons", [777], r"data.photons was \[.*\] and is \[777.0\]"),
    ],
)
def test_a_run_resumes_with_its_own_recipe_only(
    recipe: Recipe, tmp_path: Path, section: str, key: str, value: object, said: str
) -> None:
    fit(recipe, tmp_path, workers=1, until=2)
    with pytest.raises(CheckpointError, match=f"is of a run with another recipe: .*{said}"):
        fit(recipe.having(section, **{key: value}), tmp_path, workers=1, resume=True)


def test_training_stops_early_when_nothing_gets_better(recipe: Recipe, tmp_path: Path) -> None:
    # A rate so low that nothing moves: the first validation stays the best.
    still = recipe.having("train", learning_rate=1e-12, early_stop=2, steps=100).having("validation", every=2)
    best = fit(still, tmp_path, workers=1)
    steps = [int(row["step"]) for row in rows_of(tmp_path)]
    assert steps[-1] <= 12
    assert load_checkpoint(best).step < steps[-1]


def test_training_starts_from_another_runs_weights(recipe: Recipe, tmp_path: Path) -> None:
    trained = fit(recipe, tmp_path / "first", workers=1)
    still = recipe.having("train", learning_rate=1e-12, steps=2)
    begun = load_checkpoint(fit(still, tmp_path / "second", workers=1, init=trained)).net.state_dict()
    for name, value in load_checkpoint(trained).net.state_dict().items():
        torch.testing.assert_close(begun[name], value, atol=1e-6, rtol=0)
    wider = recipe.having("network", options={"features": 12, "blocks": 2})
    with pytest.raises(CheckpointError, match="does not fit the network of this recipe"):
        fit(wider, tmp_path / "third", workers=1, init=trained)


def test_a_loss_that_is_no_number_stops_with_the_batch_saved(recipe: Recipe, tmp_path: Path) -> None:
    explosive = recipe.having("train", learning_rate=1, clip=1e30, warmup_steps=0)
    with pytest.raises(DivergedError, match=r"the enhancer loss is (nan|inf) at step \d+.*lower train.learning_rate"):
        fit(explosive, tmp_path / "out", workers=1, init=_poisoned(recipe, tmp_path))
    assert not (tmp_path / "out" / "best.safetensors").exists()
    with safe_open(tmp_path / "out" / "diverged.safetensors", framework="np") as file:
        assert set(file.keys()) == {"image", "truth"}
        assert file.get_tensor("image").shape == (2, 1, 48, 48)


def _poisoned(recipe: Recipe, folder: Path) -> Path:
    net = build_network(recipe)
    with torch.no_grad():
        next(net.parameters()).fill_(float("inf"))
    save_checkpoint(folder / "poisoned.safetensors", net, recipe, 1)
    return folder / "poisoned.safetensors"


def test_a_full_disk_leaves_the_old_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, build_network(recipe), recipe, 1)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file that may not grow meets the same error as one on a full disk, in the middle of writing.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"could not be saved.*make room, then go on with --resume"):
            save_checkpoint(path, build_network(recipe), recipe, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if "best" in file.name] == ["best.safetensors"]


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
        ('task = "enhance"', "", "task is None, expected one of enhance, sem, neural-lens"),
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
    checkpoint = load_checkpoint(out / "best.safetensors")
    assert (checkpoint.step, checkpoint.recipe.seed) == (3, 8)


def test_files_that_are_no_checkpoints_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a file"):
        load_checkpoint(tmp_path / "no.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights here")
    with pytest.raises(CheckpointError, match="no safetensors file"):
        load_checkpoint(tmp_path / "text.safetensors")
    other = build_network(recipe.having("network", options={"features": 12}))
    save_checkpoint(tmp_path / "other.safetensors", other, recipe, 1)
    with pytest.raises(CheckpointError, match="does not fit its network"):
        load_checkpoint(tmp_path / "other.safetensors")


def test_a_recipe_survives_its_checkpoint(recipe: Recipe) -> None:
    assert parse_recipe(recipe.model_dump(mode="json"), source="memory") == recipe
    with pytest.raises(RecipeError, match="recipe memory: "):
        parse_recipe([], source="memory")
