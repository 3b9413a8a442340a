"""What several experiments share: cells by method, and quantities of single models over the seeds of a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fingerbench.evaluate import metrics, tables
from fingerbench.evaluate.experiment import Cell
from fingerbench.evaluate.panels import Panel
from fingerbench.zoo.table import MIRROR, SOURCE

if TYPE_CHECKING:
    from pandas import DataFrame, Series

# Yang, Wang, Wang, IJCAI 2022, and its code.
METAFINGER = (
    "The paper's source on CIFAR-10 is a wide ResNet, WRN-16-6, ours the one that is named here; all its models see "
    "one training set, while ours that are independent of the source see the other half; its numbers are means over 3 "
    "models a setting, and we have one."
)

SHORT = {  # the axes of `metrics.abp`, as tables and figures call them
    "finetune": "FT",
    "prune": "WP",
    "noise": "WN",
    "adversarial": "AT",
    "distill": "distill",
    "knockoff": "knockoff",
}


def averaged(cells: Sequence[Cell]) -> str:
    """Return what numbers are that are averaged over the seeds, for a caption."""
    return "means over the seeds" if _several(cells) else "of one seed"


def spread(cells: Sequence[Cell]) -> str:
    """Return what the values are that `over_seeds` gives: means and ranges, where there are several seeds."""
    ranges = ", with their range as a band, a thin line or in brackets" if _several(cells) else ""
    return f"{averaged(cells)}{ranges}"


def _several(cells: Sequence[Cell]) -> bool:
    return len({cell.bench.settings.seed for cell in cells}) > 1


def by_label(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Return the cells of each label, one a seed, in the order of the grid."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.label, []).append(cell)
    return groups


def scores_of(cells: Sequence[Cell]) -> DataFrame:
    """Return the scores of all cells, one below the other; missing where a method found no query.

    They count as 0 where a method is judged; drawn as a score, 0 would say that suspects were asked.
    """
    import pandas as pd

    frame = pd.concat([cell.scores for cell in cells], ignore_index=True)
    return frame.assign(score=frame["score"].where(frame["queries"] > 0))


def queries_of(cells: Sequence[Cell]) -> str:
    """Return how many queries each method had, from the seed with the fewest to that with the most, for a caption."""
    texts = [f"{label} {tables.range_of(map(_queries, group))}" for label, group in by_label(cells).items()]
    return f"Queries: {', '.join(texts)}{'' if all(map(_queries, cells)) else f'; {tables.UNASKED}'}."


def _queries(cell: Cell) -> int:
    return int(cell.scores["queries"].iloc[0])


def aucs(scores: DataFrame) -> dict[str, float]:
    """Return the AUC of each axis of `metrics.abp` whose family is in the scores of one run, by its short name."""
    there = [family for family in metrics.AXES if family in set(scores["family"])]
    negative = metrics.sides(scores)[1]
    return {SHORT[f]: metrics.auc(metrics.sides(scores[scores["family"] == f])[0], negative) for f in there}


def trained_alone(scores: DataFrame) -> Series:
    """Tell which rows are of independent networks from random weights: `scratch`, and the mirror of the source."""
    return (scores["family"] == "scratch") | (scores["suspect"] == MIRROR + SOURCE)


def margins(cells: Sequence[Cell]) -> DataFrame:
    """Return a row for every cell and theft whose mirror is there: method (the label), seed, family, variant, margin.

    margin is in [-1, 1] and signed, see `metrics.margins`.
    """
    import pandas as pd

    frames = [metrics.margins(c.scores).assign(method=c.label, seed=c.bench.settings.seed) for c in cells]
    every = pd.concat(frames, ignore_index=True)[["method", "seed", "family", "variant", "margin"]]
    return every.dropna(subset=["margin"]).reset_index(drop=True)


def over_seeds(frame: DataFrame, by: Sequence[str], value: str) -> DataFrame:
    """Return the columns `by` and mean, low, high of `value` in each of their groups, in the order of `frame`.

    low, high: the range over the rows of a group, which are those of the seeds; missing where there is but one.
    """
    groups = frame.groupby(list(by), sort=False)[value]
    means = groups.agg(mean="mean", low="min", high="max", seeds="count").reset_index()
    means.loc[means["seeds"] < 2, ["low", "high"]] = np.nan
    return means.drop(columns="seeds")


def panel(means: DataFrame, x: str, series: str = "method", xlabel: str = "") -> Panel:
    """Return a panel of `over_seeds`: a group or point for each value of the column `x`, a line or bar for each series.

    Raises:
        ValueError: two rows have the same `x` and `series`.
    """
    places, names = means[x].unique(), means[series].unique()
    mean, low, high = (
        {name: wide[name].to_list() for name in names}
        for wide in (means.pivot(index=x, columns=series, values=v).reindex(places) for v in ("mean", "low", "high"))
    )
    return Panel(places.tolist(), mean, low, high, xlabel)


def side_by_side(means: DataFrame, rows: Sequence[str]) -> DataFrame:
    """Return `over_seeds` as a table shows it: a row for each value of the columns `rows`, a column for each method."""
    texts = tables.estimates(means, "mean", "low", "high")
    wide = means.assign(text=texts).pivot(index=list(rows), columns="method", values="text").reset_index()
    ordered = means[list(rows)].drop_duplicates().merge(wide, on=list(rows))
    return ordered[[*rows, *means["method"].unique()]].fillna(tables.NOTHING)
