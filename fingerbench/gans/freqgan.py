"""The networks of FreqGAN (Liu, Zhong, IJCAI 2025): a wavelet U-Net against a judge of both pixels and spectrum.

The generator is the DWT branch of DW-GAN (Fu et al., "DW-GAN: A Discrete Wavelet Transform GAN for NonHomogeneous
Dehazing", CVPR workshops 2021), the discriminator that of SSD-GAN (Chen et al., "SSD-GAN: Measuring the Realness in
the Spatial and Spectral Domains", AAAI 2021), as FreqGAN says. Its own code came without the file that holds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fingerbench.errors import UserError
from fingerbench.gans.layers import DownBlock, FirstBlock, Layers
from fingerbench.seeds import seeded

CHANNELS = (16, 32, 64, 128, 128)  # after each halving that has wavelets; DW-GAN
LOW = (1, 2, 4, 8, 16)  # of which made of the low band, and as many of the high bands for the way back; DW-GAN
GREY = (0.2989, 0.5870, 0.1140)  # weights of red, green and blue; SSD-GAN


def build(
    shape: tuple[int, int, int], seed: int, *, width: float = 1.0, share: float = 0.5, differentiable: bool = False
) -> tuple[WaveletUNet, Discriminator]:
    """Return an untrained generator and discriminator for images of `shape` (c, h, w), their weights drawn with `seed`.

    width multiplies the channels of both; share and differentiable are the discriminator's.
    Raises UserError unless the images are square, in three colours, with a multiple of 16 as side.
    """
    channels, height, size = shape
    if channels != 3 or height != size or size % 16:
        raise UserError(f"freqgan: expected images of 3x16x16, 3x32x32, 3x48x48, ...; got {channels}x{height}x{size}")
    with seeded(seed):
        return WaveletUNet(size, width), Discriminator(size, round(128 * width), share, differentiable)


@dataclass(frozen=True)
class Logistic:
    """The log losses of the FreqGAN paper (equations 4 and 6).

    The paper does not say how a score becomes a probability D; here by the sigmoid.
    """

    def real(self, scores: Tensor) -> Tensor:
        """Return -log D for each score of a real image."""
        return F.softplus(-scores)

    def fake(self, scores: Tensor) -> Tensor:
        """Return -log(1 - D) for each score of a fake one; the generator maximises it."""
        return F.softplus(scores)


def haar(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the low band (n, c, h/2, w/2) and the high bands (n, 3c, h/2, w/2) of x (n, c, h, w), h and w even.

    One level of the orthonormal Haar transform, which keeps the sum of squares and can be undone. The high bands
    are right minus left, bottom minus top, and the difference of those differences, c channels each.
    """
    top, bottom = x[..., 0::2, :] / 2, x[..., 1::2, :] / 2
    a, c = top[..., 0::2], top[..., 1::2]
    b, d = bottom[..., 0::2], bottom[..., 1::2]
    return a + b + c + d, torch.cat([c + d - a - b, b + d - a - c, a + d - b - c], dim=1)


