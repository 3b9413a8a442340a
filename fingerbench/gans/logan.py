"""LOGAN: latent optimisation for GANs (Wu, Donahue, Balduzzi, Simonyan, Lillicrap 2019), StudioGAN's for CIFAR-10.

Before either network takes its step, the latent moves towards what the discriminator finds real, by an approximate
natural gradient, and both learn through that move. StudioGAN's configuration is unconditional, with spectral norm on
the discriminator alone, a uniform prior and the hinge loss. The GAN that comes out is asked with plain latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fingerbench.gans.layers import Layers, widened
from fingerbench.gans.resnet import Discriminator, Generator, doublings
from fingerbench.gans.train import Batch, Hinge, Training, adversarial
from fingerbench.ops import send
from fingerbench.records import Gan
from fingerbench.seeds import seeded


@dataclass(frozen=True)
class Logan(Training):
    """Architecture and training of a LOGAN. Defaults: StudioGAN's for CIFAR-10 (LOGAN.yaml)."""

    conditional: ClassVar[bool] = False
    draws: ClassVar[bool] = True

    width: float = 1.0  # multiplies the channels, 256 in the generator and 128 in the discriminator
    latent: int = 128
    alpha: float = 0.9  # size of the move
    beta: float = 0.1  # damping of the natural gradient
    regularisation: float = 0.1  # weight of the squared length of the move
    rate: float = 0.8  # probability that a latent moves

    def build(self, classes: int, shape: tuple[int, int, int], seed: int = 0) -> Gan:
        """Return untrained networks; see `Training.build`."""
        ups, channels = doublings(shape, "logan"), shape[0]
        g, d = widened(256, self.width), widened(128, self.width)
        with seeded(seed):
            generator = Generator(Layers(spectral=False), ups, g, self.latent, channels, classes=0, attention=False)
            discriminator = Discriminator(Layers(spectral=True), ups, d, channels, classes=0, attention=False)
        return Gan(generator, discriminator, self.latent, Hinge(), prior="uniform")

    def discriminator_loss(self, gan: Gan, real: Batch, latents: Batch, generator: torch.Generator) -> Tensor:
        """Return the hinge loss of real images and of those of the moved latents, plus the price of moving."""
        moved, cost = self.optimise(gan, latents, generator)
        fake = gan.generator(*moved)
        scores = gan.discriminator(torch.cat([real.x, fake]), torch.cat([real.labels, moved.labels]))
        return adversarial(gan, *scores.split([len(real.x), len(fake)])) + self.regularisation * cost

    def generator_loss(self, gan: Gan, latents: Batch, generator: torch.Generator) -> Tensor:
        """Return -mean D(G(moved latent)), plus the price of moving."""
        moved, cost = self.optimise(gan, latents, generator)
        return super().generator_loss(gan, moved, generator) + self.regularisation * cost

    def optimise(self, gan: Gan, latents: Batch, generator: torch.Generator) -> tuple[Batch, Tensor]:
        """Return latents moved by alpha g / (beta + |g|^2), g the gradient of the score, kept within [-1, 1].

        Also returns the mean squared length of the moves. Both are differentiable in the weights of both networks.
        """
        z = latents.x.detach().requires_grad_(True)
        scores = gan.discriminator(gan.generator(z, latents.labels), latents.labels)
        (g,) = torch.autograd.grad(scores.sum(), z, create_graph=True)
        move = self.alpha * g / (self.beta + g.square().sum(1, keepdim=True))
        chosen = torch.rand(len(z), 1, generator=generator) < self.rate
        moved = (z + send(chosen, z.device) * move).clamp(-1, 1)
        return Batch(moved, latents.labels), move.square().sum(1).mean()
