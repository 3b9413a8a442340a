"""The one training loop of the zoo, and training from random weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from fingerbench.checkpoint import Checkpoint
from fingerbench.data.augment import Augment
from fingerbench.errors import DivergedError, is_number, is_whole, require, unknown
from fingerbench.ops import pieces, pixels, predict
from fingerbench.records import Images
from fingerbench.replay import Replay, refusal
from fingerbench.task import Task

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(outputs (b, outputs), images float (b, c, h, w), indices int64 (b,) into the split) -> scalar."""


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of one training: SGD with Nesterov momentum. Sources stand beside values in conf/recipe."""

    epochs: int
    batch: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: str  # "steps", "cosine" or "onecycle", over all iterations
    milestones: tuple[float, ...] = ()  # of "steps": shares of the training after which lr is multiplied by gamma
    gamma: float = 0.2

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            value = getattr(self, name)
            require(is_whole(value) and value >= 1, f"{name} of a recipe", "a whole number from 1", value)
        for name, within, expected in (
            ("lr", lambda x: 0 < x < math.inf, "a number above 0"),
            ("momentum", lambda x: 0 <= x < 1, "a number from 0 to below 1"),
            ("weight_decay", lambda x: 0 <= x < math.inf, "a number from 0"),
        ):
            value = getattr(self, name)
            require(is_number(value) and within(value), f"{name} of a recipe", expected, value)


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
    checkpoint: Checkpoint = field(default_factory=Checkpoint)  # of the first `fit` here, the only one that may go on


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


def supervise(
    model: nn.Module, images: Images, recipe: Recipe, workbench: Workbench, *, frozen: bool = False
) -> nn.Module:
    """Train `model` against the truth of `images`, and return it. See `fit` for `frozen`."""

    def loss(outputs: Tensor, _x: Tensor, index: Tensor) -> Tensor:
        return workbench.task.loss(outputs, images.y[index])

    return fit(model, images.x, loss, recipe, workbench, frozen=frozen)


def answers(victim: nn.Module, images: Tensor, workbench: Workbench) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function (images, indices) -> outputs of the victim, float32.

    Without augmentation it is asked but once. Else it is asked in every step, on a GPU as fast as its student computes:
    whole float32 there takes several times as long. On a CPU it is whole float32.
    """
    if workbench.augment.identity:
        table = predict(victim, pixels(images))
        return lambda _x, index: table[index]

    def ask(x: Tensor, _index: Tensor) -> Tensor:
        fast = workbench.autocast and workbench.device.type == "cuda"
        with torch.autocast(workbench.device.type, torch.bfloat16, enabled=fast):
            return predict(victim, x).float()

    return ask


