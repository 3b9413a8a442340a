"""DenseNet-121 (Huang et al. 2017) for CIFAR: growth 12 instead of 32."""

from __future__ import annotations

from torch import nn

from fingerbench.nets.blocks import scaled
from fingerbench.vision import torchvision


def densenet121(classes: int, width: float) -> nn.Module:
    """Return torchvision's DenseNet with growth 12 and a plain 3x3 stem to 24 channels.

    The paper's CIFAR stem has no batch norm, no ReLU and no pool, since each dense layer starts with the former two.
    Initialisation: ours, torchvision's Kaiming normal.
    """
    growth = scaled(12, width)
    model = torchvision.models.DenseNet(growth, (6, 12, 24, 16), 2 * growth, bn_size=4, num_classes=classes)
    model.features.conv0 = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.features.conv0.weight)
    for part in ("norm0", "relu0", "pool0"):
        delattr(model.features, part)
    return model
