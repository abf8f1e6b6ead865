"""The loop that trains every system, read from top to bottom: draw, step, average, validate, save, resume.

What is learned stands in the rooms: a `Trainee` has the networks, draws the crops and takes one step. Nothing in a
step depends on what was before it except through the networks and their optimisers: crops are drawn by (seed, step,
number), and torch is seeded by (seed, step, rank). So a run that was cut off goes on exactly, and the processes of
`torchrun` share one batch exactly.
"""

from __future__ import annotations

import copy
import importlib
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from models.checkpoint import (
    State,
    load_state,
    load_weights,
    save_checkpoint,
    save_state,
    save_tensors,
)
from models.errors import CheckpointError, DivergedError, RecipeError
from models.network import Network, parameter_count
from models.recipe import Recipe, TrainSection
from models.runlog import RunLog
from models.systems import SYSTEMS, imported

log = logging.getLogger(__name__)

Image = NDArray[np.float32]
Batch = dict[str, Tensor]
# update(optimizer's name, loss): one step of that optimiser; gives the loss as a number.
Update = Callable[[str, Tensor], float]

# Added to a recipe's seed: what is drawn to validate on must never come from the seeds of what is trained on.
VALIDATION_SEED = 1_000_000

# Drawn ahead of the step that needs them, in one other thread.
_AHEAD = 4


class Trainee(Protocol):
    """A system in training.

    `nets["net"]` is the network that is exported; the others (discriminators, image pools) only train it. Whatever
    changes from step to step is in the state of `nets` and `optimizers`: these are saved and restored.
    """

    nets: nn.ModuleDict
    optimizers: dict[str, torch.optim.Optimizer]

    def prepare(self, *, workers: int | None) -> None:
        """Draw the bank of specimens and the validation set: the slow part."""

    def draw(self, step: int, crops: range) -> dict[str, Image]:
        """The crops with these numbers of this step; depends on the seed, the step and the number only."""

    def train_step(self, batch: Batch, step: int, update: Update) -> dict[str, float]:
        """One step of every optimiser; what it returns is logged."""

    def validate(self, net: Network) -> dict[str, float]:
        """Figures of the averaged network; the first decides which checkpoint is best, higher is better."""

    def pictures(self, net: Network) -> Image:
        """A sheet of samples, (h, w) or (h, w, 3) in 0..1."""


def fit(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    init: Path | None = None,
    workers: int | None = None,
    until: int | None = None,
    stop: threading.Event | None = None,
) -> Path:
    """Train as the recipe says.

    Parameters
    ----------
    recipe
        Everything that decides the result; on one machine the same recipe gives the same weights.
    out
        Folder for best.safetensors and last.safetensors (the averaged network), state.safetensors (to resume from),
        log.csv, samples/ and tensorboard/.
    resume
        Go on from out/state.safetensors: the result is that of a run that was never interrupted.
    init
        A bundle folder or checkpoint whose weights the network starts from.
    workers
        Processes that draw the specimens; None is one a core. Has no influence on the result.
    until
        Stop after this step as if interrupted.
    stop
        Ends the run after the step it is set in, with its state saved.

    Returns
    -------
    The path of best.safetensors.

    Raises
    ------
    DivergedError
        A loss is not a number any more; the batch is saved as diverged.safetensors.
    CheckpointError
        There is nothing to resume, or a run of another recipe; something that `resume` should not overwrite; or no
        room to save.
    """
    with Ranks() as ranks:
        return _fit(recipe, out, ranks, resume, init, workers, until, stop or threading.Event())


def _fit(
    recipe: Recipe,
    out: Path,
    ranks: Ranks,
    resume: bool,
    init: Path | None,
    workers: int | None,
    until: int | None,
    stop: threading.Event,
) -> Path:
    t = recipe.train
    crops = ranks.share(t.crops)
    state_path = out / "state.safetensors"
    if state_path.is_file() and not resume:
        raise CheckpointError(f"{out} holds a run already; go on with --resume, or give another --out")
    torch.manual_seed(recipe.seed)
    trainee: Trainee = imported(SYSTEMS[recipe.task].trainee)(recipe)
    net = trainee.nets["net"]
    assert isinstance(net, Network)  # noqa: S101  # the contract of a trainee
    if init is not None:
        load_weights(net, init)
    ema = copy.deepcopy(net).requires_grad_(False)
    state = State(step=0, best=None, stale=0)
    if resume:
        state = load_state(state_path, recipe, trainee.nets, ema, trainee.optimizers)
    started = time.perf_counter()
    trainee.prepare(workers=workers)
    log.info(
        "%s: %d parameters in use, %d in training; specimens drawn in %.1f s",
        recipe.name, parameter_count(net.fused()), parameter_count(trainee.nets), time.perf_counter() - started,
    )  # fmt: skip
    trainee.nets.train()

    last = min(t.steps, until or t.steps)
    with (
        RunLog(out, resumed_at=state.step if resume else None, writes=ranks.first) as run_log,
        ThreadPoolExecutor(1, "batches") as drawer,
        click.progressbar(
            length=t.steps,
            label=recipe.name,
            file=sys.stderr,
            show_pos=True,
            item_show_func=str,
            hidden=not ranks.first,
        ) as bar,
    ):
        bar.update(state.step)
        ahead = deque(drawer.submit(trainee.draw, state.step + n, crops) for n in range(1, _AHEAD + 1))
        for step in range(state.step + 1, last + 1):
            batch = {name: torch.from_numpy(part) for name, part in ahead.popleft().result().items()}
            ahead.append(drawer.submit(trainee.draw, step + _AHEAD, crops))
            torch.manual_seed(_step_seed(recipe.seed, step, ranks.rank))
            try:
                losses = trainee.train_step(batch, step, update_of(trainee, t, step, ranks))
            except DivergedError:
                of_rank = "" if ranks.first else f"-{ranks.rank}"
                save_tensors(out / f"diverged{of_rank}.safetensors", batch, {"step": step, "recipe": recipe.name})
                raise
            _average(ema, net, keep=min(t.ema, step / (step + 10)))
            run_log.losses(losses)

            interrupted = ranks.any(stop.is_set()) or step == last < t.steps
            judged = step % recipe.validation.every == 0 or step == t.steps
            if judged and ranks.first:
                figures = trainee.validate(ema.eval())
                figure = next(iter(figures.values()))
                better = state.best is None or figure > state.best
                if better:
                    save_checkpoint(out / "best.safetensors", ema, recipe, step)
                save_checkpoint(out / "last.safetensors", ema, recipe, step)
                state = State(step, figure if better else state.best, 0 if better else state.stale + 1)
                run_log.validation(step, figures, trainee.pictures(ema))
            if judged or step % t.log_every == 0:
                run_log.row(step, learning_rate(step, t), time.perf_counter() - started)
            if (judged or interrupted) and ranks.first:
                state = state._replace(step=step)
                save_state(state_path, recipe, trainee.nets, ema, trainee.optimizers, state)
            bar.update(1, run_log.summary)
            if interrupted:
                log.info("stopped after step %d of %d; go on with --resume", step, t.steps)
                break
            if judged and ranks.any(bool(t.early_stop) and state.stale >= t.early_stop):
                log.info("stopped early at step %d: no better figure in %d validations", step, t.early_stop)
                break
    return out / "best.safetensors"


