"""Weight noising: Gaussian noise on the weights, then fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import nn

from fingerbench.cost import ModelOutline, Work
from fingerbench.errors import number, require
from fingerbench.zoo.prune import weight_layers
from fingerbench.zoo.train import Recipe, Scene, supervise


@dataclass(frozen=True)
class Noise:
    """w += N(0, (std(w) / a)^2) layer by layer (MetaFinger, IJCAI 2022; NaturalFinger, 2023), then fine-tuning.

    A variant is a > 0; the smaller, the stronger. std is that of the whole layer's weights; BatchNorm and biases are
    left alone (default: not published).
    """

    recipe: Recipe
    variants: tuple[str, ...] = field(default=(), compare=False)
    students: ClassVar[bool] = False

    def check(self, variant: str) -> None:
        """Raise a UserError unless the variant is such a number."""
        require(0 < number(variant) < math.inf, f"a variant of {type(self).__name__}", "a number above 0", variant)

    def make(self, variant: str, scene: Scene) -> nn.Module:
        """Return the victim, noised and fine-tuned."""
        model = scene.victim
        assert model is not None
        disturb(model, float(variant), scene.workbench.generator)
        return supervise(model, scene.finetune, self.recipe, scene.workbench)


@dataclass(frozen=True)
class NoisedCopy(Noise):
    """The same, done by whoever trained the model: it is fine-tuned on the half that it was trained on."""

    def make(self, variant: str, scene: Scene) -> nn.Module:
        """Return the victim, noised and fine-tuned on images of its own half."""
        return super().make(variant, replace(scene, finetune=scene.half))

    def work(self, variant: str, outline: ModelOutline) -> Work:
        """Return the training."""
        return outline.training(self.recipe, outline.sizes.half)


@torch.no_grad()
def disturb(model: nn.Module, a: float, generator: torch.Generator) -> None:
    """Add Gaussian noise of standard deviation std(w) / a to each convolutional and linear weight tensor w."""
    for layer in weight_layers(model):
        weight = layer.weight
        assert isinstance(weight, torch.Tensor)
        noise = torch.randn(weight.shape, generator=generator).to(weight)
        weight += noise * (weight.std() / a)
