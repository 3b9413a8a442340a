"""StudioGAN's backbone `resnet` for small images: that of WGAN-GP, SAGAN and LOGAN.

Whatever they leave out, such as a condition or self-attention, is switched off here.
"""

from __future__ import annotations

from math import log2

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fingerbench.errors import UserError
from fingerbench.gans.layers import Attention, DownBlock, FirstBlock, Layers, PlainNorm, UpBlock


def doublings(shape: tuple[int, int, int], name: str) -> int:
    """Return how often a generator doubles its 4x4 to reach images of `shape` (c, h, w).

    Raises:
        UserError: the images are not square with a power of two, at least 16, as side; `name` is the GAN's.
    """
    _, height, size = shape
    if height != size or size < 16 or not log2(size).is_integer():
        raise UserError(f"{name}: expected images of 16x16, 32x32, 64x64, ...; got {height}x{size}")
    return int(log2(size // 4))


class Generator(nn.Module):
    """(z (n, latent), labels int64 (n,)) -> images (n, channels, size, size) in [-1, 1], size = 4 * 2**ups.

    classes: how many there are, for class-conditional batch norm; 0: the labels are ignored. attention: over half of
    the image's resolution.
    """

    def __init__(
        self, layers: Layers, ups: int, width: int, latent: int, channels: int, classes: int, attention: bool
    ) -> None:
        super().__init__()
        self.width = width
        self.classes = classes
        self.first = layers.linear(latent, width * 4 * 4)
        self.blocks = nn.ModuleList(UpBlock(layers, width, classes) for _ in range(ups))
        self.attend_after = ups - 2
        self.attention = Attention(layers, width) if attention else nn.Identity()
        self.norm = PlainNorm(width, eps=1e-4)
        self.last = layers.conv(width, channels, 3)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return one image of class `labels[i]` for each latent `z[i]`."""
        onehot = F.one_hot(labels, self.classes).to(z.dtype) if self.classes else None
        x = self.first(z).view(-1, self.width, 4, 4).contiguous(memory_format=torch.channels_last)
        for i, block in enumerate(self.blocks):
            x = block(x, onehot)
            if i == self.attend_after:
                x = self.attention(x)
        return torch.tanh(self.last(F.relu(self.norm(x))))


class Discriminator(nn.Module):
    """(images (n, channels, size, size) in [-1, 1], labels int64 (n,)) -> scores (n,), larger = more real.

    The blocks halve the image down to 8x8 and then keep it; at 32x32 that is StudioGAN's two and two. classes: how
    many there are, for conditioning by projection; 0: the labels are ignored. attention: over half of the image's
    resolution.
    """

    def __init__(self, layers: Layers, ups: int, width: int, channels: int, classes: int, attention: bool) -> None:
        super().__init__()
        halved = [DownBlock(layers, width, halve=True) for _ in range(ups - 2)]
        kept = [DownBlock(layers, width, halve=False) for _ in range(2)]
        self.first = FirstBlock(layers, channels, width)
        self.attention = Attention(layers, width) if attention else nn.Identity()
        self.blocks = nn.Sequential(*halved, *kept)
        self.score = layers.linear(width, 1)
        self.classes = layers.embedding(classes, width) if classes else None

    def features(self, x: Tensor) -> Tensor:
        """Return what the score is a linear map of, (n, width)."""
        x = x.contiguous(memory_format=torch.channels_last)
        return F.relu(self.blocks(self.attention(self.first(x)))).sum((2, 3))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the unconditional score, plus the inner product with the class embedding if there is one."""
        h = self.features(x)
        score = self.score(h).squeeze(1)
        return score if self.classes is None else score + (h * self.classes(labels)).sum(1)
