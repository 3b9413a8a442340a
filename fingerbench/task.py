"""What the models of a zoo are for: to name classes, or to predict numbers.

A task says how many outputs a network has, what it learns, and what a suspect's API answers. Outputs are the raw
float (n, outputs) of a network; truth is what `Images.y` holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor
from torch.nn import functional as F

from fingerbench import ops
from fingerbench.errors import UserError


class Task(Protocol):
    """The part of a benchmark that differs between classification and regression."""

    quality_name: ClassVar[str]
    """What `quality` is called in tables."""

    labelled: ClassVar[bool]
    """Whether a model's top answer is a class."""

    @property
    def outputs(self) -> int:
        """Number of outputs of a network."""
        ...

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the scalar that training against the truth minimises."""
        ...

    def imitation(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return the scalar that a student minimises against the outputs of its teacher, (n, outputs) both."""
        ...

    def answer(self, outputs: Tensor) -> Tensor:
        """Return what an API answers in full, float (n, outputs), differentiably."""
        ...

    def label(self, outputs: Tensor) -> Tensor:
        """Return the class that an API answers, int64 (n,). Raises UserError where there are no classes."""
        ...

    def quality(self, outputs: Tensor, truth: Tensor) -> float:
        """Return how good a model is, 1 = perfect."""
        ...

    def agreement(self, outputs: Tensor, reference: Tensor) -> float:
        """Return how well a model does what another does, whose outputs are the reference; 1 = the same."""
        ...


@dataclass(frozen=True)
class Classification:
    """One of `classes` classes; outputs are logits, truth is int64 (n,) from 0, an API answers probabilities."""

    quality_name: ClassVar[str] = "accuracy"
    labelled: ClassVar[bool] = True

    classes: int

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise UserError(f"classification: expected 2 or more classes; got {self.classes}")

    @property
    def outputs(self) -> int:
        """A logit a class."""
        return self.classes

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the cross-entropy, mean over images."""
        return F.cross_entropy(outputs, truth)

    def imitation(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return KL(teacher / T || student / T) * T^2, mean over images (Hinton et al. 2015)."""
        p = F.log_softmax(teacher / temperature, 1)
        q = F.log_softmax(student / temperature, 1)
        return F.kl_div(q, p, reduction="batchmean", log_target=True) * temperature**2

    def answer(self, outputs: Tensor) -> Tensor:
        """Return the softmax probabilities."""
        return outputs.softmax(1)

    def label(self, outputs: Tensor) -> Tensor:
        """Return the most probable class."""
        return outputs.argmax(1)

    def quality(self, outputs: Tensor, truth: Tensor) -> float:
        """Return the accuracy."""
        return ops.matching_rate(truth, self.label(outputs))

    def agreement(self, outputs: Tensor, reference: Tensor) -> float:
        """Return the share of equal labels."""
        return ops.matching_rate(self.label(reference), self.label(outputs))


@dataclass(frozen=True)
class Regression:
    """`outputs` numbers for each input; truth is float32 (n, outputs), an API answers the predicted numbers."""

    quality_name: ClassVar[str] = "r2"
    labelled: ClassVar[bool] = False

    outputs: int = 1

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the mean squared error."""
        return F.mse_loss(outputs, truth)

    def imitation(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return the mean squared difference; numbers have no temperature."""
        return F.mse_loss(student, teacher)

    def answer(self, outputs: Tensor) -> Tensor:
        """Return the predictions as they are."""
        return outputs

    def label(self, outputs: Tensor) -> Tensor:
        """Refuse: a predicted number is no class."""
        raise UserError("a regression has no labels: expected a classification, or a method with access to outputs")

    def quality(self, outputs: Tensor, truth: Tensor) -> float:
        """Return R2, the explained share of the variance, mean over outputs."""
        return ops.r2(truth, outputs)

    def agreement(self, outputs: Tensor, reference: Tensor) -> float:
        """Return R2 with the reference for truth."""
        return ops.r2(reference, outputs)
