"""How far does a result hang on the one zoo? Every method on several, in each of which all networks are made anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fingerbench.errors import require
from fingerbench.evaluate import metrics, tables
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.curves import comparison_figure
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment

if TYPE_CHECKING:
    from pandas import DataFrame

MEASURES = {"aruc": "ARUC", "auc": "AUC", "tpr_at_5fpr": "TPR at 5 % FPR"}
RANKS = {"rank_by_aruc": "rank by ARUC", "rank_by_auc": "rank by AUC"}
SAID = "source, thefts, independent networks, surrogates and GAN are made anew in each, on the same halves of the data."


@dataclass(frozen=True)
class AcrossZoos(Experiment):
    """A row a method: its measures and ranks over zoos that differ in nothing but `zoo.seed`, and bars of them."""

    paper: ClassVar[str] = "Beyond the papers"
    title: ClassVar[str] = "the same on several zoos"
    axes: ClassVar[tuple[str, ...]] = ("zoo.seed",)

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return the table and the bars."""
        values = _values(cells)
        families = ", ".join(cells[0].bench.settings.attack)
        require(bool(values["aruc"].notna().all()), "attack", "thefts and independent networks", families)
        means = _means(values)
        said = f"{caption(cells)} Zoos of seeds {', '.join(map(str, sorted(set(values['zoo']))))}: {SAID}"
        text = f"{said} Means over zoos, in brackets the lowest and the highest; rank: place among the methods in one."
        several = values["zoo"].nunique() > 1
        legend = "Bars: means over zoos; lines: the range; dots: zoos." if several else "Bars: the one zoo."
        return [
            Exhibit("across_zoos", text, table=_table(means), data=values),
            Exhibit("across_zoos_bars", f"{said} {legend}", figure=comparison_figure(means, values, said, legend)),
        ]


def _values(cells: Sequence[Cell]) -> DataFrame:
    """Return a row for each method and zoo, with the keys of MEASURES and RANKS: means over the seeds of the method."""
    import pandas as pd

    runs = pd.DataFrame(map(_measured, cells))
    values = runs.groupby(["method", "zoo"], sort=False).mean().reset_index()
    for name in RANKS:
        of = values.groupby("zoo")[name.removeprefix("rank_by_")]
        values[name] = of.rank(method="min", ascending=False).astype("Int64")  # none where there is nothing to rank
    return values


def _measured(cell: Cell) -> dict[str, object]:
    positive, negative = metrics.sides(cell.scores)
    return {
        "method": cell.label,
        "zoo": cell.bench.settings.zoo.seed,
        "aruc": metrics.aruc(positive, negative),
        "auc": metrics.auc(positive, negative),
        "tpr_at_5fpr": metrics.tpr_at_fpr(positive, negative, 0.05),
    }


def _means(values: DataFrame) -> DataFrame:
    """Return the row of each method, the best mean ARUC first: each measure, its _low and _high, ranks as texts."""
    groups = values.groupby("method")
    means = groups[[*MEASURES]].mean()
    several = groups.size() > 1  # else there is no range
    for name in MEASURES:
        means[f"{name}_low"] = groups[name].min().where(several)
        means[f"{name}_high"] = groups[name].max().where(several)
    for name in RANKS:
        means[name] = groups[name].agg(tables.range_of)
    return means.sort_values("aruc", ascending=False, kind="stable").reset_index()


def _table(means: DataFrame) -> DataFrame:
    shown = means[["method"]].copy()
    for name, heading in MEASURES.items():
        shown[heading] = tables.estimates(means, name, f"{name}_low", f"{name}_high")
    return shown.assign(**{heading: means[name] for name, heading in RANKS.items()})
