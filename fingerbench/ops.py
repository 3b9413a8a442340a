"""Tensor operations that several methods, attacks and metrics share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def ascend_sign(model: nn.Module, x: Tensor, y: Tensor, step: float) -> Tensor:
    """Return x + step * sign of the gradient of the cross-entropy at labels `y`, not clipped.

    Args: x float (n, c, h, w); y int64 (n,). One untargeted step of FGSM (Goodfellow et al. 2015).
    """
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    return (x + step * gradient.sign()).detach()


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch: int = 500) -> Tensor:
    """Return the logits (n, classes) of `model` on x float (n, c, h, w), in pieces of `batch`."""
    return torch.cat([model(piece) for piece in x.split(batch)])


def eight_bit(x: Tensor) -> Tensor:
    """Return images x in [0, 1] as they arrive at an API that takes 8 bits a value: rounded to multiples of 1/255."""
    return (x * 255).round() / 255


def votes(models: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Return the label int64 (models, n) that each of `models`, at least one, gives each image of x (n, c, h, w)."""
    return torch.stack([predict(model, x).argmax(1) for model in models])


def majority(labels: Tensor, classes: int) -> Tensor:
    """Return the most frequent label int64 (n,) in each column of `labels` int64 (voters, n), the smallest on a tie."""
    return F.one_hot(labels, classes).sum(0).argmax(1)


def matching_rate(labels: Tensor, responses: Tensor) -> float:
    """Return the share of int64 (n,) `responses` that equal `labels`: the score of label methods."""
    return (labels == responses).double().mean().item()
