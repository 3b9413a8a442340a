"""A source that is not trained here: its owner has it, and brings its weights as a safetensors file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from fingerbench.errors import UserError, one_line, require
from fingerbench.untrusted import content, parse_tensors
from fingerbench.zoo.train import Scene

NAMED, LONGEST = 3, 80  # tensors that an error names, and characters of each
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # what networks may have; the others fit none
PARALLEL = "module."  # what DataParallel puts before names
WRITE = "safetensors.torch.save_file(model.state_dict(), FILE) writes one; pickles, such as .pt, are never read"


@dataclass(frozen=True)
class Given:
    """In place of training: the weights of a file, exactly. Where it lies is no part of what the model is.

    sha256: `digest` of its tensors, so that the same weights are the same source, in whatever file.
    """

    sha256: str
    path: str = field(compare=False)
    variants: ClassVar[tuple[str, ...]] = ()
    students: ClassVar[bool] = False

    @classmethod
    def of(cls, path: str) -> Given:
        """Return the weights in a file. UserError: see `read`."""
        place = Path(path).expanduser().absolute()  # workers, too, are to find it
        return cls(digest(read(place)), str(place))

    def make(self, variant: str, scene: Scene) -> nn.Module:
        """Return the network, an architecture `variant`, with these weights."""
        return self.fitted(scene.network(), variant).to(scene.workbench.device).eval()

    def fitted(self, model: nn.Module, architecture: str) -> nn.Module:
        """Return `model` with these weights.

        Raises:
            UserError: they do not fit it, the file cannot be read, or it has others by now.
        """
        path = Path(self.path)
        tensors = read(path)
        require(digest(tensors) == self.sha256, _named(path), "the weights that this run began with", "others")
        wrong = misfit(model, tensors)
        if wrong:
            raise UserError(f"{_named(path)} does not fit {architecture}: {wrong}; {_cure(model, tensors)}")
        model.load_state_dict(tensors, strict=True)
        return model


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, by name; nothing in it is run.

    Raises:
        UserError: it is not there, is no such file, has no tensors, or some that are not finite.
    """
    try:
        tensors, _ = parse_tensors(content(path))
    except OSError as error:
        raise UserError(f"{_named(path)}: {error.strerror}; name a safetensors file: {WRITE}") from None
    except ValueError as error:
        raise UserError(f"{_named(path)}: {one_line(error)}; {WRITE}") from None
    require(bool(tensors), _named(path), "the weights of a network", "no tensor")
    endless = _some(name for name, value in tensors.items() if value.dtype in FLOATS and not value.isfinite().all())
    if endless:
        raise UserError(f"{_named(path)}: expected finite values; got others in {endless}; give weights that are sound")
    return tensors


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256, in hex, of every tensor's name, type, shape and values."""
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(f"{name!r} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def misfit(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Return in words how `tensors` differ from the state dict of `model`: names, shapes, types; "" where they fit."""
    state = model.state_dict()
    both = [name for name in state if name in tensors]
    parts = {
        "it lacks": (name for name in state if name not in tensors),
        "it has besides": (name for name in sorted(tensors) if name not in state),
        "it differs in": (
            f"{name} ({_form(tensors[name])} for {_form(state[name])})"
            for name in both
            if _form(tensors[name]) != _form(state[name])
        ),
    }
    return "; ".join(f"{what} {found}" for what, names in parts.items() if (found := _some(names)))


def _cure(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    state = model.state_dict()
    if all(name.startswith(PARALLEL) for name in tensors):
        return f"save model.module.state_dict(), or take {PARALLEL!r} off the names"
    if {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in tensors.items()}:
        return "save model.float().state_dict()"
    return "is it of this zoo.source, zoo.width and number of classes?"


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _some(names: Iterator[str]) -> str:
    """Return the first names, which may be a stranger's, and how many more there are."""
    first, more = [_plain(name) for name in islice(names, NAMED)], sum(1 for _ in names)
    return ", ".join(first) + (f" and {more} more" if more else "")


def _plain(name: str) -> str:
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _named(path: Path) -> str:
    return f"zoo.weights={path}"
