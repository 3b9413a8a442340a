"""What the benchmarks share: the machine in a line, a stopwatch that a GPU cannot fool, and tables."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from fingerbench import replay
from fingerbench.evaluate.tables import markdown
from fingerbench.manifest import hardware
from fingerbench.seeds import CUBLAS, fix_order

PEAK_SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices whose product is the peak


def describe(device: torch.device) -> str:
    """Return the machine, and how busy it is, in one line."""
    found = hardware()
    unit = found["bfloat16"]
    processor = f"{found['processor']}{f', {unit} bfloat16' if unit else ''}, {found['cores']} cores"
    place = f"{torch.cuda.get_device_name(device)}; " if device.type == "cuda" else ""
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    return f"{place}{processor}; {threads} threads; torch {torch.__version__}; load {load:.1f}"


def like_a_worker(threads: int, deterministic: bool = False, replayed: bool = True) -> None:
    """Set PyTorch in this process as `fingerbench.worker` does in its own, before it uses a GPU."""
    if deterministic:
        os.environ |= CUBLAS
    torch.set_num_threads(threads)
    fix_order(deterministic)
    replay.allow(replayed)


def timed(action: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that `action` takes, until the device has done all of it."""
    synchronise(device)
    began = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_flop(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Return the FLOP per second of a large matrix product: the best of four, after one to warm up."""
    side = side or PEAK_SIDE.get(device.type, 2048)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * side**3 / min(timed(lambda: a @ b, device) for _ in range(4))


def table(rows: list[dict[str, str]]) -> str:
    """Return rows of text as a markdown table."""
    return markdown(pd.DataFrame(rows))


def publish(parts: list[str], out: Path | None) -> None:
    """Print the parts, a blank line between them, and write them to `out` as well if it is given."""
    text = "\n\n".join(parts)
    print(text)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
