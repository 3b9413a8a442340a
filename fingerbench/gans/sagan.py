"""SAGAN: self-attention GAN (Zhang, Goodfellow, Metaxas, Odena, ICML 2019), in StudioGAN's form for CIFAR-10.

A residual generator conditioned by class-conditional batch norm, a residual discriminator conditioned by projection,
spectral norm on every layer of both, self-attention at half of the image's resolution, hinge loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from fingerbench.gans.layers import Layers, widened
from fingerbench.gans.resnet import Discriminator, Generator, doublings
from fingerbench.gans.train import Hinge, Training
from fingerbench.records import Gan
from fingerbench.seeds import seeded


@dataclass(frozen=True)
class Sagan(Training):
    """Architecture and training of a SAGAN. Defaults: StudioGAN's for CIFAR-10 (SAGAN.yaml)."""

    width: float = 1.0  # multiplies the channels, 256 in the generator and 128 in the discriminator
    latent: int = 128

    def build(self, classes: int, shape: tuple[int, int, int], seed: int = 0) -> Gan:
        """Return untrained networks; see `Training.build`."""
        layers, ups, channels = Layers(spectral=True), doublings(shape, "sagan"), shape[0]
        g, d = widened(256, self.width), widened(128, self.width)
        with seeded(seed):
            generator = Generator(layers, ups, g, self.latent, channels, classes, attention=True)
            discriminator = Discriminator(layers, ups, d, channels, classes, attention=True)
        return Gan(generator, discriminator, self.latent, Hinge())
