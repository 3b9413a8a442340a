"""A toy world, the same each time, in which `check` tries methods: four classes, small networks, a GAN."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fingerbench.gans.train import Hinge
from fingerbench.records import Gan, Images, Setting
from fingerbench.seeds import seeded
from fingerbench.task import Classification

CLASSES, BUDGET, LATENT, SIDE = 4, 12, 8, 16
TASK = Classification(CLASSES)


class Templates(nn.Module):
    """A generator of toy images: the symmetric pattern of a class, bent by the latent."""

    patterns: Tensor

    def __init__(self) -> None:
        super().__init__()
        coarse = torch.randn(CLASSES + LATENT, 3, 4, 4)
        symmetric = (coarse + coarse.flip(3)) / 2**0.5  # so that a flip keeps the class
        self.register_buffer("patterns", F.interpolate(symmetric, size=SIDE, mode="bilinear"))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return images (n, 3, SIDE, SIDE) in [-1, 1] of z (n, LATENT) and labels (n,)."""
        bend = torch.einsum("nl,lchw->nchw", z, self.patterns[CLASSES:])
        return torch.tanh(self.patterns[labels] + 0.6 * bend)


class Critic(nn.Module):
    """A discriminator of toy images: real ones have a moderate contrast."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return (n,) scores."""
        return 1 - x.flatten(1).std(1)


class Constant(nn.Module):
    """A suspect that always gives the same answer."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, CLASSES) logits."""
        return torch.eye(CLASSES)[1].expand(len(x), -1)


def convnet() -> nn.Module:
    """Return an untrained network for toy images, which takes larger ones too."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),  # as it is for SIDE; a method may ask larger images while it makes its queries
        nn.Flatten(),
        nn.Linear(16 * 16, CLASSES),
    )


def _trained(data: Images, seed: int, model: nn.Module | None = None, steps: int = 40) -> nn.Module:
    with seeded(seed):
        model = model or convnet()
        model.requires_grad_(True).train()
        adam = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(steps):
            rows = torch.randint(len(data), (64,))
            adam.zero_grad()
            F.cross_entropy(model(data.pixels()[rows]), data.y[rows]).backward()
            adam.step()
    model.zero_grad()
    return model.eval().requires_grad_(False)


def _copied(model: nn.Module) -> nn.Module:
    twin = convnet()
    twin.load_state_dict(model.state_dict())
    return twin


def _drawn(generator: nn.Module, n: int) -> Images:
    y = torch.randint(CLASSES, (n,))
    x = generator(torch.randn(n, LATENT), y) + 1.5 * torch.randn(n, 3, SIDE, SIDE)
    return Images(((x.clamp(-1, 1) + 1) * 127.5).to(torch.uint8), y)


@dataclass(frozen=True)
class World:
    """Everything that a setting may hold, over a problem on which models are good but not perfect."""

    source: nn.Module
    train: Images
    heldout: Images
    positives: tuple[nn.Module, ...]
    negatives: tuple[nn.Module, ...]
    gan: Gan

    def setting(self, needs: frozenset[str], seed: int = 0, budget: int = BUDGET) -> Setting:
        """Return what a method with these needs is given."""
        surrogates = "surrogates" in needs
        return Setting(
            source=self.source,
            train=self.train,
            heldout=self.heldout,
            positives=self.positives if surrogates else (),
            negatives=self.negatives if surrogates else (),
            gan=self.gan if "gan" in needs else None,
            task=TASK,
            budget=budget,
            device=torch.device("cpu"),
            generator=torch.Generator().manual_seed(seed),
        )


@cache
def world() -> World:
    """Return the toy world, the same each time."""
    with seeded(0):
        generator = Templates().eval()
        owner, other, heldout = (_drawn(generator, n) for n in (200, 200, 300))
    source = _trained(owner, 1)
    positives = (source, *(_trained(other, seed, _copied(source), steps=5) for seed in (2, 3, 7, 8)))
    negatives = tuple(_trained(other, seed) for seed in (4, 5, 6, 9, 10))
    return World(source, owner, heldout, positives, negatives, Gan(generator, Critic().eval(), LATENT, Hinge()))
