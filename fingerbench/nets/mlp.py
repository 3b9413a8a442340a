"""Multilayer perceptrons with ReLU, for rows of features. Their sizes are defaults: no paper here publishes any."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fingerbench.nets.blocks import scaled


def _mlp(inputs: int, hidden: Sequence[int], outputs: int, width: float) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for units in hidden:
        units = scaled(units, width)
        layers += [nn.Linear(inputs, units), nn.ReLU(inplace=True)]
        inputs = units
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


def mlp(inputs: int, outputs: int, width: float) -> nn.Module:
    """Return two hidden layers of 64, initialised as PyTorch does: (n, c, h, w) with c h w = inputs -> (n, outputs)."""
    return _mlp(inputs, (64, 64), outputs, width)


def mlp_deep(inputs: int, outputs: int, width: float) -> nn.Module:
    """Return four hidden layers of 32; the rest as `mlp`."""
    return _mlp(inputs, (32, 32, 32, 32), outputs, width)


def mlp_wide(inputs: int, outputs: int, width: float) -> nn.Module:
    """Return one hidden layer of 256; the rest as `mlp`."""
    return _mlp(inputs, (256,), outputs, width)
