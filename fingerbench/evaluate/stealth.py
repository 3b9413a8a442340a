"""Stealthiness: the share of a method's queries that a thief's detector of abnormal queries flags.

NaturalFinger (Yang et al. 2023, table 2): a thief who recognises the queries of a verifier answers them at random. He
trains a detector on images he has, and on noised and adversarial versions of them. A rate says little without how often
the same detector flags what is normal, so that is kept with it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fingerbench.cost import Network, Pass, Sizes, Work, passes
from fingerbench.errors import DivergedError, require
from fingerbench.evaluate.specs import FingerprintSpec
from fingerbench.nets import blank, revision
from fingerbench.ops import ascend_sign, eight_bit, predict
from fingerbench.records import Images
from fingerbench.seeds import seeded
from fingerbench.store import Spec
from fingerbench.workshop import Workshop, revive
from fingerbench.zoo.model import ModelSpec

NORMAL, ABNORMAL = 0, 1  # the two outputs of a detector
BATCH = 500  # images attacked at once


@dataclass(frozen=True)
class Detector:
    """How a thief learns to tell abnormal queries from normal ones, by cross-entropy and Adam.

    epochs, lr: NaturalFinger's; an epoch draws as many images as there are, normal and abnormal together.
    Defaults, not published: batch; noise_std, of the Gaussian noise, in [0, 1] pixel units; fgsm, the step of the
    adversarial versions, in the same units: that of NaturalFinger's adversarial labels on CIFAR-10; architecture, one
    of nine layers; width, which multiplies its channels; normal and abnormal images are drawn equally often.

    Measured on the 298 digits of `finetune`, 7 steps an epoch, three seeds: from 10 epochs on, the detector flags no
    clean image of the test split and all abnormal ones; after 5 it flags nothing.
    """

    epochs: int = 20
    batch: int = 128
    lr: float = 1e-3
    noise_std: float = 0.1
    fgsm: float = 8 / 255
    architecture: str = "vgg9"
    width: float = 1.0


@dataclass(frozen=True)
class DetectorSpec(Spec):
    """A trained detector. The thief has the labelled images of `finetune` and the source, which he has stolen."""

    kind: ClassVar[str] = "detector"
    version: ClassVar[int] = 1

    data: str  # digest of the data set
    detector: Detector
    source: ModelSpec
    seed: int

    def identity(self) -> dict[str, Any]:
        """Return the description as plain data, with the revision of the network where it has one."""
        return super().identity() | revision(self.detector.architecture)

    def work(self, sizes: Sizes) -> Work:
        """Return the training on three versions of the fine-tuning split, and the adversarial ones of both splits."""
        detector, (own, source) = self.detector, self.outlines(sizes.shape)
        training = Work({Pass("train", own, detector.batch): detector.epochs * 3 * sizes.finetune})
        attacked = passes("attack", (source,), sizes.finetune + sizes.test)
        return training + attacked + passes("answer", (own,), 3 * sizes.test)

    def outlines(self, shape: tuple[int, int, int]) -> tuple[Network, Network]:
        """Return what the detector and the source cost, on images of `shape` (c, h, w)."""
        return Network(self.detector.architecture, 2, self.detector.width, shape), self.source.outline(shape)

    def network(self, shape: tuple[int, int, int]) -> nn.Module:
        """Return the network without its weights: [0, 1] images of `shape` (c, h, w) to logits (n, 2)."""
        return self.outlines(shape)[0].build()

    def load(self, workshop: Workshop) -> nn.Module:
        """Return the stored detector, frozen, in eval mode."""
        artefact = workshop.load(self)
        with blank(self.detector.architecture):
            model = self.network(workshop.data.shape)
        return revive(model, artefact.tensors)

    def make(self, workshop: Workshop) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Train the detector; the facts hold the shares it flags of the test split and of its abnormal versions.

        Raises:
            UserError: the data set has no classes for FGSM to ascend.
            DivergedError: the loss is not finite.
        """
        began, data, device = time.perf_counter(), workshop.data, workshop.device
        require(data.task.labelled, "detector", "a data set with classes", data.name)
        source = self.source.load(workshop)
        with seeded(self.seed) as generator:
            normal, noised, adversarial = versions(data.finetune.to(device), source, self.detector, generator)
            model = self.network(data.shape).to(device)
            train(model, normal, torch.cat([noised, adversarial]), self.detector, generator)
            unseen = versions(data.test.to(device), source, self.detector, generator)
        rates = [flagged(model, x).double().mean().item() for x in unseen]
        names = ("false_positive_rate", "true_positive_rate_noise", "true_positive_rate_fgsm")
        facts = dict(zip(names, rates, strict=True))
        return dict(model.state_dict()), {**facts, "seconds": time.perf_counter() - began}


