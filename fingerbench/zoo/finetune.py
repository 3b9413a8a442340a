"""Fine-tuning: a thief trains a stolen model on, with labelled images of his own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from fingerbench.cost import ModelOutline, Work, passes
from fingerbench.errors import unknown
from fingerbench.nets import final_layer
from fingerbench.zoo.train import Recipe, Scene, supervise

MODES = ("FTLL", "FTAL", "RTLL", "RTAL")


@dataclass(frozen=True)
class Finetune:
    """The four modes of MetaFinger (Yang et al., IJCAI 2022).

    FTLL trains the last layer, FTAL all layers; RTLL and RTAL first re-initialise the last layer. In the last-layer
    modes every other weight and every BatchNorm statistic stays as it is, to the bit.
    """

    recipe: Recipe
    variants: tuple[str, ...] = field(default=MODES, compare=False)
    students: ClassVar[bool] = False

    def check(self, variant: str) -> None:
        """Raise a UserError unless the variant is a mode."""
        if variant not in MODES:
            raise unknown("fine-tuning mode", variant, MODES)

    def make(self, variant: str, scene: Scene) -> nn.Module:
        """Return the victim, fine-tuned in mode `variant`."""
        self.check(variant)
        model, images = scene.victim, scene.finetune
        assert model is not None
        last = final_layer(model)
        if variant.startswith("RT"):
            last.reset_parameters()
        only_last = variant.endswith("LL")
        model.requires_grad_(not only_last)
        last.requires_grad_(True)
        return supervise(model, images, self.recipe, scene.workbench, frozen=only_last)

    def work(self, variant: str, outline: ModelOutline) -> Work:
        """Return the training; where only the last layer learns, images go forward alone."""
        images = outline.sizes.finetune
        if variant.endswith("LL"):
            return passes("answer", (outline.network,), self.recipe.epochs * images, self.recipe.batch)
        return outline.training(self.recipe, images)
