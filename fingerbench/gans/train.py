"""The one trainer of every GAN: an alternating loop, in which the GAN's own file says what each network minimises."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fingerbench.checkpoint import Checkpoint
from fingerbench.errors import DivergedError
from fingerbench.ops import send
from fingerbench.records import Gan, Images
from fingerbench.replay import Replay, adam

SETTLE_BATCHES = 64  # by which an averaged generator finds its batch statistics; default: not published


class Batch(NamedTuple):
    """Images (n, c, h, w) in [-1, 1], or latents (n, latent), with the class of each as int64 (n,)."""

    x: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Hinge:
    """The hinge loss, of all GANs here but WGAN-GP."""

    def real(self, scores: Tensor) -> Tensor:
        """Return max(0, 1 - score) for each."""
        return F.relu(1 - scores)

    def fake(self, scores: Tensor) -> Tensor:
        """Return max(0, 1 + score) for each."""
        return F.relu(1 + scores)


@dataclass(frozen=True)
class Training:
    """A kind of GAN: its networks, its losses, and how long and how fast it is trained.

    A subclass adds `build`, and changes the losses where its paper does; these here are the plain ones. Both may draw
    from `generator`, on the CPU, and may use the gradients of either network, but only those of the one whose turn it
    is are followed. Defaults: those of StudioGAN for CIFAR-10; the epsilon of Adam is PyTorch's.
    """

    conditional: ClassVar[bool] = True  # whether the labels matter
    draws: ClassVar[bool] = False  # whether its losses draw from `generator`: then a GPU cannot replay its steps

    steps: int = 100_000  # of the generator
    batch: int = 64
    lr: float = 2e-4  # Adam, the same for both networks
    betas: tuple[float, float] = (0.5, 0.999)
    discriminator_steps: int = 5  # for each step of the generator
    flip: bool = True  # mirror each real image with probability 1/2
    ema_decay: float = 0.0  # of the moving average of the generator's weights that is kept in the end; 0: none is
    ema_start: int = 0  # the step up to which the average is the generator itself

    def build(self, classes: int, shape: tuple[int, int, int], seed: int = 0) -> Gan:
        """Return untrained networks for images of `shape` (c, h, w), their weights drawn with `seed`.

        Raises UserError unless the images are square with a power of two, at least 16, as side.
        """
        raise NotImplementedError

    def discriminator_loss(self, gan: Gan, real: Batch, latents: Batch, generator: torch.Generator) -> Tensor:
        """Return the scalar that the discriminator minimises."""
        with torch.no_grad():
            fake = gan.generator(*latents)
        scores = gan.discriminator(torch.cat([real.x, fake]), torch.cat([real.labels, latents.labels]))
        return adversarial(gan, *scores.split([len(real.x), len(fake)]))

    def generator_loss(self, gan: Gan, latents: Batch, generator: torch.Generator) -> Tensor:
        """Return the scalar that the generator minimises."""
        return -gan.discriminator(gan.generator(*latents), latents.labels).mean()

    def train(
        self,
        images: Images,
        classes: int,
        generator: torch.Generator,
        device: torch.device,
        checkpoint: Checkpoint | None = None,
    ) -> Gan:
        """Return a GAN trained on `images` alone, frozen. `generator` is on the CPU; the same one gives the same GAN.

        checkpoint: where a killed training left its state, and this one keeps its own.
        """
        c, h, w = images.x.shape[1:]
        seed = int(torch.randint(2**62, (), generator=generator))
        return train(self.build(classes, (c, h, w), seed), self, images, classes, generator, device, checkpoint)


def adversarial(gan: Gan, real: Tensor, fake: Tensor) -> Tensor:
    """Return the mean price of the scores of real images plus that of the scores of fake ones."""
    return gan.loss.real(real).mean() + gan.loss.fake(fake).mean()


def train(
    gan: Gan,
    training: Training,
    images: Images,
    classes: int,
    generator: torch.Generator,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
) -> Gan:
    """Train the networks of `gan` in place on nothing but `images`, and return it frozen.

    Args: images of the owner; generator on the CPU, the only source of randomness; checkpoint: where to go on, and to
    keep the state.

    Raises:
        UserError: the checkpoint cannot be read, or not be written.
        DivergedError: a weight is not finite.
    """
    g, d = gan.generator.to(device).train(), gan.discriminator.to(device).train()
    replayed = not training.draws
    step_g, step_d = (adam(net.parameters(), training.lr, training.betas, replayed) for net in (g, d))
    reals = _Reals(images.to(device), training, generator)
    average = copy.deepcopy(g) if training.ema_decay else g
    state = {"generator": g, "discriminator": d, "average": average, "adam_g": step_g, "adam_d": step_d, "reals": reals}

    def latents() -> Batch:
        z = send(gan.latents(training.batch, generator), device)
        return Batch(z, send(torch.randint(classes, (training.batch,), generator=generator), device))

    def teach(*tensors: Tensor) -> None:
        descend((step_d, training.discriminator_loss(gan, Batch(*tensors[:2]), Batch(*tensors[2:]), generator)))

    def learn(*tensors: Tensor) -> None:
        descend((step_g, training.generator_loss(gan, Batch(*tensors), generator)))

    teach_again, learn_again = (Replay(act, device, replayed, [generator]) for act in (teach, learn))
    checkpoint = checkpoint or Checkpoint()
    began = checkpoint.resume(state, generator)
    for step in range(began, training.steps):
        for _ in range(training.discriminator_steps):
            teach_again(*reals.draw(), *latents())
        learn_again(*latents())
        if average is not g:
            _follow(average, g, training.ema_decay if step >= training.ema_start else 0.0)
        if checkpoint.due():
            _require_finite(gan, training)
            checkpoint.write(step + 1, state, generator)
    _require_finite(gan, training)
    if average is not g:
        _settle(average, g, latents)
    return freeze(replace(gan, generator=average))


def _require_finite(gan: Gan, training: Training) -> None:
    weights = (weight for net in (gan.generator, gan.discriminator) for weight in net.parameters())
    if not all(bool(weight.isfinite().all()) for weight in weights):
        raise DivergedError(f"weights that are not finite at lr {training.lr:g}")


def freeze(gan: Gan) -> Gan:
    """Put both networks in eval mode, stop gradients to their weights, and return the same `gan`."""
    for net in (gan.generator, gan.discriminator):
        net.eval().requires_grad_(False)
    return gan


class _Reals:
    """Batches of real images for ever, in a new order each time round."""

    def __init__(self, images: Images, training: Training, generator: torch.Generator) -> None:
        self.images = images
        self.training = training
        self.generator = generator
        self.left = torch.empty(0, dtype=torch.int64)  # of this time round

    def draw(self) -> Batch:
        if not len(self.left):
            self.left = torch.randperm(len(self.images), generator=self.generator)
        rows, self.left = self.left[: self.training.batch], self.left[self.training.batch :]
        there = send(rows, self.images.x.device)
        x = 2 * self.images.pixels(there) - 1
        if self.training.flip:
            mirrored = torch.rand(len(rows), 1, 1, 1, generator=self.generator) < 0.5
            x = torch.where(send(mirrored, x.device), x.flip(-1), x)
        return Batch(x, self.images.y[there])

    def state_dict(self) -> dict[str, Tensor]:
        return {"left": self.left.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.left = state["left"]


def descend(*updates: tuple[torch.optim.Optimizer, Tensor]) -> None:
    """Compute the gradients of each loss in the weights of its optimizer alone, and only then take all the steps."""
    for optimizer, loss in updates:
        weights: list[nn.Parameter] = [w for group in optimizer.param_groups for w in group["params"]]
        gradients = torch.autograd.grad(loss, weights, retain_graph=len(updates) > 1)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
    for optimizer, _ in updates:
        optimizer.step()


@torch.no_grad()
def _follow(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Move the weights of `average` towards those of `net`, all the way where `decay` is 0."""
    for mean, weight in zip(average.parameters(), net.parameters(), strict=True):
        mean.lerp_(weight, 1 - decay)


@torch.no_grad()
def _settle(average: nn.Module, net: nn.Module, latents: Any) -> None:
    """Give averaged weights batch statistics and spectral norms of their own, which nothing has updated so far.

    The norms begin where those of `net` are, or the first batches would pass through layers scaled wrongly. BigGAN
    calls it standing statistics. StudioGAN averages the statistics of the generator like its weights.
    """
    for own, there in zip(average.buffers(), net.buffers(), strict=True):
        own.copy_(there)
    norms = [part for part in average.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    for _ in range(SETTLE_BATCHES):
        average(*latents())
