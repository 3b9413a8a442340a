"""Weight pruning: the smallest weights of each layer are removed, the rest is fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn
from torch.nn.utils import prune

from fingerbench.errors import number, require
from fingerbench.zoo.train import Recipe, Scene, supervise


def weight_layers(model: nn.Module) -> list[nn.Module]:
    """Return the convolutional and linear layers, whose weights pruning and noising change.

    Those inside `nn.MultiheadAttention`, as in torchvision's ViTs, are left out: it does not call them as layers.
    """
    layers = (layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    return [layer for layer in layers if not isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear)]


@dataclass(frozen=True)
class Prune:
    """Magnitude pruning per layer (NaturalFinger, Yang et al. 2023), with the mask kept while fine-tuning.

    A variant is the share of weights removed in each layer, in (0, 1).
    """

    recipe: Recipe
    variants: tuple[str, ...] = field(compare=False)
    students: ClassVar[bool] = False

    def check(self, variant: str) -> None:
        """Raise a UserError unless the variant is such a share."""
        require(0 < number(variant) < 1, "a variant of Prune", "a share above 0 and below 1, such as 0.5", variant)

    def make(self, variant: str, scene: Scene) -> nn.Module:
        """Return the victim with that share of every layer's weights at exactly zero."""
        model = scene.victim
        assert model is not None
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as torch's pruning expects
        for layer in weight_layers(model):
            prune.l1_unstructured(layer, "weight", amount=float(variant))
            # Left from this, autograd would add gradients on the stream of before, and no step could be replayed.
            layer.weight = layer.weight.detach()  # type: ignore[operator]
        supervise(model, scene.finetune, self.recipe, scene.workbench)
        for layer in weight_layers(model):
            prune.remove(layer, "weight")
        return model
