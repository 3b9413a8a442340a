"""SAGAN: self-attention GAN (Zhang, Goodfellow, Metaxas, Odena, ICML 2019), in StudioGAN's form for CIFAR-10.

A residual generator conditioned by class-conditional batch norm, a residual discriminator conditioned by projection,
spectral norm on every layer of both, self-attention at half of the image's resolution, hinge loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from fingerbench.errors import UserError
from fingerbench.gans.train import Hinge, Training, train
from fingerbench.records import Gan, Images
from fingerbench.seeds import seeded


@dataclass(frozen=True)
class Sagan(Training):
    """Architecture and training of a SAGAN. Defaults: StudioGAN's for CIFAR-10 (SAGAN.yaml)."""

    width: float = 1.0  # multiplies the channels, 256 in the generator and 128 in the discriminator
    latent: int = 128

    def build(self, classes: int, shape: tuple[int, int, int], seed: int = 0) -> Gan:
        """Return untrained networks for images of `shape` (c, h, w), their weights drawn with `seed`.

        Raises UserError unless the images are square with a power of two, at least 16, as side.
        """
        channels, height, size = shape
        if height != size or size < 16 or not log2(size).is_integer():
            raise UserError(f"sagan: expected images of 16x16, 32x32, 64x64, ...; got {height}x{size}")
        with seeded(seed):
            generator = Generator(classes, size, round(256 * self.width), self.latent, channels)
            discriminator = Discriminator(classes, size, round(128 * self.width), channels)
        return Gan(generator, discriminator, self.latent)

    def train(self, images: Images, classes: int, generator: torch.Generator, device: torch.device) -> Gan:
        """Return a GAN trained on `images` alone. `generator` is on the CPU; the same one gives the same GAN."""
        c, h, w = images.x.shape[1:]
        seed = int(torch.randint(2**62, (), generator=generator))
        return train(self.build(classes, (c, h, w), seed), Hinge(), self, images, classes, generator, device)


class Generator(nn.Module):
    """(z (n, latent), labels int64 (n,)) -> images (n, 3, size, size) in [-1, 1].

    Both networks compute in channels_last, which is faster for narrow networks on a CPU.
    """

    def __init__(self, classes: int, size: int = 32, width: int = 256, latent: int = 128, channels: int = 3) -> None:
        super().__init__()
        ups = int(log2(size // 4))
        self.width = width
        self.classes = classes
        self.first = _linear(latent, width * 4 * 4)
        self.blocks = nn.ModuleList(_UpBlock(width, classes) for _ in range(ups))
        self.attend_after = ups - 2
        self.attention = _Attention(width)
        self.norm = nn.BatchNorm2d(width, eps=1e-4)
        self.last = _conv(width, channels, 3)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return one image of class `labels[i]` for each latent `z[i]`."""
        onehot = F.one_hot(labels, self.classes).to(z.dtype)
        x = self.first(z).view(-1, self.width, 4, 4).contiguous(memory_format=torch.channels_last)
        for i, block in enumerate(self.blocks):
            x = block(x, onehot)
            if i == self.attend_after:
                x = self.attention(x)
        return torch.tanh(self.last(F.relu(self.norm(x))))


class Discriminator(nn.Module):
    """(images (n, 3, size, size) in [-1, 1], labels int64 (n,)) -> scores (n,), larger = more real.

    The blocks halve the image down to 8x8 and then keep it; at 32x32 that is StudioGAN's two and two.
    """

    def __init__(self, classes: int, size: int = 32, width: int = 128, channels: int = 3) -> None:
        super().__init__()
        halved = [_DownBlock(width, halve=True) for _ in range(int(log2(size // 16)))]
        kept = [_DownBlock(width, halve=False) for _ in range(2)]
        self.first = _FirstBlock(channels, width)
        self.attention = _Attention(width)
        self.blocks = nn.Sequential(*halved, *kept)
        self.score = _linear(width, 1)
        self.classes = _normed(nn.Embedding(classes, width))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the unconditional score plus the inner product with the class embedding."""
        x = x.contiguous(memory_format=torch.channels_last)
        h = F.relu(self.blocks(self.attention(self.first(x)))).sum((2, 3))
        return self.score(h).squeeze(1) + (h * self.classes(labels)).sum(1)


class _ConditionalNorm(nn.Module):
    """Batch norm whose gain, 1 + a linear map of the one-hot label, and bias depend on the class."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, eps=1e-4, affine=False)
        self.gain = _linear(classes, width, bias=False)
        self.bias = _linear(classes, width, bias=False)

    def forward(self, x: Tensor, onehot: Tensor) -> Tensor:
        """Return x float (n, width, h, w), normalised."""
        gain, bias = 1 + self.gain(onehot), self.bias(onehot)
        return self.norm(x) * gain[:, :, None, None] + bias[:, :, None, None]


class _UpBlock(nn.Module):
    """Residual block of the generator: doubles the resolution."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _ConditionalNorm(width, classes), _conv(width, width, 3)
        self.norm2, self.conv2 = _ConditionalNorm(width, classes), _conv(width, width, 3)
        self.shortcut = _conv(width, width, 1)

    def forward(self, x: Tensor, onehot: Tensor) -> Tensor:
        """Return (n, width, 2h, 2w) for x (n, width, h, w)."""
        h = self.conv1(_double(F.relu(self.norm1(x, onehot))))
        h = self.conv2(F.relu(self.norm2(h, onehot)))
        return h + self.shortcut(_double(x))


class _FirstBlock(nn.Module):
    """First residual block of the discriminator: no activation before it, and it pools before the shortcut."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(channels, width, 3), _conv(width, width, 3)
        self.shortcut = _conv(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, width, h/2, w/2) for images x (n, channels, h, w)."""
        h = self.conv2(F.relu(self.conv1(x)))
        return F.avg_pool2d(h, 2) + self.shortcut(F.avg_pool2d(x, 2))


class _DownBlock(nn.Module):
    """Further residual block of the discriminator: halves the resolution or keeps it."""

    def __init__(self, width: int, halve: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(width, width, 3), _conv(width, width, 3)
        self.shortcut = _conv(width, width, 1) if halve else nn.Identity()
        self.pool = nn.AvgPool2d(2) if halve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, width, h, w), or half of that, for x (n, width, h, w)."""
        h = self.conv2(F.relu(self.conv1(F.relu(x))))
        return self.pool(h) + self.pool(self.shortcut(x))


class _Attention(nn.Module):
    """Self-attention over positions, keys and values pooled 2x2, added with a learnt weight that starts at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = (_conv(width, max(width // 8, 1), 1, bias=False) for _ in range(2))
        self.value = _conv(width, max(width // 2, 1), 1, bias=False)
        self.out = _conv(max(width // 2, 1), width, 1, bias=False)
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (n, width, h, w) with what it attends to added."""
        query = self.query(x).flatten(2)
        key = F.max_pool2d(self.key(x), 2).flatten(2)
        value = F.max_pool2d(self.value(x), 2).flatten(2)
        attention = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        seen = (value @ attention.transpose(1, 2)).unflatten(2, x.shape[2:])
        return x + self.weight * self.out(seen)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> nn.Module:
    return _normed(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias))


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Module:
    return _normed(nn.Linear(inputs, outputs, bias=bias))


def _normed(layer: nn.Module) -> nn.Module:
    """Initialise as StudioGAN does (orthogonal weights, zero biases) and add spectral norm."""
    for weight in layer.parameters():
        if weight.ndim > 1:
            nn.init.orthogonal_(weight)
        else:
            nn.init.zeros_(weight)
    return spectral_norm(layer, eps=1e-6)
