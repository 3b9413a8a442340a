"""MetaV on a regression: whether it needs classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from experiments.common import averaged, by_label
from fingerbench.bench import Bench
from fingerbench.errors import require
from fingerbench.evaluate import metrics, tables
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.curves import aruc_panels, curve_points
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.evaluate.report import comparison
from fingerbench.store import Spec


@dataclass(frozen=True)
class MetavRegression(Experiment):
    """One method where suspects answer numbers: its totals, its families, its costs and its curves."""

    paper: ClassVar[str] = "Beyond the papers"
    title: ClassVar[str] = "MetaV on a regression"

    def needs(self, bench: Bench) -> list[Spec]:
        """Return everything that the scores need."""
        regression = not bench.data.task.labelled
        require(regression, "experiment=metav_regression", "a regression, such as data=diabetes", bench.data.name)
        return super().needs(bench)

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return three tables and the curves of robustness and uniqueness."""
        table = comparison([cell.run for cell in cells])
        totals, _, costs = tables.comparison_tables(table)
        families = tables.family_table(metrics.summary(cells[0].scores))
        runs = {label: [cell.scores for cell in same] for label, same in by_label(cells).items()}
        said = f"{caption(cells)} A score is the probability that MetaV's network gives to stolen."
        intervals = f"{said} In brackets 95 % bootstrap intervals over suspects."
        first = f"{caption(cells[:1])} Mean scores of a family; margin: of a positive over its mirror; {tables.NOTE}."
        curves = (
            f"{said} Robustness: share of positives with a score of t or more; uniqueness: share of negatives below t; "
            f"{averaged(cells)}."
        )
        return [
            Exhibit("comparison", intervals, table=totals, data=table),
            Exhibit("families", first, table=families),
            Exhibit("costs", f"{tables.COSTS_NOTE} {caption(cells)}", table=costs),
            Exhibit("aruc", curves, figure=aruc_panels(runs, curves), data=curve_points(runs)),
        ]
