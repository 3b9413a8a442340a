"""SqueezeNet (Iandola et al. 2016) with simple bypass and batch norm, for CIFAR: a 3x3 stem of stride 1."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from fingerbench.nets.blocks import Concat, Residual, conv_bn, scaled

# Fire 2 to 9 at width 1: squeezed channels, channels of each expanding branch. None: halve the map.
FIRES = ((16, 64), (16, 64), (32, 128), None, (32, 128), (48, 192), (48, 192), (64, 256), None, (64, 256))


def fire(c: int, squeezed: int, expanded: int) -> nn.Sequential:
    """Return a 1x1 convolution down to `squeezed`, then 1x1 and 3x3 side by side, `expanded` channels each."""
    expand = Concat([conv_bn(squeezed, expanded, 1, bias=True), conv_bn(squeezed, expanded, 3, bias=True)])
    return nn.Sequential(conv_bn(c, squeezed, 1, bias=True), expand)


def squeezenet(classes: int, width: float) -> nn.Module:
    """Return the network, whose last layer is a 1x1 convolution, averaged over the map.

    Initialisation default: not published; PyTorch's.
    """
    c = scaled(96, width)
    features = nn.Sequential(conv_bn(3, c, bias=True), nn.MaxPool2d(2))
    for i, sizes in enumerate(FIRES):
        if sizes is None:
            features.append(nn.MaxPool2d(2))
            continue
        squeezed, expanded = (scaled(channels, width) for channels in sizes)
        block = fire(c, squeezed, expanded)
        features.append(Residual(block) if sizes == FIRES[i - 1] else block)
        c = 2 * expanded
    head = OrderedDict(
        features=features,
        classifier=nn.Conv2d(c, classes, 1),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
    )
    return nn.Sequential(head)
