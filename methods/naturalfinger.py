"""NaturalFinger: queries that look natural, placed where stolen and independent models part.

Paper: Yang, Wang, Wang, "NaturalFinger: Generating Natural Fingerprint with Generative Adversarial Networks", 2023,
    arXiv 2305.17868, which also introduced the FingerBench zoo.
Claim: a latent of a GAN is optimised until every surrogate derived from the source calls the image y+ and every
    independent surrogate calls it y-, under random transforms, while the discriminator holds it to the natural
    images; suspects stolen by any of six attacks then answer y+, independent ones do not.
Access: top-1 label of a suspect; own surrogates of both kinds, and a GAN trained on the owner's data.
Deviations from the released code, where it and the paper differ or it errs:
    - FGSM for the adversarial labels runs on the negatives (paper), not the positives; `adversarial_labels_from`.
    - The discriminator is asked to call the image real, max(0, 1 - D), under the class it was generated with. The
      released sign, max(0, 1 + D) under a fresh random class, drives images to look fake; `discriminator_sign`. With
      WGAN-GP these are -D and D: each GAN's term is the one its own loss has (the paper says so, no code is released).
    - Exactly `epochs` epochs (released: one more). Where there are more surrogates of one kind than of the other, the
      others are met again (released: equal numbers alone).
    - On a GPU the networks compute in bfloat16 while latents are optimised, not while they are screened; see
      `precision` of the configuration.
    - The loss is a sum over latents with step lr / latent_batch, not a mean with step lr. For a full batch that is
      the same; in a smaller last batch each latent still takes the same steps.
    - Latents whose y- is y+ cannot pass the final screen; they are dropped before the optimisation, not after it, and
      do not count towards `pool`, also where y- is drawn at random. Candidates are drawn as they are needed, not 10
      for each query at the start.
    - The mirror image is among the transforms only where the models are trained with mirrored images (`flip`): a
      mirrored digit is no digit, and no latent passed that screen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fingerbench import ops
from fingerbench.api import Access
from fingerbench.cost import MethodOutline, Pass, Work, passes
from fingerbench.errors import NoQueriesError, UserError, require, require_least
from fingerbench.records import Fingerprint, Gan, Setting
from fingerbench.replay import Graphed
from fingerbench.transforms import GaussianNoise, HorizontalFlip, Identity, Shear, Transform, Translate


@dataclass(frozen=True)
class Candidates:
    """Latents on their way to become queries.

    z: float (n, latent); classes: int64 (n,) that the generator is given; labels: y+, what all positives answer;
    negative_labels: y-, what the negatives are to answer.
    """

    z: Tensor
    classes: Tensor
    labels: Tensor
    negative_labels: Tensor

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, rows: Tensor | slice) -> Candidates:
        return Candidates(self.z[rows], self.classes[rows], self.labels[rows], self.negative_labels[rows])


@dataclass(frozen=True)
class NaturalFinger:
    """Hyperparameters of NaturalFinger. Defaults: the paper's for CIFAR-10, or those of its code where it is silent."""

    access: ClassVar[Access] = "label"
    needs: ClassVar[frozenset[str]] = frozenset({"surrogates", "gan"})
    version: ClassVar[int] = 2  # 1 optimised latents whose random y- was y+, too

    epochs: int = 1000  # passes over all surrogates
    latent_batch: int = 80
    model_batch: int = 4  # positives, and as many negatives, in one step
    lr: float = 0.5  # per batch of `latent_batch` latents
    momentum: float = 0.9  # Nesterov; released code, 0 in the paper
    beta: float = 0.5  # weight of the discriminator term
    kappa: float = 50.0  # logit margin beyond which more is not rewarded; released code only
    fgsm: float = 8 / 255  # step of FGSM in pixel values; released code only
    flip: bool = True  # among the transforms; not where the mirror image of an object is no object, as with digits
    noise_std: float = 0.02
    shift: int = 4  # pixels
    shear: float = 0.1
    adversarial_labels: bool = True  # trick 1; without it y- is drawn at random
    input_transforms: bool = True  # trick 2
    discriminator_loss: bool = True  # trick 3
    adversarial_labels_from: Literal["negatives", "positives"] = "negatives"
    discriminator_sign: Literal["intent", "released", "generator"] = "intent"
    prior: Literal["normal", "gan"] = "normal"  # of the latents; released code, or the one the GAN was trained with
    draws: int = 200  # latents drawn at once; released code only
    max_draws: int = 20_000  # default: not published
    pool: float = 10.0  # latents optimised at most for each query of the budget, to a whole batch; released code

    def __post_init__(self) -> None:
        require_least(self, "method", latent_batch=1, model_batch=1, draws=1)
        require(self.pool > 0, "method.pool", "a number above 0", self.pool)

    def fingerprint(self, setting: Setting) -> Fingerprint:
        """Return up to `setting.budget` queries, their y+ as state "labels" and y- as "negative_labels".

        Raises NoQueriesError, naming the stage, if not one candidate survives.
        """
        gan = _gan(setting)
        moving = _graphed(setting, gan)
        yields: Counter[str] = Counter(tried=0, unanimous=0, label_changed=0, optimised=0, screened=0)
        images: list[Tensor] = []
        kept: list[Candidates] = []
        for candidates in self._chunks(setting, gan, yields):
            z = self._optimise(candidates, *moving)
            x = _images(gan, z, candidates.classes)
            passed = self._screen(x, candidates, setting)
            images.append(x[passed])
            kept.append(candidates[passed])
            yields.update(optimised=len(x), screened=int(passed.sum()))
            if yields["screened"] >= setting.budget:
                break
        self._require_survivors(yields)
        queries, chosen = torch.cat(images)[: setting.budget], _join(kept)[: setting.budget]
        state = {"labels": chosen.labels.cpu(), "negative_labels": chosen.negative_labels.cpu()}
        why = (
            f"only these of {yields['optimised']} optimised latents passed the final screening, within "
            f"{self.batches(setting.budget)} batches and {self.max_draws} draws"
        )
        note = setting.shortage(len(queries), why)
        return Fingerprint(queries.cpu().contiguous(), state, dict(yields), note)

    def similarity(self, fingerprint: Fingerprint, responses: Tensor) -> float:
        """Return the matching rate: the share of labels (n,) that equal y+."""
        return ops.matching_rate(fingerprint.state["labels"], responses)

    def work(self, outline: MethodOutline) -> Work:
        """Return the optimisation of all latent batches that there may be, and what screens them."""
        assert outline.gan is not None
        latents = self.batches(outline.budget) * self.latent_batch
        pools = outline.positives, outline.negatives
        steps = max(self._steps(pool) for pool in pools)
        total = passes("answer", outline.surrogates, len(self._bank()) * latents + self.max_draws)
        total += Work({Pass("attack", outline.gan, self.latent_batch): self.epochs * steps * latents})
        for pool in pools:
            total += passes("attack", pool, self.epochs * latents * steps / self._steps(pool), self.latent_batch)
        return total

    def batches(self, budget: int) -> int:
        """Return how many batches of latents there may be."""
        return math.ceil(self.pool * budget / self.latent_batch)

    def _steps(self, models: Sequence[object]) -> int:
        """Return in how many steps all of `models` are met once."""
        return math.ceil(len(models) / self.model_batch)

    def _chunks(self, setting: Setting, gan: Gan, yields: Counter[str]) -> Iterator[Candidates]:
        """Yield batches of candidates and count in `yields` what became of those drawn."""
        waiting: list[Candidates] = []
        left = self.batches(setting.budget)
        while left and yields["tried"] < self.max_draws:
            waiting.append(self._draw(setting, gan, yields))
            last = yields["tried"] >= self.max_draws
            pool = _join(waiting)
            while left and (len(pool) >= self.latent_batch or (last and len(pool))):
                yield pool[: self.latent_batch]
                pool = pool[self.latent_batch :]
                left -= 1
            waiting = [pool]

    def _draw(self, setting: Setting, gan: Gan, yields: Counter[str]) -> Candidates:
        """Return what is left of `draws` fresh latents after the initial screening and the choice of y-."""
        z = self._latents(setting, gan).to(setting.device)
        classes = _random_labels(self.draws, setting)
        x = _images(gan, z, classes)
        answers = ops.votes(setting.positives, x)
        agreed = (answers == answers[0]).all(0)
        found = Candidates(z, classes, answers[0], self._negative_labels(x, answers[0], setting))[agreed]
        changed = found.labels != found.negative_labels
        yields.update(tried=self.draws, unanimous=len(found), label_changed=int(changed.sum()))
        return found[changed]

    def _latents(self, setting: Setting, gan: Gan) -> Tensor:
        """Return `draws` latents (draws, latent), normal whatever the GAN was trained with, or from its own prior."""
        if self.prior == "gan":
            return gan.latents(self.draws, setting.generator)
        return torch.randn(self.draws, gan.latent, generator=setting.generator)

    def _negative_labels(self, x: Tensor, labels: Tensor, setting: Setting) -> Tensor:
        """Return y-: what most surrogates answer after a step of FGSM away from y+, the smallest on a tie."""
        if not self.adversarial_labels:
            return _random_labels(len(labels), setting)
        voters = setting.negatives if self.adversarial_labels_from == "negatives" else setting.positives
        moved = ((model, ops.ascend_sign(model, x, labels, self.fgsm).clamp(0, 1)) for model in voters)
        return ops.majority(torch.cat([ops.votes([model], z) for model, z in moved]), setting.classes)

    def _optimise(self, candidates: Candidates, setting: Setting, gan: Gan) -> Tensor:
        """Return the latents (n, latent) after `epochs` passes over the surrogates by SGD."""
        z = candidates.z.clone().requires_grad_(True)
        sgd = torch.optim.SGD([z], self.lr / self.latent_batch, self.momentum, nesterov=self.momentum > 0)
        for _ in range(self.epochs):
            for positives, negatives in self._groups(setting):
                # Nothing is decided here. Without the cache, which keeps weights of a graph from being replayed.
                with torch.autocast(setting.device.type, torch.bfloat16, setting.autocast, cache_enabled=False):
                    loss = self._loss(z, candidates, positives, negatives, setting, gan)
                (z.grad,) = torch.autograd.grad(loss, z)
                sgd.step()
        return z.detach()

    def _groups(self, setting: Setting) -> Iterator[tuple[list[nn.Module], list[nn.Module]]]:
        """Yield pairs of `model_batch` positives and as many negatives, both in a random order of their own.

        All are met in an epoch; where there are fewer of one kind, these are met again, in the same order.
        """
        pools = setting.positives, setting.negatives
        orders = [torch.randperm(len(pool), generator=setting.generator).split(self.model_batch) for pool in pools]
        for step in range(max(map(len, orders))):
            p, n = ([pool[i] for i in order[step % len(order)]] for pool, order in zip(pools, orders, strict=True))
            yield p, n

    def _loss(
        self,
        z: Tensor,
        candidates: Candidates,
        positives: Sequence[nn.Module],
        negatives: Sequence[nn.Module],
        setting: Setting,
        gan: Gan,
    ) -> Tensor:
        """Return the three-term loss summed over latents: be y+ to positives, y- to negatives, real to D."""
        image = gan.generator(z, candidates.classes).float()
        bank = self._bank()
        transform = bank[int(torch.randint(len(bank), (), generator=setting.generator))]
        with torch.autocast(setting.device.type, enabled=False):  # bfloat16 would be off by tenths of a pixel
            x = transform((image + 1) / 2, setting.generator).contiguous(memory_format=torch.channels_last)
        stolen = torch.stack([margin(m(x), candidates.labels, self.kappa) for m in positives])
        strange = torch.stack([margin(m(x), candidates.negative_labels, self.kappa) for m in negatives])
        loss = stolen.mean(0) + strange.mean(0)
        if self.discriminator_loss:
            loss = loss + self.beta * self._unreal(image, candidates.classes, setting, gan)
        return loss.sum()

    def _unreal(self, image: Tensor, classes: Tensor, setting: Setting, gan: Gan) -> Tensor:
        """Return how unreal the discriminator finds each of the untransformed images in [-1, 1], as (n,).

        That is what its own loss charges for the score of a real image: max(0, 1 - D) for the hinge loss, -D for
        Wasserstein's.
        """
        if self.discriminator_sign == "released":
            return gan.loss.fake(gan.discriminator(image, _random_labels(len(image), setting)))
        score = gan.discriminator(image, classes)
        return gan.loss.real(score) if self.discriminator_sign == "intent" else -score

    def _screen(self, x: Tensor, candidates: Candidates, setting: Setting) -> Tensor:
        """Return bool (n,): under each transform all positives answer y+, all negatives y-, and y+ is not y-."""
        passed = candidates.labels != candidates.negative_labels
        for transform in self._bank():
            seen = transform(x, setting.generator)
            passed = passed & (ops.votes(setting.positives, seen) == candidates.labels).all(0)
            passed = passed & (ops.votes(setting.negatives, seen) == candidates.negative_labels).all(0)
        return passed

    def _bank(self) -> tuple[Transform, ...]:
        if not self.input_transforms:
            return (Identity(),)
        mirror = (HorizontalFlip(),) if self.flip else ()
        return Identity(), *mirror, GaussianNoise(self.noise_std), Translate(self.shift), Shear(self.shear)

    def _require_survivors(self, yields: Counter[str]) -> None:
        if yields["screened"]:
            return
        if not yields["unanimous"]:
            stage = "the initial screening: no image of the GAN got one label from all positive surrogates"
        elif not yields["label_changed"]:
            stage = f"the adversarial labels: FGSM of {self.fgsm:.3f} changed no label; raise method.fgsm"
        else:
            stage = f"the final screening: none of {yields['optimised']} passed it; raise method.epochs"
        raise NoQueriesError(f"naturalfinger: none of {yields['tried']} latents became a query; all died in {stage}")


