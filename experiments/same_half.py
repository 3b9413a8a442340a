"""Theft or data? Scores of independent networks that saw the source's half of the images, beside all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from experiments.common import by_label, over_seeds, queries_of, scores_of, spread, trained_alone
from fingerbench.errors import require
from fingerbench.evaluate import metrics, tables
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.evaluate.panels import dot_panels

if TYPE_CHECKING:
    from pandas import DataFrame

FAMILY = "same-half"
GROUPS = STOLEN, OTHER, SAME = "stolen", "independent, half B", "independent, half A"
SAID = (
    "Every stolen model goes back to half A of the training images, on which the source was trained, and every "
    "independent one to half B, but for those of half A, trained from random weights with seeds of their own: they "
    "have nothing of the source's."
)
COLUMNS = (
    "A and B: independent networks of that half; scratch: mean of those from random weights, over the architectures "
    "that both halves have; max, min: the highest and lowest score; AUC: of the stolen ones against those of that "
    "half; a seed without a query has no scores."
)


@dataclass(frozen=True)
class SameHalf(Experiment):
    """A row a method: what independent networks of either half score; and every score as a dot."""

    paper: ClassVar[str] = "Beyond the papers"
    title: ClassVar[str] = "theft, or the half of the data"

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return the table and the dots."""
        there = set(_grouped(cells)["group"])
        require(there == {*GROUPS}, "attack", f"thefts, independent networks and {FAMILY}", "; ".join(sorted(there)))
        rows = _rows(cells)
        asked = f"{queries_of(cells)} {caption(cells, queries=False)}"
        dots = f"A dot is a suspect of one seed; its height says nothing. {SAID} {asked}"
        text = f"{SAID} {COLUMNS} Values are {spread(cells)}. {asked}"
        panels = {label: _by_group(_grouped(group)) for label, group in by_label(cells).items()}
        return [
            Exhibit("same_half", text, table=_table(rows), data=rows),
            Exhibit("same_half_scores", dots, figure=dot_panels(panels, "score", dots)),
        ]


def _grouped(cells: Sequence[Cell]) -> DataFrame:
    """Return the scores of cells with their `group`, one of GROUPS."""
    scores = scores_of(cells).assign(group=OTHER)
    scores.loc[scores["pirated"].astype(bool), "group"] = STOLEN
    scores.loc[scores["family"] == FAMILY, "group"] = SAME
    return scores


def _by_group(scores: DataFrame) -> dict[str, list[float]]:
    return {group: scores.loc[scores["group"] == group, "score"].to_list() for group in GROUPS}


def _rows(cells: Sequence[Cell]) -> DataFrame:
    """Return the measures of each method over its seeds: method, measure, mean, low, high."""
    import pandas as pd

    long = [
        {"method": cell.label, "measure": name, "value": value}
        for cell in cells
        for name, value in _measures(_grouped([cell])).items()
    ]
    return over_seeds(pd.DataFrame(long), ["method", "measure"], "value")


def _measures(scores: DataFrame) -> dict[str, float]:
    """Return what the scores of one run say, by the heading of its column; of a run without a query, AUCs alone."""
    stolen, other, same = _by_group(scores).values()
    alone = scores[trained_alone(scores)]
    pairs = alone.merge(scores[scores["group"] == SAME], on="arch")
    judged = _by_group(scores.fillna({"score": 0.0}))
    return {
        "scratch B": pairs["score_x"].mean(),
        "scratch A": pairs["score_y"].mean(),
        "max B": max(other),
        "max A": max(same),
        "min stolen": min(stolen),
        "AUC B": metrics.auc(judged[STOLEN], judged[OTHER]),
        "AUC A": metrics.auc(judged[STOLEN], judged[SAME]),
    }


def _table(rows: DataFrame) -> DataFrame:
    texts = rows.assign(text=tables.estimates(rows, "mean", "low", "high"))
    wide = texts.pivot(index="method", columns="measure", values="text")
    wide = wide.loc[rows["method"].unique(), rows["measure"].unique()]
    return wide.rename_axis(columns=None).reset_index().fillna(tables.NOTHING)
