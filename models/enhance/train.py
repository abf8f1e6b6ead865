"""What training an enhancer is: crops of drawn specimens, or of a lab's own pairs, and one loss."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from models import metrics
from models.augment import augment
from models.checkpoint import build_network
from models.enhance import data
from models.enhance.recipe import EnhanceRecipe, PairsSection
from models.errors import RecipeError
from models.losses import enhancement_loss
from models.network import Network, infer_with
from models.pairs import read_pairs
from models.train import Batch, Update, autocast

Image = NDArray[np.float32]

# Crops of drawn specimens and of pairs must never come from the seeds that validation uses.
_VALIDATION_SEED = 1_000_000


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
        self._source: _Source

    def prepare(self, *, workers: int | None) -> None:
        """Draw the specimens, or read the pairs."""
        source = _Folder if isinstance(self.recipe.data, PairsSection) else _Drawn
        self._source = source(self.recipe, workers)
        # After the oracle's correction an empty picture is perfect, and would swamp the mean.
        self._validation = [pair for pair in self._source.validation if np.ptp(pair[1]) > 0]

    def draw(self, step: int, crops: range) -> dict[str, Image]:
        """(n, 1, crop, crop) images and (n, 1, scale crop, scale crop) truths."""
        drawn = [self._source.crop(np.random.default_rng([self.recipe.seed, 2, step, number])) for number in crops]
        return {"image": np.stack([i for i, _ in drawn])[:, None], "truth": np.stack([t for _, t in drawn])[:, None]}

    def train_step(self, batch: Batch, step: int, update: Update) -> dict[str, float]:
        """One step of Adam on the enhancement loss."""
        with autocast(self.recipe.train):
            output = self.nets["net"](batch["image"].contiguous(memory_format=torch.channels_last))
        loss = self.recipe.loss
        return {
            "loss": update(
                "enhancer",
                enhancement_loss(
                    output.float(), batch["truth"], gradient_weight=loss.gradient_weight, epsilon=loss.epsilon
                ),
            )
        }

    def validate(self, net: Network) -> dict[str, float]:
        """Raw and corrected PSNR: which run is best is decided by structure and level together."""
        infer, shown = infer_with(net), net.outputs[0].name
        outputs = [infer(image)[shown] for image, _ in self._validation]
        truths = [truth for _, truth in self._validation]
        border = net.halo_px * net.scale
        return {
            name: float(np.mean([judge(a, b, border_px=border) for a, b in zip(outputs, truths, strict=True)]))
            for name, judge in (("psnr_db", metrics.psnr_db), ("psnr_corrected_db", metrics.psnr_corrected_db))
        }

    def pictures(self, net: Network) -> Image:
        """Rows of input, output and truth."""
        infer, shown = infer_with(net), net.outputs[0].name
        rows = []
        for image, truth in self._validation[:4]:
            enlarged = np.kron(image, np.ones((net.scale, net.scale), np.float32))
            rows.append(np.concatenate([enlarged, infer(image)[shown], truth], axis=1))
        width = min(row.shape[1] for row in rows)
        return np.concatenate([row[:, :width] for row in rows])


class _Source(Protocol):
    """Where crops and validation images come from."""

    validation: list[tuple[Image, Image]]

    def crop(self, rng: np.random.Generator) -> tuple[Image, Image]:
        """(image, truth)."""


class _Drawn:
    """A bank of drawn specimens, exposed anew for every crop."""

    def __init__(self, recipe: EnhanceRecipe, workers: int | None) -> None:
        assert isinstance(recipe.data, data.Conditions)  # noqa: S101  # _Folder is for the other kind
        self._conditions, self._crop_px = recipe.data, recipe.train.crop_px
        v, s = recipe.validation, recipe.scenes
        seed = recipe.seed + _VALIDATION_SEED
        pairs = data.pairs(self._conditions, images_per_family=v.images_per_family, side_px=v.side_px, seed=seed)
        self.validation = [(pair.image, pair.truth) for pair in pairs]
        self._bank = data.scenes(self._conditions, count=s.count, side_px=s.side_px, seed=recipe.seed, workers=workers)

    def crop(self, rng: np.random.Generator) -> tuple[Image, Image]:
        return data.crop(self._bank, self._conditions, crop_px=self._crop_px, rng=rng)


class _Folder:
    """A lab's registered pairs; the loop sees the training split, validation the validation split."""

    def __init__(self, recipe: EnhanceRecipe, workers: int | None) -> None:
        assert isinstance(recipe.data, PairsSection)  # noqa: S101  # _Drawn is for the other kind
        self._section, self._crop_px = recipe.data, recipe.train.crop_px
        folder, expected_nm = recipe.data.folder, recipe.data.pixel_size_nm
        self._training = read_pairs(folder, "train")
        for pair in self._training[:1]:
            if abs(pair.pixel_size_nm / expected_nm - 1) > 0.02:
                raise RecipeError(
                    f"the pairs in {folder} have pixels of {pair.pixel_size_nm:.1f} nm, the recipe is for"
                    f" {expected_nm:.1f} nm; make them again with: superlens-train pairs --pixel-nm {expected_nm:.1f}"
                )
        self.validation = [(pair.image, pair.truth) for pair in read_pairs(folder, "validation")]

    def crop(self, rng: np.random.Generator) -> tuple[Image, Image]:
        pair = self._training[rng.integers(len(self._training))]
        image, truth = augment(
            [pair.image, pair.truth],
            rng,
            crop_px=self._crop_px,
            rotations_deg=self._section.rotations_deg,
            scales=self._section.scales,
        )
        return image, truth
