"""torchvision, importable beside a CPU-only torch.

The torchvision wheel on PyPI is linked to CUDA. Beside a CPU build of torch its compiled operators cannot load, and
`import torchvision` (and timm, which imports it) then fails on operators that were never defined. Defining their
schemas first is enough for everything that is used here. Where the compiled operators load, nothing is changed.

Import torchvision and timm only after this module: `from fingerbench.vision import torchvision`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch


def _define_missing_operators() -> torch.library.Library | None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ImportError("torchvision is not installed; run: pip install -e . -c constraints.txt")
    try:
        for compiled in sorted(Path(spec.origin).parent.glob("_C*.so")):
            torch.ops.load_library(compiled)
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


_library = _define_missing_operators()  # the schemas vanish with the object, so it must live as long as the process

import torchvision  # noqa: E402

__all__ = ["torchvision"]
