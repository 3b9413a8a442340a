"""VGG9: eight convolutions and one linear layer, the small network that judges whether a query is abnormal."""

from __future__ import annotations

from torch import nn

from fingerbench.nets.blocks import classifier, conv_bn, scaled

# Channels of the 3x3 convolutions at width 1, a row between two max-pools of stride 2.
STAGES = ((16, 16, 16), (32, 32), (64, 64))
HIDDEN = 128  # channels of the 1x1 convolution after the last pool


def vgg9(classes: int, width: float) -> nn.Module:
    """Return the network; every convolution has a bias, batch norm and a ReLU, which makes 84,746 parameters.

    The average over the last map is the 4x4 pool at 32x32 pixels. Initialisation: ours, PyTorch's.
    """
    features, c = nn.Sequential(), 3
    for stage in STAGES:
        for channels in (scaled(full, width) for full in stage):
            features.append(conv_bn(c, channels, bias=True))
            c = channels
        features.append(nn.MaxPool2d(2))
    hidden = scaled(HIDDEN, width)
    features.append(conv_bn(c, hidden, 1, bias=True))
    return classifier(features, hidden, classes)
