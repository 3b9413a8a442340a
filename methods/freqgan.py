"""FreqGAN: the owner's training images, moved by a frequency-aware GAN to where the source errs.

Paper: Liu, Zhong, IJCAI 2025 (exact title unknown here); its code is called Frequency-Fingerprinting.
Claim: a generator that looks at wavelet bands learns small perturbations which make the source answer otherwise, and
a discriminator that sees pixels and spectrum keeps them natural; a stolen model errs on these images as the source
does, an independent one does not.
Access: top-1 label of a suspect. Needs: the source and the owner's training images, no other model; the GAN is
trained here, for each fingerprint.

Where paper and released code differ, or the code errs:
- The source's answer is moved away by minus the cross-entropy at its label of the clean image (code). Equation 5 of
  the paper, minimised as printed, would keep the answer, against what its text says.
- Hinge losses (code), not the paper's log losses; `loss`.
- The generator makes a bounded perturbation (paper; in the code that line is commented out), and tanh bounds it; in
  the code it makes the image itself (here bounded by tanh, too), which an unbounded reward for errors drives off the
  image; `output`.
- The discriminator takes its step first, on fakes that are constants. In the code the gradient of the generator's loss
  is added to the discriminator's before its step. That cancels what the spatial branch could learn from fakes, and
  raises their scores where the hinge is flat; the spectral branch learns all the same; `order`.
- The source is always in eval mode. In the code it samples in train mode, where an error may be dropout's.
- A query's label is the source's answer to the query; in the code that to the clean image, which nothing reads.
- Each training image is tried once, as the generator gives the same query again; the code draws batches for ever.
- Adam's rate stays as it is: the code first halves it at epoch 3000. The perceptual term, of weight 0, is left out.
- The generator is smaller for images below 64x64, and the discriminator, which halves them to 8x8 or the next size
  above, has a block more at 64x64 than at 32x32; `fingerbench.gans.freqgan` says how.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fingerbench import ops
from fingerbench.api import Access
from fingerbench.cost import MethodOutline, Other, Pass, Work, forward_flop, passes
from fingerbench.errors import DivergedError, NoQueriesError, require_least
from fingerbench.gans import freqgan as networks
from fingerbench.gans.train import Hinge, descend
from fingerbench.records import AdversarialLoss, Fingerprint, Setting
from fingerbench.replay import Replay, adam

LOSSES: dict[str, AdversarialLoss] = {"hinge": Hinge(), "log": networks.Logistic()}


@dataclass(frozen=True)
class FreqGAN:
    """Hyperparameters of FreqGAN.

    Defaults: those of its code or, where that is silent or contradicts its paper, what conf/method says.
    """

    access: ClassVar[Access] = "label"
    needs: ClassVar[frozenset[str]] = frozenset()

    epochs: int = 100  # passes over the training images
    batch: int = 64
    lr: float = 1e-4  # Adam, both networks
    epsilon: float = 0.015  # the most by which a pixel in [0, 1] may move; only of output "perturbation"
    output: Literal["perturbation", "image"] = "perturbation"
    loss: Literal["hinge", "log"] = "hinge"
    order: Literal["corrected", "released"] = "corrected"
    misclassification: float = 1.0  # weight of the source's error in the generator's loss
    spectral: float = 1.0  # weight of the spectral branch's own loss
    share: float = 0.5  # of the spectral branch in a score, lambda of the paper
    differentiable: bool = False  # let gradients through the spectral branch, down to the image
    true_label: bool = False  # keep a query only if the source's answer is not the image's true class either
    width: float = 1.0  # of the published 16 (generator) and 128 (discriminator) channels

    def __post_init__(self) -> None:
        require_least(self, "method", batch=2)  # BatchNorm at 1x1 needs two

    def fingerprint(self, setting: Setting) -> Fingerprint:
        """Train the GAN, then take training images in random order until the budget is full or all were tried.

        Yields: tried (training images), misclassified (those whose answer changed), screened (those kept; fewer
        only with `true_label`). Raises NoQueriesError if no image is left, DivergedError if the training diverges.
        """
        clean = ops.predict(setting.source, setting.train.pixels().to(setting.device)).argmax(1)
        return self._sample(self._train(setting, clean), setting, clean)

    def similarity(self, fingerprint: Fingerprint, responses: Tensor) -> float:
        """Return the matching rate: the share of queries on which the suspect's label is the source's."""
        return ops.matching_rate(fingerprint.state["labels"], responses)

    def work(self, outline: MethodOutline) -> Work:
        """Return the training of both networks, and the source's answers to every fake, with gradients."""
        c, h, w = outline.sizes.shape
        pair = networks.build((c, h, w), 0, width=self.width, share=self.share)
        generator, discriminator = (forward_flop(net.to("meta"), (c, h, w)) for net in pair)
        images = self.epochs * outline.sizes.half
        # The discriminator learns from real images and fakes, and judges the fakes for the generator.
        learning = Pass("train", Other("freqgan", generator + 2 * discriminator), self.batch)
        judging = Pass("attack", Other("freqgan", discriminator), self.batch)
        return passes("attack", (outline.source,), images, self.batch) + Work({learning: images, judging: images})

    def perturb(self, generator: nn.Module, x: Tensor) -> Tensor:
        """Return the fakes that `generator` makes of the images x (n, c, h, w), both in [0, 1]."""
        out = torch.tanh(generator(2 * x - 1))
        return (x + self.epsilon * out).clamp(0, 1) if self.output == "perturbation" else (out + 1) / 2

    def _train(self, setting: Setting, clean: Tensor) -> nn.Module:
        """Return the generator, trained, in eval mode. clean: int64 (n,), the source's answers to training images."""
        pair = self._pair(setting)
        train = setting.train.to(setting.device)
        step = Replay(
            lambda real, labels: self._step(pair, setting.source, real, labels),
            setting.device,
            generators=[setting.generator],
        )
        batches = ops.pieces(len(clean), self.batch)
        for epoch in range(self.epochs):
            shuffled = torch.randperm(len(clean), generator=setting.generator)
            for rows in shuffled.to(setting.device).tensor_split(batches):
                step(train.pixels(rows), clean[rows])
            if not all(bool(weight.isfinite().all()) for weight in pair.generator.parameters()):
                raise DivergedError(f"freqgan: training diverged in epoch {epoch + 1}; lower method.lr, {self.lr:g}")
        return pair.generator.eval().requires_grad_(False)

    def _pair(self, setting: Setting) -> Pair:
        """Return untrained networks for the images of `setting`."""
        c, h, w = setting.train.x.shape[1:]
        seed = int(torch.randint(2**62, (), generator=setting.generator))
        generator, discriminator = networks.build(
            (c, h, w), seed, width=self.width, share=self.share, differentiable=self.differentiable
        )
        generator, discriminator = generator.to(setting.device), discriminator.to(setting.device)
        adams = (adam(net.parameters(), self.lr) for net in (generator, discriminator))
        return Pair(generator, discriminator, *adams)

    def _step(self, pair: Pair, source: nn.Module, real: Tensor, clean: Tensor) -> None:
        """Take one step of both networks on the images real (n, c, h, w) in [0, 1], which the source calls `clean`."""
        fake = self.perturb(pair.generator, real)
        error = F.cross_entropy(source(fake), clean)
        if self.order == "corrected":
            loss, _ = self.discriminator_loss(pair.discriminator, real, fake.detach())
            descend((pair.adam_d, loss))
            score, _ = pair.discriminator(2 * fake - 1)
            descend((pair.adam_g, self.generator_loss(score, error)))
        else:
            loss, score = self.discriminator_loss(pair.discriminator, real, fake)
            leak = self.generator_loss(score, error)
            descend((pair.adam_d, loss + leak), (pair.adam_g, leak))

    def discriminator_loss(self, discriminator: nn.Module, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the discriminator minimises on images in [0, 1], and its scores (n,) of `fake`.

        The loss of the scores plus `spectral` times the same loss of the spectral branch alone; released code.
        """
        halves = [len(real), len(fake)]
        scores, spectral = discriminator(2 * torch.cat([real, fake]) - 1)
        paid = self._paid(*scores.split(halves)) + self.spectral * self._paid(*spectral.split(halves))
        return paid, scores[len(real) :]

    def _paid(self, real: Tensor, fake: Tensor) -> Tensor:
        loss = LOSSES[self.loss]
        return loss.real(real).mean() + loss.fake(fake).mean()

    def generator_loss(self, score: Tensor, error: Tensor) -> Tensor:
        """Return what the generator minimises, of the scores (n,) of its fakes and the source's mean cross-entropy.

        error: at the labels of the clean images, larger = further from them; it is rewarded. Released code.
        """
        rewarded = score if self.loss == "hinge" else LOSSES["log"].fake(score)
        return -rewarded.mean() - self.misclassification * error

    @torch.no_grad()
    def _sample(self, generator: nn.Module, setting: Setting, clean: Tensor) -> Fingerprint:
        """Return the fingerprint of those fakes to which the source answers otherwise than to their originals."""
        yields = Counter(tried=0, misclassified=0, screened=0)
        kept: list[Tensor] = []
        for rows in torch.randperm(len(clean), generator=setting.generator).split(self.batch):
            fake = self.perturb(generator, setting.train.pixels(rows).to(setting.device))
            answers = ops.predict(setting.source, fake).argmax(1)
            passed = changed = answers != clean[rows.to(clean.device)]
            if self.true_label:
                passed = changed & (answers != setting.train.y[rows].to(setting.device))
            kept.append(fake[passed])
            yields.update(tried=len(rows), misclassified=int(changed.sum()), screened=int(passed.sum()))
            if yields["screened"] >= setting.budget:
                break
        if not yields["screened"]:
            raise NoQueriesError(f"freqgan: {self._shortage(yields)}")
        queries = torch.cat(kept)[: setting.budget].contiguous()
        return setting.labelled(queries, yields, self._shortage(yields))

    def _shortage(self, yields: Counter[str]) -> str:
        errors = f"the source errs on {yields['misclassified']} of {yields['tried']} perturbed training images"
        if yields["misclassified"] > yields["screened"]:
            return f"{errors}, and answers {yields['screened']} of these with a class that is not the true one either"
        return f"{errors}; raise method.epochs or method.epsilon"


@dataclass(frozen=True)
class Pair:
    """The two networks in training, and their optimizers."""

    generator: nn.Module
    discriminator: nn.Module
    adam_g: torch.optim.Optimizer
    adam_d: torch.optim.Optimizer
