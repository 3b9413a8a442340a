"""Adversarial training: a stolen model is fine-tuned on images plus adversarial versions of some of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from fingerbench.cost import ModelOutline, Work, passes
from fingerbench.errors import number, require
from fingerbench.ops import ascend_sign
from fingerbench.records import Images
from fingerbench.zoo.train import Recipe, Scene, supervise

AT_ONCE = 300  # images that PGD moves together; a full-width ResNet18 keeps some 10 MiB for the gradient of each


@dataclass(frozen=True)
class Adversarial:
    """Fine-tuning with the adversarial versions of a share of the images added (NaturalFinger, Yang et al. 2023).

    A variant is that share, in (0, 1]. The examples are made once, on the victim, with true labels, by L-infinity PGD
    with a random start (Madry et al. 2018). Which attack the paper used, and its size, is not published.
    """

    recipe: Recipe
    eps: float  # in [0, 1] pixel units
    step: float
    steps: int
    variants: tuple[str, ...] = field(compare=False)
    students: ClassVar[bool] = False
    classifiers_only: ClassVar[bool] = True  # PGD ascends the cross-entropy

    def check(self, variant: str) -> None:
        """Raise a UserError unless the variant is such a share."""
        require(0 < number(variant) <= 1, "a variant of Adversarial", "a share above 0 and at most 1", variant)

    def make(self, variant: str, scene: Scene) -> nn.Module:
        """Return the victim, fine-tuned on the augmented set."""
        model, clean, generator = scene.victim, scene.finetune, scene.workbench.generator
        assert model is not None
        count = round(float(variant) * len(clean))
        chosen = torch.randperm(len(clean), generator=generator)[:count].to(clean.x.device)
        crafted = self.pgd(model, clean.pixels()[chosen], clean.y[chosen], generator)
        if not clean.x.is_floating_point():  # rounded like every image of the split; the bound of PGD is far coarser
            crafted = (crafted * 255).round().to(torch.uint8)
        x = torch.cat([clean.x, crafted])
        return supervise(model, Images(x, torch.cat([clean.y, clean.y[chosen]])), self.recipe, scene.workbench)

    def pgd(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Return adversarial versions of x float (n, c, h, w) in [0, 1], within `eps` of it and in [0, 1]."""
        model.eval()
        start = x + self.eps * (torch.rand(x.shape, generator=generator).to(x) * 2 - 1)
        pieces = zip(x.split(AT_ONCE), start.split(AT_ONCE), y.split(AT_ONCE), strict=True)
        return torch.cat([self._ascend(model, *piece) for piece in pieces])

    def _ascend(self, model: nn.Module, x: Tensor, start: Tensor, y: Tensor) -> Tensor:
        moved = start.clamp(0, 1)
        for _ in range(self.steps):
            moved = ascend_sign(model, moved, y, self.step)
            moved = moved.clamp(x - self.eps, x + self.eps).clamp(0, 1)
        return moved

    def work(self, variant: str, outline: ModelOutline) -> Work:
        """Return the training on all images and the crafted ones, and the steps of PGD on those."""
        assert outline.victim is not None
        images = outline.sizes.finetune
        crafted = round(float(variant) * images)
        attacked = passes("attack", (outline.victim,), self.steps * crafted, min(crafted, AT_ONCE))
        return attacked + outline.training(self.recipe, images + crafted)
