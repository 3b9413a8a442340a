"""Where artefacts are made: what every maker has at hand, and how stored networks come back to life."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import sysconfig
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fingerbench.cluster import granted_cores
from fingerbench.errors import DivergedError, UserError, unknown
from fingerbench.nets import COMPILED_ON_GPU, FLOAT32_ON_CPU
from fingerbench.records import Dataset
from fingerbench.store import Artefact, Spec, Store

log = logging.getLogger(__name__)

T = TypeVar("T")

# On a GPU. What one step keeps for its gradients, counted: 9 GiB of NaturalFinger's loop in float32, of 128 images in
# bfloat16 at most 3.1 (GoogLeNet), of 256 (recipe=fast) 6.3, 1.8 in the mean of the 15 architectures. Weights,
# workspaces and CUDA come on top. Two such loops at once fill a card of 24 GiB.
WORKER_BYTES = 11 * 2**30

CAUTION = 0.1  # what learning rates are multiplied by where a training diverged and is begun once more


@dataclass(frozen=True)
class Workshop:
    """Everything a `Spec.make` may use that does not change what it makes."""

    store: Store
    data: Dataset
    device: torch.device
    compiled: str = "auto"  # which networks are compiled to be trained; see `pick_compiled`
    _kept: dict[str, OrderedDict[str, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, use: str, key: str, make: Callable[[], T], keep: int = 1) -> T:
        """Return what `make` makes of `key`; the `keep` things last asked for the same use are not made again.

        It is for work that many artefacts share, when a worker makes one of them after another.
        """
        kept = self._kept.setdefault(use, OrderedDict())
        value: T = kept.pop(key) if key in kept else make()
        kept[key] = value
        if len(kept) > keep:
            kept.popitem(last=False)
        return value

    def load(self, spec: Spec) -> Artefact:
        """Read an artefact onto the device."""
        return self.store.load(spec, self.device)


def persevere(
    name: str, first: Callable[[], T], again: Callable[[], T], remedy: str, how: str = ""
) -> tuple[T, str | None]:
    """Return what `first` trains, and None; where that diverges, what `again` does at rates times CAUTION, and why.

    Raises:
        DivergedError: `again` diverges as well; the message says `how` it trained, and the `remedy`.
    """
    try:
        return first(), None
    except DivergedError as error:
        retried = f"{error}; begun once more{how}, learning rates times {CAUTION:g}"
    log.warning("%s: %s", name, retried)
    try:
        return again(), retried
    except DivergedError as error:
        raise DivergedError(f"{name} diverged: {retried}: {error}; nothing of it is stored: {remedy}") from error


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


def pick_jobs(device: torch.device) -> int:
    """Return how many workers make good use of the device: one per core, on a GPU no more than its memory takes.

    In a SLURM job the cores are those that it was granted. Several share one GPU, since a small network leaves it idle
    between its steps.
    """
    cores = granted_cores()
    if device.type != "cuda":
        return cores
    return max(1, min(cores, torch.cuda.get_device_properties(device).total_memory // WORKER_BYTES))


def pick_bfloat16(precision: str, device: torch.device, architecture: str) -> bool:
    """Tell whether to train in bfloat16 autocast: where asked to, or where "auto" expects it to be faster.

    That is on GPUs and CPUs that compute in it natively, but for the architectures in `nets.FLOAT32_ON_CPU`. A rule,
    not a stopwatch at start-up: a zoo must not hang on what else the machine was doing.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise unknown("precision", precision, ["auto", "float32", "bfloat16"])
    if precision != "auto":
        return precision == "bfloat16"
    return native_bfloat16(device) and (device.type == "cuda" or architecture not in FLOAT32_ON_CPU)


def native_bfloat16(device: torch.device) -> bool:
    """Tell whether a device computes in bfloat16; where it is emulated, it is slower than float32, on a CPU by far."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bfloat16_unit() is not None


def pick_compiled(wanted: str, device: torch.device, architecture: str) -> bool:
    """Tell whether to train what `torch.compile` makes of a network: "all", "none", or "auto", where it pays.

    That is on a GPU, for `nets.COMPILED_ON_GPU`, where there are Triton and what it needs: a C compiler, Python's
    headers, and compute capability 7.0.
    """
    if wanted not in ("auto", "all", "none"):
        raise unknown("compiled", wanted, ["auto", "all", "none"])
    if wanted != "auto":
        return wanted == "all"
    return device.type == "cuda" and architecture in COMPILED_ON_GPU and _compiles(device)


def _compiles(device: torch.device) -> bool:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_paths()["include"], "Python.h").is_file()
    return bool(find_spec("triton") and compiler and headers and torch.cuda.get_device_capability(device) >= (7, 0))


def bfloat16_unit() -> str | None:
    """Return what this CPU multiplies bfloat16 with, "AMX" or "AVX-512"; None where it cannot."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX-512" if torch.cpu._is_avx512_bf16_supported() else None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], float]]:
    """Yield a function that returns the peak memory in MiB since the block began.

    On a GPU what PyTorch holds there, for tensors and for graphs to be replayed; else the resident memory of this
    process, about 300 of it PyTorch itself. Where Linux does not let a process forget its earlier peak, the peak since
    it started.
    """
    if device.type == "cuda":
        torch.cuda.init()  # else PyTorch does not know a device with a number yet
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_reserved(device) / 2**20
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5): the high water mark falls to what is used now
    yield _resident_peak


def _resident_peak() -> float:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) / 2**10


def revive(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return `model`, which may be on the meta device, with stored weights and where they are, frozen, in eval mode."""
    model.load_state_dict(weights, strict=True, assign=True)
    device = next(iter(weights.values())).device
    return model.to(device).eval().requires_grad_(False)  # moves the buffers that are not stored
