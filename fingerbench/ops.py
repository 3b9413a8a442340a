"""Tensor operations that several methods, attacks and metrics share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ANSWERED = 500  # images that a model is asked at once


def ascend_sign(model: nn.Module, x: Tensor, y: Tensor, step: float) -> Tensor:
    """Return x + step * sign of the gradient of the cross-entropy at labels `y`, not clipped.

    Args: x float (n, c, h, w); y int64 (n,). One untargeted step of FGSM (Goodfellow et al. 2015).
    """
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    return (x + step * gradient.sign()).detach()


def send(x: Tensor, device: torch.device) -> Tensor:
    """Return x on `device`, without waiting until a GPU has done what it was told before.

    From the CPU a plain `x.to(device)` waits, so that the GPU runs dry at each of them.
    """
    if x.device.type == "cpu" and device.type == "cuda":
        x = x.pin_memory()
    return x.to(device, non_blocking=device.type != "cpu")  # what comes to the CPU is read at once, so it is waited for


def pieces(n: int, batch: int) -> int:
    """Return into how many pieces of nearly equal size to cut n images, so that each has about `batch` of them.

    BatchNorm cannot train on a last batch of one image, so there is none where `batch` is larger.
    """
    most = n if batch == 1 else n // 2
    return max(1, min(round(n / batch), most))


def pixels(x: Tensor) -> Tensor:
    """Return stored images, uint8 from 0 to 255 or float in [0, 1], as float32 in [0, 1], the range models take."""
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


@contextmanager
def _cudnn(**flags: bool) -> Iterator[None]:
    """Set these flags of `torch.backends.cudnn` inside the block."""
    before = {name: getattr(torch.backends.cudnn, name) for name in flags}
    try:
        for name, value in flags.items():
            setattr(torch.backends.cudnn, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(torch.backends.cudnn, name, value)


@contextmanager
def without_trials() -> Iterator[None]:
    """Let cuDNN choose its algorithms by rule inside the block, where no shape comes often.

    A trial runs up to ten of them (`torch.backends.cudnn.benchmark_limit`), for each convolution and shape.
    """
    with _cudnn(benchmark=False):
        yield


@contextmanager
def without_tf32() -> Iterator[None]:
    """Let float32 be float32 inside the block, on a GPU too, where an output decides.

    TF32, which PyTorch allows in convolutions, keeps 10 bits of 23: enough for gradients, but a query on a boundary
    would get another label in a batch of another size.
    """
    with _cudnn(allow_tf32=False):
        yield


@without_tf32()
@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch: int = ANSWERED) -> Tensor:
    """Return the outputs, such as logits, (n, outputs) of `model` on x float (n, c, h, w), in pieces of `batch`.

    On a GPU too float32 is float32, unless the caller autocasts.
    """
    return torch.cat([model(piece) for piece in x.split(batch)])


def eight_bit(x: Tensor) -> Tensor:
    """Return images x in [0, 1] as they arrive at an API that takes 8 bits a value: rounded to multiples of 1/255."""
    return (x * 255).round() / 255


def votes(models: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Return the label int64 (models, n) that each of `models`, at least one, gives each image of x (n, c, h, w)."""
    return torch.stack([predict(model, x).argmax(1) for model in models])


def majority(labels: Tensor, classes: int) -> Tensor:
    """Return the most frequent label int64 (n,) in each column of `labels` int64 (voters, n), the smallest on a tie."""
    return F.one_hot(labels, classes).sum(0).argmax(1)


def matching_rate(labels: Tensor, responses: Tensor) -> float:
    """Return the share of int64 (n,) `responses` that equal `labels`: the score of label methods."""
    return (labels == responses).double().mean().item()


def r2(truth: Tensor, predicted: Tensor) -> float:
    """Return the coefficient of determination of float (n, outputs) predictions, mean over outputs; 1 = perfect.

    0 is as good as always predicting the mean of the truth; there is no lower limit.
    """
    truth, predicted = truth.double(), predicted.double()
    residual = (truth - predicted).square().sum(0)
    total = (truth - truth.mean(0)).square().sum(0)
    # A truth that never varies must not divide by zero: whatever misses it is then very bad, but finite.
    return (1 - residual / total.clamp(min=1e-12)).mean().item()
