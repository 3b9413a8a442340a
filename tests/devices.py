"""Shared by the tests that compare devices: a tiny benchmark, whatever device makes it."""

import os
from pathlib import Path

import pytest
import torch
from standin import OTHERS
from torch import nn
from toygans import DESIGNS

from fingerbench import config
from fingerbench.bench import Bench
from fingerbench.seeds import CUBLAS, seeded
from fingerbench.workshop import Workshop
from fingerbench.zoo.train import Recipe

os.environ |= CUBLAS  # before cuBLAS starts: fix_order asks for it

CPU = torch.device("cpu")
GANS = tuple(DESIGNS)
RECIPE = Recipe(epochs=10, batch=32, lr=0.005, momentum=0.9, weight_decay=5e-4, schedule="cosine")
SETTINGS = [
    f"hydra.searchpath=[file://{Path(__file__).parent / 'conf'}]",
    "profile=tiny",
    "precision=float32",
    "queries=20",
    "data.transfer=100",
    "zoo.training.epochs=3",
    "zoo.tuning.epochs=5",  # on a GPU the fourth step of a size is captured, and then replayed
]

others = pytest.mark.parametrize("device", OTHERS, indirect=True)


def opened(store, *words):
    return Bench(config.compose([*SETTINGS, f"store={store}", *words]))


def shop(bench, device):
    return Workshop(bench.store, bench.data, device)


def made(bench, spec, device):
    """Make on a device what is missing of a spec and of what it needs; return the spec."""
    for needed in spec.needs():
        made(bench, needed, device)
    if not bench.store.has(spec):
        bench.store.save(spec, *spec.make(shop(bench, device)))
    return spec


def block(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)


def small_net():
    """A network in which rounding errors grow slowly: at this rate 1e-6 of the weights moves no loss by 0.01.

    VGG9 at four times the rate has losses moved by 0.1 and more by 1e-7 of its weights.
    """
    with seeded(0):
        return nn.Sequential(*block(3, 8), *block(8, 16), nn.Flatten(), nn.Linear(256, 10))
