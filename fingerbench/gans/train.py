"""The one trainer of every GAN: an alternating loop that is told the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fingerbench.records import Gan, Images


class Loss(Protocol):
    """What a GAN minimises, in terms of the discriminator's scores (n,), larger = more real."""

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return the scalar that the discriminator minimises."""
        ...

    def generator(self, fake: Tensor) -> Tensor:
        """Return the scalar that the generator minimises."""
        ...


@dataclass(frozen=True)
class Hinge:
    """The hinge loss of SAGAN (Zhang et al. 2019)."""

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return mean max(0, 1 - real) + mean max(0, 1 + fake)."""
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()

    def generator(self, fake: Tensor) -> Tensor:
        """Return -mean fake."""
        return -fake.mean()


@dataclass(frozen=True)
class Training:
    """How long and how fast a GAN is trained. Defaults: those of StudioGAN for CIFAR-10."""

    steps: int = 100_000  # of the generator
    batch: int = 64
    lr: float = 2e-4  # Adam, the same for both networks
    betas: tuple[float, float] = (0.5, 0.999)
    discriminator_steps: int = 5  # for each step of the generator
    flip: bool = True  # mirror each real image with probability 1/2


def train(
    gan: Gan,
    loss: Loss,
    training: Training,
    images: Images,
    classes: int,
    generator: torch.Generator,
    device: torch.device,
) -> Gan:
    """Train the networks of `gan` in place on nothing but `images`, and return it frozen.

    Args: images of the owner; generator on the CPU, the only source of randomness.
    """
    g, d = gan.generator.to(device).train(), gan.discriminator.to(device).train()
    step_g, step_d = (torch.optim.Adam(net.parameters(), training.lr, training.betas) for net in (g, d))
    reals = _reals(images.to(device), training, generator)

    def fakes() -> tuple[Tensor, Tensor]:
        z = torch.randn(training.batch, gan.latent, generator=generator).to(device)
        labels = torch.randint(classes, (training.batch,), generator=generator).to(device)
        return g(z, labels), labels

    for _ in range(training.steps):
        for _ in range(training.discriminator_steps):
            real, real_labels = next(reals)
            with torch.no_grad():
                fake, labels = fakes()
            scores = d(torch.cat([real, fake]), torch.cat([real_labels, labels]))
            _descend(step_d, loss.discriminator(*scores.split([len(real), len(fake)])))
        _descend(step_g, loss.generator(d(*fakes())))
    return freeze(gan)


def freeze(gan: Gan) -> Gan:
    """Put both networks in eval mode, stop gradients to their weights, and return the same `gan`."""
    for net in (gan.generator, gan.discriminator):
        net.eval().requires_grad_(False)
    return gan


def _reals(images: Images, training: Training, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches in [-1, 1] with their labels for ever, in a new order each time round."""
    while True:
        for rows in torch.randperm(len(images), generator=generator).split(training.batch):
            x = images.x[rows].float() / 127.5 - 1
            if training.flip:
                mirrored = torch.rand(len(rows), 1, 1, 1, generator=generator) < 0.5
                x = torch.where(mirrored.to(x.device), x.flip(-1), x)
            yield x, images.y[rows]


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one step down `loss`; only the gradients of the optimizer's own weights are computed."""
    weights: list[nn.Parameter] = [w for group in optimizer.param_groups for w in group["params"]]
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.grad = gradient
    optimizer.step()
