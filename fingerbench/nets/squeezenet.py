"""SqueezeNet (Iandola et al. 2016) with simple bypass and batch norm, for CIFAR: a 3x3 stem of stride 1."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fingerbench.nets.blocks import Concat, Residual, conv_bn, scaled

# At width 1, by the paper's number of the fire module: squeezed channels, channels of each expanding branch.
FIRES = {
    2: (16, 64),
    3: (16, 64),
    4: (32, 128),
    5: (32, 128),
    6: (48, 192),
    7: (48, 192),
    8: (64, 256),
    9: (64, 256),
}
BYPASSED = (3, 5, 7)  # FingerBench; the paper has a bypass around 9 as well
HALVED = (4, 8)  # the map, after these


def fire(c: int, squeezed: int, expanded: int) -> nn.Sequential:
    """Return a 1x1 convolution down to `squeezed`, then 1x1 and 3x3 side by side, `expanded` channels each."""
    expand = Concat([conv_bn(squeezed, expanded, 1, bias=True), conv_bn(squeezed, expanded, 3, bias=True)])
    return nn.Sequential(conv_bn(c, squeezed, 1, bias=True), expand)


def squeezenet(classes: int, width: float) -> nn.Module:
    """Return the network, whose last layer is a 1x1 convolution, averaged over the map.

    Initialisation: ours, PyTorch's.
    """
    c = scaled(96, width)
    features = nn.Sequential(conv_bn(3, c, bias=True), nn.MaxPool2d(2))
    for number, sizes in FIRES.items():
        squeezed, expanded = (scaled(channels, width) for channels in sizes)
        block = fire(c, squeezed, expanded)
        features.append(Residual(block) if number in BYPASSED else block)
        if number in HALVED:
            features.append(nn.MaxPool2d(2))
        c = 2 * expanded
    head = OrderedDict(
        features=features,
        classifier=nn.Conv2d(c, classes, 1),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
    )
    return nn.Sequential(head)
