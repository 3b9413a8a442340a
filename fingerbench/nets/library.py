"""The networks of timm and torchvision, by name, fitted to the classes and to small images.

Weights are random, never downloaded. Channels and depth are as published, and so is all else from 128 pixels on:

- A network that is made for one size of image (`fixed_input_size` in timm, ViTs in torchvision) is made for ours; it
  resizes an image of another size, such as a query that was padded, bilinearly. If it cuts the image into patches, and
  the image has fewer than 128 pixels, they shrink with it: side * patch / 128, rounded down to a divisor of the sides,
  at least 1. So a patch of 16 becomes 4 at 32 pixels and 2 at 16, and 64 patches remain.
- Any other network, if the image has fewer than 64 pixels: the first convolution has stride 1, and the first
  max-pooling is left out, unless a convolution with a stride comes before it. So a ResNet's stem divides the side by 1
  instead of 4; kernels stay as they are.

Where a network cannot be made so, it is tried without the last of these changes, then without any. The first that can
be trained on two images is taken. Refused is a network where none can, one that adds up several classifiers (such as
LeViT), and one whose layers share weights (CoaT).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import cache, partial
from importlib import import_module
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fingerbench.errors import UserError, require
from fingerbench.nets.blocks import final_layer

LIBRARIES = ("timm", "torchvision")
SMALL = 64  # pixels; below, the stem of a convolutional network keeps the size of the image
PATCHED = 128  # pixels; below, patches shrink with the image

Shape = tuple[int, int, int]
Size = tuple[int, int]
Make = Callable[..., nn.Module]

# What a network says, in whatever way, to settings or an image that it cannot take.
_UNFIT = (RuntimeError, ValueError, AssertionError, TypeError, IndexError, ArithmeticError)


def names(library: str) -> list[str]:
    """Return what `library`, "timm" or "torchvision", calls its image classifiers, such as "resnet18"."""
    if library == "torchvision":
        models = _import(library).models
        return list(models.list_models(module=models))
    return list(_import(library).list_models())


def _import(library: str) -> Any:
    """Import a library when it is first asked for: it takes a second or two."""
    import_module("fingerbench.vision")  # without it, neither can be imported beside a CPU-only torch
    return import_module(library)


def require_known(name: str) -> None:
    """Raise a UserError unless the NAME of `name`, `timm:NAME` or `torchvision:NAME`, is there."""
    library, _, inner = name.partition(":")
    options = names(library)
    if inner not in options:
        near = get_close_matches(inner, options, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(f'{library}:{n}' for n in near)}? " if near else ""
        raise UserError(
            f"unknown {library} network {inner!r}; {hint}all {len(options)}: python -m fingerbench list {library}"
        )


def build(name: str, classes: int, shape: Shape) -> nn.Module:
    """Return the network, with random weights: images (n, c, h, w) in [0, 1] -> outputs (n, classes).

    Raises:
        UserError: the library has no such network, or it cannot be fitted to images of this shape.
    """
    fits = list(_fits(name, classes, shape))
    return fits[_first_that_works(name, classes, shape)]()


@cache
def _first_that_works(name: str, classes: int, shape: Shape) -> int:
    """Return which fit to take, without a trace in the global random numbers.

    It is tried on the CPU: on the meta device, constructors that compute on tensors fail.
    """
    require_known(name)
    reason = ""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        for number, fit in enumerate(_fits(name, classes, shape)):
            try:
                model = fit()
                works = all(_answers(model.train(mode), classes, shape) for mode in (True, False))
            except _UNFIT as error:
                reason = f" ({shorten(str(error), 120) or type(error).__name__})"
                continue
            refuse(model, name, classes, shape, works)
            return number
    c, h, w = shape
    raise UserError(f"{name}: cannot take images of {c}x{h}x{w}{reason}; choose larger images or another network")


@torch.no_grad()
def _answers(model: nn.Module, classes: int, shape: Shape) -> bool:
    outputs = model(torch.zeros(2, *shape))
    return isinstance(outputs, Tensor) and outputs.shape == (2, classes)


@torch.no_grad()
def refuse(model: nn.Module, name: str, classes: int, shape: Shape, works: bool) -> None:
    """Raise a UserError where the zoo would misunderstand a network that takes the images; its last layer is lost.

    So it would where several layers make the outputs, or one that is not registered last, or layers share weights.
    """
    last = final_layer(model)
    last.weight.zero_()
    outputs = model(torch.rand(2, *shape))
    sole = works and last.weight.shape[0] == classes and torch.allclose(outputs[0], outputs[1])
    require(
        sole,
        name,
        f"one last layer that makes the {classes} outputs",
        "a network with several or none, or one registered after it",
    )
    places = [tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel()]
    apart = len(set(places)) == len(places)  # else the store would keep a shared tensor twice, and tuning part the two
    require(apart, name, "layers that share no weights", "some that do")


def _fits(name: str, classes: int, shape: Shape) -> Iterator[Make]:
    """Yield ways to make the network, the best first."""
    library, _, inner = name.partition(":")
    size = shape[1:] if library == "timm" else (min(shape[1:]),) * 2  # torchvision's ViTs are square
    make = partial(_timm if library == "timm" else _torchvision, inner, classes)
    if _is_sized(inner) if library == "timm" else inner.startswith("vit_"):
        for patch in (True, False):
            yield partial(_resizing, make, size, patch)
        return
    if min(size) < SMALL:
        for pool in (False, True):
            yield partial(_with_small_stem, make, pool)
    yield make


class Resize(nn.Module):
    """Bilinear resizing to `size`, (h, w); an image that has it passes unchanged."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, any, any) to (n, c, h, w)."""
        if x.shape[2:] == self.size:
            return x
        return F.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True)


