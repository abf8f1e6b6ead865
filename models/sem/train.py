"""What training system B is: a start on registered pairs, then CycleGAN on pictures that do not belong together."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models import metrics
from models.discriminator import PatchGAN
from models.folder import PairsFolder
from models.losses import charbonnier, contextual_loss, gan_loss, patch_features
from models.network import Network, infer_with
from models.sem import data
from models.sem.networks import ImagePool, build
from models.sem.recipe import SemRecipe
from models.train import VALIDATION_SEED, Batch, Update, autocast

Image = NDArray[np.float32]


class _Crop(Protocol):
    """A random optical and a random electron crop: of one place if `paired`."""

    def __call__(self, rng: np.random.Generator, *, paired: bool) -> tuple[Image, Image]: ...


class SemTrainee:
    """System B in training (see `models.train.Trainee`).

    Two generators, `net` from optical to SEM and `reverse` back; a discriminator and a pool for either side.
    """

    def __init__(self, recipe: SemRecipe) -> None:
        self.recipe = recipe
        d, t = recipe.discriminator, recipe.train
        self.nets = nn.ModuleDict(
            {
                "net": build(recipe.network.name, recipe.network.options),
                "reverse": build(recipe.reverse.name, recipe.reverse.options),
                "judge_sem": PatchGAN(1, d.features, d.strides),
                "judge_optical": PatchGAN(1, d.features, d.strides),
                "pool_sem": ImagePool(recipe.loss.pool, t.crop_px),
                "pool_optical": ImagePool(recipe.loss.pool, t.crop_px),
            }
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub knows no memory_format alone
        generators, judges = (
            [weight for name in names for weight in self.nets[name].parameters()]
            for names in (("net", "reverse"), ("judge_sem", "judge_optical"))
        )
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "generator": torch.optim.Adam(generators, lr=t.learning_rate, betas=(0.5, 0.999)),
            "discriminator": torch.optim.Adam(judges, lr=t.learning_rate, betas=(0.5, 0.999)),
        }
        self._crop: _Crop

    def prepare(self, *, workers: int | None) -> None:
        """Draw the specimens, or read the pairs."""
        recipe, section = self.recipe, self.recipe.data
        if isinstance(section, data.Conditions):
            v, s = recipe.validation, recipe.scenes
            bank = data.scenes(section, count=s.count, side_px=s.side_px, seed=recipe.seed, workers=workers)
            self._crop = partial(data.crop, bank, section, crop_px=recipe.train.crop_px)
            seed = recipe.seed + VALIDATION_SEED
            drawn = data.pairs(section, images_per_family=v.images_per_family, side_px=v.side_px, seed=seed)
            self._validation = [(pair.image, pair.truth) for pair in drawn]
        else:
            folder = PairsFolder(section, crop_px=recipe.train.crop_px)
            self._crop, self._validation = folder.crop, folder.validation

    def paired(self, step: int) -> bool:
        """Whether a step learns from registered pairs, as the first share of them does."""
        return step <= self.recipe.loss.paired_share * self.recipe.train.steps

    def draw(self, step: int, crops: range) -> dict[str, Image]:
        """(n, 1, crop, crop) optical and electron pictures; of different specimens once pairs are taken apart."""
        drawn = [
            self._crop(np.random.default_rng([self.recipe.seed, 2, step, number]), paired=self.paired(step))
            for number in crops
        ]
        return {"optical": np.stack([o for o, _ in drawn])[:, None], "sem": np.stack([s for _, s in drawn])[:, None]}

    def train_step(self, batch: Batch, step: int, update: Update) -> dict[str, float]:
        """One step of all networks that this part of the training has."""
        optical, sem = (batch[name].contiguous(memory_format=torch.channels_last) for name in ("optical", "sem"))
        if self.paired(step):
            return self._paired_step(optical, sem, update)
        # Each generator is now fed both kinds of picture, in which batch norms would average statistics that neither
        # has: they keep those of the pairs, and training is what inference will be.
        for module in self.nets.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        losses, made_sem, made_optical = self._generator_step(optical, sem, update)
        return losses | self._discriminator_step(optical, sem, made_sem, made_optical, update)

    def _paired_step(self, optical: Tensor, sem: Tensor, update: Update) -> dict[str, float]:
        """Both generators on registered pairs."""
        weight = self.recipe.loss
        with autocast(self.recipe.train):
            made_sem, made_optical = self.nets["net"](optical).float(), self.nets["reverse"](sem).float()
        loss = weight.l1 * (
            charbonnier(made_sem, sem, weight.epsilon) + charbonnier(made_optical, optical, weight.epsilon)
        )
        parts = {"l1": functional.l1_loss(made_sem, sem).item()}
        if weight.contextual:
            context = contextual_loss(patch_features(made_sem), patch_features(sem))
            loss = loss + weight.contextual * context
            parts["contextual"] = context.item()
        return {"generator": update("generator", loss)} | parts

    def _generator_step(self, optical: Tensor, sem: Tensor, update: Update) -> tuple[dict[str, float], Tensor, Tensor]:
        """Both generators: fool the judges, come back to where they started, leave alone what is done already."""
        weight, nets = self.recipe.loss, self.nets
        judges = [nets["judge_sem"], nets["judge_optical"]]
        for judge in judges:
            judge.requires_grad_(False)
        with autocast(self.recipe.train):
            made_sem, made_optical = nets["net"](optical), nets["reverse"](sem)
            back_optical, back_sem = nets["reverse"](made_sem), nets["net"](made_optical)
            verdicts = [judge(made) for judge, made in zip(judges, (made_sem, made_optical), strict=True)]
            # On the pictures a generator should produce, it should change nothing.
            same_sem, same_optical = nets["net"](sem), nets["reverse"](optical)
        for judge in judges:
            judge.requires_grad_(True)
        fooled = torch.stack([gan_loss(weight.gan, verdict.float(), True) for verdict in verdicts]).sum()
        cycle = functional.l1_loss(back_optical.float(), optical) + functional.l1_loss(back_sem.float(), sem)
        identity = functional.l1_loss(same_sem.float(), sem) + functional.l1_loss(same_optical.float(), optical)
        loss = weight.adversarial * fooled + weight.cycle * cycle + weight.identity * identity
        losses = {"adversarial": fooled.item(), "cycle": cycle.item(), "identity": identity.item()}
        return {"generator": update("generator", loss)} | losses, made_sem.detach(), made_optical.detach()

    def _discriminator_step(
        self, optical: Tensor, sem: Tensor, made_sem: Tensor, made_optical: Tensor, update: Update
    ) -> dict[str, float]:
        """Both judges: real pictures from ones made now or a while ago."""
        kind, nets = self.recipe.loss.gan, self.nets
        loss = torch.zeros(())
        for side, real, made in (("sem", sem, made_sem), ("optical", optical, made_optical)):
            shown = nets[f"pool_{side}"](made)
            with autocast(self.recipe.train):
                on_real, on_made = nets[f"judge_{side}"](real), nets[f"judge_{side}"](shown)
            loss = loss + (gan_loss(kind, on_real.float(), True) + gan_loss(kind, on_made.float(), False)) / 2
        return {"discriminator": update("discriminator", loss)}

    def validate(self, net: Network) -> dict[str, float]:
        """SSIM, PSNR, edge preservation and (less is better) contextual loss of whole pictures of other specimens.

        The first decides: PSNR alone prefers a blur, EPI alone forgives a wrong level.
        """
        infer = infer_with(net)
        made = [infer(optical)["sem"] for optical, _ in self._validation]
        truths = [truth for _, truth in self._validation]
        scores = [
            (*(judge(a, b, border_px=8) for judge in (metrics.ssim, metrics.psnr_db, metrics.epi)), contextual(a, b))
            for a, b in zip(made, truths, strict=True)
        ]
        return dict(zip(("ssim", "psnr_db", "epi", "contextual"), map(float, np.mean(scores, axis=0)), strict=True))

    def pictures(self, net: Network) -> Image:
        """Rows of optical picture, output and truth."""
        infer = infer_with(net)
        shown = self._validation[:6]
        side = min(min(optical.shape) for optical, _ in shown)
        rows = [
            np.concatenate([part[:side, :side] for part in (optical, infer(optical)["sem"], truth)], axis=1)
            for optical, truth in shown
        ]
        return np.concatenate(rows)


def contextual(image: Image, truth: Image) -> float:
    """The contextual loss of two pictures, on patches, at always the same positions."""
    features = [patch_features(torch.from_numpy(np.ascontiguousarray(part))[None, None]) for part in (image, truth)]
    with torch.inference_mode():
        return float(contextual_loss(*features, positions=2048, generator=torch.Generator().manual_seed(0)))