class WaveletUNet(nn.Module):
    """Images (n, 3, size, size) in [-1, 1] -> (n, 3, size, size), unbounded.

    A U-Net of six halvings, the sixth without wavelets. Where the side does not divide by two so often, the deepest
    are left out: the sixth at 32x32, the fifth as well at 16x16. 1,875,217 parameters at 64x64 and width 1.
    """

    def __init__(self, size: int, width: float = 1.0) -> None:
        super().__init__()
        halvings = (size & -size).bit_length() - 1
        wavelets = min(halvings, len(CHANNELS))
        channels = [max(round(width * c), 2) for c in CHANNELS[:wavelets]]
        low = [max(round(width * c), 1) for c in LOW]
        inner: nn.Module | None = _bottom(channels[-1]) if halvings > len(CHANNELS) else None
        for i in reversed(range(1, wavelets)):
            down = nn.Sequential(
                nn.LeakyReLU(0.2), _halve(channels[i - 1], channels[i] - low[i]), nn.BatchNorm2d(channels[i] - low[i])
            )
            inner = _Level(down, channels[i - 1], channels[i], low[i], channels[i - 1], inner)
        first = channels[0]
        self.stem = nn.Sequential(nn.Conv2d(3, first, 3, padding=1), nn.BatchNorm2d(first))
        self.levels = _Level(_halve(first, first - low[0]), 3, first, low[0], 2 * first, inner)
        self.tail = nn.Sequential(
            nn.Conv2d(3 * first, 2 * first, 3, padding=1),
            nn.BatchNorm2d(2 * first),
            nn.Conv2d(2 * first, 3, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return one output for each image."""
        x = x.contiguous(memory_format=torch.channels_last)
        stem = self.stem(x)
        return self.tail(torch.cat([self.levels(stem, x), stem], dim=1))


class _Level(nn.Module):
    """One halving, whatever lies below it, and the way back up.

    The low band of what comes in goes down beside the strided convolution, the high bands go across.
    """

    def __init__(
        self, down: nn.Module, inputs: int, channels: int, low: int, outputs: int, inner: nn.Module | None
    ) -> None:
        super().__init__()
        self.down = down
        self.low = nn.Conv2d(inputs, low, 1)
        self.high = nn.Conv2d(3 * inputs, low, 1)
        self.inner = inner
        self.up = _up(channels * (2 if inner else 1) + low, outputs)

    def forward(self, x: Tensor, image: Tensor | None = None) -> Tensor:
        """Return (n, outputs, h, w) for x (n, ..., h, w). The bands are those of `image` if given, else of `x`."""
        low, high = haar(x if image is None else image)
        seen = torch.cat([self.down(x), self.low(low)], dim=1)
        below = [self.inner(seen)] if self.inner else []
        return self.up(torch.cat([*below, seen, self.high(high)], dim=1))


def _bottom(channels: int) -> nn.Module:
    return nn.Sequential(nn.LeakyReLU(0.2), _halve(channels, channels), _up(channels, channels))


def _halve(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)


def _up(inputs: int, outputs: int) -> nn.Module:
    double = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(nn.ReLU(), double, nn.BatchNorm2d(outputs))


class Discriminator(nn.Module):
    """Images (n, 3, size, size) in [-1, 1] -> (scores (n,), spectral scores (n,)), larger = more real.

    A score is share * spectral + (1 - share) * spatial. The spatial branch is SNGAN's ResNet (Miyato et al., ICLR
    2018), the spectral one a linear map of the azimuthal profile, spectral norm on all layers. As in the released
    code the spectral share of a score is a constant to training, and the spectral branch learns from the spectral
    scores alone; with `differentiable` gradients flow through it, down to the image.
    """

    def __init__(self, size: int, width: int = 128, share: float = 0.5, differentiable: bool = False) -> None:
        super().__init__()
        # Halved to 8x8, as SNGAN's for 32x32; other sizes to at least that, and less than 16x16.
        layers = Layers(spectral=True)
        halved = [DownBlock(layers, width, halve=True) for _ in range(int(log2(size // 16)))]
        kept = [DownBlock(layers, width, halve=False) for _ in range(2)]
        self.blocks = nn.Sequential(FirstBlock(layers, 3, width), *halved, *kept)
        self.spatial = layers.linear(width, 1)
        self.profile = Profile(size)
        self.spectral = layers.linear(self.profile.length, 1)
        self.share = share
        self.differentiable = differentiable

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the score and the spectral score of each image."""
        profile = self.profile(x if self.differentiable else x.detach())
        spectral = self.spectral(profile).squeeze(1)
        features = F.relu(self.blocks(x.contiguous(memory_format=torch.channels_last))).sum((2, 3))
        spatial = self.spatial(features).squeeze(1)
        seen = spectral if self.differentiable else spectral.detach()
        return self.share * seen + (1 - self.share) * spatial, spectral


class Profile(nn.Module):
    """Images (n, 3, size, size) in [-1, 1] -> mean log magnitude at each spatial frequency (n, length) in [0, 1].

    SSD-GAN's feature: the spectrum of the grey image, averaged over each circle about frequency 0 and stretched
    to [0, 1] for each image; without frequency 0 and the two highest, in the corners of the spectrum.
    Lengths are 9, 20, 31, 43 and 88 at sizes 16, 32, 48, 64 and 128.
    """

    circles: Tensor
    grey: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        offset = torch.arange(size) - size // 2
        radius = (offset[:, None].square() + offset.square()).double().sqrt().long().flatten()
        circles = F.one_hot(radius).float()
        circles = (circles / circles.sum(0))[:, 1:-2]
        self.length = circles.shape[1]
        self.register_buffer("circles", circles, persistent=False)
        self.register_buffer("grey", torch.tensor(GREY)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the profile of each image."""
        spectrum = torch.fft.fftshift(torch.fft.fft2((x * self.grey).sum(1)), dim=(1, 2)) + complex(1e-8, 1e-8)
        # The small numbers are SSD-GAN's; that in the root keeps its gradient finite.
        magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-10).sqrt()
        profile = (magnitude + 1e-10).log().flatten(1) @ self.circles
        least, most = profile.amin(1, keepdim=True), profile.amax(1, keepdim=True)
        return (profile - least) / (most - least).clamp(min=1e-8)  # an image of one colour has a flat profile
