"""Images from a folder, each resized to one square."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fingerbench.errors import UserError

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def read_folder(folder: Path, size: int, most: int | None = None) -> Tensor:
    """Return the images in `folder` and its subfolders, sorted by path, as uint8 (n, 3, size, size) RGB.

    most: see `spaced`.

    Raises:
        UserError: no image in there, or one that cannot be read.
    """
    paths = image_paths(folder)
    if not paths:
        kinds = ", ".join(sorted(SUFFIXES))
        raise UserError(
            f"{folder}: expected images ({kinds}), found none; set data.transfer_root=DIR to where some are"
        )
    return read_images([paths[i] for i in spaced(len(paths), most)], size)


def spaced(n: int, most: int | None) -> list[int]:
    """Return `most` of the numbers 0 to n - 1, at equal distances, or all where there are no more; None: all."""
    kept = n if most is None else min(n, most)
    return [i * n // kept for i in range(kept)]


def image_paths(folder: Path) -> list[Path]:
    """Return the images in `folder` and its subfolders, sorted. What is hidden, and other types, is passed over."""
    images = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(p for p in images if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def read_images(paths: Sequence[Path], size: int) -> Tensor:
    """Return images as uint8 (n, 3, size, size) RGB; those of another size are resized bilinearly, whatever their form.

    Raises:
        UserError: one cannot be read.
    """
    with ThreadPoolExecutor() as pool:
        pixels = np.stack(list(pool.map(lambda path: _read_image(path, size), paths)))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _read_image(path: Path, size: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: expected an image, could not read it ({error}); mend or delete it") from error
    return np.asarray(rgb if rgb.size == (size, size) else rgb.resize((size, size), Image.Resampling.BILINEAR))
