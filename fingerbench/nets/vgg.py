"""VGG-13, 16 and 19 (Simonyan and Zisserman 2015) with batch norm, for CIFAR."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fingerbench.nets.blocks import kaiming, scaled
from fingerbench.vision import torchvision


def _vgg(configuration: str, classes: int, width: float) -> nn.Module:
    vgg = torchvision.models.vgg
    channels = [c if c == "M" else scaled(c, width) for c in vgg.cfgs[configuration]]
    features = vgg.make_layers(channels, batch_norm=True)
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True  # keeps a 1x1 map, so that 16x16 images survive five pools
    hidden = scaled(4096, width)
    head = nn.Sequential(
        nn.Linear(scaled(512, width), hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(hidden, classes),
    )
    kaiming(features, "fan_out")
    parts = OrderedDict(features=features, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classifier=head)
    return nn.Sequential(parts)


def vgg13_bn(classes: int, width: float) -> nn.Module:
    """Return VGG-13: configuration B, dropout 0.5.

    Initialisation: ours. Convolutions start Kaiming normal as in torchvision; linear layers as in PyTorch, for
    torchvision's N(0, 0.01^2) is made for 4096 inputs and lets narrow heads learn nothing.
    """
    return _vgg("B", classes, width)


def vgg16_bn(classes: int, width: float) -> nn.Module:
    """Return VGG-16, configuration D; the rest as `vgg13_bn`."""
    return _vgg("D", classes, width)


def vgg19_bn(classes: int, width: float) -> nn.Module:
    """Return VGG-19, configuration E; the rest as `vgg13_bn`."""
    return _vgg("E", classes, width)
