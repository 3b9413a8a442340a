"""The 15 architectures of FingerBench, as published for CIFAR and as narrow as one likes, and a few more.

Perceptrons take rows of features; a detector tells abnormal queries from normal ones.

One file a family; each is imported when first asked for, since some need torchvision, whose import takes a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from math import prod

import torch
from torch import Tensor, nn

from fingerbench.errors import UserError, require, unknown

_FAMILIES = {
    "densenet121": "densenet",
    "efficientnet": "efficientnet",
    "googlenet": "googlenet",
    "inceptionv3": "inceptionv3",
    "mobilenetv2": "mobilenetv2",
    "resnet18": "resnet",
    "resnet34": "resnet",
    "resnet50": "resnet",
    "seresnet18": "seresnet18",
    "shufflenetv2": "shufflenetv2",
    "squeezenet": "squeezenet",
    "vgg13_bn": "vgg",
    "vgg16_bn": "vgg",
    "vgg19_bn": "vgg",
    "xception": "xception",
}

ARCHITECTURES: tuple[str, ...] = tuple(_FAMILIES)
PERCEPTRONS = ("mlp", "mlp_deep", "mlp_wide")
DETECTORS = ("vgg9",)
NETWORKS = (*ARCHITECTURES, *DETECTORS, *PERCEPTRONS)


class Normalise(nn.Module):
    """Pixel normalisation (x - mean) / std, channel by channel, as the first layer of a model."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            # On the CPU even under torch.device("meta"): no state dict brings these numbers afterwards.
            column = torch.tensor(values, dtype=torch.float32, device="cpu").view(-1, 1, 1)
            self.register_buffer(name, column, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) in [0, 1] to the same shape."""
        return (x - self.mean) / self.std


def network(
    name: str,
    classes: int = 10,
    width: float = 1.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    shape: tuple[int, int, int] = (3, 32, 32),
) -> nn.Module:
    """Return architecture `name`, freshly initialised: images (n, c, h, w) in [0, 1] -> outputs (n, classes).

    Args: classes: number of outputs, 1 for a regression of one value. width multiplies the channels of every layer (1:
    the published network). mean, std: three numbers each; both given: normalise inside the model. FingerBench's
    official zoo takes raw [0, 1], hence the default. shape: (c, h, w) of an image; perceptrons take any.
    Images of 3 channels and at least 16x16 work; at 16x16 some maps shrink to 1x1, so batches in training need 2
    images or more.
    """
    if name not in NETWORKS:
        raise unknown("architecture", name, NETWORKS)
    if not width > 0:
        raise UserError(f"width: expected a number above 0, such as 1 or 0.125; got {width}")
    if (mean is None) != (std is None):
        raise UserError(f"mean and std: give both or neither; got mean={mean}, std={std}")
    model = _perceptron(name, shape, classes, width) if name in PERCEPTRONS else _convnet(name, shape, classes, width)
    if mean is None or std is None:
        return model
    return nn.Sequential(Normalise(mean, std), model)


def _perceptron(name: str, shape: tuple[int, int, int], outputs: int, width: float) -> nn.Module:
    model: nn.Module = getattr(import_module(f"{__name__}.mlp"), name)(prod(shape), outputs, width)
    return model


def _convnet(name: str, shape: tuple[int, int, int], outputs: int, width: float) -> nn.Module:
    c, h, w = shape
    require(c == 3 and min(h, w) >= 16, name, f"3 channels of 16x16 or more, or one of {PERCEPTRONS}", shape)
    family = _FAMILIES.get(name, name)  # a detector has a file of its own
    model: nn.Module = getattr(import_module(f"{__name__}.{family}"), name)(outputs, width)
    return model


def final_layer(model: nn.Module) -> nn.Linear | nn.Conv2d:
    """Return the last layer that holds classification weights: linear, or SqueezeNet's 1x1 convolution.

    By convention it is the convolution or linear layer that the model registers last; so it is in all of
    `ARCHITECTURES` and in nearly every model of torchvision and timm.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if not layers:
        raise UserError(f"{type(model).__name__} has no linear or convolution layer to fine-tune as its last one")
    return layers[-1]
