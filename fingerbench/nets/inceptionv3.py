"""Inception-v3 (Szegedy et al. 2016) for CIFAR: one 3x3 convolution as the stem, no auxiliary head."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from fingerbench.nets.blocks import Concat, Kernel, classifier, conv_bn, scaled

Scale = Callable[[int], int]  # channels of the paper -> channels at this width
Block = tuple[nn.Module, int]  # the block and the number of channels that it returns


def chain(c: int, *layers: tuple[int, Kernel], halve: bool = False) -> nn.Sequential:
    """Return convolutions (channels, kernel) in a row after `c` channels.

    halve: the last one has stride 2 and no padding.
    """
    parts = nn.Sequential()
    for i, (channels, kernel) in enumerate(layers):
        last = halve and i == len(layers) - 1
        parts.append(conv_bn(c, channels, kernel, 2 if last else 1, 0 if last else None, eps=1e-3))
        c = channels
    return parts


def pooled(c: int, channels: int) -> nn.Sequential:
    """Return a 3x3 average pool, stride 1, and a 1x1 convolution."""
    return nn.Sequential(nn.AvgPool2d(3, 1, padding=1), chain(c, (channels, 1)))


def block_a(c: int, s: Scale, pool: int) -> Block:
    """Return a block of 1x1, 5x5 and double 3x3 convolutions."""
    branches = [
        chain(c, (s(64), 1)),
        chain(c, (s(48), 1), (s(64), 5)),
        chain(c, (s(64), 1), (s(96), 3), (s(96), 3)),
        pooled(c, s(pool)),
    ]
    return Concat(branches), 2 * s(64) + s(96) + s(pool)


def reduction_a(c: int, s: Scale) -> Block:
    """Return the block that halves the map after the blocks A."""
    branches = [
        chain(c, (s(384), 3), halve=True),
        chain(c, (s(64), 1), (s(96), 3), (s(96), 3), halve=True),
        nn.MaxPool2d(3, 2),
    ]
    return Concat(branches), s(384) + s(96) + c


def block_b(c: int, s: Scale, inner: int) -> Block:
    """Return a block of 7x7 convolutions factorised into 1x7 and 7x1, with `inner` channels between them."""
    i, out, row, column = s(inner), s(192), (1, 7), (7, 1)
    branches = [
        chain(c, (out, 1)),
        chain(c, (i, 1), (i, row), (out, column)),
        chain(c, (i, 1), (i, column), (i, row), (i, column), (out, row)),
        pooled(c, out),
    ]
    return Concat(branches), 4 * out


def reduction_b(c: int, s: Scale) -> Block:
    """Return the block that halves the map after the blocks B."""
    i = s(192)
    branches = [
        chain(c, (i, 1), (s(320), 3), halve=True),
        chain(c, (i, 1), (i, (1, 7)), (i, (7, 1)), (i, 3), halve=True),
        nn.MaxPool2d(3, 2),
    ]
    return Concat(branches), s(320) + i + c


def block_c(c: int, s: Scale) -> Block:
    """Return a block whose 3x3 branches fan out into 1x3 and 3x1."""
    i = s(384)

    def fan() -> Concat:
        return Concat([chain(i, (i, (1, 3))), chain(i, (i, (3, 1)))])

    branches = [
        chain(c, (s(320), 1)),
        nn.Sequential(chain(c, (i, 1)), fan()),
        nn.Sequential(chain(c, (s(448), 1), (i, 3)), fan()),
        pooled(c, s(192)),
    ]
    return Concat(branches), s(320) + 4 * i + s(192)


BLOCKS: tuple[Callable[[int, Scale], Block], ...] = (
    *(partial(block_a, pool=pool) for pool in (32, 64, 64)),
    reduction_a,
    *(partial(block_b, inner=inner) for inner in (128, 160, 160, 192)),
    reduction_b,
    block_c,
    block_c,
)


def inceptionv3(classes: int, width: float) -> nn.Module:
    """Return the network. Dropout 0.5. Initialisation: ours, PyTorch's."""
    scale = partial(scaled, width=width)
    c = scale(192)
    features = chain(3, (c, 3))
    for block in BLOCKS:
        part, c = block(c, scale)
        features.append(part)
    return classifier(features, c, classes, dropout=0.5)
