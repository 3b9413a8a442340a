"""MetaFinger: training images moved until stolen models agree on a label, any label, that independent ones reject.

Paper: Yang, Wang, Wang, "MetaFinger: Fingerprinting the Deep Neural Networks with Meta-training", IJCAI 2022.
Claim: the decision regions that models derived from one source share, and others do not, can be found by comparing
many models of both kinds; queries from there survive fine-tuning, pruning and noise on the weights, and, by the random
transforms among the steps, changes of the input.
Access: top-1 label of a suspect; own surrogates of both kinds, and the owner's training images.
Its own surrogates are noised copies (`surrogates=augmented`); FingerBench gives all methods the same (`shared`).
Where the paper and the released code differ, the code is followed: a transform in each step, a warm-up before results
count, and KL(other || anchor), for which the paper writes KL(anchor || other); `warm_up`, `divergence_from`.
Deviations from the released code:
    - The source, too, must answer a query's label (`screen_source`): whoever accuses by that label must show it first.
    - Start images come from the owner's half, not from all of CIFAR-10, and none is used again before all have been.
    - Models see the images as they are. There, a normalisation is wrapped around each; here it would be inside.
    - The mirror image is among the transforms only where the models are trained with mirrored images (`flip`).
Not published, and chosen here: how surrogates are split where they are given: in their order, in which what derives
from one independent model follows it, so that the negatives that validate descend from none that trains. Positives all
descend from the source.
Shear and translation go either way, as in NaturalFinger's code by the same authors; filters mirror the image at its
border.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fingerbench import ops
from fingerbench.api import Access
from fingerbench.cost import MethodOutline, Work, passes
from fingerbench.errors import NoQueriesError, require, require_least
from fingerbench.records import Fingerprint, Setting
from fingerbench.replay import Graphed
from fingerbench.transforms import (
    GaussianBlur,
    GaussianNoise,
    HorizontalFlip,
    Identity,
    Mean,
    Median,
    ResizePad,
    Shear,
    Transform,
    Translate,
    UniformNoise,
)


@dataclass(frozen=True)
class Pool:
    """Surrogates for one purpose: training the queries, or validating them."""

    positives: tuple[nn.Module, ...]
    negatives: tuple[nn.Module, ...]

    def graphed(self, device: torch.device) -> Pool:
        """Return the same networks, which a GPU replays."""
        return Pool(*(tuple(Graphed(m, device) for m in pool) for pool in (self.positives, self.negatives)))


@dataclass(frozen=True)
class MetaFinger:
    """Hyperparameters of MetaFinger. Defaults: those of the released code for CIFAR-10, but for `screen_source`."""

    access: ClassVar[Access] = "label"
    needs: ClassVar[frozenset[str]] = frozenset({"surrogates"})

    images: int = 70  # start images of one restart
    epochs: int = 10  # passes over the positives, each of which is the anchor of one step
    warm_up: int = 5  # epochs whose result is not kept; released code only
    k: int = 3  # positives, and as many negatives, that a step compares with the anchor
    negative_weight: float = 1.0  # lambda
    lr: float = 0.01  # Adam
    max_restarts: int = 100
    train_share: float = 2 / 3  # of positives and negatives, in their order; the others validate
    divergence_from: Literal["others", "anchor"] = "others"  # KL(other || anchor), or KL(anchor || other)
    screen_source: bool = True
    flip: bool = True  # among the transforms; not where the mirror image of an object is no object, as with digits
    noise: float = 0.05  # std of the normal and limit of the uniform noise
    shift: int = 4  # pixels
    shear: float = 0.1
    blur: float = 0.8  # sigma in pixels
    blur_p: float = 0.7  # share of its draws in which it blurs
    resize_least: int = 24  # pixels
    resize_most: int = 39
    resize_out: int = 40

    def __post_init__(self) -> None:
        require_least(self, "method", images=1, k=1)
        least, most, out = self.resize_least, self.resize_most, self.resize_out
        expected = "method.resize_least <= resize_most <= resize_out, all above 0"
        require(0 < least <= most <= out, "method.resize_*", expected, (least, most, out))

    def fingerprint(self, setting: Setting) -> Fingerprint:
        """Return up to `setting.budget` queries, and the label that derived models give each as state "labels".

        Yields: restarts, tried (start images), unanimous (the positives that screen agree), screened. Raises UserError
        if there are too few surrogates, NoQueriesError if not one image survives.
        """
        train, validation = self._split(setting)
        train = train.graphed(setting.device)
        yields: Counter[str] = Counter(restarts=0, tried=0, unanimous=0, screened=0)
        queries: list[Tensor] = []
        labels: list[Tensor] = []
        for start in self._starts(setting):
            x = self._optimise(start, train, validation, setting)
            y, agreed, rejected = self._judge(x, validation, setting)
            passed = agreed & rejected
            queries.append(x[passed])
            labels.append(y[passed])
            counts = {"unanimous": int(agreed.sum()), "screened": int(passed.sum())}
            yields.update(restarts=1, tried=len(x), **counts)
            if yields["screened"] >= setting.budget:
                break
        if not yields["screened"]:
            raise NoQueriesError(
                f"metafinger: none of {yields['tried']} images became a query; {yields['unanimous']} got one label "
                "from the positives that validate, none of these another label from all negatives; raise method.epochs"
            )
        x, y = torch.cat(queries)[: setting.budget], torch.cat(labels)[: setting.budget]
        why = f"only these of {yields['tried']} images passed the screening, within {self.max_restarts} restarts"
        note = setting.shortage(len(x), why)
        return Fingerprint(x.cpu().contiguous(), {"labels": y.cpu()}, dict(yields), note)

    def similarity(self, fingerprint: Fingerprint, responses: Tensor) -> float:
        """Return the matching rate: the share of labels (n,) that are those of the fingerprint."""
        return ops.matching_rate(fingerprint.state["labels"], responses)

    def work(self, outline: MethodOutline) -> Work:
        """Return `max_restarts` optimisations, the most there may be: each step an anchor and `k` of either kind.

        Their networks count as one of each surrogate in turn, and so do those that validate.
        """
        n = min(self.images, outline.sizes.half)
        steps = self.max_restarts * self.epochs * round(self.train_share * len(outline.positives))
        models = len(outline.surrogates)
        validated = self.max_restarts * n * (1 - self.train_share) * (self.epochs - self.warm_up + 1)
        return passes("attack", outline.surrogates, steps * (1 + 2 * self.k) * n / models, n) + passes(
            "answer", outline.surrogates, validated
        )

    def _split(self, setting: Setting) -> tuple[Pool, Pool]:
        """Return the surrogates to train on and those to validate on."""
        p, n = (round(self.train_share * len(pool)) for pool in (setting.positives, setting.negatives))
        train = Pool(setting.positives[:p], setting.negatives[:n])
        validation = Pool(setting.positives[p:], setting.negatives[n:])
        for sign in ("positives", "negatives"):
            here, rest = len(getattr(train, sign)), len(getattr(validation, sign))
            expected = f"at least {self.k} to train on (method.k) and 1 to validate on (method.train_share)"
            require(here >= self.k and rest > 0, f"metafinger: {sign} of surrogates", expected, f"{here} and {rest}")
        require(self.warm_up < self.epochs, "method.warm_up", f"less than method.epochs, {self.epochs}", self.warm_up)
        return train, validation

    def _starts(self, setting: Setting) -> Iterator[Tensor]:
        """Yield `max_restarts` times `images` training images in [0, 1], in a random order and then in another."""
        order = torch.empty(0, dtype=torch.int64)
        n = min(self.images, len(setting.train))
        for _ in range(self.max_restarts):
            if len(order) < n:
                again = torch.randperm(len(setting.train), generator=setting.generator)
                # What is left of the last order comes late in this one, so that no restart has an image twice.
                order = torch.cat([order, again[torch.isin(again, order).sort(stable=True).indices]])
            chosen, order = order[:n], order[n:]
            yield setting.train.pixels(chosen).to(setting.device)

    def _optimise(self, start: Tensor, train: Pool, validation: Pool, setting: Setting) -> Tensor:
        """Return the images (n, c, h, w) of that epoch after the warm-up in which validation negatives agree least."""
        x = start.clone().requires_grad_(True)
        adam = torch.optim.Adam([x], self.lr)
        bank = self._bank()
        best, least = start, torch.inf
        for epoch in range(self.epochs):
            for anchor in torch.randperm(len(train.positives), generator=setting.generator):
                transform = bank[int(torch.randint(len(bank), (), generator=setting.generator))]
                seen = transform(x, setting.generator).contiguous(memory_format=torch.channels_last)
                positives, negatives = (self._draw(pool, setting) for pool in (train.positives, train.negatives))
                loss = self._loss(seen, train.positives[anchor], positives, negatives)
                (x.grad,) = torch.autograd.grad(loss, x)
                adam.step()
                with torch.no_grad():
                    x.clamp_(0, 1)
            if epoch < self.warm_up:
                continue
            agreement = _agreement(x.detach(), validation, setting.classes)
            if agreement <= least:
                best, least = x.detach().clone(), agreement
        return best

    def _draw(self, pool: Sequence[nn.Module], setting: Setting) -> list[nn.Module]:
        """Return `k` different models of the pool; the anchor may be one of them."""
        return [pool[i] for i in torch.randperm(len(pool), generator=setting.generator)[: self.k]]

    def _loss(
        self, x: Tensor, anchor: nn.Module, positives: Sequence[nn.Module], negatives: Sequence[nn.Module]
    ) -> Tensor:
        """Return the mean divergence between positives and anchor less `negative_weight` times the negatives'."""
        wanted = F.log_softmax(anchor(x), 1)
        close, far = (
            torch.stack([self._divergence(F.log_softmax(m(x), 1), wanted) for m in models]).mean()
            for models in (positives, negatives)
        )
        return close - self.negative_weight * far

    def _divergence(self, other: Tensor, anchor: Tensor) -> Tensor:
        """Return the KL divergence of two models' log-probabilities (n, classes), mean over all n * classes entries.

        The gradient goes through both. The mean is that of the released code; a larger scale would not matter to Adam.
        """
        p, q = (other, anchor) if self.divergence_from == "others" else (anchor, other)
        return F.kl_div(q, p, reduction="none", log_target=True).mean()

    def _judge(self, x: Tensor, validation: Pool, setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
        """Return the majority labels (n,) of x, where all positives that screen give them, and where no negative does.

        No transform comes in between.
        """
        answers = ops.votes(validation.positives, x)
        labels = ops.majority(answers, setting.classes)
        agreed = (answers == labels).all(0)
        if self.screen_source:
            agreed = agreed & (ops.votes([setting.source], x)[0] == labels)
        return labels, agreed, (ops.votes(validation.negatives, x) != labels).all(0)

    def _bank(self) -> tuple[Transform, ...]:
        mirror = (HorizontalFlip(),) if self.flip else ()
        return (
            Identity(),
            *mirror,
            Shear(self.shear),
            GaussianBlur(self.blur, self.blur_p),
            Median(),
            Mean(),
            GaussianNoise(self.noise),
            UniformNoise(self.noise),
            ResizePad(self.resize_least, self.resize_most, self.resize_out),
            Translate(self.shift, p=1.0),
        )


def _agreement(x: Tensor, validation: Pool, classes: int) -> float:
    """Return the share of answers of the negatives to x that are the majority label of the positives."""
    labels = ops.majority(ops.votes(validation.positives, x), classes)
    return (ops.votes(validation.negatives, x) == labels).double().mean().item()
