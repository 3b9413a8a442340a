"""Parts that several architectures share."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from fingerbench.errors import UserError

Kernel = int | tuple[int, int]


def scaled(channels: int, width: float) -> int:
    """Return `channels` of the paper's network times `width`, a multiple of 4 and at least 4.

    Every width in the papers is such a multiple, so width 1 changes nothing.
    """
    return max(4, 4 * round(channels * width / 4))


class Concat(nn.ModuleList):
    """Branches of the same input, concatenated along channels."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, sum of the branches' channels, h', w')."""
        return torch.cat([branch(x) for branch in self], dim=1)


class Residual(nn.Module):
    """A residual branch added to its shortcut, by default the input itself."""

    def __init__(self, residual: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.residual = residual
        self.shortcut = shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to the sum of both branches, (n, c', h', w')."""
        return self.residual(x) + self.shortcut(x)


class SqueezeExcite(nn.Module):
    """Gates in (0, 1), one a channel, computed from the channel means (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int, activation: nn.Module) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, squeezed)
        self.activation = activation
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to the same shape, each channel times its gate."""
        gates = self.excite(self.activation(self.squeeze(x.mean((2, 3)))))
        return x * gates.sigmoid()[:, :, None, None]


def conv_bn(
    c_in: int,
    c_out: int,
    kernel: Kernel = 3,
    stride: int = 1,
    padding: int | None = None,
    bias: bool = False,
    eps: float = 1e-5,
) -> nn.Sequential:
    """Return convolution, batch norm, ReLU. The padding is half the kernel unless given."""
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    pad = (size[0] // 2, size[1] // 2) if padding is None else (padding, padding)
    conv = nn.Conv2d(c_in, c_out, size, stride, pad, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out, eps=eps), nn.ReLU(inplace=True))


def classifier(features: nn.Module, channels: int, classes: int, dropout: float = 0.0) -> nn.Sequential:
    """Return features -> global average -> dropout -> linear layer, the usual frame.

    The global average equals the 4x4 average pool of some papers at 32x32 and allows other sizes.
    """
    parts = OrderedDict(
        features=features,
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        dropout=nn.Dropout(dropout),
        classifier=nn.Linear(channels, classes),
    )
    return nn.Sequential(parts)


def kaiming(model: nn.Module, mode: Literal["fan_in", "fan_out"]) -> None:
    """Draw the weights of all convolutions and linear layers from N(0, 2 / fan) (He et al. 2015); zero the biases."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def final_layer(model: nn.Module) -> nn.Linear | nn.Conv2d:
    """Return the last layer that holds classification weights: linear, or SqueezeNet's 1x1 convolution.

    By convention it is the convolution or linear layer that the model registers last; so it is in all of
    `ARCHITECTURES`, and in torchvision's and timm's models, ViTs as well.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not layers:
        raise UserError(f"{type(model).__name__} has no linear or convolution layer to fine-tune as its last one")
    return layers[-1]
