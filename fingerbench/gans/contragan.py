"""ContraGAN: contrastive learning for conditional images (Kang, Park, NeurIPS 2020), StudioGAN's for CIFAR-10.

BigGAN's networks and the hinge loss; the discriminator also embeds images, and both networks pull the embedding of an
image towards the proxy of its class and the other images of that class, away from the rest of the batch (2C loss).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from fingerbench.gans.big_resnet import EmbeddingDiscriminator, Generator
from fingerbench.gans.layers import Layers, widened
from fingerbench.gans.resnet import doublings
from fingerbench.gans.train import Batch, Hinge, Training, adversarial
from fingerbench.records import Gan
from fingerbench.seeds import seeded


@dataclass(frozen=True)
class Contragan(Training):
    """Architecture and training of a ContraGAN. Defaults: StudioGAN's for CIFAR-10 (ContraGAN.yaml)."""

    ema_decay: float = 0.9999
    ema_start: int = 1000
    width: float = 1.0  # multiplies the channels, 384 in the generator and 192 in the discriminator
    latent: int = 80
    shared: int = 128  # size of the class embedding in the generator
    embedding: int = 512  # size of the embeddings of the discriminator
    temperature: float = 1.0
    weight: float = 1.0  # of the conditional loss

    def build(self, classes: int, shape: tuple[int, int, int], seed: int = 0) -> Gan:
        """Return untrained networks; see `Training.build`."""
        layers, ups, channels = Layers(spectral=True), doublings(shape, "contragan"), shape[0]
        latent = self.latent // (ups + 1) * (ups + 1)  # as much of it as gives all parts of the generator the same
        g, d = widened(384, self.width), widened(192, self.width)
        with seeded(seed):
            generator = Generator(layers, ups, g, latent, channels, classes, self.shared)
            discriminator = EmbeddingDiscriminator(layers, ups, d, channels, classes, self.embedding)
        return Gan(generator, discriminator, latent, Hinge())

    def discriminator_loss(self, gan: Gan, real: Batch, latents: Batch, generator: torch.Generator) -> Tensor:
        """Return the hinge loss, plus the conditional loss of the real images."""
        with torch.no_grad():
            fake = gan.generator(*latents)
        judge = cast(EmbeddingDiscriminator, gan.discriminator).judge
        judged = judge(torch.cat([real.x, fake]), torch.cat([real.labels, latents.labels]))
        scores, embeddings, proxies = (part.split([len(real.x), len(fake)]) for part in judged)
        return adversarial(gan, *scores) + self.weight * self.conditional_loss(embeddings[0], proxies[0], real.labels)

    def generator_loss(self, gan: Gan, latents: Batch, generator: torch.Generator) -> Tensor:
        """Return -mean D(fake), plus the conditional loss of the fake images."""
        judge = cast(EmbeddingDiscriminator, gan.discriminator).judge
        scores, embeddings, proxies = judge(gan.generator(*latents), latents.labels)
        return -scores.mean() + self.weight * self.conditional_loss(embeddings, proxies, latents.labels)

    def conditional_loss(self, embeddings: Tensor, proxies: Tensor, labels: Tensor) -> Tensor:
        """Return the 2C loss of embeddings (n, e) and proxies (n, e) of length 1.

        The paper's equation 8, as remembered: not checked against it.

        For each image it is -log of a share: among the similarities to its proxy and to all other images, those to
        its proxy and to images of its class.
        """
        pairs = (embeddings @ embeddings.T / self.temperature).exp()
        to_proxy = ((embeddings * proxies).sum(1) / self.temperature).exp()
        others = 1 - torch.eye(len(labels), device=labels.device)
        alike = others * (labels[:, None] == labels)
        return -((to_proxy + (alike * pairs).sum(1)) / (to_proxy + (others * pairs).sum(1))).log().mean()
