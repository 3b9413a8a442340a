"""The one training loop of the zoo, and training from random weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from fingerbench.data.augment import Augment
from fingerbench.errors import DivergedError, unknown
from fingerbench.ops import pieces, pixels, predict
from fingerbench.records import Images
from fingerbench.replay import Replay, refusal
from fingerbench.task import Task

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(outputs (b, outputs), images float (b, c, h, w), indices int64 (b,) into the split) -> scalar."""


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of one training: SGD with Nesterov momentum. Sources stand beside the values in conf/zoo."""

    epochs: int
    batch: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: str  # "steps", "cosine" or "onecycle", over all iterations
    milestones: tuple[float, ...] = ()  # of "steps": shares of the training after which lr is multiplied by gamma
    gamma: float = 0.2


@dataclass(frozen=True)
class Workbench:
    """Where and how a model is trained: what does not depend on which model it is."""

    device: torch.device
    autocast: bool  # compute in bfloat16 where that is safe
    augment: Augment
    generator: torch.Generator  # on the CPU; order of batches, augmentation, random targets
    task: Task
    caution: float = 1.0  # every learning rate is multiplied by it
    compiled: bool = False  # train what torch.compile makes of the network; see `workshop.pick_compiled`
    losses: list[float] = field(default_factory=list)  # the mean of every epoch trained here, written by `fit`


@dataclass(frozen=True)
class Scene:
    """What whoever makes a model has at hand. Images are on the workbench's device.

    A thief of a distilled or knockoff model has no labels: such attacks take `.x` alone.
    """

    workbench: Workbench
    network: Callable[[], nn.Module]  # a new network of the architecture to be made, random weights
    victim: nn.Module | None  # a private copy of the parent, eval mode; None where there is no parent
    half: Images
    finetune: Images
    transfer: Images | None


@dataclass(frozen=True)
class Scratch:
    """Training from random weights on images and their truth: the source, its mirror and the independent models."""

    recipe: Recipe
    variants: tuple[str, ...] = field(default=(), compare=False)
    students: ClassVar[bool] = True

    def make(self, variant: str, scene: Scene) -> nn.Module:
        """Return a network trained on the half of the scene."""
        return supervise(scene.network(), scene.half, self.recipe, scene.workbench)


def supervise(model: nn.Module, images: Images, recipe: Recipe, bench: Workbench, *, frozen: bool = False) -> nn.Module:
    """Train `model` against the truth of `images`, and return it. See `fit` for `frozen`."""

    def loss(outputs: Tensor, _x: Tensor, index: Tensor) -> Tensor:
        return bench.task.loss(outputs, images.y[index])

    return fit(model, images.x, loss, recipe, bench, frozen=frozen)


def answers(victim: nn.Module, images: Tensor, bench: Workbench) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function (images, indices) -> outputs of the victim, float32.

    Without augmentation it is asked but once. Else it is asked in every step, on a GPU as fast as its student computes:
    whole float32 there takes several times as long. On a CPU it is whole float32.
    """
    if bench.augment.identity:
        table = predict(victim, pixels(images))
        return lambda _x, index: table[index]

    def ask(x: Tensor, _index: Tensor) -> Tensor:
        fast = bench.autocast and bench.device.type == "cuda"
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=fast):
            return predict(victim, x).float()

    return ask


def fit(
    model: nn.Module, images: Tensor, loss: Loss, recipe: Recipe, bench: Workbench, *, frozen: bool = False
) -> nn.Module:
    """Train the parameters of `model` that require gradients, and return it in eval mode.

    Args:
        images: as stored, (n, c, h, w), on the device.
        loss: called once a batch; on a GPU only for the first of each size, see `Replay`.
        frozen: keep the model in eval mode, so that BatchNorm statistics stay as they are and dropout is off.

    Raises:
        DivergedError: the loss is not finite.
        RuntimeError: on a GPU, a step cannot be replayed.
    """
    model = model.to(bench.device, memory_format=torch.channels_last).train(not frozen)  # type: ignore[call-overload]
    recipe = replace(recipe, lr=recipe.lr * bench.caution)
    learnt = [p for p in model.parameters() if p.requires_grad]
    # A replayed step finds the rate of its turn on the GPU; elsewhere a number is exact to more digits.
    rate = torch.tensor(recipe.lr, device=bench.device) if bench.device.type == "cuda" else recipe.lr
    optimizer = torch.optim.SGD(
        learnt, rate, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.momentum > 0, fused=True
    )
    forward = _compiled(model) if bench.compiled else model
    batches = pieces(len(images), recipe.batch)
    schedule = _schedule(optimizer, recipe, recipe.epochs * batches)

    def descend(x: Tensor, index: Tensor) -> Tensor:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.autocast):
            outputs = forward(x)
        value = loss(outputs.float(), x, index)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return value.detach()

    step = Replay(descend, bench.device, generators=[bench.generator])
    places = _places(model)
    for epoch in range(recipe.epochs):
        total = torch.zeros((), device=bench.device)
        order = torch.randperm(len(images), generator=bench.generator).to(bench.device)
        for index in order.tensor_split(batches):
            x = bench.augment(pixels(images[index]), bench.generator)
            total += step(x.contiguous(memory_format=torch.channels_last), index)
            schedule.step()
        if step.replayed and _places(model) != places:
            raise refusal("it puts new tensors in the place of its buffers")
        bench.losses.append(total.item() / batches)
        if not math.isfinite(bench.losses[-1]):
            raise DivergedError(f"loss {bench.losses[-1]} in epoch {epoch + 1} of {recipe.epochs}")
    return model.eval()


def _compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    # All nn.Sequential count as one function, of which PyTorch compiles eight by default and leaves the others plain.
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    # Once a size of batch: what a worker made before must not choose another kernel.
    return torch.compile(model, dynamic=False)


def _places(model: nn.Module) -> list[int]:
    return [buffer.data_ptr() for buffer in model.buffers()]


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> lr_scheduler.LRScheduler:
    if recipe.schedule == "steps":
        return lr_scheduler.MultiStepLR(optimizer, [round(m * steps) for m in recipe.milestones], recipe.gamma)
    if recipe.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, steps)
    if recipe.schedule == "onecycle":
        # One step more than is taken: torch's last step is at a rate near zero and teaches nothing.
        return lr_scheduler.OneCycleLR(optimizer, recipe.lr, steps + 1, cycle_momentum=False)
    raise unknown("schedule", recipe.schedule, ["steps", "cosine", "onecycle"])
