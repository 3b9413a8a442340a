"""All methods on the same suspects: the headline comparison, with margins and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fingerbench.evaluate import tables
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.curves import bars_legend, comparison_figure
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.evaluate.report import comparison, summaries


@dataclass(frozen=True)
class Methods(Experiment):
    """One row a method and seed, and the mean over seeds: ARUC, AUC, margins by family, costs."""

    paper: ClassVar[str] = "all methods"
    title: ClassVar[str] = "comparison on the same suspects"

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return three tables and the bars of ARUC and AUC."""
        table = comparison([cell.run for cell in cells])
        said = caption(cells)
        means, seeds = summaries(table), table[table["seed"] != "mean"]
        bars = comparison_figure(means, seeds, said)
        totals, margins, costs = tables.comparison_tables(table)
        return [
            Exhibit(
                "comparison", f"{said} In brackets 95 % bootstrap intervals over suspects.", table=totals, data=table
            ),
            Exhibit("margins", f"Matching-rate margins, mean over each family. {said}", table=margins),
            Exhibit("costs", f"{tables.COSTS_NOTE} {said}", table=costs),
            Exhibit("comparison_bars", f"{said} {bars_legend(means, seeds)}", figure=bars),
        ]
