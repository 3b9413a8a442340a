"""The 15 architectures of FingerBench, as published for CIFAR and as narrow as one likes, and a few more.

Perceptrons take rows of features; a detector tells abnormal queries from normal ones. Any image classifier of timm or
torchvision is `timm:NAME` or `torchvision:NAME`, see `library`; one of yours is `python:MODULE.FUNCTION`, see `own`.

Where a file calls the initialisation ours, what the published definition does is not known to us.

One file a family; each is imported when first asked for, since some need torchvision, whose import takes a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fingerbench.errors import UserError, require, unknown
from fingerbench.nets import library, own
from fingerbench.nets.blocks import final_layer

__all__ = [
    "ARCHITECTURES",
    "COMPILED_ON_GPU",
    "DETECTORS",
    "FLOAT32_ON_CPU",
    "NETWORKS",
    "PERCEPTRONS",
    "REVISIONS",
    "Normalise",
    "Subsampled",
    "blank",
    "final_layer",
    "foreign",
    "network",
    "require_fitting",
    "require_known",
    "revision",
]

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

REVISIONS = {"squeezenet": 2}
"""Raised by hand where a name comes to mean another network: see `revision`.

SqueezeNet: its first had no bypass around fire 5.
"""

COMPILED_ON_GPU = ("densenet121", "efficientnet", "googlenet", "inceptionv3", "xception")
"""Networks that `torch.compile` makes 1.2 to 2 times faster to train on a GPU, as replayed steps: results/speed/gpu.md.

A worker needs 75 to 154 s for that, once for each of them and each size of batch; ResNet18 gains nothing.
"""

FLOAT32_ON_CPU = ("mobilenetv2", "shufflenetv2")
"""Networks that train faster in float32 on CPUs that compute in bfloat16: see `benchmarks/train_speed.py`.

Their convolutions are mostly depthwise. So are EfficientNet's and Xception's, which gain all the same at full width.
"""


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
    shape: tuple[int, int, int] = (3, 32, 32),
) -> nn.Module:
    """Return architecture `name`, freshly initialised: images (n, c, h, w) in [0, 1] -> outputs (n, classes).

    Args: name: one of NETWORKS, or `timm:NAME` or `torchvision:NAME`, with random weights too; how those are fitted to
    small images stands in `fingerbench.nets.library`; or `python:MODULE.FUNCTION`, what your function returns, see
    `fingerbench.nets.own`. classes: number of outputs, 1 for a regression of one value.
    width multiplies the channels of every layer (1: the published network; only that of one not ours).
    shape: (c, h, w) of an image; perceptrons take any. As in FingerBench's zoo nothing is normalised.
    Images of 3 channels and at least 16x16 work, others with a function of yours that takes them; at 16x16 some maps
    shrink to 1x1, so batches in training need 2 images or more.
    """
    require_known(name)
    if not width > 0:
        raise UserError(f"width: expected a number above 0, such as 1 or 0.125; got {width}")
    if foreign(name):
        require(width == 1, name, "width 1, as published", width)
    if name.startswith(own.PREFIX):
        return own.build(name, classes, shape)
    if name in PERCEPTRONS:
        return _ours("mlp", name, prod(shape), classes, width)
    require_fitting(name, shape)
    if foreign(name):
        return library.build(name, classes, shape)
    return _ours(_FAMILIES.get(name, name), name, classes, width)  # a detector has a file of its own


def require_fitting(name: str, shape: tuple[int, int, int]) -> None:
    """Raise a UserError where images of `shape` (c, h, w) are none that an architecture of ours or a library takes."""
    if not name.startswith(own.PREFIX) and name not in PERCEPTRONS:
        c, h, w = shape
        others = f"for others a network of yours, python:MODULE.FUNCTION, for rows {', '.join(PERCEPTRONS)}"
        require(c == 3 and min(h, w) >= 16, name, f"3 channels of 16x16 or more; {others}", shape)


def _ours(room: str, name: str, *arguments: float) -> nn.Module:
    model: nn.Module = getattr(import_module(f"{__name__}.{room}"), name)(*arguments)
    for part in model.modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) != part.stride and part.in_channels < 8:
            part.__class__ = Subsampled
    return model


class Subsampled(nn.Conv2d):
    """A strided 1x1 convolution that leaves out first what it would not read.

    With less than 8 input channels, channels last, on CPUs without AVX-512, PyTorch 2.13 writes past its memory in the
    gradient of one that does not. Networks of a sixteenth of the width have such.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return what `nn.Conv2d` does."""
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight, self.bias, groups=self.groups)


def require_known(name: str) -> None:
    """Raise a UserError, with the nearest names, unless `name` is an architecture."""
    if name.startswith(own.PREFIX):
        own.require_known(name)
    elif foreign(name):
        library.require_known(name)
    elif name not in NETWORKS:
        raise unknown("architecture", name, [*NETWORKS, *(f"{one}:NAME" for one in library.LIBRARIES), own.FORM])


def revision(name: str) -> dict[str, int]:
    """Return what an architecture adds to the identity of a spec: its revision, if it has one."""
    return {"revision": REVISIONS[name]} if name in REVISIONS else {}


def foreign(name: str) -> bool:
    """Tell whether an architecture is of a library or of the user: built as it is, whatever `zoo.width` is."""
    return name.startswith((*(f"{one}:" for one in library.LIBRARIES), own.PREFIX))


@contextmanager
def blank(name: str) -> Iterator[None]:
    """Inside, build a network `name` for stored weights: on the meta device, if it is ours.

    Constructors of others compute buffers that no state dict brings back, such as relative positions; their networks
    are built in full, on the CPU, without a trace in the global random numbers.
    """
    with torch.random.fork_rng(devices=[]) if foreign(name) else torch.device("meta"):
        yield
