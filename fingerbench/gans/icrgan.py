"""ICRGAN: BigGAN with improved consistency regularisation (Zhao et al., AAAI 2021), StudioGAN's for CIFAR-10.

BigGAN's networks conditioned by class-conditional batch norm and projection, with the hinge loss. The discriminator
must not change its score when an image, real or fake, is shifted and mirrored (bCR), nor when the latent behind it
moves a little (zCR), while the generator is to change its image then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fingerbench.data.augment import Augment
from fingerbench.gans.big_resnet import Generator
from fingerbench.gans.layers import Layers, widened
from fingerbench.gans.resnet import Discriminator, doublings
from fingerbench.gans.train import Batch, Hinge, Training, adversarial
from fingerbench.ops import send
from fingerbench.records import Gan
from fingerbench.seeds import seeded


@dataclass(frozen=True)
class Icrgan(Training):
    """Architecture and training of an ICRGAN. Defaults: StudioGAN's for CIFAR-10 (ICRGAN.yaml)."""

    draws: ClassVar[bool] = True

    ema_decay: float = 0.9999
    ema_start: int = 1000
    width: float = 1.0  # multiplies the channels, 384 in the generator and 192 in the discriminator
    latent: int = 80
    shared: int = 128  # size of the class embedding in the generator
    bcr_real: float = 10.0  # weight of bCR for real images
    bcr_fake: float = 10.0  # weight of bCR for fake images
    zcr_radius: float = 0.05  # standard deviation of the noise on a latent
    zcr_generator: float = 0.5  # weight of zCR in the generator's loss
    zcr_discriminator: float = 20.0  # weight of zCR in the discriminator's loss
    shift: float = 0.125  # of the side at most, in bCR; 4 pixels of 32, the paper as remembered; black fills the gap

    def build(self, classes: int, shape: tuple[int, int, int], seed: int = 0) -> Gan:
        """Return untrained networks; see `Training.build`."""
        layers, ups, channels = Layers(spectral=True), doublings(shape, "icrgan"), shape[0]
        latent = self.latent // (ups + 1) * (ups + 1)  # as much of it as gives all parts of the generator the same
        g, d = widened(384, self.width), widened(192, self.width)
        with seeded(seed):
            generator = Generator(layers, ups, g, latent, channels, classes, self.shared)
            discriminator = Discriminator(layers, ups, d, channels, classes, attention=True)
        return Gan(generator, discriminator, latent, Hinge())

    def discriminator_loss(self, gan: Gan, real: Batch, latents: Batch, generator: torch.Generator) -> Tensor:
        """Return the hinge loss, plus what inconsistent scores cost: mean squared differences, weighted."""
        with torch.no_grad():
            fake, near = gan.generator(*latents), gan.generator(*self.nearby(latents, generator))
        images = [real.x, fake, self.augmented(real.x, generator), self.augmented(fake, generator), near]
        labels = [real.labels, latents.labels, real.labels, latents.labels, latents.labels]
        scores = gan.discriminator(torch.cat(images), torch.cat(labels))
        d_real, d_fake, d_real_augmented, d_fake_augmented, d_near = scores.split([len(x) for x in images])
        return (
            adversarial(gan, d_real, d_fake)
            + self.bcr_real * F.mse_loss(d_real, d_real_augmented)
            + self.bcr_fake * F.mse_loss(d_fake, d_fake_augmented)
            + self.zcr_discriminator * F.mse_loss(d_fake, d_near)
        )

    def generator_loss(self, gan: Gan, latents: Batch, generator: torch.Generator) -> Tensor:
        """Return -mean D(fake), less what it earns by images that differ where latents do."""
        fake, near = gan.generator(*latents), gan.generator(*self.nearby(latents, generator))
        return -gan.discriminator(fake, latents.labels).mean() - self.zcr_generator * F.mse_loss(fake, near)

    def nearby(self, latents: Batch, generator: torch.Generator) -> Batch:
        """Return the latents with normal noise of standard deviation `zcr_radius`."""
        noise = send(torch.randn(latents.x.shape, generator=generator), latents.x.device)
        return Batch(latents.x + self.zcr_radius * noise, latents.labels)

    def augmented(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return images x (n, c, h, w) in [-1, 1], each shifted, and mirrored at random where `flip` allows it."""
        augment = Augment(pad=round(self.shift * x.shape[-1]), flip=self.flip)
        return augment(x + 1, generator) - 1