@dataclass(frozen=True)
class DetectionSpec(Spec):
    """What a detector says to the queries of a fingerprint, 8 bits a value, as an API receives them."""

    kind: ClassVar[str] = "detection"
    version: ClassVar[int] = 1

    detector: DetectorSpec
    fingerprint: FingerprintSpec

    @property
    def label(self) -> str:
        """The method's name."""
        return f"{self.fingerprint.name} detection"

    def work(self, sizes: Sizes) -> Work:
        """Return the queries."""
        own, _ = self.detector.outlines(sizes.shape)
        return passes("answer", (own,), self.fingerprint.budget)

    def make(self, workshop: Workshop) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return which queries are flagged, bool (queries,), as "flagged"; the facts hold their share, None of none."""
        queries = workshop.load(self.fingerprint).tensors["queries"]
        suspected = flagged(self.detector.load(workshop), eight_bit(queries))
        return {"flagged": suspected}, {
            "name": self.fingerprint.name,
            "detection_rate": suspected.double().mean().item() if len(queries) else None,
            "queries": len(queries),
        }


def versions(
    images: Images, source: nn.Module, detector: Detector, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `images`, noised ones and adversarial ones: float32 (n, c, h, w) each, in [0, 1] and of 8 bits a value.

    Noise is drawn from N(0, noise_std^2); the adversarial ones are FGSM's on `source`, from the true labels. All arrive
    at an API as 8 bits a value, so that rounding must not tell them apart.
    """
    x = images.pixels()
    noised = x + detector.noise_std * torch.randn(x.shape, generator=generator).to(x)
    pieces = zip(x.split(BATCH), images.y.split(BATCH), strict=True)
    adversarial = torch.cat([ascend_sign(source, piece, y, detector.fgsm) for piece, y in pieces])
    return eight_bit(x), eight_bit(noised.clamp(0, 1)), eight_bit(adversarial.clamp(0, 1))


def train(
    model: nn.Module, normal: Tensor, abnormal: Tensor, detector: Detector, generator: torch.Generator
) -> nn.Module:
    """Train `model` to tell float (n, c, h, w) `abnormal` from `normal` images, and return it in eval mode.

    Raises:
        DivergedError: the loss is not finite.
    """
    x = torch.cat([normal, abnormal])
    y = torch.tensor([NORMAL] * len(normal) + [ABNORMAL] * len(abnormal))
    chances = 1 / y.bincount()[y]  # each class as often as the other
    steps = max(1, round(len(x) / detector.batch))
    optimizer = torch.optim.Adam(model.train().parameters(), detector.lr, fused=True)
    for epoch in range(detector.epochs):
        drawn = torch.multinomial(chances, steps * detector.batch, replacement=True, generator=generator)
        for index in drawn.split(detector.batch):
            loss = F.cross_entropy(model(x[index.to(x.device)]), y[index].to(x.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not torch.isfinite(loss):
            raise DivergedError(f"loss {loss.item()} in epoch {epoch + 1} of {detector.epochs}; lower detector.lr")
    return model.eval()


def flagged(model: nn.Module, x: Tensor) -> Tensor:
    """Return bool (n,): which of the images x float (n, c, h, w) in [0, 1] a detector finds more abnormal than not."""
    return predict(model, x).argmax(1) == ABNORMAL
