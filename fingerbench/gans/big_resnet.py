"""StudioGAN's backbone `big_resnet` for small images, after BigGAN: that of ContraGAN, ICRGAN and ReACGAN.

Against `resnet` the generator has a latent in pieces, one for the first layer and one for each block, and an
embedding of the classes that all blocks share. The discriminator is the same but for its width and, in ContraGAN and
ReACGAN, for what it learns beside its score: to embed images near the proxy of their class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fingerbench.gans import resnet
from fingerbench.gans.layers import Attention, Layers, PlainNorm, UpBlock


class Generator(nn.Module):
    """(z (n, latent), labels int64 (n,)) -> images (n, channels, size, size) in [-1, 1], size = 4 * 2**ups.

    latent: a multiple of ups + 1. shared: the size of the class embedding. Self-attention is over half of the image's
    resolution.
    """

    def __init__(
        self, layers: Layers, ups: int, width: int, latent: int, channels: int, classes: int, shared: int
    ) -> None:
        super().__init__()
        self.width = width
        self.piece = latent // (ups + 1)
        self.first = layers.linear(self.piece, width * 4 * 4)
        # As remembered, StudioGAN normalises the maps from this table, not the table.
        self.shared = Layers(spectral=False).embedding(classes, shared)
        self.blocks = nn.ModuleList(UpBlock(layers, width, shared + self.piece) for _ in range(ups))
        self.attend_after = ups - 2
        self.attention = Attention(layers, width)
        self.norm = PlainNorm(width, eps=1e-4)
        self.last = layers.conv(width, channels, 3)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return one image of class `labels[i]` for each latent `z[i]`."""
        first, *pieces = z.split(self.piece, dim=1)
        shared = self.shared(labels)
        x = self.first(first).view(-1, self.width, 4, 4).contiguous(memory_format=torch.channels_last)
        for i, (block, piece) in enumerate(zip(self.blocks, pieces, strict=True)):
            x = block(x, torch.cat([shared, piece], 1))
            if i == self.attend_after:
                x = self.attention(x)
        return torch.tanh(self.last(F.relu(self.norm(x))))


class EmbeddingDiscriminator(resnet.Discriminator):
    """A discriminator whose score knows no class, and that embeds images and classes in one space beside it.

    embedding: the size of that space.
    """

    def __init__(self, layers: Layers, ups: int, width: int, channels: int, classes: int, embedding: int) -> None:
        super().__init__(layers, ups, width, channels, classes=0, attention=True)
        self.embed = layers.linear(width, embedding)
        self.proxies = layers.embedding(classes, embedding)

    def judge(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores (n,), embeddings of the images and proxies of their classes, both (n, embedding), length 1."""
        h = self.features(x)
        embeddings, proxies = (F.normalize(e, dim=1) for e in (self.embed(h), self.proxies(labels)))
        return self.score(h).squeeze(1), embeddings, proxies
