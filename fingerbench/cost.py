"""What an artefact costs before it is made: how many images go through which networks, and the FLOP of that.

A `Spec` says its work, a sum of passes; an attack or a method of yours may say its own with a method `work`, see
`ModelOutline` and `MethodOutline`. The time left prices a pass by its FLOP, `benchmarks/zoo_cost.py` by a stopwatch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fingerbench import nets
from fingerbench.ops import ANSWERED

if TYPE_CHECKING:
    from fingerbench.gans.train import Training
    from fingerbench.records import Dataset
    from fingerbench.store import Spec

Operation = Literal["answer", "attack", "train"]
"""Forward alone; forward and back to the input; forward and back to the weights."""

# A gradient costs as much as the forward pass: that in the input for an attack, that in the weights as well to train.
# FlopCounterMode counts the weights' gradient of grouped convolutions as if there were no groups, 22 forward passes for
# mobilenetv2, so its count of the forward pass alone is used.
FORWARD_PASSES: dict[Operation, int] = {"answer": 1, "attack": 2, "train": 3}
STEPS = 1000  # gradient steps of a method that says nothing of its work
COUNTED = 2  # images in the batch that is counted: batch statistics of one do not exist


@dataclass(frozen=True)
class Sizes:
    """The shape (c, h, w) of an image, and how many each split has; `half`: the owner's, and counted for the other."""

    shape: tuple[int, int, int]
    half: int
    finetune: int
    test: int
    transfer: int

    @classmethod
    def of(cls, data: Dataset) -> Sizes:
        """Return the sizes of a data set."""
        transfer = len(data.transfer) if data.transfer is not None else 0
        return cls(data.shape, len(data.a), len(data.finetune), len(data.test), transfer)


class Costly(Protocol):
    """What images go through; hashable."""

    @property
    def label(self) -> str:
        """A name for people."""
        ...

    def flop(self, operation: Operation) -> float:
        """Return the floating-point operations of one image, a multiplication and an addition being two."""
        ...


@dataclass(frozen=True)
class Network:
    """A network of the zoo, without its weights."""

    architecture: str
    outputs: int
    width: float
    shape: tuple[int, int, int]

    @property
    def label(self) -> str:
        """The architecture."""
        return self.architecture

    def build(self) -> nn.Module:
        """Return it with random weights."""
        return nets.network(self.architecture, self.outputs, self.width, shape=self.shape)

    def flop(self, operation: Operation) -> float:
        """Return the FLOP of one image."""
        return FORWARD_PASSES[operation] * _forward(self)


@dataclass(frozen=True)
class Adversaries:
    """A GAN. Its pass to train is one image's share of a step of the generator and the discriminator's before it.

    "answer" is an image drawn; "attack" goes through the discriminator too, and back to the latent.
    """

    design: Training = field(hash=False)  # YAML gives it lists
    classes: int
    shape: tuple[int, int, int]

    @property
    def label(self) -> str:
        """The kind of GAN."""
        return type(self.design).__module__.rpartition(".")[2]

    def flop(self, operation: Operation) -> float:
        """Return the FLOP of one image."""
        generator, discriminator, training = _gan(self)
        moved = FORWARD_PASSES["attack"] * (generator + discriminator)
        return {"answer": generator, "attack": moved, "train": training}[operation]


@dataclass(frozen=True)
class Other:
    """Any other network, of known cost: the FLOP of one image forward."""

    label: str
    forward: float

    def flop(self, operation: Operation) -> float:
        """Return the FLOP of one image."""
        return FORWARD_PASSES[operation] * self.forward


@dataclass(frozen=True)
class Pass:
    """The way of one image. `batch`: images that go together, which matters to memory and speed, not to the FLOP."""

    operation: Operation
    network: Costly
    batch: int

    @property
    def flop(self) -> float:
        """The FLOP of one image."""
        return self.network.flop(self.operation)


Work = Counter[Pass]
"""Images by pass."""


@dataclass(frozen=True)
class ModelOutline:
    """A `Scene` in numbers, for `work(variant, outline)` of an attack. `victim`: None where there is no parent."""

    network: Network
    victim: Network | None
    sizes: Sizes
    augmented: bool  # whether images change from epoch to epoch

    def training(self, recipe: Any, images: int) -> Work:
        """Return the work of a training by a `Recipe`."""
        return Work({Pass("train", self.network, recipe.batch): recipe.epochs * images})

    def imitation(self, recipe: Any, images: int) -> Work:
        """Return the work of a training on the victim's answers, which are asked once unless images change."""
        assert self.victim is not None
        asked = recipe.epochs * images if self.augmented else images
        answers = Pass("answer", self.victim, recipe.batch if self.augmented else ANSWERED)
        return self.training(recipe, images) + Work({answers: asked})


