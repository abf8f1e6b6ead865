"""Two processes of torchrun learn what one would: the same batch, averaged gradients, equal weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

if os.environ.get("CI") != "true":
    pytest.importorskip("torch", reason="needs the extra [train]")

import torch
from safetensors.torch import load_file

from models.recipe import read_recipe
from models.train import fit

pytestmark = pytest.mark.slow

# Trains three steps of a recipe with batch norms on every rank, and compares what the ranks hold.
TWINS = """
import sys, torch
from pathlib import Path
from torch import distributed
from models.recipe import read_recipe
from models.systems import SYSTEMS, imported
from models.train import Ranks, update_of

recipe = read_recipe("sem-lite").tiny().having("train", crops=2)
with Ranks() as ranks:
    torch.manual_seed(recipe.seed)
    trainee = imported(SYSTEMS[recipe.task].trainee)(recipe)
    trainee.prepare(workers=1)
    trainee.nets.train()
    for step in (1, 2, 3):
        batch = {name: torch.from_numpy(part) for name, part in trainee.draw(step, ranks.share(2)).items()}
        trainee.train_step(batch, step, update_of(trainee, recipe.train, step, ranks))
        grads = [p.grad.flatten() for p in trainee.nets["net"].parameters() if p.grad is not None]
        held = torch.cat([p.detach().flatten().float() for p in trainee.nets["net"].state_dict().values()] + grads)
        everyone = [torch.empty_like(held) for _ in range(ranks.size)]
        distributed.all_gather(everyone, held)
        assert torch.equal(*everyone), f"the ranks differ after step {step}"
    crops = torch.from_numpy(next(iter(trainee.draw(4, ranks.share(2)).values())))
    others = [torch.empty_like(crops) for _ in range(ranks.size)]
    distributed.all_gather(others, crops)
    assert not torch.equal(*others), "both ranks work on the same crops"
threads = [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]
assert not any("gloo" in name for name in threads), f"the group outlives its ranks: {threads}"
"""


def torchrun(*arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr


def test_two_ranks_equal_one_process_at_the_same_global_batch(tmp_path: Path) -> None:
    # In single precision: bfloat16 rounds a batch of two differently from two batches of one.
    recipe = read_recipe("enhance-rt").tiny().having("train", precision="fp32")
    config = tmp_path / "recipe.toml"
    config.write_text(as_toml(recipe.model_dump(mode="json")))
    assert read_recipe(config) == recipe
    one = fit(recipe, tmp_path / "one", workers=1)
    torchrun("-m", "models", "fit", str(config), "--out", str(tmp_path / "two"), "--workers", "1")
    mine, theirs = load_file(one), load_file(tmp_path / "two" / "best.safetensors")
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-5, rtol=1e-4)


def test_ranks_of_a_network_with_batch_norm_hold_equal_weights_and_leave_no_thread(tmp_path: Path) -> None:
    script = tmp_path / "twins.py"
    script.write_text(TWINS)
    torchrun(str(script))


def test_a_batch_that_ranks_cannot_share_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    arguments = ["-m", "models", "fit", "enhance-rt-x2", "--out", str(tmp_path / "out")]  # three crops
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    assert "train.crops is 3, which 2 processes cannot share" in done.stderr


def as_toml(content: dict[str, object], prefix: str = "") -> str:
    """Just enough TOML for a recipe."""
    plain = [f"{key} = {literal(value)}" for key, value in content.items() if not isinstance(value, dict)]
    tables = [
        f"\n[{prefix}{key}]\n{as_toml(value, f'{prefix}{key}.')}"
        for key, value in content.items()
        if isinstance(value, dict)
    ]
    return "\n".join(plain + tables)


def literal(value: object) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"') + '"'
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else repr(value)
