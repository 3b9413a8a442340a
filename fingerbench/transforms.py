"""The transform bank: what may happen to an image between the owner and a suspect.

Each transform is a frozen dataclass called as `transform(x, generator)`: x float (n, c, h, w) in [0, 1] gives images
in [0, 1] again, differentiably, of the same shape but for `ResizePad`, which has its own. One random draw from
`generator`, which lives on the CPU, serves the whole batch; noise alone differs from image to image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fingerbench.ops import send


class Transform(Protocol):
    """A random differentiable map of a batch of images."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x float (n, c, h, w), transformed: float (n, c, h', w')."""
        ...


@dataclass(frozen=True)
class Identity:
    """Leave the images as they are."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x."""
        return x


@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror the images left to right."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x mirrored; nothing is drawn."""
        return x.flip(-1)


@dataclass(frozen=True)
class GaussianNoise:
    """Add independent normal noise of standard deviation `std` to each pixel and clip to [0, 1]."""

    std: float

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x with noise."""
        noise = send(torch.randn(x.shape, generator=generator), x.device)
        return (x + self.std * noise).clamp(0, 1)


@dataclass(frozen=True)
class UniformNoise:
    """Add to each pixel an independent number from -limit to `limit` and clip to [0, 1]."""

    limit: float

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x with noise."""
        noise = 2 * send(torch.rand(x.shape, generator=generator), x.device) - 1
        return (x + self.limit * noise).clamp(0, 1)


@dataclass(frozen=True)
class GaussianBlur:
    """With probability `p`, weigh each pixel and its neighbours by a normal density of `sigma` pixels, `size` wide."""

    sigma: float
    p: float = 1.0
    size: int = 3

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x blurred."""
        if _uniform(generator) >= self.p:
            return x
        distance = torch.arange(self.size) - self.size // 2
        weights = torch.softmax(-(distance**2) / (2 * self.sigma**2), 0)
        return convolve(x, weights[:, None] * weights)


@dataclass(frozen=True)
class Mean:
    """Replace each pixel by the mean of the `size` x `size` pixels around it."""

    size: int = 3

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x smoothed; nothing is drawn."""
        return convolve(x, torch.full((self.size, self.size), 1 / self.size**2))


@dataclass(frozen=True)
class Median:
    """Replace each pixel by the median of the `size` x `size` pixels around it."""

    size: int = 3

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x smoothed; nothing is drawn. The gradient goes to the pixel that is the median."""
        n, c, h, w = x.shape
        patches = F.unfold(_extend(x, self.size), self.size).view(n, c, self.size**2, h, w)
        return patches.sort(2).values[:, :, (self.size**2 - 1) // 2]  # median() has no repeatable form on a GPU


@dataclass(frozen=True)
class ResizePad:
    """Resize the images to a random square and put it anywhere in a larger one (Xie et al. 2018).

    The side of the first is drawn from `least` to `most` pixels, bilinear; that of the second is `out`, and what is
    left of it has the value `fill`. Whatever the shape of x, the result is (n, c, out, out); or, `restored`, that of x.
    """

    least: int
    most: int
    out: int
    fill: float = 0.5
    restored: bool = False

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x resized and padded."""
        side = int(torch.randint(self.least, self.most + 1, (), generator=generator))
        left, top = (int(torch.randint(self.out - side + 1, (), generator=generator)) for _ in range(2))
        resized = F.interpolate(x, (side, side), mode="bilinear", align_corners=False)
        padded = F.pad(resized, (left, self.out - side - left, top, self.out - side - top), value=self.fill)
        return F.interpolate(padded, x.shape[2:], mode="bilinear", align_corners=False) if self.restored else padded


@dataclass(frozen=True)
class Translate:
    """With probability `p`, move the images by 0 to `pixels` whole pixels along each axis, either way."""

    pixels: int
    p: float = 0.5

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x moved."""
        if _uniform(generator) >= self.p:
            return x
        right, down = (
            _sign(generator) * int(torch.randint(self.pixels + 1, (), generator=generator)) for _ in range(2)
        )
        return translate(x, right, down)


@dataclass(frozen=True)
class Shear:
    """Shear the images along both axes by a factor up to `limit`, either way."""

    limit: float

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return x sheared."""
        across, along = (_sign(generator) * self.limit * _uniform(generator) for _ in range(2))
        return shear(x, across, along)


def translate(x: Tensor, right: int, down: int) -> Tensor:
    """Return x (n, c, h, w) moved by whole pixels, zeros filling the gap; negative = left, up."""
    return F.pad(x, (right, -right, down, -down))


def shear(x: Tensor, across: float, along: float) -> Tensor:
    """Return x (n, c, h, w) with the content of pixel (column u, row v) moved to (u + across v, v + along u).

    That is the matrix [[1, across], [along, 1]] about the centre of the top-left pixel; bilinear, zeros outside.
    """
    h, w = x.shape[-2:]
    # grid_sample asks where each output pixel comes from, so it takes the inverse matrix, in units in which the
    # first and the last pixel of an axis are -1 and 1.
    inverse = torch.tensor([[1.0, -across], [-along, 1.0]]) / (1 - across * along)
    half = torch.tensor([w - 1, h - 1]) / 2
    linear = inverse * half / half[:, None]
    theta = send(torch.cat([linear, linear.sum(1, keepdim=True) - 1], dim=1), x.device).to(x.dtype)
    grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=True)
    if _must_repeat(x):
        return _sample(x, grid[0])
    return F.grid_sample(x, grid, align_corners=True)


def _sample(x: Tensor, grid: Tensor) -> Tensor:
    """Return what `F.grid_sample` gives with corners aligned, for one grid (h, w, 2) of all images, by indexing."""
    h, w = x.shape[-2:]
    column, row = (grid[..., axis].add(1) / 2 * (side - 1) for axis, side in enumerate((w, h)))
    total = torch.zeros_like(x)
    for v, u in ((row.floor() + i, column.floor() + j) for i in (0, 1) for j in (0, 1)):
        inside = (v >= 0) & (v < h) & (u >= 0) & (u < w)
        weight = (1 - (row - v).abs()) * (1 - (column - u).abs()) * inside
        total = total + weight * x[:, :, v.clamp(0, h - 1).long(), u.clamp(0, w - 1).long()]
    return total


def convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Return x (n, c, h, w), each channel on its own correlated with kernel (k, k), k odd; x is mirrored at borders."""
    channels = x.shape[1]
    weight = send(kernel, x.device).to(x.dtype).expand(channels, 1, *kernel.shape)
    return F.conv2d(_extend(x, len(kernel)), weight, groups=channels)


def _extend(x: Tensor, size: int) -> Tensor:
    """Return x with size // 2 more pixels on each side, mirrored about the pixels of its border."""
    more = size // 2
    if not _must_repeat(x):
        return F.pad(x, (more,) * 4, mode="reflect")
    rows, columns = ((side - 1) - ((side - 1) - torch.arange(-more, side + more).abs()).abs() for side in x.shape[-2:])
    return x[:, :, send(rows[:, None], x.device), send(columns, x.device)]


def _must_repeat(x: Tensor) -> bool:
    """Tell whether to index: on a GPU gradients of grid_sample and of mirrored borders have no repeatable form."""
    return torch.are_deterministic_algorithms_enabled() and x.device.type != "cpu"


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _sign(generator: torch.Generator) -> int:
    return 1 if _uniform(generator) < 0.5 else -1