def _resizing(make: Make, size: Size, patch: bool) -> nn.Module:
    return nn.Sequential(OrderedDict(resize=Resize(size), network=make(size=size, patch=patch)))


def _with_small_stem(make: Make, pool: bool) -> nn.Module:
    """Return a model, its first convolution with stride 1 and, unless `pool`, without the pooling that follows."""
    model = make()
    parts = iter(model.named_modules())
    first = next((part for _, part in parts if isinstance(part, nn.Conv2d)), None)
    if first is None:
        return model
    first.stride = (1, 1)
    halving = ((path, part) for path, part in parts if isinstance(part, nn.Conv2d | nn.MaxPool2d))
    path, part = next(((p, m) for p, m in halving if m.stride not in (1, (1, 1))), ("", None))
    if isinstance(part, nn.MaxPool2d) and not pool:
        model.set_submodule(path, nn.Identity())
    return model


def _patch(published: int, size: Size) -> int:
    """Return the patch for an image of `size`: a divisor of both sides."""
    most = max(1, published * min(min(size), PATCHED) // PATCHED)
    return published if min(size) >= PATCHED else next(n for n in range(most, 0, -1) if all(s % n == 0 for s in size))


def _timm(name: str, classes: int, *, size: Size | None = None, patch: bool = False) -> nn.Module:
    settings: dict[str, Any] = {} if size is None else {"img_size": size}
    published = _published_patch(name) if size and patch else None
    if size and published:
        settings["patch_size"] = _patch(published, size)
    model: nn.Module = _import("timm").create_model(name, pretrained=False, num_classes=classes, **settings)
    return model


def _published_patch(name: str) -> int | None:
    """Return the side of the patches into which a network of timm cuts images, None where it does not."""
    with torch.device("meta"):
        parts = _timm(name, 1).modules()
    patch = next((part.patch_size for part in parts if hasattr(part, "patch_size")), None)
    side = patch[0] if isinstance(patch, tuple) else patch
    return side if isinstance(side, int) else None


def _is_sized(name: str) -> bool:
    """Tell whether a network of timm takes images of one size alone."""
    return bool(getattr(_import("timm").models.get_pretrained_cfg(name), "fixed_input_size", False))


def _torchvision(name: str, classes: int, *, size: Size | None = None, patch: bool = False) -> nn.Module:
    # Auxiliary classifiers are of use in training alone, and would give it several outputs.
    settings = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    get = partial(_import("torchvision").models.get_model, name, weights=None, num_classes=classes, **settings)
    if size is None:
        model: nn.Module = get()
        return model
    with torch.device("meta"):
        published = get()
    # The makers of torchvision's ViTs fix the patch, their class does not.
    return type(published)(
        image_size=size[0],
        patch_size=_patch(published.patch_size, size) if patch else published.patch_size,
        num_layers=len(published.encoder.layers),
        num_heads=published.encoder.layers[0].num_heads,
        hidden_dim=published.hidden_dim,
        mlp_dim=published.mlp_dim,
        num_classes=classes,
    )
