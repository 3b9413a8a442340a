"""Xception (Chollet 2017) for CIFAR: the stem keeps the size, and 3 blocks halve the map instead of 4."""

from __future__ import annotations

from torch import nn

from fingerbench.nets.blocks import Residual, classifier, conv_bn, scaled


def separable(c_in: int, c_out: int) -> nn.Sequential:
    """Return a 3x3 depthwise and a 1x1 convolution with nothing between them, then batch norm."""
    depthwise = nn.Conv2d(c_in, c_in, 3, padding=1, groups=c_in, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out))


def widening(c_in: int, inner: int, c_out: int, stride: int, first: bool = False) -> Residual:
    """Return a block of two separable convolutions and a max-pool; the `first` one takes rectified input."""
    residual = nn.Sequential(separable(c_in, inner), nn.ReLU(inplace=True), separable(inner, c_out))
    residual.append(nn.MaxPool2d(3, stride, padding=1))
    if not first:
        residual.insert(0, nn.ReLU())  # not in place: the shortcut reads the same tensor
    shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out))
    return Residual(residual, shortcut)


def middle(c: int) -> Residual:
    """Return a block of three separable convolutions."""
    layers = [layer for _ in range(3) for layer in (nn.ReLU(), separable(c, c))]
    return Residual(nn.Sequential(*layers))


def xception(classes: int, width: float) -> nn.Module:
    """Return the network. Initialisation: ours, PyTorch's."""
    c32, c64, c128, c256, c728, c1024, c1536, c2048 = (
        scaled(channels, width) for channels in (32, 64, 128, 256, 728, 1024, 1536, 2048)
    )
    features = nn.Sequential(
        conv_bn(3, c32),
        conv_bn(c32, c64),
        widening(c64, c128, c128, stride=2, first=True),
        widening(c128, c256, c256, stride=2),
        widening(c256, c728, c728, stride=1),
        *(middle(c728) for _ in range(8)),
        widening(c728, c728, c1024, stride=2),
        separable(c1024, c1536),
        nn.ReLU(inplace=True),
        separable(c1536, c2048),
        nn.ReLU(inplace=True),
    )
    return classifier(features, c2048, classes)
