"""The handwritten digits that ship inside scikit-learn: a real data set that needs no download.

1797 images of 8x8 pixels (UCI "Optical Recognition of Handwritten Digits", Alpaydin and Kaynak 1998, test part).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fingerbench.data.glyphs import glyphs
from fingerbench.data.splits import split
from fingerbench.errors import UserError
from fingerbench.records import Dataset, Images
from fingerbench.task import Classification

LEVELS = 16  # the largest pixel value of the data set


@dataclass(frozen=True)
class Digits:
    """Digits, three equal channels of size x size pixels, with rendered glyphs for knockoff.

    size: pixels, 16 or more, since smaller images do not survive the strides of all networks; half: images in a and
    in b; what is left is halved into finetune and test; transfer: number of glyphs; seed: of splits and glyphs.
    """

    size: int = 16
    half: int = 600
    transfer: int = 1700
    seed: int = 0

    @lru_cache(maxsize=4)  # noqa: B019 - of what is frozen; each experiment of a report asks for it again
    def load(self) -> Dataset:
        """Return the splits, by default of 600, 600, 298 and 299 images, and `transfer` glyphs labelled 0.

        Raises:
            UserError: a size or number of images that cannot be.
        """
        from sklearn.datasets import load_digits  # takes a second to import

        self._check()
        bunch = load_digits()
        images = Images(enlarge(bunch.images, self.size), torch.from_numpy(bunch.target).long())
        a, rest = split(images, self.half, self.seed)
        b, rest = split(rest, self.half, self.seed)
        finetune, test = split(rest, len(rest) // 2, self.seed)
        other = Images(
            enlarge(glyphs(self.transfer, self.seed), self.size), torch.zeros(self.transfer, dtype=torch.long)
        )
        return Dataset("digits", Classification(10), a, b, finetune, test, other)

    def _check(self) -> None:
        for name, value, least, most in (
            ("size", self.size, 16, 224),
            ("half", self.half, 10, 880),
            ("transfer", self.transfer, 1, 1_000_000),
        ):
            if not least <= value <= most:
                raise UserError(f"digits: expected {name} from {least} to {most}; got {value}; set data.{name}=N")


def enlarge(levels: np.ndarray, size: int) -> Tensor:
    """Map images (n, 8, 8) with values 0 to 16 to uint8 (n, 3, size, size) with values 0 to 255, bilinearly."""
    grey = torch.from_numpy(levels).double()[:, None] * (255 / LEVELS)
    resized = F.interpolate(grey, size=(size, size), mode="bilinear", align_corners=False)
    return resized.round().to(torch.uint8).repeat(1, 3, 1, 1)
