"""A trained GAN as an artefact of the store."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from fingerbench.records import Gan, Images
from fingerbench.seeds import seeded
from fingerbench.store import Spec
from fingerbench.workshop import Workshop


class Design(Protocol):
    """A kind of GAN: a frozen dataclass whose fields are the hyperparameters of its networks and its training.

    conditional: whether its networks heed the labels.
    """

    @property
    def conditional(self) -> bool: ...  # noqa: D102

    def build(self, classes: int, shape: tuple[int, int, int]) -> Gan:
        """Return the untrained networks for images of `shape` (c, h, w)."""
        ...

    def train(
        self,
        images: Images,
        classes: int,
        generator: torch.Generator,
        device: torch.device,
        checkpoint: Path | None = None,
    ) -> Gan:
        """Return the networks trained on `images`, frozen, in eval mode. `checkpoint` survives a kill."""
        ...


@dataclass(frozen=True)
class GanSpec(Spec):
    """A GAN trained on the owner's half of the data."""

    kind: ClassVar[str] = "gan"
    version: ClassVar[int] = 1

    data: str  # digest of the data set
    classes: int
    design: Design
    seed: int

    @property
    def label(self) -> str:
        """The kind of GAN."""
        return type(self.design).__module__.rpartition(".")[2]

    def make(self, workshop: Workshop) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Train it."""
        began = time.perf_counter()
        images = workshop.data.a.to(workshop.device)
        with seeded(self.seed) as generator:
            checkpoint = workshop.store.checkpoint(self)
            gan = self.design.train(images, self.classes, generator, workshop.device, checkpoint)
        tensors = {
            f"{part}.{name}": tensor
            for part in ("generator", "discriminator")
            for name, tensor in getattr(gan, part).state_dict().items()
        }
        return tensors, {"name": self.label, "seed": self.seed, "seconds": time.perf_counter() - began}

    def load(self, workshop: Workshop) -> Gan:
        """Return the stored GAN, frozen, in eval mode."""
        tensors = workshop.load(self).tensors
        with seeded(0):
            gan = self.design.build(self.classes, workshop.data.shape)
        for part in ("generator", "discriminator"):
            network: nn.Module = getattr(gan, part)
            prefix = f"{part}."
            state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            network.load_state_dict(state, strict=True)
            network.to(workshop.device).eval().requires_grad_(False)
        return gan
