"""One seed for each component, derived by hash, so that adding a model shifts no other model's randomness."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

CUBLAS = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # as PyTorch asks for; cuBLAS reads it when it starts


def seed_for(seed: int, *names: str) -> int:
    """Return a seed in [0, 2**63) for the component called `names` of the experiment seeded with `seed`."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def fix_order(deterministic: bool) -> None:
    """Let this process compute repeatably where it otherwise need not be, on a GPU; slower there.

    Off, cuDNN picks the fastest of its algorithms by trial, and some kernels add in no fixed order. On, what has no
    repeatable form raises a RuntimeError that names it. cuBLAS reads its part, `CUBLAS`, from the environment.
    """
    torch.backends.cudnn.benchmark = not deterministic  # shapes hardly change, so a trial pays
    torch.backends.cudnn.deterministic = deterministic
    torch.use_deterministic_algorithms(deterministic)


@contextmanager
def seeded(seed: int, *, cuda: bool = True) -> Iterator[torch.Generator]:
    """Seed every global generator inside the block and put it back after it.

    cuda: whether those of GPUs are put back, too, for which CUDA is started.

    Layer initialisation and dropout draw from PyTorch's global generator; they stay repeatable in here. Yields a
    CPU generator with the same seed, for code that takes one.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count() if cuda else 0)):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield torch.Generator().manual_seed(seed)
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
