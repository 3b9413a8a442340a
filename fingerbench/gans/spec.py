"""A trained GAN as an artefact of the store."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from fingerbench.checkpoint import Checkpoint
from fingerbench.cost import Adversaries, Pass, Sizes, Work
from fingerbench.errors import UserError, raised, require
from fingerbench.gans.train import Training
from fingerbench.records import Gan
from fingerbench.seeds import seeded
from fingerbench.store import Spec
from fingerbench.workshop import CAUTION, Workshop, persevere, revive


@dataclass(frozen=True)
class GanSpec(Spec):
    """A GAN trained on the owner's half of the data."""

    kind: ClassVar[str] = "gan"
    version: ClassVar[int] = 1

    name: str = field(compare=False)
    data: str  # digest of the data set
    classes: int
    design: Training
    seed: int

    def identity(self) -> dict[str, Any]:
        """Return the description as plain data, with a revision of those that average weights."""
        # Their first had spectral norms that had not settled when batch statistics were taken.
        return super().identity() | ({"revision": 2} if self.design.ema_decay else {})

    @property
    def label(self) -> str:
        """The GAN's name."""
        return self.name

    def work(self, sizes: Sizes) -> Work:
        """Return all steps; each image of a batch takes its share of one, the discriminator's included."""
        training = Pass("train", self.outline(sizes.shape), self.design.batch)
        return Work({training: self.design.steps * self.design.batch})

    def outline(self, shape: tuple[int, int, int]) -> Adversaries:
        """Return what the networks cost, on images of `shape` (c, h, w)."""
        return Adversaries(self.design, self.classes, shape)

    def make(self, workshop: Workshop) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Train it; a training that diverges is begun once more, with learning rates multiplied by CAUTION.

        That second training has no checkpoint. Default: not published.

        Raises:
            DivergedError: it diverges as well.
            UserError: its networks are none of a GAN.
        """
        began, checkpoint = time.perf_counter(), Checkpoint(workshop.store.checkpoint(self))
        self._try_out(workshop.data.shape)
        gan, retried = persevere(
            self.label,
            lambda: self._attempt(workshop, self.design, checkpoint),
            lambda: self._attempt(workshop, replace(self.design, lr=self.design.lr * CAUTION), None),
            f"lower gan.lr, {self.design.lr:g}",
        )
        tensors = {
            f"{part}.{name}": tensor
            for part in ("generator", "discriminator")
            for name, tensor in getattr(gan, part).state_dict().items()
        }
        facts = {"name": self.label, "seed": self.seed, "retried": retried}
        return tensors, {**facts, "seconds": checkpoint.seconds + time.perf_counter() - began}

    def _attempt(self, workshop: Workshop, design: Training, checkpoint: Checkpoint | None) -> Gan:
        images = workshop.data.a.to(workshop.device)
        with seeded(self.seed) as generator:
            return design.train(images, self.classes, generator, workshop.device, checkpoint)

    def _try_out(self, shape: tuple[int, int, int]) -> None:
        """Try the untrained generator before hours of training."""
        with seeded(0, cuda=False) as generator, torch.no_grad():
            try:
                gan: Any = self.design.build(self.classes, shape)
                images: Any = gan.generator(gan.latents(2, generator), torch.zeros(2, dtype=torch.long))
            except UserError:
                raise
            except Exception as error:  # a stranger's code
                raise UserError(f"gan={self.name}: it raises {raised(error)}; mend that") from error
        sound = isinstance(images, Tensor) and images.shape == (2, *shape) and bool((images.abs() <= 1).all())
        got = type(images).__name__
        if isinstance(images, Tensor):
            got = f"{tuple(images.shape)}, up to {images.abs().max():.3g}" if images.numel() else "nothing"
        require(sound, f"gan={self.name}", f"a generator of images {(2, *shape)} in [-1, 1]", got)

    def load(self, workshop: Workshop) -> Gan:
        """Return the stored GAN, frozen, in eval mode."""
        tensors = workshop.load(self).tensors
        with seeded(0):
            gan = self.design.build(self.classes, workshop.data.shape)
        for part in ("generator", "discriminator"):
            prefix = f"{part}."
            revive(getattr(gan, part), {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        return gan
