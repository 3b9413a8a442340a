"""ResNet-18, 34 and 50 (He et al. 2016) for CIFAR: a 3x3 stem of stride 1; the stem's max-pool stays."""

from __future__ import annotations

from torch import nn

from fingerbench.nets.blocks import classifier, conv_bn, kaiming, scaled
from fingerbench.vision import torchvision

Block = type[torchvision.models.resnet.BasicBlock] | type[torchvision.models.resnet.Bottleneck]


def _resnet(block: Block, blocks: tuple[int, ...], classes: int, width: float) -> nn.Module:
    c = scaled(64, width)
    features = nn.Sequential(conv_bn(3, c), nn.MaxPool2d(3, 2, padding=1))
    for stage, count in enumerate(blocks):
        planes = scaled(64 * 2**stage, width)
        for i in range(count):
            stride = 2 if stage > 0 and i == 0 else 1
            out = planes * block.expansion
            shortcut = None
            if stride > 1 or c != out:
                shortcut = nn.Sequential(nn.Conv2d(c, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            unit = block(c, planes, stride, shortcut)
            last_norm = [layer for layer in unit.children() if isinstance(layer, nn.BatchNorm2d)][-1]
            nn.init.zeros_(last_norm.weight)
            features.append(unit)
            c = out
    kaiming(features, "fan_out")
    return classifier(features, c, classes)


def resnet18(classes: int, width: float) -> nn.Module:
    """Return ResNet-18.

    Initialisation: ours. Convolutions start Kaiming normal, as in torchvision, and blocks start as their shortcuts,
    their last batch norm being 0 (Goyal et al. 2017), without which a narrow ResNet-50 trains badly.
    """
    return _resnet(torchvision.models.resnet.BasicBlock, (2, 2, 2, 2), classes, width)


def resnet34(classes: int, width: float) -> nn.Module:
    """Return ResNet-34, initialised like `resnet18`."""
    return _resnet(torchvision.models.resnet.BasicBlock, (3, 4, 6, 3), classes, width)


def resnet50(classes: int, width: float) -> nn.Module:
    """Return ResNet-50, of bottlenecks that stride in their 3x3; initialised like `resnet18`."""
    return _resnet(torchvision.models.resnet.Bottleneck, (3, 4, 6, 3), classes, width)
