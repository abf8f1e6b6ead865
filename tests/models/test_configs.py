"""Every recipe that ships runs, resumes exactly, and has a network of the size it says: with --tiny, in seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import torch
from click.testing import CliRunner

from models.__main__ import main
from models.checkpoint import build_network
from models.recipe import CONFIGS, read_recipe

NAMES = sorted(path.stem for path in CONFIGS.glob("*.toml"))


def fit(*arguments: str) -> None:
    result = CliRunner().invoke(main, ["fit", *arguments, "--tiny", "--workers", "1"])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_four_and_four_steps_are_eight(name: str, tmp_path: Path) -> None:
    fit(name, "--out", str(tmp_path / "whole"))
    fit(name, "--out", str(tmp_path / "cut"), "--until", "4")
    fit(name, "--out", str(tmp_path / "cut"), "--resume")
    for file in ("best.safetensors", "last.safetensors", "state.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes(), file


@pytest.mark.parametrize("name", NAMES)
def test_the_full_network_makes_its_outputs(name: str) -> None:
    recipe = read_recipe(name)
    side = recipe.train.crop_px
    with torch.device("meta"):
        net = build_network(recipe).eval()
        made = net(torch.empty(1, 1, side, side))
    pictures = [made] if isinstance(made, torch.Tensor) else list(made)
    assert [tuple(picture.shape) for picture in pictures] == [
        (1, output.channels, net.scale * side, net.scale * side) for output in net.outputs
    ]


def test_the_recipes_are_listed() -> None:
    result = CliRunner().invoke(main, ["configs"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()] == NAMES


def test_the_recipes_are_listed_where_torch_cannot_be_imported() -> None:
    blocked = "import sys; sys.modules['torch'] = None; from models.__main__ import main; main(['configs'])"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == NAMES
