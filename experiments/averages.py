"""Means over seeds, with the range of the seeds, as tables and as the panels of figures: shared by several recipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fingerbench.evaluate.experiment import Cell
from fingerbench.evaluate.plots import Panel
from fingerbench.evaluate.tables import estimate

if TYPE_CHECKING:
    from pandas import DataFrame, Series


def scores_of(cells: Sequence[Cell]) -> DataFrame:
    """Return the scores of all cells, one below the other."""
    import pandas as pd

    return pd.concat([cell.scores for cell in cells], ignore_index=True)


def over_seeds(frame: DataFrame, by: Sequence[str], value: str = "score") -> DataFrame:
    """Return one row for each combination of the columns `by`, in the order of `frame`.

    Columns: `by`, mean, low, high, queries: the mean of `value` over all rows of a seed, of that the mean over seeds,
    its least and its greatest, missing where there is but one seed; and the mean number of queries.
    """
    each = frame.groupby([*by, "seed"], sort=False, dropna=False)[[value, "queries"]].mean()
    rows = each.groupby(list(by), sort=False, dropna=False)
    table = rows.agg(mean=(value, "mean"), low=(value, "min"), high=(value, "max"), queries=("queries", "mean"))
    table.loc[rows.size() == 1, ["low", "high"]] = np.nan
    return table.reset_index()


def ranged(cells: Sequence[Cell]) -> str:
    """Return what a caption says of the mean, low and high of `over_seeds`."""
    seeds = {cell.bench.settings.seed for cell in cells}
    return "Means over the seeds, with their range." if len(seeds) > 1 else "One seed."


def panel(rows: DataFrame, x: str, xlabel: str = "", series: str = "method") -> Panel:
    """Return the rows of `over_seeds` as a panel: a series for each value of one column, against another, `x`."""

    def wide(value: str) -> dict[str, Sequence[float]]:
        table = rows.pivot(index=x, columns=series, values=value)
        table = table.loc[rows[x].unique(), rows[series].unique()]
        return {str(name): column.tolist() for name, column in table.items()}

    return Panel(rows[x].unique().tolist(), wide("mean"), wide("low"), wide("high"), xlabel)


def shown(rows: DataFrame) -> list[str]:
    """Return mean and range of each row of `over_seeds` as a table shows them."""
    return [estimate(*ends) for ends in rows[["mean", "low", "high"]].to_numpy().tolist()]


def crossed(rows: DataFrame, down: str, across: str = "method") -> DataFrame:
    """Return the rows of `over_seeds` as a table to show: a row for each value of `down`, a column for `across`."""
    table = rows.assign(text=shown(rows)).pivot(index=down, columns=across, values="text")
    ordered = table.loc[rows[down].unique(), rows[across].unique()]
    return ordered.rename_axis(columns=None).reset_index()


def queries_of(rows: DataFrame, series: str = "method") -> str:
    """Return how many queries each method had, for a caption."""
    means: Series[float] = rows.groupby(series, sort=False)["queries"].mean()
    return "Queries: " + ", ".join(f"{name} {mean:.4g}" for name, mean in means.items()) + "."
