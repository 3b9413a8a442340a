"""NaturalFinger, figure 8: queries of every method side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from experiments.common import by_label
from fingerbench.bench import Bench
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.evaluate.images import query_blocks
from fingerbench.store import Spec

COLUMNS, ROWS = 8, 2  # of images in a block


@dataclass(frozen=True)
class Figure8(Experiment):
    """One block of images a method, under its name and its number of queries."""

    paper: ClassVar[str] = "NaturalFinger, figure 8"
    title: ClassVar[str] = "queries of every method"

    def needs(self, bench: Bench) -> list[Spec]:
        """Return the fingerprint alone: no suspect is asked."""
        return [bench.fingerprint_spec]

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return one figure, of the first seed of each method."""
        shown = [same[0] for same in by_label(cells).values()]
        blocks = {}
        for cell in shown:
            queries: Tensor = cell.bench.store.load(cell.bench.fingerprint_spec).tensors["queries"]
            blocks[f"{cell.label}, {len(queries)} queries"] = queries[: COLUMNS * ROWS].numpy()
        said = f"{caption(shown)} The first {COLUMNS * ROWS} queries of each method, in the order it made them."
        return [Exhibit("queries", said, figure=query_blocks(blocks, COLUMNS, said))]
