"""Stopwatches for single passes: what `zoo_cost.py` multiplies by the number of images."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import machine
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fingerbench import replay
from fingerbench.bench import Bench
from fingerbench.cost import Adversaries, Costly, MethodOutline, Network, Operation, Pass
from fingerbench.gans.train import freeze, train
from fingerbench.ops import ascend_sign, pixels, predict, without_trials
from fingerbench.records import Gan, Images, Setting
from fingerbench.workshop import peak_memory, pick_bfloat16, pick_device
from fingerbench.zoo.train import Recipe, Workbench, supervise
from methods.naturalfinger import Candidates, NaturalFinger, _graphed

FIRST, SECOND = 2, 8  # images of the first tries; batch statistics of one do not exist
GROWTH = 2  # of the batch at least, or no larger one is tried
# Operations that launch nothing, though PyTorch does not call them views.
NO_KERNEL = ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
TRIES = 2  # of each batch: a new size is slow at first
SETTLED, MORE = replay.WARM_UP + 2, 5  # times on a GPU until a pass is replayed, and those that count

Act = Callable[[int, int], object]
"""Does the pass with so many images at once, so many times."""


class Point(NamedTuple):
    """What a batch of `images` took: seconds, and bytes beyond what was in use before."""

    images: int
    seconds: float
    memory: float


@dataclass(frozen=True)
class Probe:
    """What a pass was found to take.

    seconds: an image, in the real batch; images: in the largest batch that was timed; memory: bytes of an image;
    fixed: bytes however many; kernels: operations of PyTorch but for views, of a batch however many.
    """

    seconds: float
    images: int
    memory: float
    fixed: float
    kernels: int


class Kernels(TorchDispatchMode):
    """Counts the operations inside the block that are no views: each is a kernel at least, and a launch on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and go on."""
        self.count += not (func.is_view or func.overloadpacket.__name__ in NO_KERNEL)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Loop:
    """NaturalFinger's optimisation, whole: one latent's way through all surrogates, the GAN and back, an epoch."""

    method: NaturalFinger = field(hash=False)
    outline: MethodOutline = field(hash=False)
    label: str = "naturalfinger's loop"

    def flop(self, operation: Operation) -> float:
        """Return the FLOP of a latent and epoch."""
        once = replace(self.method, epochs=1, pool=1 / self.outline.budget, latent_batch=1, max_draws=0)
        moved = once.work(self.outline)
        return sum(images * one.flop for one, images in moved.items() if one.operation == "attack")


@without_trials()
def measure(one: Pass, bench: Bench, seconds: float) -> Probe:
    """Time a pass in growing batches, up to its own, for about `seconds`, and extend the line through them to its own.

    Two batches are timed at least, since a step has a price of its own: that of all weights. On a GPU without cuDNN's
    trials, which would take longer than everything else.
    """
    device, ends = pick_device(bench.settings.device), time.monotonic() + seconds
    _trim()
    before = used(device)
    act = prepare(one, bench, device)
    with Kernels() as kernels:
        act(min(FIRST, one.batch), 1)
    points = [_point(act, min(FIRST, one.batch), before, device)]
    while (n := _next(points, one.batch, ends - time.monotonic())) is not None:
        points.append(_point(act, n, before, device))
    base, slope = _line(points, "seconds")
    fixed, memory = _line(points, "memory")
    last = points[-1]
    whole = last.seconds if last.images == one.batch else base + slope * one.batch
    return Probe(whole / one.batch, last.images, memory, fixed, kernels.count)


def _point(act: Act, n: int, before: float, device: torch.device) -> Point:
    _trim()
    with peak_memory(device) as peak:
        taken = min(_seconds(act, n, device) for _ in range(TRIES))
    return Point(n, taken, max(0.0, peak() * 2**20 - before))


def _seconds(act: Act, n: int, device: torch.device) -> float:
    if device.type != "cuda":
        return machine.timed(lambda: act(n, 1), device)
    few, many = (machine.timed(lambda: act(n, times), device) for times in (SETTLED, SETTLED + MORE))  # noqa: B023
    return max(0.0, many - few) / MORE


def _next(points: Sequence[Point], most: int, left: float) -> int | None:
    """Return how many images to try next, at most `most`, in the `left` seconds; None: no more."""
    n = points[-1].images
    if n == most:
        return None
    if len(points) == 1:
        return min(SECOND, most)
    base, slope = _line(points, "seconds")
    more = min(most, int((left / TRIES - base) / slope)) if slope else most
    return more if more >= min(GROWTH * n, most) else None


def _line(points: Sequence[Point], what: Literal["seconds", "memory"]) -> tuple[float, float]:
    """Return base and slope, neither below 0, of the line through the first and the last point."""
    first, last = points[0], points[-1]
    low, high = getattr(first, what), getattr(last, what)
    if first is last:
        return 0.0, low / first.images
    slope = max(0.0, (high - low) / (last.images - first.images))
    return max(0.0, low - slope * first.images), slope


def prepare(one: Pass, bench: Bench, device: torch.device) -> Act:
    """Return what does a pass, on random images and weights."""
    network: Costly = one.network
    if isinstance(network, Network):
        model = network.build().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return _network(one, model, bench, device)
    if isinstance(network, Adversaries):
        gan = _gan(network, device)
        return _training(network, gan, bench, device) if one.operation == "train" else _moving(one.operation, gan)
    assert isinstance(network, Loop)
    return _loop(network, bench, device)


def _network(one: Pass, model: nn.Module, bench: Bench, device: torch.device) -> Act:
    images = _images(one.batch, bench, device)
    if one.operation == "train":
        autocast = pick_bfloat16(bench.settings.precision, device, one.network.label)
        # Not compiled, though a worker on a GPU might: that takes longer than all of this.
        workbench = Workbench(device, autocast, bench.zoo.augment, torch.Generator(), bench.data.task)

        def act(n: int, times: int) -> object:
            recipe = Recipe(times, n, 1e-3, 0.9, 5e-4, "cosine")
            return supervise(model, Images(images.x[:n], images.y[:n]), recipe, workbench)

        return act
    model.eval()
    x = pixels(images.x)
    if one.operation == "answer":
        return lambda n, times: [predict(model, x[:n], n) for _ in range(times)]
    labels = torch.zeros(len(x), dtype=torch.long, device=device)
    return lambda n, times: [ascend_sign(model, x[:n], labels[:n], 1e-3) for _ in range(times)]


def _images(n: int, bench: Bench, device: torch.device) -> Images:
    x = torch.randint(256, (n, *bench.data.shape), dtype=torch.uint8)
    task = bench.data.task
    y = torch.randint(task.outputs, (n,)) if task.labelled else torch.rand(n, task.outputs)
    return Images(x.to(device), y.to(device))


def _gan(network: Adversaries, device: torch.device) -> Gan:
    gan = network.design.build(network.classes, network.shape)
    return replace(gan, generator=gan.generator.to(device), discriminator=gan.discriminator.to(device))


def _training(network: Adversaries, gan: Gan, bench: Bench, device: torch.device) -> Act:
    def act(n: int, times: int) -> object:
        for net in (gan.generator, gan.discriminator):
            net.requires_grad_(True)  # a trained one is frozen
        step = replace(network.design, steps=times, batch=n, ema_decay=0.0)
        owned = Images(*(t[: n * step.discriminator_steps] for t in (bench.data.a.x, bench.data.a.y)))
        return train(gan, step, owned, network.classes, torch.Generator(), device)

    return act


def _moving(operation: Operation, gan: Gan) -> Act:
    device = next(freeze(gan).generator.parameters()).device

    def once(n: int) -> object:
        labels = torch.zeros(n, dtype=torch.long, device=device)
        z = gan.latents(n, torch.Generator()).to(device)
        if operation == "answer":
            with torch.no_grad():
                return gan.generator(z, labels)
        z.requires_grad_(True)
        return torch.autograd.grad(gan.discriminator(gan.generator(z, labels), labels).sum(), z)

    return lambda n, times: [once(n) for _ in range(times)]


def _loop(loop: Loop, bench: Bench, device: torch.device) -> Act:
    """Return an epoch of the method's own optimisation."""

    def revived(networks: tuple[Network, ...]) -> tuple[nn.Module, ...]:
        built = (network.build().eval().requires_grad_(False) for network in networks)
        return tuple(model.to(device, memory_format=torch.channels_last) for model in built)  # type: ignore[call-overload]

    outline, data = loop.outline, bench.data
    assert outline.gan is not None
    gan = freeze(_gan(outline.gan, device))
    positives, negatives = revived(outline.positives), revived(outline.negatives)
    random = torch.Generator().manual_seed(0)
    setting = Setting(
        positives[0],
        data.a,
        data.test,
        positives,
        negatives,
        gan,
        data.task,
        outline.budget,
        device,
        random,
        autocast=device.type == "cuda" and pick_bfloat16(bench.settings.precision, device, bench.zoo.source),
    )
    moving = _graphed(setting, gan)

    def act(n: int, times: int) -> object:
        labels = torch.zeros(n, dtype=torch.long, device=device)
        candidates = Candidates(gan.latents(n, random).to(device), labels, labels, labels + 1)
        return replace(loop.method, epochs=times)._optimise(candidates, *moving)

    return act


def used(device: torch.device) -> float:
    """Return the bytes in use: resident ones, or what PyTorch holds on a GPU."""
    if device.type == "cuda":
        return float(torch.cuda.memory_reserved(device))
    status = Path("/proc/self/status").read_text()
    return float(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 2**10


def _trim() -> None:
    """Give back what the last probe freed, so that the next one is not thought to need nothing."""
    gc.collect()  # graphs, and what they keep
    torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
