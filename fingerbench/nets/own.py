"""Networks of your own, by name: `python:MODULE.FUNCTION`, where FUNCTION(outputs) returns one with random weights.

It is taken as it is: images float (n, c, h, w) in [0, 1] go in, outputs (n, outputs) come out, of a classifier logits,
and what it needs, such as a normalisation, it does inside. How many channels it takes is its own affair. MODULE is
code, and is run, in every worker too: it is found where Python looks for modules and, last of all, in the folder where
the command was given.

Refused is what the zoo would misunderstand: see `library.refuse`, and weights that are not drawn anew at each call,
with which independent models would begin where the source did.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from fingerbench.errors import UserError, one_line, require, unknown
from fingerbench.nets.library import Shape, refuse

PREFIX = "python:"
FORM = f"{PREFIX}MODULE.FUNCTION"
SAME = 0.5  # share of weights that two networks may have alike, such as biases of 0; not published


def require_known(name: str) -> None:
    """Raise a UserError unless there is such a function. Its module is imported."""
    _function(name)


def build(name: str, outputs: int, shape: Shape) -> nn.Module:
    """Return the network, with random weights, on the CPU: images (n, c, h, w) in [0, 1] -> outputs (n, outputs).

    Raises:
        UserError: no such function, or what it returns is not such a network for images of this shape.
    """
    _check(name, outputs, shape)
    with torch.device("cpu"):  # what its constructor computes may be impossible on the meta device
        return _made(name, outputs)


@cache
def _check(name: str, outputs: int, shape: Shape) -> None:
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        model, again = _made(name, outputs), _made(name, outputs)
        odd = [key for key, value in model.state_dict().items() if not isinstance(value, Tensor)]
        require(not odd, name, "a state dict of tensors alone", ", ".join(odd))
        require(
            _alike(model, again) <= SAME,
            name,
            "new random weights at each call, and trained ones in zoo.weights=FILE",
            "the same twice",
        )
        for mode in (True, False):
            _require_outputs(name, model.train(mode), outputs, shape)
        refuse(model, name, outputs, shape, works=True)


def _require_outputs(name: str, model: nn.Module, outputs: int, shape: Shape) -> None:
    """Raise a UserError unless two images give two rows of outputs, of a classifier logits."""
    c, h, w = shape
    try:
        with torch.no_grad():
            found = model(torch.zeros(2, *shape))
    except Exception as error:
        raise UserError(
            f"{name}: fails on images of {c}x{h}x{w} ({_told(error)}); let it take them, or choose others"
        ) from error
    if isinstance(found, Tensor) and found.shape == (2, outputs):
        softmax = outputs > 1 and bool((found >= 0).all()) and torch.allclose(found.sum(1), torch.ones(2))
        require(not softmax, name, "logits, which need not sum to 1", "probabilities; leave the softmax out")
        return
    got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    mode = "in training" if model.training else "in eval mode"
    raise UserError(f"{name}: expected outputs of shape (2, {outputs}) of two images of {c}x{h}x{w}; got {got} {mode}")


@torch.no_grad()
def _alike(model: nn.Module, other: nn.Module) -> float:
    """Return the share of the values of all parameters that two networks have in common."""
    pairs = [(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=False) if a.shape == b.shape]
    total = sum(a.numel() for a, _ in pairs)
    return sum(int((a == b).sum()) for a, b in pairs) / max(1, total)


def _made(name: str, outputs: int) -> nn.Module:
    function = _function(name)
    try:
        model = function(outputs)
    except (Exception, SystemExit) as error:
        raise UserError(f"{name}: its function, called with {outputs}, fails ({_told(error)}); mend it") from error
    require(isinstance(model, nn.Module), name, "a function that returns a torch.nn.Module", type(model).__name__)
    lazy = any(isinstance(parameter, UninitializedParameter) for parameter in model.parameters())
    require(not lazy, name, "layers of given sizes", "lazy ones, which have no weights yet")
    return model


def _function(name: str) -> Callable[[int], nn.Module]:
    path, _, function = name.removeprefix(PREFIX).rpartition(".")
    sound = all(part.isidentifier() for part in (*path.split("."), function))
    require(sound, name, f"{FORM}, such as {PREFIX}mynet.net", name)
    module = _module(name, path)
    found: Callable[[int], nn.Module] | None = getattr(module, function, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"function of {path} ({getattr(module, '__file__', 'no file')})", function, known)
    return found


def _module(name: str, path: str) -> ModuleType:
    """Import a module, also from where the command was given; `python run.py` puts only its own folder on the path."""
    require(path != "__main__", name, "a module that workers can import too", "__main__; move it into a file")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: it shadows nothing. Workers get the same path, see `pool`
    try:
        return import_module(path)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{path}.".startswith(f"{missing}."):
            hint = f"put it into {here}, or its folder into PYTHONPATH"
            raise UserError(f"{name}: no module {missing}; {hint}") from None
        raise UserError(f"{name}: importing {path} fails ({_told(error)}); mend it") from error


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
