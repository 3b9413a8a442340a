"""MetaFinger's figure 3: how many queries a stolen model still answers as the source does after a modification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from experiments.common import METAFINGER, over_seeds, panel, queries_of, scores_of, side_by_side, spread
from fingerbench.evaluate import plots, tables
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.evaluate.panels import bar_panels, line_panels

if TYPE_CHECKING:
    from pandas import DataFrame

STRONGEST = "strongest noise"
# Yang, Wang, Wang, IJCAI 2022. Abstract: the mean over all modifications; text on figure 3: the others are read there.
PAPER = {
    "metafinger": {"finetune": "> 0.95", "prune": "> 0.95", STRONGEST: "about 0.95", "all": "0.9934"},
    "ipguard": {"finetune": "about 1.00 in the last layer", "prune": "declines", STRONGEST: "< 0.60"},
}
PRUNED_AT_MOST = 0.7  # in the paper; the zoo goes on to 0.9
LINES = {"prune": "share of weights removed", "noise": "a: noise of std(layer) / a"}
TITLES = {"finetune": "fine-tuning", "prune": "pruning", "noise": "noising"}


@dataclass(frozen=True)
class Figure3(Experiment):
    """Bars of four ways of fine-tuning; lines over the strength of pruning and of noising."""

    paper: ClassVar[str] = "MetaFinger, figure 3"
    title: ClassVar[str] = "query accuracy under modifications of the model"

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return the bars, the lines and a table of the means by family."""
        frame = scores_of(cells)
        stolen = frame[frame["pirated"] & frame["family"].isin(TITLES)]
        rows = over_seeds(stolen, ["family", "variant", "method"], "score")
        said = (
            f"Share of queries to which a stolen model answers what the source does: {spread(cells)}; none "
            "of a seed without a query. "
            f"{queries_of(cells)} The watermarks of the paper's figure are not in this benchmark. "
            f"{METAFINGER} {caption(cells, paper=True, queries=False)}"
        )
        bars, lines = rows[rows["family"] == "finetune"], rows[rows["family"].isin(LINES)]
        drawn = []
        if len(bars):
            figure = bar_panels({TITLES["finetune"]: panel(bars, "variant")}, "query accuracy", said)
            drawn.append(Exhibit("metafinger_figure3_finetune", said, figure=figure, data=bars))
        if len(lines):
            drawn.append(_lines(lines, said))
        return [*drawn, _table(stolen, said)]


def _lines(rows: DataFrame, said: str) -> Exhibit:
    rows = rows.assign(strength=rows["variant"].astype(float))
    families = [family for family in LINES if family in set(rows["family"])]
    panels = {TITLES[f]: panel(rows[rows["family"] == f], "strength", xlabel=LINES[f]) for f in families}
    said = f"A line is a method; the smaller a, the more noise. {said}"
    if rows.loc[rows["family"] == "prune", "strength"].max() > PRUNED_AT_MOST:
        said = f"The paper prunes {100 * PRUNED_AT_MOST:.0f} % at most, which the dashed line marks. {said}"
    figure = line_panels(panels, "query accuracy", said, limits=(0, 1.03))
    if TITLES["prune"] in panels:
        figure.axes[0].axvline(PRUNED_AT_MOST, color=plots.INK, linewidth=0.8, dashes=(3, 2))
    return Exhibit("metafinger_figure3_lines", said, figure=figure, data=rows)


def _table(stolen: DataFrame, said: str) -> Exhibit:
    """Return the means over what the paper has: pruning to 70 %; of noise, beside the strongest, all as well."""
    import pandas as pd

    stolen = stolen.assign(strength=pd.to_numeric(stolen["variant"], errors="coerce"))  # none of fine-tuning
    had = stolen[(stolen["family"] != "prune") | (stolen["strength"] <= PRUNED_AT_MOST)]
    noised = had[had["family"] == "noise"]
    strongest = noised[noised["strength"] == noised["strength"].min()]
    every = pd.concat([had, strongest.assign(family=STRONGEST), had.assign(family="all")])
    each = every.groupby(["family", "method", "seed"], sort=False, as_index=False)["score"].mean()
    rows = over_seeds(each, ["family", "method"], "score")
    table = side_by_side(rows, ["family"])
    for method in [name for name in PAPER if name in table]:
        table[f"{method}, paper"] = [PAPER[method].get(family, tables.NOTHING) for family in table["family"]]
    said = f"Mean over each family, as in the paper with pruning to {100 * PRUNED_AT_MOST:.0f} % at most. {said}"
    return Exhibit("metafinger_figure3", said, table=table, data=rows)
