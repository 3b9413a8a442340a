"""Knockoff: a thief trains a student on images of another domain, labelled by the victim's answers alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from fingerbench.cost import ModelOutline, Work
from fingerbench.zoo.train import Recipe, Scene, answers, fit


@dataclass(frozen=True)
class Knockoff:
    """Knockoff nets (Orekondy et al., CVPR 2019), random selection: cross-entropy with the victim's probabilities.

    A variant is the student's architecture.
    """

    recipe: Recipe
    variants: tuple[str, ...] = field(default=(), compare=False)
    students: ClassVar[bool] = True
    classifiers_only: ClassVar[bool] = True
    needs_transfer: ClassVar[bool] = True

    def make(self, variant: str, scene: Scene) -> nn.Module:
        """Return the student."""
        assert scene.victim is not None and scene.transfer is not None
        images = scene.transfer.x
        teach = answers(scene.victim, images, scene.workbench)

        def loss(logits: Tensor, x: Tensor, index: Tensor) -> Tensor:
            return F.cross_entropy(logits, teach(x, index).softmax(1))

        return fit(scene.network(), images, loss, self.recipe, scene.workbench)

    def work(self, variant: str, outline: ModelOutline) -> Work:
        """Return the student's training and the victim's answers."""
        return outline.imitation(self.recipe, outline.sizes.transfer)