def margin(logits: Tensor, labels: Tensor, kappa: float) -> Tensor:
    """Return max(max_{i != y} Z_i - Z_y, -kappa) for each row of logits Z (n, classes): (n,), negative = y is top."""
    wanted = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return (others - wanted).clamp(min=-kappa)


def _gan(setting: Setting) -> Gan:
    if setting.gan is None or not setting.positives or not setting.negatives:
        raise UserError("naturalfinger: expected a GAN, positive and negative surrogates in the setting")
    return setting.gan


def _graphed(setting: Setting, gan: Gan) -> tuple[Setting, Gan]:
    """Return the same networks, which a GPU replays in the optimisation."""

    def graphed(network: nn.Module) -> nn.Module:
        return Graphed(network, setting.device)

    positives, negatives = (tuple(map(graphed, pool)) for pool in (setting.positives, setting.negatives))
    judged = replace(gan, generator=graphed(gan.generator), discriminator=graphed(gan.discriminator))
    return replace(setting, positives=positives, negatives=negatives), judged


def _random_labels(n: int, setting: Setting) -> Tensor:
    return ops.send(torch.randint(setting.classes, (n,), generator=setting.generator), setting.device)


@torch.no_grad()
def _images(gan: Gan, z: Tensor, classes: Tensor) -> Tensor:
    """Return the images (n, c, h, w) in [0, 1] that `gan` makes of z (n, latent)."""
    return (gan.generator(z, classes) + 1) / 2


def _join(parts: Sequence[Candidates]) -> Candidates:
    return Candidates(
        torch.cat([p.z for p in parts]),
        torch.cat([p.classes for p in parts]),
        torch.cat([p.labels for p in parts]),
        torch.cat([p.negative_labels for p in parts]),
    )
