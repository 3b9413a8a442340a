"""The nouns of the benchmark: plain frozen records that pass between its rooms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from fingerbench import ops
from fingerbench.errors import ContractError, require
from fingerbench.task import Task

Half = Literal["A", "B"]


@dataclass(frozen=True)
class Images:
    """A split of a data set, wholly in memory.

    x: uint8 (n, c, h, w), 0 to 255, or float32 in [0, 1], such as rows of features, (n, 1, 1, features);
    y: int64 (n,), class numbers from 0, or float32 (n, outputs), the values to predict.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def pixels(self, rows: Tensor | None = None) -> Tensor:
        """Return every image, or those at `rows`, as float32 (n, c, h, w) in [0, 1], the range that models take."""
        return ops.pixels(self.x if rows is None else self.x[ops.send(rows, self.x.device)])

    def to(self, device: torch.device | str) -> Images:
        """Return the same images on `device`."""
        return Images(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class Dataset:
    """Everything a zoo is made from. The splits `a`, `b`, `finetune` and `test` are disjoint.

    a: the owner's half; b: the half of independent parties; finetune: the labelled images of a thief who modifies
    a stolen model; test: held out, for accuracies, gates and methods that need such images; transfer: images of a
    similar but different domain for knockoff, whose labels are meaningless; None where there are none.
    """

    name: str
    task: Task
    a: Images
    b: Images
    finetune: Images
    test: Images
    transfer: Images | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of one image."""
        c, h, w = self.a.x.shape[1:]
        return c, h, w

    def half(self, half: Half) -> Images:
        """Return half "A" (the owner's) or "B" (everybody else's)."""
        return self.a if half == "A" else self.b


@dataclass(frozen=True)
class Suspect:
    """One model under suspicion, and the truth about it. Parties other than the evaluator see none of this."""

    name: str
    family: str
    attack: str | None  # what made it of its parent; None: trained from scratch
    variant: str | None  # which of the attack's settings; None where there is but one
    architecture: str
    parent: str | None  # name of the model it was made of
    half: Half
    pirated: bool  # True: positive, stolen from the source; False: negative, independent of it
    mirror_of: str | None  # name of the positive that underwent the same attack


class AdversarialLoss(Protocol):
    """What a discriminator pays for its scores (n,), larger = more real; each method returns one price a score."""

    def real(self, scores: Tensor) -> Tensor:
        """Return (n,) prices of scores that should say real: how unreal the discriminator finds each image."""
        ...

    def fake(self, scores: Tensor) -> Tensor:
        """Return (n,) prices of scores that should say fake."""
        ...


@dataclass(frozen=True)
class Gan:
    """A generator and its discriminator; from the store they come trained, frozen and in eval mode.

    generator: (z (n, latent), labels int64 (n,)) -> images (n, c, h, w) in [-1, 1];
    discriminator: (images in [-1, 1], labels) -> (n,), larger = more real. Unconditional ones ignore the labels.
    loss: what the discriminator was trained with; prior: of z, N(0, 1) or U(-1, 1) in each dimension.
    """

    generator: nn.Module
    discriminator: nn.Module
    latent: int
    loss: AdversarialLoss
    prior: Literal["normal", "uniform"] = "normal"

    def __post_init__(self) -> None:
        require(self.latent > 0, "gan.latent", "a number that leaves a latent one value at least", self.latent)

    def latents(self, n: int, generator: torch.Generator) -> Tensor:
        """Return z (n, latent) drawn from the prior, on the CPU."""
        if self.prior == "uniform":
            return torch.rand(n, self.latent, generator=generator) * 2 - 1
        return torch.randn(n, self.latent, generator=generator)


def require_images(queries: object, shape: tuple[int, ...]) -> None:
    """Raise a ContractError unless these are float32 images (n, *shape)."""
    sound = isinstance(queries, Tensor) and queries.dtype == torch.float32 and queries.shape[1:] == shape
    if not sound:
        got = f"{queries.dtype} {tuple(queries.shape)}" if isinstance(queries, Tensor) else type(queries).__name__
        raise ContractError(f"queries: expected a float32 tensor (n, {', '.join(map(str, shape))}), got {got}")


@dataclass(frozen=True)
class Setting:
    """All that a fingerprinting method may see. There is no suspect in it.

    Models are frozen, in eval mode, on `device`, and map float32 (n, c, h, w) in [0, 1] to outputs (n, task.outputs):
    logits of a classification, values of a regression. `task.answer` makes of them what a suspect answers in full.
    """

    source: nn.Module
    train: Images  # the owner's training images
    heldout: Images  # labelled images that no model was trained on: the split on which accuracies are measured, too
    positives: tuple[nn.Module, ...]  # surrogates derived from the source, which is the first
    negatives: tuple[nn.Module, ...]  # surrogates trained without it; copies of a model follow it
    gan: Gan | None
    task: Task
    budget: int  # number of queries asked for
    device: torch.device
    generator: torch.Generator  # on the CPU; the only source of randomness a method needs
    # Whether gradients, which decide nothing, may be taken in bfloat16: on GPUs that compute in it.
    autocast: bool = False

    @property
    def classes(self) -> int:
        """Number of classes. A method with access to labels is never given a regression."""
        return self.task.outputs

    def shortage(self, found: int, why: str) -> str:
        """Return the note of a fingerprint of `found` queries: `why` there are no more, empty if that is the budget."""
        return f"{found} of {self.budget} queries: {why or 'it does not say why'}" if found < self.budget else ""

    def labelled(self, queries: Tensor, yields: Mapping[str, int] | None = None, why: str = "") -> Fingerprint:
        """Return the fingerprint of these queries, whose state "labels", int64 (n,), is what the source says to them.

        yields: as in `Fingerprint`; why: there are no more queries, if there are fewer than asked for.

        Raises:
            ContractError: they are no float32 images of the owner's shape.
        """
        require_images(queries, tuple(self.train.x.shape[1:]))
        labels = ops.predict(self.source, queries.to(self.device)).argmax(1)
        note = self.shortage(len(queries), why)
        return Fingerprint(queries.cpu(), {"labels": labels.cpu()}, dict(yields or {}), note)


@dataclass(frozen=True)
class Fingerprint:
    """What a method asks of suspects, and what it needs to judge the answers. Tensors and plain numbers only.

    queries: float32 (n, c, h, w) in [0, 1]; state: named tensors for `similarity`, such as "labels"; yields: counts of
    candidates on the way, such as tried and screened; note: why there are fewer queries than asked for, empty if there
    are not. Without a note n >= 1.
    """

    queries: Tensor
    state: Mapping[str, Tensor]
    yields: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        q = self.queries
        if q.ndim != 4 or 0 in q.shape[1:] or q.dtype != torch.float32 or (len(q) == 0 and not self.note):
            raise ContractError(f"queries: expected float32 (n, c, h, w), all >= 1; got {q.dtype} {tuple(q.shape)}")
        if len(q) == 0:
            return
        if not bool(torch.isfinite(q).all()) or float(q.min()) < 0 or float(q.max()) > 1:
            raise ContractError(f"queries: expected values in [0, 1], got {float(q.min())} to {float(q.max())}")

    def __len__(self) -> int:
        return len(self.queries)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor by name, the queries first."""
        yield "queries", self.queries
        yield from self.state.items()
