"""Training, read from top to bottom: a bank of specimens, an endless stream of crops, one loop."""

from __future__ import annotations

import copy
import csv
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
import torch

from models import metrics
from models.checkpoint import save_checkpoint
from models.enhance.data import Image, Pair, batches, pairs, scenes
from models.enhance.networks import RTNetG, build, parameter_count
from models.errors import DivergedError
from models.losses import enhancement_loss
from models.recipe import Recipe

log = logging.getLogger(__name__)


def fit(recipe: Recipe, out: Path, *, workers: int | None = None) -> Path:
    """Train as the recipe says.

    Parameters
    ----------
    recipe
        Everything that decides the result; on one machine the same recipe gives the same weights.
    out
        Folder for ema.safetensors (the result, also saved at every validation), last.safetensors and log.csv.
    workers
        Processes that draw the specimens; None is one a core. Has no influence on the result.

    Returns
    -------
    The path of ema.safetensors.

    Raises
    ------
    DivergedError
        The loss is not a number any more.
    """
    t = recipe.train
    torch.manual_seed(recipe.seed)
    net = build(recipe.network.name, recipe.network.options).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # torch's stub knows no memory_format alone
    ema = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters(), lr=t.learning_rate)
    validation = pairs(
        recipe.data,
        images_per_family=recipe.validation.images_per_family,
        side_px=recipe.validation.side_px,
        seed=recipe.seed + 1_000_000,
    )
    started = time.perf_counter()
    bank = scenes(
        recipe.data, count=recipe.scenes.count, side_px=recipe.scenes.side_px, seed=recipe.seed, workers=workers
    )
    log.info(
        "%s: %d parameters, %d specimens drawn in %.1f s",
        recipe.name, parameter_count(net.fused()), len(bank.truth), time.perf_counter() - started,
    )  # fmt: skip
    stream = batches(bank, recipe.data, crops=t.crops, crop_px=t.crop_px, seed=recipe.seed)

    out.mkdir(parents=True, exist_ok=True)
    bar = click.progressbar(
        length=t.steps, label=recipe.name, file=sys.stderr, show_pos=True, item_show_func=lambda text: text
    )
    # The next batches are drawn while the network works; one thread, so that their order is the seed's.
    with (
        (out / "log.csv").open("w", newline="") as file,
        ThreadPoolExecutor(1, "batches") as drawer,
        bar,
    ):
        table = csv.writer(file)
        table.writerow(
            ["step", "loss", "validation_psnr_db", "validation_psnr_corrected_db", "learning_rate", "time_s"]
        )
        ahead = deque(drawer.submit(next, stream) for _ in range(4))
        recent = deque[float](maxlen=t.log_every)
        for step in range(1, t.steps + 1):
            image, truth = (torch.from_numpy(part) for part in ahead.popleft().result())  # (n, 1, crop, crop)
            ahead.append(drawer.submit(next, stream))
            rate = learning_rate(step, peak=t.learning_rate, warmup=t.warmup_steps, steps=t.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16, enabled=t.precision == "bf16"):
                output = net(image.contiguous(memory_format=torch.channels_last))
            loss = enhancement_loss(output.float(), truth, gradient_weight=t.gradient_weight, epsilon=t.epsilon)
            recent.append(loss.item())
            if not math.isfinite(recent[-1]):
                raise DivergedError(
                    f"the loss is {recent[-1]} at step {step} of {t.steps} with a learning rate of {rate:.2g};"
                    ' lower train.learning_rate or train.clip, or set train.precision = "fp32"'
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), t.clip)
            optimizer.step()
            with torch.no_grad():
                # Early on the average is short, so that it forgets the random start.
                keep = min(t.ema, step / (step + 10))
                for average, value in zip(ema.parameters(), net.parameters(), strict=True):
                    average.lerp_(value, 1 - keep)

            judged = step % recipe.validation.every == 0 or step == t.steps
            if judged or step % t.log_every == 0:
                mean = sum(recent) / len(recent)
                validated = ["", ""]
                if judged:
                    validated = [f"{figure:.3f}" for figure in validate(ema, validation)]
                    save_checkpoint(out / "ema.safetensors", ema, recipe, step)
                table.writerow([step, f"{mean:.6f}", *validated, f"{rate:.3g}", f"{time.perf_counter() - started:.1f}"])
                file.flush()
                bar.update(0, f"loss {mean:.4f} {' / '.join(validated)}")
            bar.update(1)
    save_checkpoint(out / "last.safetensors", net, recipe, t.steps)
    return out / "ema.safetensors"


def learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Linear warm-up to `peak`, then a cosine down to a hundredth of it at the last step.

    Examples
    --------
    >>> [round(learning_rate(step, peak=1.0, warmup=10, steps=110), 3) for step in (1, 10, 60, 110)]
    [0.1, 1.0, 0.505, 0.01]
    """
    if step <= warmup:
        return peak * step / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def infer_with(net: RTNetG) -> Callable[[Image], Image]:
    """The network as a function of one picture (h, w) in 0..1, for `models.enhance.evaluate`."""

    def infer(image: Image) -> Image:
        with torch.inference_mode():
            return np.asarray(net(torch.from_numpy(np.ascontiguousarray(image))[None, None])[0, 0].numpy())

    return infer


def validate(net: RTNetG, validation: list[Pair]) -> tuple[float, float]:
    """(psnr_db, psnr_corrected_db) of the fused network, mean over the validation images that show something."""
    # After the oracle's correction an empty picture is perfect, and would swamp the mean.
    validation = [pair for pair in validation if np.ptp(pair.truth) > 0]
    infer = infer_with(net.fused())
    outputs = [infer(pair.image) for pair in validation]
    return tuple(  # type: ignore[return-value]  # two functions, two figures
        float(
            np.mean([judge(a, pair.truth, border_px=net.halo_px) for a, pair in zip(outputs, validation, strict=True)])
        )
        for judge in (metrics.psnr_db, metrics.psnr_corrected_db)
    )
