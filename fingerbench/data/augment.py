"""Random crops and flips for a whole batch at once, on the batch's device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fingerbench.ops import send


@dataclass(frozen=True)
class Augment:
    """Zero padding by `pad` pixels, a random crop to the old size, and a random horizontal flip (`flip`).

    The augmentation of FingerBench's loaders is pad 4 and flip, drawn for each image on its own.
    """

    pad: int
    flip: bool

    @property
    def identity(self) -> bool:
        """Whether images pass unchanged."""
        return self.pad == 0 and not self.flip

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the batch (n, c, h, w) of any type and device, augmented.

        Args: generator: on the CPU, so that a batch on any device gets the same crops. The identity draws nothing.
        """
        if self.identity:
            return x
        n, _, h, w = x.shape
        corner = torch.randint(0, 2 * self.pad + 1, (2, n, 1), generator=generator)
        mirrored = torch.rand((n, 1), generator=generator) < (0.5 if self.flip else 0.0)
        rows = corner[0] + torch.arange(h)
        columns = corner[1] + torch.where(mirrored, torch.arange(w).flip(0), torch.arange(w))
        # Channels last: one index tells a whole pixel, and convolutions on GPUs take the result as it is.
        padded = F.pad(x, (self.pad,) * 4).permute(0, 2, 3, 1)
        image = torch.arange(n, device=x.device)[:, None, None]
        crops = padded[image, send(rows, x.device)[:, :, None], send(columns, x.device)[:, None, :]]
        return crops.permute(0, 3, 1, 2)
