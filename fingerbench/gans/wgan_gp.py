"""WGAN-GP: Wasserstein GAN with gradient penalty (Gulrajani et al., NIPS 2017), in StudioGAN's form for CIFAR-10.

An unconditional residual generator and discriminator without spectral norm; the discriminator, which estimates the
Wasserstein distance, is held to gradients of length 1 between real and fake images. The paper's has no batch norm in
the discriminator, since the penalty is meant for each image alone; StudioGAN's has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fingerbench.gans.layers import Layers, widened
from fingerbench.gans.resnet import Discriminator, Generator, doublings
from fingerbench.gans.train import Batch, Training, adversarial
from fingerbench.ops import send
from fingerbench.records import Gan
from fingerbench.seeds import seeded


@dataclass(frozen=True)
class Wasserstein:
    """The loss whose optimum is the Wasserstein distance between real and fake images."""

    def real(self, scores: Tensor) -> Tensor:
        """Return -score for each."""
        return -scores

    def fake(self, scores: Tensor) -> Tensor:
        """Return the scores."""
        return scores


@dataclass(frozen=True)
class WganGp(Training):
    """Architecture and training of a WGAN-GP. Defaults: StudioGAN's for CIFAR-10 (WGAN-GP.yaml)."""

    conditional: ClassVar[bool] = False
    draws: ClassVar[bool] = True

    width: float = 1.0  # multiplies the channels, 256 in the generator and 128 in the discriminator
    latent: int = 128
    penalty: float = 10.0  # weight of the gradient penalty; the paper

    def build(self, classes: int, shape: tuple[int, int, int], seed: int = 0) -> Gan:
        """Return untrained networks; see `Training.build`."""
        layers, ups, channels = Layers(spectral=False), doublings(shape, "wgan_gp"), shape[0]
        g, d = widened(256, self.width), widened(128, self.width)
        with seeded(seed):
            generator = Generator(layers, ups, g, self.latent, channels, classes=0, attention=False)
            discriminator = Discriminator(layers, ups, d, channels, classes=0, attention=False)
        return Gan(generator, discriminator, self.latent, Wasserstein())

    def discriminator_loss(self, gan: Gan, real: Batch, latents: Batch, generator: torch.Generator) -> Tensor:
        """Return mean D(fake) - mean D(real) + penalty; real and fake images have batch statistics of their own."""
        with torch.no_grad():
            fake = gan.generator(*latents)[: len(real.x)]  # the last batch of an epoch may be smaller
        scores = (gan.discriminator(x, labels) for x, labels in (real, (fake, latents.labels[: len(fake)])))
        between = send(torch.rand(len(fake), 1, 1, 1, generator=generator), fake.device)
        penalty = gradient_penalty(lambda x: gan.discriminator(x, real.labels), real.x.lerp(fake, between))
        return adversarial(gan, *scores) + self.penalty * penalty


def gradient_penalty(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the mean over images x (n, c, h, w) of (length of the gradient of score(x) - 1)**2; differentiable."""
    x = x.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(score(x).sum(), x, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
