"""Table 1 of FreqGAN's paper: the AUC of each kind of theft, and the area of the polygon that they span."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from experiments.common import over_seeds, queries_of
from fingerbench.evaluate import metrics
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment, caption

if TYPE_CHECKING:
    from pandas import DataFrame

SHORT = {  # the axes of `metrics.abp`, as tables and figures call them
    "finetune": "FT",
    "prune": "WP",
    "noise": "WN",
    "adversarial": "AT",
    "distill": "distill",
    "knockoff": "knockoff",
}
# Liu and Zhong, IJCAI 2025, table 1, CIFAR-10, for those of our methods that it has.
PAPER = {
    "ipguard": {"FT": 1.00, "WP": 1.00, "MEP": 0.60, "AVG": 0.78},
    "metafinger": {"FT": 1.00, "WP": 1.00, "MEP": 0.84, "AVG": 0.89},
    "freqgan": {"FT": 1.00, "WP": 1.00, "MEP": 0.98, "AVG": 0.93},
}
COLUMNS = ("FT", "WP", "MEP", "AVG")
SAID = (
    "AUC of the positives of a family against all negatives: fine-tuning (FT), pruning of weights (WP), noise on "
    "weights (WN), adversarial training (AT), distillation, knockoff; ABP: area of their polygon, 2.598 at most; means "
    "over the seeds, whose range is in the csv. The paper's: FT, WP (of channels there), MEP (distillation by "
    "probabilities) and AVG, its mean over six thefts of which three, MEL, MEA and TL, have no counterpart in this "
    "zoo, so that AVG is no mean of ours."
)


def aucs(scores: DataFrame) -> dict[str, float]:
    """Return the AUC of each axis of `metrics.abp` whose family is in the scores of one run, by its short name."""
    there = [family for family in metrics.AXES if family in set(scores["family"])]
    return {SHORT[family]: metrics.family_summary(scores, family)["auc"] or np.nan for family in there}


def means(values: Mapping[str, float]) -> dict[str, float]:
    """Return `aucs` with their mean and, if all six are there, their ABP."""
    each = list(values.values())
    area = {"ABP": metrics.abp(each)} if len(each) == len(metrics.AXES) else {}
    return {**values, **({"mean": float(np.mean(each))} if each else {}), **area}


@dataclass(frozen=True)
class Table1(Experiment):
    """A row a method: AUC of each family, their mean and ABP, and what the paper prints for the same kind of theft."""

    paper: ClassVar[str] = "FreqGAN, table 1"
    title: ClassVar[str] = "AUC by kind of theft"

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return the table; its data have a row a method and column."""
        import pandas as pd

        long = pd.DataFrame([row for cell in cells for row in _rows(cell)])
        rows = over_seeds(long, ["method", "theft"], "auc")
        table = rows.pivot(index="method", columns="theft", values="mean")
        table = table.loc[rows["method"].unique(), rows["theft"].unique()].rename_axis(columns=None).reset_index()
        for column in COLUMNS:
            table[f"paper {column}"] = [PAPER.get(name, {}).get(column) for name in table["method"]]
        said = f"{SAID} {queries_of(cells)} {caption(cells, paper=True)}"
        return [Exhibit("freqgan_table1", said, table=table, data=rows)]


def _rows(cell: Cell) -> list[dict[str, Any]]:
    shared = {"method": cell.label, "seed": cell.bench.settings.seed}
    return [{**shared, "theft": name, "auc": value} for name, value in means(aucs(cell.scores)).items()]
