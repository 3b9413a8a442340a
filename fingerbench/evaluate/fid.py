"""How good a GAN is: its Frechet distance to the owner's images, and a grid of samples, as an artefact of the store.

The features are the penultimate ones of the zoo's source, not Inception's, which would be a download: the figure ranks
the GANs of one zoo and is not comparable with any published FID, nor with that of another zoo.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fingerbench.cost import Pass, Sizes, Work, passes
from fingerbench.gans.spec import GanSpec
from fingerbench.nets import final_layer
from fingerbench.records import Gan, Images
from fingerbench.seeds import seeded
from fingerbench.store import Spec
from fingerbench.workshop import Workshop
from fingerbench.zoo.model import ModelSpec

FEATURES = "penultimate features of the source model of this zoo; not comparable with Inception's FID"
SAMPLES = 10  # a class, in the grid
BATCH = 500  # images at once


@dataclass(frozen=True)
class FidSpec(Spec):
    """The Frechet distance of a GAN's images to the owner's half, as many as there are there and of the same classes.

    The source was trained on that half too.
    """

    kind: ClassVar[str] = "fid"
    version: ClassVar[int] = 1

    gan: GanSpec
    source: ModelSpec
    seed: int

    @property
    def label(self) -> str:
        """The kind of GAN."""
        return f"{self.gan.label} fid"

    def work(self, sizes: Sizes) -> Work:
        """Return the owner's half, drawn once and seen twice, real and drawn."""
        drawn = Pass("answer", self.gan.outline(sizes.shape), BATCH)
        return Work({drawn: sizes.half}) + passes("answer", (self.source.outline(sizes.shape),), 2 * sizes.half)

    def make(self, workshop: Workshop) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return SAMPLES images of each class in [0, 1], class after class, as "samples"; the facts hold the FID."""
        began = time.perf_counter()
        gan, source, real = self.gan.load(workshop), self.source.load(workshop), workshop.data.a
        with seeded(self.seed) as generator:
            distance = fid(Penultimate(source), gan, real.to(workshop.device), generator)
            samples = _images(
                gan, torch.arange(self.gan.classes).repeat_interleave(SAMPLES), workshop.device, generator
            )
        return {"samples": samples}, {
            "name": self.gan.label,
            "fid": distance,
            "features": FEATURES,
            "images": len(real),
            "conditional": self.gan.design.conditional,
            "seconds": time.perf_counter() - began,
        }


class Penultimate(nn.Module):
    """A classifier's features: images (n, c, h, w) in [0, 1] -> what its last layer takes, (n, num_features).

    Where that layer takes more than a row an image, such as a convolution or a layer of tokens, rows are averaged.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        last = final_layer(model)
        linear = isinstance(last, nn.Linear)
        self.num_features = last.in_features if linear else last.in_channels
        self._axis = -1 if linear else 1  # of the features
        self._taken: list[Tensor] = []
        last.register_forward_pre_hook(lambda _, inputs: self._taken.append(inputs[0]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of x."""
        self.model(x)
        features = self._taken.pop().movedim(self._axis, -1)
        return features.reshape(len(x), -1, features.shape[-1]).mean(1)


def fid(features: Penultimate, gan: Gan, real: Images, generator: torch.Generator) -> float:
    """Return the Frechet distance between the features of `real` and of one image of `gan` for each, of its class."""
    import fingerbench.vision  # noqa: F401 - before torchmetrics, which imports torchvision

    # isort: split
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=features, normalize=True).to(real.x.device)
    for x, y in zip(real.pixels().split(BATCH), real.y.split(BATCH), strict=True):
        metric.update(x, real=True)
        metric.update(_images(gan, y, real.x.device, generator), real=False)
    return float(metric.compute())


@torch.no_grad()
def _images(gan: Gan, labels: Tensor, device: torch.device, generator: torch.Generator) -> Tensor:
    z = gan.latents(len(labels), generator).to(device)
    return (gan.generator(z, labels.to(device)) + 1) / 2
