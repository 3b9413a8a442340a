"""Files that may be a stranger's: JSON and safetensors. Nothing in them is run, and a ValueError is all they cause."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from safetensors import SafetensorError

from fingerbench.errors import one_line

if TYPE_CHECKING:
    from torch import Tensor

# What safetensors and PyTorch say to a header that promises what cannot be.
_MALFORMED = (SafetensorError, ValueError, LookupError, TypeError, RuntimeError, ArithmeticError, AssertionError)


def content(path: Path) -> bytes:
    """Return the bytes of a file; OSError: it is not there, or may not be read; ValueError: it is no plain file."""
    try:
        if path.is_file() or not os.path.lexists(path):
            return path.read_bytes()
    except NotADirectoryError:
        raise ValueError(f"{path.parent} is no folder") from None
    raise ValueError("a folder, a pipe or a broken link instead of a file")


def parse_json(text: bytes) -> Any:
    """Return what JSON in UTF-8 says. ValueError: it is none, is too deep, or has NaN, infinity or a key twice."""
    try:
        return json.loads(text.decode(), parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_tensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file by name, and its metadata. ValueError: it is none."""
    import safetensors.torch

    try:
        tensors = safetensors.torch.load(data)
        header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors, header.get("__metadata__") or {}
    except _MALFORMED as error:
        raise ValueError(f"no safetensors: {one_line(error)}") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:20]} is too large")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) != len(pairs):
        raise ValueError("a key occurs twice")
    return plain
