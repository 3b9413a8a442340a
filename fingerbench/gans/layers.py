"""The layers that all six GANs are built of, in StudioGAN's form.

Every network computes in channels_last, which is faster for narrow networks on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from fingerbench.errors import require


def widened(channels: int, width: float) -> int:
    """Return `channels` times `width`; a UserError where that is none."""
    found = round(channels * width)
    require(found > 0, "gan.width", f"a number that leaves at least one of {channels} channels", width)
    return found


@dataclass(frozen=True)
class Layers:
    """Makes layers with orthogonal weights and zero biases, under spectral norm where `spectral` says so."""

    spectral: bool

    def conv(self, inputs: int, outputs: int, kernel: int, bias: bool = True) -> nn.Module:
        """Return a convolution that keeps the resolution."""
        return self._ready(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias))

    def linear(self, inputs: int, outputs: int, bias: bool = True) -> nn.Module:
        """Return a linear map."""
        return self._ready(nn.Linear(inputs, outputs, bias=bias))

    def embedding(self, count: int, width: int) -> nn.Module:
        """Return a table of `count` vectors."""
        return self._ready(nn.Embedding(count, width))

    def norm(self, width: int) -> nn.Module:
        """Return what a discriminator normalises with: batch norm, or nothing where spectral norm does that work."""
        return nn.Identity() if self.spectral else nn.BatchNorm2d(width, eps=1e-4)

    def _ready(self, layer: nn.Module) -> nn.Module:
        for weight in layer.parameters():
            if weight.ndim > 1:
                nn.init.orthogonal_(weight)
            else:
                nn.init.zeros_(weight)
        return spectral_norm(layer, eps=1e-6) if self.spectral else layer


class PlainNorm(nn.BatchNorm2d):
    """Batch norm that takes a condition and ignores it."""

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return x float (n, width, h, w), normalised."""
        return super().forward(x)


class ConditionalNorm(nn.Module):
    """Batch norm whose gain, 1 + a linear map of a condition, and bias, another linear map, belong to each image."""

    def __init__(self, layers: Layers, width: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, eps=1e-4, affine=False)
        self.gain = layers.linear(condition, width, bias=False)
        self.bias = layers.linear(condition, width, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return x float (n, width, h, w), normalised; condition float (n, size of the condition)."""
        gain, bias = 1 + self.gain(condition), self.bias(condition)
        return self.norm(x) * gain[:, :, None, None] + bias[:, :, None, None]


class UpBlock(nn.Module):
    """Residual block of a generator: doubles the resolution. condition: the size of what conditions it, 0 = nothing."""

    def __init__(self, layers: Layers, width: int, condition: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(layers, width, condition), layers.conv(width, width, 3)
        self.norm2, self.conv2 = _norm(layers, width, condition), layers.conv(width, width, 3)
        self.shortcut = layers.conv(width, width, 1)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """Return (n, width, 2h, 2w) for x (n, width, h, w)."""
        h = self.conv1(_double(F.relu(self.norm1(x, condition))))
        h = self.conv2(F.relu(self.norm2(h, condition)))
        return h + self.shortcut(_double(x))


class FirstBlock(nn.Module):
    """First residual block of a discriminator: no activation before it, and it pools before the shortcut."""

    def __init__(self, layers: Layers, channels: int, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = layers.conv(channels, width, 3), layers.conv(width, width, 3)
        self.shortcut = layers.conv(channels, width, 1)
        self.norm0, self.norm1 = layers.norm(channels), layers.norm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, width, h/2, w/2) for images x (n, channels, h, w)."""
        h = self.conv2(F.relu(self.norm1(self.conv1(x))))
        return F.avg_pool2d(h, 2) + self.shortcut(self.norm0(F.avg_pool2d(x, 2)))


class DownBlock(nn.Module):
    """Further residual block of a discriminator: halves the resolution or keeps it."""

    def __init__(self, layers: Layers, width: int, halve: bool) -> None:
        super().__init__()
        self.norm1, self.conv1 = layers.norm(width), layers.conv(width, width, 3)
        self.norm2, self.conv2 = layers.norm(width), layers.conv(width, width, 3)
        self.norm0 = layers.norm(width) if halve else nn.Identity()
        self.shortcut = layers.conv(width, width, 1) if halve else nn.Identity()
        self.pool = nn.AvgPool2d(2) if halve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, width, h, w), or half of that, for x (n, width, h, w)."""
        h = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return self.pool(h) + self.pool(self.shortcut(self.norm0(x)))


class Attention(nn.Module):
    """Self-attention over positions, keys and values pooled 2x2, added with a learnt weight that starts at 0."""

    def __init__(self, layers: Layers, width: int) -> None:
        super().__init__()
        self.query, self.key = (layers.conv(width, max(width // 8, 1), 1, bias=False) for _ in range(2))
        self.value = layers.conv(width, max(width // 2, 1), 1, bias=False)
        self.out = layers.conv(max(width // 2, 1), width, 1, bias=False)
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (n, width, h, w) with what it attends to added."""
        query = self.query(x).flatten(2)
        key = F.max_pool2d(self.key(x), 2).flatten(2)
        value = F.max_pool2d(self.value(x), 2).flatten(2)
        attention = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        seen = (value @ attention.transpose(1, 2)).unflatten(2, x.shape[2:])
        return x + self.weight * self.out(seen)


def _norm(layers: Layers, width: int, condition: int) -> nn.Module:
    return ConditionalNorm(layers, width, condition) if condition else PlainNorm(width, eps=1e-4)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")
