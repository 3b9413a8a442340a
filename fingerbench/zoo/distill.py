"""Distillation: a thief trains a student on the victim's own images, labelled by the victim's answers alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from fingerbench.cost import ModelOutline, Work
from fingerbench.zoo.train import Recipe, Scene, answers, fit


@dataclass(frozen=True)
class Distill:
    """Knowledge distillation (Hinton et al. 2015) without labels, on the half that the victim was trained on.

    The loss is `Task.imitation`: of classifiers KL(victim / T || student / T) * T^2, mean over images. A variant is the
    student's architecture.
    """

    recipe: Recipe
    temperature: float
    variants: tuple[str, ...] = field(default=(), compare=False)
    students: ClassVar[bool] = True

    def make(self, variant: str, scene: Scene) -> nn.Module:
        """Return the student."""
        assert scene.victim is not None
        images = scene.half.x
        teach = answers(scene.victim, images, scene.workbench)
        task = scene.workbench.task

        def loss(outputs: Tensor, x: Tensor, index: Tensor) -> Tensor:
            return task.imitation(outputs, teach(x, index), self.temperature)

        return fit(scene.network(), images, loss, self.recipe, scene.workbench)

    def work(self, variant: str, outline: ModelOutline) -> Work:
        """Return the student's training and the victim's answers."""
        return outline.imitation(self.recipe, outline.sizes.half)