def learning_rate(step: int, t: TrainSection) -> float:
    """The learning rate of a step: linear warm-up to the peak, then the schedule (`TrainSection`).

    Examples
    --------
    >>> t = TrainSection(steps=110, crops=1, crop_px=64, learning_rate=1, warmup_steps=10, clip=1, ema=0,
    ...                  precision="fp32")
    >>> [round(learning_rate(step, t), 3) for step in (1, 10, 60, 110)]
    [0.1, 1.0, 0.505, 0.01]
    >>> tail = t.model_copy(update={"schedule": "tail"})
    >>> [round(learning_rate(step, tail), 3) for step in (10, 60, 85, 109)]
    [1.0, 1.0, 0.52, 0.04]
    """
    if step <= t.warmup_steps:
        return t.learning_rate * step / t.warmup_steps
    done = (step - t.warmup_steps) / max(t.steps - t.warmup_steps, 1)
    if t.schedule == "constant":
        return t.learning_rate
    if t.schedule == "tail":
        # Of the steps that are left, one more than none: the last step still learns.
        ends = t.steps - t.warmup_steps
        return t.learning_rate * min(1.0, (ends * (1 - done) + 1) / (ends / 2))
    return t.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def autocast(t: TrainSection) -> AbstractContextManager[None]:
    """bfloat16 inside where the recipe asks for it; needs no loss scaling, its range is that of float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=t.precision == "bf16")


def update_of(trainee: Trainee, t: TrainSection, step: int, ranks: Ranks) -> Update:
    """What a step of this number does with a loss: gradients, their mean over the ranks, clip, rate, optimiser."""
    rate = learning_rate(step, t)

    def update(name: str, loss: Tensor) -> float:
        value = ranks.mean(loss.detach())
        if not math.isfinite(value):
            raise DivergedError(
                f"the {name} loss is {value} at step {step} of {t.steps} with a learning rate of {rate:.2g};"
                ' lower train.learning_rate or train.clip, or set train.precision = "fp32"; the batch is saved beside'
                " the checkpoints"
            )
        optimizer = trainee.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        weights = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        ranks.average([weight.grad for weight in weights])
        torch.nn.utils.clip_grad_norm_(weights, t.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        ranks.average_statistics(trainee.nets)
        return value

    return update


@torch.no_grad()
def _average(ema: Network, net: Network, *, keep: float) -> None:
    """Exponential moving average; early on it is short, so that it forgets the random start."""
    for average, value in zip(ema.parameters(), net.parameters(), strict=True):
        average.lerp_(value, 1 - keep)
    # Running statistics are averages already.
    for kept, seen in zip(ema.buffers(), net.buffers(), strict=True):
        kept.copy_(seen)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


class Ranks:
    """The processes of `torchrun`, or one: gradients and losses are means over them, rank 0 writes."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.first = self.rank == 0

    def __enter__(self) -> Ranks:
        if self.size > 1:
            # Loaded, as optimisers do, while there is a group, this module keeps it as a default argument for good; the
            # group's threads then outlive it and abort the process, now and then, when Python ends under them.
            importlib.import_module("torch.distributed.nn")
            distributed.init_process_group("gloo")
        return self

    def __exit__(self, *_: object) -> None:
        if self.size > 1:
            distributed.destroy_process_group()

    def share(self, crops: int) -> range:
        """The numbers of the crops that are this process's."""
        if crops % self.size:
            raise RecipeError(
                f"train.crops is {crops}, which {self.size} processes cannot share; make it a multiple of them"
            )
        each = crops // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes; one message for all of them."""
        if self.size > 1 and tensors:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            distributed.all_reduce(flat)
            flat /= self.size
            for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def average_statistics(self, nets: nn.Module) -> None:
        """Batch norms have seen different crops in each process; inference needs one answer."""
        if self.size > 1:
            norms = [module for module in nets.modules() if isinstance(module, nn.BatchNorm2d)]
            self.average([part for n in norms for part in (n.running_mean, n.running_var) if part is not None])

    def mean(self, value: Tensor) -> float:
        """The mean over the processes."""
        values = value.float().reshape(1).clone()
        self.average([values])
        return float(values)

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return self.mean(torch.tensor(float(flag))) > 0
