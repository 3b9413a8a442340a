"""MetaFinger's figure 7: what more negative models, and more copies of each, are worth to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from experiments.common import METAFINGER, over_seeds, panel, spread
from fingerbench.evaluate import metrics, plots
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.evaluate.panels import line_panels

if TYPE_CHECKING:
    from pandas import DataFrame

# Yang, Wang, Wang, IJCAI 2022, text on figure 7: the accuracy gap by (negatives, augmentation factor).
PAPER = {(15, 0): "low", (6, 5): "0.93"}
FACTOR = "surrogates.factor"
NEGATIVES = "surrogates.negatives"


@dataclass(frozen=True)
class Figure7(Experiment):
    """A line for each augmentation factor, over the number of negatives."""

    paper: ClassVar[str] = "MetaFinger, figure 7"
    title: ClassVar[str] = "accuracy gap against the number of negative models"
    closed: ClassVar[bool] = True

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return the lines, and the table of the same numbers."""
        import pandas as pd

        gaps = pd.DataFrame([_gap(cell) for cell in cells])
        rows = over_seeds(gaps, ["negatives", "factor"], "gap")
        rows["curve"] = [f"AF = {factor}" for factor in rows["factor"]]
        said = (
            "Accuracy gap: mean query accuracy of all positives less that of all negatives. A line for each "
            "augmentation factor AF, the number of noised copies that stand beside each negative surrogate. Where no "
            f"single query was found, the gap is 0. {spread(cells).capitalize()}. {METAFINGER} "
            f"{caption(cells, paper=True)}"
        )
        lines = panel(rows, "negatives", series="curve", xlabel="negative surrogates, without their copies")
        lines = replace(lines, colours=dict(zip(lines.series, plots.OTHER_COLOURS, strict=False)))
        figure = line_panels({"": lines}, "accuracy gap", said, limits=(min(0.0, gaps["gap"].min()), 1.03))
        return [
            Exhibit("metafinger_figure7", said, figure=figure, data=rows),
            Exhibit("metafinger_figure7_table", said, table=_table(rows, gaps), data=rows),
        ]


def _gap(cell: Cell) -> dict[str, float | int]:
    positive, negative = metrics.sides(cell.scores)
    facts = cell.bench.store.facts(cell.bench.fingerprint_spec)
    return {
        "negatives": cell.settings[NEGATIVES],
        "factor": cell.settings[FACTOR],
        "seed": cell.settings["seed"],
        "gap": float(positive.mean() - negative.mean()),
        "queries": facts["queries"],
        "surrogates": facts["surrogates"],
    }


def _table(rows: DataFrame, gaps: DataFrame) -> DataFrame:
    queries = gaps.groupby(["negatives", "factor"], sort=False)["queries"].mean()
    pairs = zip(rows["negatives"], rows["factor"], strict=True)
    return rows[["negatives", "factor"]].assign(
        queries=[f"{n:.4g}" for n in queries], gap=rows["mean"], paper=[PAPER.get(pair) for pair in pairs]
    )
