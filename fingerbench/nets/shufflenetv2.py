"""ShuffleNetV2 x1.0 (Ma et al. 2018) for CIFAR: a 3x3 stem of stride 1, neither pooled nor rectified."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fingerbench.nets.blocks import Concat, classifier, conv_bn, scaled

STAGES = ((116, 4), (232, 8), (464, 4))  # channels at width 1, units


def depthwise(c: int, stride: int) -> nn.Sequential:
    """Return a 3x3 depthwise convolution and batch norm, without ReLU."""
    return nn.Sequential(nn.Conv2d(c, c, 3, stride, 1, groups=c), nn.BatchNorm2d(c))


def pointwise(c_in: int, c_out: int) -> nn.Sequential:
    """Return a 1x1 convolution with bias, batch norm, ReLU."""
    return conv_bn(c_in, c_out, 1, bias=True)


class Unit(nn.Module):
    """Basic unit: half of the channels pass unchanged, the other half pass three convolutions; then both shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels // 2
        self.residual = nn.Sequential(pointwise(c, c), depthwise(c, 1), pointwise(c, c))
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to the same shape."""
        kept, changed = x.chunk(2, dim=1)
        return self.shuffle(torch.cat([kept, self.residual(changed)], dim=1))


def downsample(c_in: int, c_out: int) -> nn.Sequential:
    """Return the unit that halves the map; it has no split, and a convolved shortcut."""
    half = c_out // 2
    residual = nn.Sequential(pointwise(c_in, c_in), depthwise(c_in, 2), pointwise(c_in, half))
    shortcut = nn.Sequential(depthwise(c_in, 2), pointwise(c_in, half))
    return nn.Sequential(Concat([shortcut, residual]), nn.ChannelShuffle(2))


def shufflenetv2(classes: int, width: float) -> nn.Module:
    """Return the network; its convolutions have biases. Initialisation: ours, PyTorch's."""
    c, last = scaled(24, width), scaled(1024, width)
    features = nn.Sequential(nn.Conv2d(3, c, 3, padding=1), nn.BatchNorm2d(c))
    for channels, units in STAGES:
        out = scaled(channels, width)
        features.append(downsample(c, out))
        features.extend(Unit(out) for _ in range(units - 1))
        c = out
    features.append(pointwise(c, last))
    return classifier(features, last, classes)
