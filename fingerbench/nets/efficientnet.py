"""FingerBench's own EfficientNet: pre-activation MBConv blocks (after Tan and Le 2019) with gated residuals."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fingerbench.nets.blocks import SqueezeExcite, classifier, kaiming, scaled

STAGES = ((32, 1), (64, 2), (128, 2), (256, 2))  # channels at width 1, stride of the first of 4 blocks


def bn_silu_conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return batch norm, SiLU, convolution; every convolution of this network has a bias."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups)
    return nn.Sequential(nn.BatchNorm2d(c_in), nn.SiLU(), conv)


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze-and-excitation, expansion 4.

    The residual branch is scaled by one learnable number that starts at 0, so that the block starts as its shortcut.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        c = 4 * c_in
        self.residual = nn.Sequential(
            bn_silu_conv(c_in, c, 1),
            bn_silu_conv(c, c, 3, stride, groups=c),
            nn.BatchNorm2d(c),
            nn.SiLU(),
            SqueezeExcite(c, c_in // 4, nn.SiLU()),
            nn.Conv2d(c, c_out, 1),
        )
        self.gate = nn.Parameter(torch.zeros(()))
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.AvgPool2d(stride, ceil_mode=True))  # as the residual rounds an odd side up
        if c_in != c_out:
            self.shortcut.append(nn.Conv2d(c_in, c_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c_in, h, w) to (n, c_out, h / stride, w / stride), rounded up."""
        return self.shortcut(x) + self.gate * self.residual(x)


def efficientnet(classes: int, width: float) -> nn.Module:
    """Return the network. Dropout 0.3; weights start Kaiming normal and biases 0, as in FingerBench's code."""
    stem, c, last = scaled(32, width), scaled(16, width), scaled(1024, width)
    features = nn.Sequential(
        nn.Conv2d(3, stem, 3, padding=1),
        bn_silu_conv(stem, stem, 3, groups=stem),
        nn.BatchNorm2d(stem),
        nn.SiLU(),
        SqueezeExcite(stem, stem // 4, nn.SiLU()),
        nn.Conv2d(stem, c, 1),
    )
    for channels, stride in STAGES:
        for i in range(4):
            features.append(MBConv(c, scaled(channels, width), stride if i == 0 else 1))
            c = scaled(channels, width)
    features.extend([bn_silu_conv(c, last, 1), nn.BatchNorm2d(last), nn.SiLU()])
    model = classifier(features, last, classes, dropout=0.3)
    kaiming(model, "fan_in")
    return model
