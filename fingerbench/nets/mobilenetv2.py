"""MobileNetV2 (Sandler et al. 2018) for CIFAR: it halves the map 3 times instead of 5."""

from __future__ import annotations

from functools import partial

from torch import nn

from fingerbench.nets.blocks import classifier, scaled
from fingerbench.vision import torchvision

# Expansion, channels at width 1, blocks, stride of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenetv2(classes: int, width: float) -> nn.Module:
    """Return torchvision's blocks behind a 3x3 stem of stride 1. Dropout 0.2.

    Initialisation: ours, PyTorch's.
    """
    block = torchvision.models.mobilenetv2.InvertedResidual
    conv_bn = partial(torchvision.ops.Conv2dNormActivation, activation_layer=nn.ReLU6)
    c, last = scaled(32, width), scaled(1280, width)
    features = nn.Sequential(conv_bn(3, c))
    for expansion, channels, blocks, stride in STAGES:
        for i in range(blocks):
            features.append(block(c, scaled(channels, width), stride if i == 0 else 1, expansion))
            c = scaled(channels, width)
    features.append(conv_bn(c, last, kernel_size=1))
    return classifier(features, last, classes, dropout=0.2)