def fit(
    model: nn.Module,
    images: Tensor,
    loss: Loss,
    recipe: Recipe,
    workbench: Workbench,
    *,
    frozen: bool = False,
    kept: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Train the parameters of `model` that require gradients, and return it in eval mode.

    Args:
        images: as stored, (n, c, h, w), on the device.
        loss: called once a batch; on a GPU only for the first of each size, see `Replay`.
        frozen: keep the model in eval mode, so that BatchNorm statistics stay as they are and dropout is off.
        kept: what else a step changes, by name, such as a moving average of the loss's, each with PyTorch's state_dict
            and load_state_dict; what is not named starts afresh when a killed training goes on.

    Raises:
        DivergedError: the loss is not finite.
        RuntimeError: on a GPU, a step cannot be replayed.
        UserError: the checkpoint cannot be read, or not be written.
    """
    model = model.to(workbench.device, memory_format=torch.channels_last).train(not frozen)  # type: ignore[call-overload]
    recipe = replace(recipe, lr=recipe.lr * workbench.caution)
    optimizer = _sgd(model, recipe, workbench.device)
    forward = _compiled(model) if workbench.compiled else model

    def descend(x: Tensor, index: Tensor) -> Tensor:
        with torch.autocast(workbench.device.type, torch.bfloat16, enabled=workbench.autocast):
            outputs = forward(x)
        value = loss(outputs.float(), x, index)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return value.detach()

    step = Replay(descend, workbench.device, generators=[workbench.generator])
    checkpoint = Checkpoint() if workbench.losses else workbench.checkpoint
    epoch = _Epoch(len(images), recipe.batch, workbench)
    state = {**(kept or {}), "model": model, "optimizer": optimizer, "epoch": epoch, "draws": _Draws(workbench.device)}
    began = checkpoint.resume(state, workbench.generator)
    schedule = _schedule(optimizer, recipe, recipe.epochs * epoch.batches, began)
    places = _places(model)
    for done in range(began + 1, recipe.epochs * epoch.batches + 1):
        index = epoch.next()
        x = workbench.augment(pixels(images[index]), workbench.generator)
        epoch.total += step(x.contiguous(memory_format=torch.channels_last), index)
        schedule.step()
        if not epoch.left:
            if step.replayed and _places(model) != places:
                raise refusal("it puts new tensors in the place of its buffers")
            mean = epoch.close()
            if not math.isfinite(mean):
                raise DivergedError(f"loss {mean} in epoch {done // epoch.batches} of {recipe.epochs}")
        if checkpoint.due():
            checkpoint.write(done, state, workbench.generator)
    return model.eval()


class _Epoch:
    """The batches of one epoch after another, each in a new order, and the losses."""

    def __init__(self, images: int, batch: int, workbench: Workbench) -> None:
        self.images, self.batches, self.workbench = images, pieces(images, batch), workbench
        self.left: list[Tensor] = []  # of this epoch, as indices into the images
        self.total = torch.zeros((), device=workbench.device)  # of the losses in this epoch

    def next(self) -> Tensor:
        if not self.left:
            order = torch.randperm(self.images, generator=self.workbench.generator)
            self.left = list(order.to(self.workbench.device).tensor_split(self.batches))
        return self.left.pop(0)

    def close(self) -> float:
        """Note the mean loss of the epoch, and return it."""
        self.workbench.losses.append(self.total.item() / self.batches)
        self.total.zero_()
        return self.workbench.losses[-1]

    def state_dict(self) -> dict[str, Any]:
        return {"left": self.left, "total": self.total, "losses": self.workbench.losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.left = [index.to(self.workbench.device) for index in state["left"]]
        self.total.copy_(state["total"])
        self.workbench.losses[:] = state["losses"]


class _Draws:
    """PyTorch's own generators, of which dropout draws."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def state_dict(self) -> dict[str, Tensor]:
        own = {"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}
        return {"cpu": torch.get_rng_state(), **own}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if self.device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)


def _sgd(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.SGD:
    learnt = [p for p in model.parameters() if p.requires_grad]
    # A replayed step finds the rate of its turn on the GPU; elsewhere a number is exact to more digits.
    rate = torch.tensor(recipe.lr, device=device) if device.type == "cuda" else recipe.lr
    return torch.optim.SGD(
        learnt, rate, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.momentum > 0, fused=True
    )


def _compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    # All nn.Sequential count as one function, of which PyTorch compiles eight by default and leaves the others plain.
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    # Once a size of batch: what a worker made before must not choose another kernel.
    return torch.compile(model, dynamic=False)


def _places(model: nn.Module) -> list[int]:
    return [buffer.data_ptr() for buffer in model.buffers()]


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int, began: int = 0) -> lr_scheduler.LRScheduler:
    """Return the schedule of the rate for `steps` steps, after the first `began` of them."""
    schedule: lr_scheduler.LRScheduler
    if recipe.schedule == "steps":
        schedule = lr_scheduler.MultiStepLR(optimizer, [round(m * steps) for m in recipe.milestones], recipe.gamma)
    elif recipe.schedule == "cosine":
        schedule = lr_scheduler.CosineAnnealingLR(optimizer, steps)
    elif recipe.schedule == "onecycle":
        # One step more than is taken: torch's last step is at a rate near zero and teaches nothing.
        schedule = lr_scheduler.OneCycleLR(optimizer, recipe.lr, steps + 1, cycle_momentum=False)
    else:
        raise unknown("schedule", recipe.schedule, ["steps", "cosine", "onecycle"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*before `optimizer.step", category=UserWarning)
        for _ in range(began):  # every rate comes of the one before
            schedule.step()
    return schedule
