"""Figures of images: the queries of a method, or the samples of a GAN."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fingerbench.evaluate.plots import INK, axes_grid, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP, LABEL_GAP = 1.1, 1.3  # from one image of a grid to the next, and to the next below a label, in sizes of an image


def query_grid(queries: Any, labels: Sequence[object] | None = None, columns: int = 10, caption: str = "") -> Figure:
    """Draw query images in rows of `columns`, each above its label if there are any.

    queries: (n, c, h, w) in [0, 1], an array or a tensor on the CPU; labels: n of them.
    """
    images = np.asarray(queries, dtype=np.float64)
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"expected {len(images)} labels, one for each query, got {len(labels)}")
    columns = min(columns, len(images))
    width = max(4.0, 0.62 * columns)
    across, down = _image_grid(len(images), columns, labels is not None)
    with canvas(width, width * down / across, caption) as figure:
        axes = figure.add_subplot()
        _draw_images(axes, images, columns, labels)
        axes.set(xlim=(0, across - 0.1), ylim=(down, 0))
    return figure


def query_blocks(blocks: Mapping[str, Any], columns: int = 8, caption: str = "") -> Figure:
    """Draw a block of query images for each title, two blocks side by side, each in rows of `columns`.

    blocks: title -> queries as `query_grid` takes them, or none; all images are drawn of one size.
    """
    across, down = _image_grid(max(1, *map(len, blocks.values())), columns, labelled=False)
    beside = min(2, len(blocks))
    rows = math.ceil(len(blocks) / beside)
    with canvas(3.6 * beside, rows * (3.6 * down / across + 0.3), caption) as figure:
        grid = axes_grid(figure, len(blocks), beside)
        for axes, (title, queries) in zip(grid, blocks.items(), strict=True):
            _draw_images(axes, np.asarray(queries, dtype=np.float64), columns)
            axes.set(xlim=(0, across - 0.1), ylim=(down, 0))
            axes.set_title(title, loc="left", fontsize=8)
    return figure


def _image_grid(n: int, columns: int, labelled: bool) -> tuple[float, float]:
    """Return the width and the height of a grid of `n` images, in sizes of an image, the gaps between them included."""
    return columns * GAP, math.ceil(n / columns) * (LABEL_GAP if labelled else GAP)


def _draw_images(axes: Axes, images: Any, columns: int, labels: Sequence[object] | None = None) -> None:
    """Draw images (n, c, h, w), each one unit wide and high, in rows of `columns` from the upper left.

    Of more channels than three the first three are shown as colours, of two the first as grey.
    """
    down = GAP if labels is None else LABEL_GAP
    for i, image in enumerate(images):
        top, left = i // columns * down, i % columns * GAP
        shown = image[:3] if len(image) >= 3 else image[:1]
        pixels = np.broadcast_to(shown, (3, *image.shape[1:])).transpose(1, 2, 0)
        axes.imshow(pixels, extent=(left, left + 1, top + 1, top), interpolation="nearest")
        if labels is not None:
            axes.text(left + 0.5, top + 1.03, str(labels[i]), ha="center", va="top", fontsize=6, color=INK)
    axes.set_axis_off()
