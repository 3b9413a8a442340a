"""SE-ResNet-18 (Hu et al. 2018) for CIFAR: a 3x3 stem of stride 1, no max-pool."""

from __future__ import annotations

from torch import nn

from fingerbench.nets.blocks import Residual, SqueezeExcite, classifier, conv_bn, scaled


def block(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    """Return a basic block with squeeze-and-excitation, ratio 16.

    FingerBench's has biases before batch norm and a ReLU after the second one too, inside the residual branch.
    """
    residual = nn.Sequential(
        conv_bn(c_in, c_out, stride=stride, bias=True),
        conv_bn(c_out, c_out, bias=True),
        SqueezeExcite(c_out, max(4, c_out // 16), nn.ReLU(inplace=True)),  # 4 is the least of the network at width 1
    )
    shortcut = None
    if stride > 1 or c_in != c_out:
        shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out))
    return nn.Sequential(Residual(residual, shortcut), nn.ReLU(inplace=True))


def seresnet18(classes: int, width: float) -> nn.Module:
    """Return the network. Initialisation: ours, PyTorch's."""
    c = scaled(64, width)
    features = nn.Sequential(conv_bn(3, c, bias=True))
    for stage in range(4):
        out = scaled(64 * 2**stage, width)
        features.extend([block(c, out, 1 if stage == 0 else 2), block(out, out, 1)])
        c = out
    return classifier(features, c, classes)
