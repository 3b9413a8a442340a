"""Where artefacts are made: what every maker has at hand, and how stored networks come back to life."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fingerbench.errors import UserError, unknown
from fingerbench.records import Dataset
from fingerbench.store import Artefact, Spec, Store


@dataclass(frozen=True)
class Workshop:
    """Everything a `Spec.make` may use that does not change what it makes."""

    store: Store
    data: Dataset
    device: torch.device

    def load(self, spec: Spec) -> Artefact:
        """Read an artefact onto the device."""
        return self.store.load(spec, self.device)


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is cuda where there is one, else cpu."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ["auto", "cpu", "cuda"]) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name}: PyTorch finds no usable GPU here; use device=cpu, or install a CUDA build")
    return device


def pick_bfloat16(precision: str, device: torch.device) -> bool:
    """Tell whether to train in bfloat16 autocast: where asked to, or where the device computes in it natively."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise unknown("precision", precision, ["auto", "float32", "bfloat16"])
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # On a CPU without AMX bfloat16 is emulated, and slower than float32.
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def revive(model: nn.Module, artefact: Artefact) -> nn.Module:
    """Return `model`, built on the meta device, with stored weights: in eval mode and frozen."""
    model.load_state_dict(artefact.tensors, strict=True, assign=True)
    return model.eval().requires_grad_(False)