@dataclass(frozen=True)
class MethodOutline:
    """A `Setting` in numbers, for `work(outline)` of a method."""

    source: Network
    positives: tuple[Network, ...]
    negatives: tuple[Network, ...]
    gan: Adversaries | None
    sizes: Sizes
    budget: int

    @property
    def surrogates(self) -> tuple[Network, ...]:
        """All of them."""
        return self.positives + self.negatives


def passes(operation: Operation, networks: tuple[Network, ...], images: float, batch: int = ANSWERED) -> Work:
    """Return the work of `images` images through each of `networks`, at most `batch` at once."""
    work: Counter[Any] = Counter()
    for network in networks:
        work[Pass(operation, network, min(batch, max(1, round(images))))] += images  # type: ignore[assignment]
    return work


def attack_work(attack: Any, variant: str, outline: ModelOutline) -> Work:
    """Return what an attack says of its work, or else that of a training by its `recipe`, if it has one.

    A new network trains on its half, a stolen one on the fine-tuning split.
    """
    if hasattr(attack, "work"):
        work: Work = attack.work(variant, outline)
        return work
    recipe, sizes = getattr(attack, "recipe", None), outline.sizes
    return outline.training(recipe, sizes.half if attack.students else sizes.finetune) if recipe else Work()


def method_work(method: Any, outline: MethodOutline) -> Work:
    """Return what a method says of its work, or else STEPS steps of all queries through all models given."""
    if hasattr(method, "work"):
        work: Work = method.work(outline)
        return work
    models = outline.surrogates or (outline.source,)
    return passes("attack", models, STEPS * outline.budget, outline.budget)


@dataclass(frozen=True)
class Effort:
    """How much there is to compute for an artefact, and whose speed it goes by: the network with most of it."""

    group: str
    flop: float


def effort(spec: Spec, sizes: Sizes) -> Effort:
    """Return the effort of a spec."""
    flop: defaultdict[str, float] = defaultdict(float)
    for one, images in spec.work(sizes).items():
        flop[one.network.label] += images * one.flop
    return Effort(max(flop, key=lambda label: flop[label], default=spec.kind), sum(flop.values()))


def forward_flop(model: nn.Module, shape: tuple[int, ...]) -> float:
    """Return the FLOP of one image of `shape` forward through a model: on the meta device, unless it is elsewhere."""
    device = next((p.device for p in model.parameters()), torch.device("meta"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(COUNTED, *shape, device=device))
    return counter.get_total_flops() / COUNTED


@cache
def _forward(network: Network) -> float:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):  # a network of the user's is on the CPU all the same
        model = network.build()
    return forward_flop(model, network.shape)


class _Untracked:
    """In place of FlopCounterMode's own tracker of modules, which refuses gradients of gradients."""

    parents: ClassVar[set[str]] = {"Global"}

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


@cache
def _gan(networks: Adversaries) -> tuple[float, float, float]:
    """Return the FLOP of one image through the generator, through the discriminator, and to train."""
    from fingerbench.gans.train import Batch

    design = networks.design
    with torch.device("meta"):
        gan = design.build(networks.classes, networks.shape)
    random = torch.Generator()
    labels = torch.zeros(COUNTED, dtype=torch.long, device="meta")
    latents = Batch(gan.latents(COUNTED, random).to("meta"), labels)
    real = Batch(torch.empty(COUNTED, *networks.shape, device="meta"), labels)

    def counted(step: Any) -> float:
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = _Untracked()  # type: ignore[assignment]
        with counter:
            step()
        return counter.get_total_flops() / COUNTED

    def learn(loss: Any, network: nn.Module, *batches: Batch) -> float:
        return counted(lambda: torch.autograd.grad(loss(gan, *batches, random), list(network.parameters())))

    teaching = learn(design.discriminator_loss, gan.discriminator, real, latents)
    training = design.discriminator_steps * teaching + learn(design.generator_loss, gan.generator, latents)
    with torch.no_grad():
        generator = counted(lambda: gan.generator(*latents))
        discriminator = counted(lambda: gan.discriminator(*real))
    return generator, discriminator, training
