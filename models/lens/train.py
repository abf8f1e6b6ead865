"""What training a neural lens is: every network is a conditional GAN of its own, all of them take each step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.checkpoint import build_network
from models.discriminator import PatchGAN
from models.errors import RecipeError
from models.lens import data
from models.lens.evaluate import figures, labels_picture
from models.lens.folder import folder_crop, folder_scenes
from models.lens.networks import NeuralLens
from models.lens.recipe import LensRecipe
from models.losses import gan_loss
from models.network import Network, infer_with
from models.train import VALIDATION_SEED, Batch, Update, autocast

Image = NDArray[np.float32]

_BETAS = (0.5, 0.999)


class LensTrainee:
    """System C in training (see `models.train.Trainee`)."""

    def __init__(self, recipe: LensRecipe) -> None:
        self.recipe = recipe
        net = build_network(recipe)
        assert isinstance(net, NeuralLens)  # noqa: S101  # the only network of this system
        if net.types != recipe.data.types:
            raise RecipeError(
                f"recipe {recipe.name}: the network labels {', '.join(net.types)}, the data are"
                f" {', '.join(recipe.data.types)}; make network.options.types and data.types the same"
            )
        self.net = net
        size = recipe.loss.discriminator_features
        self._magnifiers = [f"magnify_{kind}" for kind in net.types]
        unknown = set(recipe.loss.every) - {"label", "shadow", *self._magnifiers}
        if unknown:
            raise RecipeError(
                f"recipe {recipe.name}: loss.every names {', '.join(sorted(unknown))}; choose from label,"
                f" shadow, {', '.join(self._magnifiers)}"
            )
        # Each judges the input of its network beside the output.
        self.discriminators = nn.ModuleDict({name: PatchGAN(2, size) for name in ("shadow", *self._magnifiers)})
        self.nets = nn.ModuleDict({"net": net, "discriminators": self.discriminators})
        rate = recipe.train.learning_rate
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "generators": torch.optim.Adam(net.parameters(), lr=rate, betas=_BETAS),
            "discriminators": torch.optim.Adam(self.discriminators.parameters(), lr=rate, betas=_BETAS),
        }
        self._crop: Callable[[np.random.Generator], dict[str, Image]]
        self._validation: list[data.Scene]

    def prepare(self, *, workers: int | None) -> None:
        """Draw the scenes, or read the labelled pairs."""
        r, crop_px = self.recipe, self.recipe.train.crop_px
        if isinstance(r.data, data.Conditions):
            bank = data.bank(r.data, count=r.scenes.count, side_px=r.scenes.side_px, seed=r.seed, workers=workers)
            self._crop = partial(data.crop, bank, r.data, crop_px=crop_px)
            self._validation = data.scenes(
                r.data, count=r.validation.scenes, side_px=crop_px, seed=r.seed + VALIDATION_SEED
            )
            return
        scenes, self._validation = (folder_scenes(r.data, split) for split in ("train", "validation"))
        self._crop = partial(folder_crop, r.data, scenes, crop_px=crop_px)

    def draw(self, step: int, crops: range) -> dict[str, Image]:
        """The parts of `data.crop`, each (n, 1 or types, crop, crop)."""
        drawn = [self._crop(np.random.default_rng([self.recipe.seed, 2, step, number])) for number in crops]
        return {name: np.stack([one[name] for one in drawn]) for name in drawn[0]}

    def train_step(self, batch: Batch, step: int, update: Update) -> dict[str, float]:
        """One step of all generators, then one of all discriminators."""
        done, loss = step / self.recipe.train.steps, self.recipe.loss
        adversary = loss.adversary if done > loss.adversary_from else 0.0
        due = {name for name in ("label", "shadow", *self._magnifiers) if step % loss.every.get(name, 1) == 0}
        pairs, losses = self.generator_step(batch, update, due=due, own=done > loss.predicted_from, adversary=adversary)
        if adversary and pairs:
            losses |= self.discriminator_step(pairs, update)
        return losses

    def generator_step(
        self, batch: Batch, update: Update, *, due: set[str], own: bool, adversary: float
    ) -> tuple[dict[str, tuple[Tensor, Tensor, Tensor]], dict[str, float]]:
        """Each network's error plus `adversary` x what its discriminator says, in one step of
        the networks that are `due`; `own`: half of the crops get the networks' own predictions as inputs.

        Returns
        -------
        (input, output, truth) by network, outputs detached, and the losses to log.
        """
        net, weights = self.net, self.recipe.loss
        light, maps, on_black = net.light(batch["image"]), batch["maps"], batch["on_black"]
        # Which crops (n, 1, 1, 1) get predictions.
        chosen = (torch.rand(len(light), 1, 1, 1) < 0.5) & own
        with autocast(self.recipe.train):
            with torch.set_grad_enabled("label" in due):
                scores = net.scores(light).float()
            true_masks = net.dilated(maps)
            masks = torch.where(chosen, net.masks(scores.detach()), true_masks)
            # (input, output, truth) of each network that learns in this step.
            pairs: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
            grains = torch.zeros_like(on_black)
            for index, name in enumerate(self._magnifiers):
                mask, true_mask = masks[:, index : index + 1], true_masks[:, index : index + 1]
                if name in due or "shadow" in due:
                    with torch.set_grad_enabled(name in due):
                        magnified = net.magnified_type(index, light, masks).float()
                    grains = grains + magnified.detach() * mask
                if name in due:
                    pairs[name] = (light * mask, magnified, on_black * true_mask)
            if "shadow" in due:
                grains = torch.where(chosen, grains.clamp(0, 1), on_black)
                pairs["shadow"] = (grains, net.shadowed(grains).float(), batch["shadowed"])

        errors = {name: 2 * (output - truth).abs().mean() for name, (_, output, truth) in pairs.items()}
        total = weights.l1 * sum(errors.values(), torch.zeros(()))
        if "label" in due:
            errors["label"] = _cross_entropy(scores, maps)
            total = total + weights.labels * errors["label"]
        losses = {name: float(error.detach()) for name, error in errors.items()}
        if adversary:
            self.discriminators.requires_grad_(False)
            with autocast(self.recipe.train):
                fooled = [
                    gan_loss(weights.gan, self.discriminators[name](torch.cat([given, output], 1)).float(), True)
                    for name, (given, output, _) in pairs.items()
                ]
            self.discriminators.requires_grad_(True)
            total = total + adversary * sum(fooled)
        if due:
            losses["generators"] = update("generators", total)
        return {name: (given, output.detach(), truth) for name, (given, output, truth) in pairs.items()}, losses

    def discriminator_step(self, pairs: dict[str, tuple[Tensor, Tensor, Tensor]], update: Update) -> dict[str, float]:
        """Each discriminator on true and generated outputs, half the weight each (Isola et al. 2017)."""
        total = torch.zeros(())
        with autocast(self.recipe.train):
            for name, (given, output, truth) in pairs.items():
                judge = self.discriminators[name]
                for picture, real in ((truth, True), (output, False)):
                    verdict = judge(torch.cat([given, picture], 1)).float()
                    total = total + 0.5 * gan_loss(self.recipe.loss.gan, verdict, real)
        return {"discriminators": update("discriminators", total)}

    def validate(self, net: Network) -> dict[str, float]:
        """PSNR of the shadowed picture decides; labels and spikes for the log."""
        infer = infer_with(net)
        report = figures(infer, self._validation, self.recipe.data.types, self.recipe.pixel_size_nm)
        found = {"psnr_db": report["psnr_db"]["output"], "iou": report["labels"]["iou"]}
        found |= {name: report[name] for name in ("leak", "own_energy")}
        spikes = report.get("spikes", {})
        return found | {name: spikes[name] for name in ("f1", "std_x_px", "std_y_px") if spikes.get(name) is not None}

    def pictures(self, net: Network) -> Image:
        """Rows of input, shadowed picture, truth, map, true map."""
        infer = infer_with(net)
        rows = []
        for scene in self._validation[:3]:
            made = infer(scene.image)
            grey = [np.repeat(part[..., None], 3, -1) for part in (scene.image, made["shadowed"], scene.shadowed)]
            rows.append(np.concatenate([*grey, made["map"], labels_picture(scene.labels)], axis=1))
        return np.concatenate(rows)


def _cross_entropy(scores: Tensor, maps: Tensor) -> Tensor:
    """Of the background, whose logit is 0, and the types against maps (n, types, h, w) of 0 and 1."""
    nothing = 1 - maps.sum(1)
    likelihood = torch.log_softmax(functional.pad(scores, (0, 0, 0, 0, 1, 0)), 1)
    return -(likelihood[:, 0] * nothing + (likelihood[:, 1:] * maps).sum(1)).mean()
