"""What training an enhancer is: crops of drawn specimens, or of a lab's own pairs, and one loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from models import metrics
from models.checkpoint import build_network
from models.enhance import data
from models.enhance.recipe import EnhanceRecipe
from models.errors import RecipeError
from models.folder import PairsFolder
from models.losses import enhancement_loss
from models.network import Network, infer_with
from models.train import VALIDATION_SEED, Batch, Update, autocast

Image = NDArray[np.float32]


class EnhanceTrainee:
    """System A in training (see `models.train.Trainee`)."""

    def __init__(self, recipe: EnhanceRecipe) -> None:
        self.recipe = recipe
        net = build_network(recipe).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub knows no memory_format alone
        if net.scale != recipe.data.scale:
            raise RecipeError(
                f"recipe {recipe.name}: the network makes pictures of scale {net.scale}, the data are of scale"
                f" {recipe.data.scale}; make network.options.scale and data.scale the same"
            )
        self.nets = torch.nn.ModuleDict({"net": net})
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "enhancer": torch.optim.Adam(net.parameters(), lr=recipe.train.learning_rate)
        }
        self._crop: Callable[[np.random.Generator], tuple[Image, Image]]

    def prepare(self, *, workers: int | None) -> None:
        """Draw the specimens, or read the pairs."""
        recipe, section = self.recipe, self.recipe.data
        if isinstance(section, data.Conditions):
            v, s = recipe.validation, recipe.scenes
            bank = data.scenes(section, count=s.count, side_px=s.side_px, seed=recipe.seed, workers=workers)
            self._crop = partial(data.crop, bank, section, crop_px=recipe.train.crop_px)
            seed = recipe.seed + VALIDATION_SEED
            drawn = data.pairs(section, images_per_family=v.images_per_family, side_px=v.side_px, seed=seed)
            validation = [(pair.image, pair.truth) for pair in drawn]
        else:
            folder = PairsFolder(section, crop_px=recipe.train.crop_px)
            self._crop, validation = folder.crop, folder.validation
        # After the oracle's correction an empty picture is perfect, and would swamp the mean.
        self._validation = [pair for pair in validation if np.ptp(pair[1]) > 0]
        self._empty = [image for image, truth in validation if np.ptp(truth) == 0]

    def draw(self, step: int, crops: range) -> dict[str, Image]:
        """(n, 1, crop, crop) images and (n, 1, scale crop, scale crop) truths."""
        drawn = [self._crop(np.random.default_rng([self.recipe.seed, 2, step, number])) for number in crops]
        return {"image": np.stack([i for i, _ in drawn])[:, None], "truth": np.stack([t for _, t in drawn])[:, None]}

    def train_step(self, batch: Batch, step: int, update: Update) -> dict[str, float]:
        """One step of Adam on the enhancement loss."""
        with autocast(self.recipe.train):
            output = self.nets["net"](batch["image"].contiguous(memory_format=torch.channels_last))
        loss = self.recipe.loss
        return {
            "loss": update(
                "enhancer",
                enhancement_loss(output.float(), batch["truth"], **loss.model_dump()),
            )
        }

    def validate(self, net: Network) -> dict[str, float]:
        """Raw and corrected PSNR: which run is best is decided by structure and level together.

        Where pictures of nothing are at hand, also how uneven they are made: their standard deviation, to be compared
        with that of the input.
        """
        infer, shown = infer_with(net), net.outputs[0].name
        outputs = [infer(image)[shown] for image, _ in self._validation]
        truths = [truth for _, truth in self._validation]
        border = net.halo_px * net.scale
        found = {
            name: float(np.mean([judge(a, b, border_px=border) for a, b in zip(outputs, truths, strict=True)]))
            for name, judge in (("psnr_db", metrics.psnr_db), ("psnr_corrected_db", metrics.psnr_corrected_db))
        }
        if self._empty:
            for name, images, edge in (
                ("background_std", [infer(image)[shown] for image in self._empty], border),
                ("background_std_input", self._empty, net.halo_px),
            ):
                found[name] = float(np.mean([metrics.inner(image, edge).std() for image in images]))
        return found

    def pictures(self, net: Network) -> Image:
        """Rows of input, output and truth."""
        infer, shown = infer_with(net), net.outputs[0].name
        rows = []
        for image, truth in self._validation[:4]:
            enlarged = np.kron(image, np.ones((net.scale, net.scale), np.float32))
            rows.append(np.concatenate([enlarged, infer(image)[shown], truth], axis=1))
        width = min(row.shape[1] for row in rows)
        return np.concatenate([row[:, :width] for row in rows])
