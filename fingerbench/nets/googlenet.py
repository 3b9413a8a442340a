"""GoogLeNet (Szegedy et al. 2015) with batch norm, for CIFAR: no stem pooling, no auxiliary heads."""

from __future__ import annotations

from functools import partial

from torch import nn

from fingerbench.nets.blocks import Concat, classifier, scaled
from fingerbench.nets.blocks import conv_bn as any_conv_bn

conv_bn = partial(any_conv_bn, eps=1e-3)

# Channels at width 1: 1x1; 3x3 reduction and 3x3; "5x5" reduction and "5x5"; pool projection. None: halve the map.
BLOCKS = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    None,
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    None,
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)


def inception(c: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pool: int) -> nn.Module:
    """Return the block that maps `c` channels to one + three + five + pool.

    The branch that is 5x5 in the paper is 3x3 here, as in torchvision and so in FingerBench.
    """
    return Concat(
        [
            conv_bn(c, one, 1),
            nn.Sequential(conv_bn(c, reduce3, 1), conv_bn(reduce3, three)),
            nn.Sequential(conv_bn(c, reduce5, 1), conv_bn(reduce5, five)),
            nn.Sequential(nn.MaxPool2d(3, 1, padding=1), conv_bn(c, pool, 1)),
        ]
    )


def googlenet(classes: int, width: float) -> nn.Module:
    """Return the network. Dropout 0.2. Initialisation: ours, PyTorch's."""
    c = scaled(192, width)
    features = nn.Sequential(conv_bn(3, c))
    for block in BLOCKS:
        if block is None:
            features.append(nn.MaxPool2d(3, 2, padding=1))
            continue
        one, reduce3, three, reduce5, five, pool = (scaled(channels, width) for channels in block)
        features.append(inception(c, one, reduce3, three, reduce5, five, pool))
        c = one + three + five + pool
    return classifier(features, c, classes, dropout=0.2)
