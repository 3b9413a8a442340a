"""Distillation: a thief trains a student on the victim's own images, labelled by the victim's answers alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from fingerbench.zoo.train import Recipe, Scene, answers, fit


@dataclass(frozen=True)
class Distill:
    """Knowledge distillation (Hinton et al. 2015) without labels, on the half that the victim was trained on.

    The loss is KL(victim / T || student / T) * T^2, mean over images. A variant is the student's architecture.
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

        def loss(logits: Tensor, x: Tensor, index: Tensor) -> Tensor:
            return distillation(logits, teach(x, index), self.temperature)

        return fit(scene.network(), images, loss, self.recipe, scene.workbench)


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher / T || student / T) * T^2 of logits (n, classes), mean over n."""
    p = F.log_softmax(teacher / temperature, 1)
    q = F.log_softmax(student / temperature, 1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True) * temperature**2
