"""Table 1 of FreqGAN's paper: the AUC of each kind of theft, and the area of the polygon that they span."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from experiments.common import SHORT, aucs, over_seeds, queries_of, trained_alone
from fingerbench.evaluate import metrics, tables
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment

if TYPE_CHECKING:
    from pandas import DataFrame

# Liu and Zhong, IJCAI 2025, table 1, CIFAR-10, for those of our methods that it has.
PAPER = {
    "ipguard": {"FT": 1.00, "WP": 1.00, "MEP": 0.60, "AVG": 0.78},
    "metafinger": {"FT": 1.00, "WP": 1.00, "MEP": 0.84, "AVG": 0.89},
    "freqgan": {"FT": 1.00, "WP": 1.00, "MEP": 0.98, "AVG": 0.93},
}
OURS = {"FT": "FT", "WP": "WP", "MEP": "distill", "AVG": "mean"}  # a column of the paper -> our axis
SAID = (
    "AUC of the positives of a family: fine-tuning (FT), pruning of weights (WP), noise on "
    "weights (WN), adversarial training (AT), distillation, knockoff; ABP: area of their polygon, 2.598 at most; of "
    "several seeds the mean, whose range is in the csv."
)
BESIDE = (
    "In the code of the paper's authors the source is a VGG16, a theft has some 20 models, WP removes channels, 200 "
    "queries are sent, thieves distil on the other half of the data, ours on the victim's own, and the negatives are "
    "20 models of four architectures; there are no mirrors. So ours are here against "
    "independent models from scratch and the mirror of the source alone; FT is FTLL and FTAL; and MEP, distillation "
    "by probabilities, is onto those of the four architectures that this zoo has. AVG is the paper's mean over six "
    "thefts. Three of those, MEL, MEA and TL, have no counterpart in this zoo, and three families of ours none there, "
    "so that AVG and our mean are of different thefts; so are our ABP and that of the paper's rows, 1.62 for IPGuard, "
    "2.04 for MetaFinger and 2.22 for FreqGAN. MEL, MEA and TL: 0.55, 0.52 and 1.00 for IPGuard; 1.00, 0.99 and 0.48 "
    "for MetaFinger, whose row equals that of Tiny-ImageNet in all six, an error of copying perhaps; 0.89, 0.68 and "
    "1.00 for FreqGAN."
)
VARIANTS = {"distill": ("vgg13_bn", "resnet18", "densenet121", "mobilenetv2"), "finetune": ("FTLL", "FTAL")}  # there


def as_in_paper(scores: DataFrame) -> DataFrame:
    """Return the scores of one run but for negatives, and VARIANTS of a family, that the paper does not have."""
    positive = scores["pirated"].astype(bool)
    for family, variants in VARIANTS.items():
        positive &= (scores["family"] != family) | scores["variant"].isin(variants)
    return scores[positive | trained_alone(scores)]


def means(values: Mapping[str, float]) -> dict[str, float]:
    """Return `aucs` with their mean and, if all six are there, their ABP."""
    each = list(values.values())
    area = {"ABP": metrics.abp(each)} if len(each) == len(metrics.AXES) else {}
    return {**values, **({"mean": float(np.mean(each))} if each else {}), **area}


@dataclass(frozen=True)
class Table1(Experiment):
    """A row a method: AUC of each family, their mean and ABP; and what the paper prints for the same kind of theft."""

    paper: ClassVar[str] = "FreqGAN, table 1"
    title: ClassVar[str] = "AUC by kind of theft"

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return the table of ours and, for methods that the paper has, ours beside the paper's."""
        rows = _rows(cells)
        table = rows.pivot(index="method", columns="theft", values="mean")
        table = table.loc[rows["method"].unique(), rows["theft"].unique()].rename_axis(columns=None).reset_index()
        said = f"{SAID} {queries_of(cells)}"
        against = f"Against all negatives. {said} {caption(cells, queries=False)}"
        exhibits = [Exhibit("freqgan_table1", against, table=table, data=rows)]
        beside = _beside(_rows(cells, as_in_paper))
        if len(beside):
            about = caption(cells, paper=True, queries=False)
            text = f"{BESIDE} {_counted(as_in_paper(cells[0].scores))} {said} {about}"
            exhibits.append(Exhibit("freqgan_table1_paper", text, table=beside))
        return exhibits


def _rows(cells: Sequence[Cell], chosen: Callable[[DataFrame], DataFrame] = lambda scores: scores) -> DataFrame:
    """Return the AUCs over the seeds, by method and theft, from the `chosen` scores of each cell."""
    import pandas as pd

    long = [
        {"method": cell.label, "seed": cell.bench.settings.seed, "theft": name, "auc": value}
        for cell in cells
        for name, value in means(aucs(chosen(cell.scores))).items()
    ]
    return over_seeds(pd.DataFrame(long, columns=["method", "seed", "theft", "auc"]), ["method", "theft"], "auc")


def _counted(scores: DataFrame) -> str:
    """Return how many suspects the numbers beside the paper's are of."""
    positive, negative = scores[scores["pirated"].astype(bool)], scores[~scores["pirated"].astype(bool)]
    there = [family for family in metrics.AXES if family in set(positive["family"])]
    counts = ", ".join(f"{SHORT[family]} {(positive['family'] == family).sum()}" for family in there)
    return f"Here: {counts}, against {len(negative)} negatives."


def _beside(rows: DataFrame) -> DataFrame:
    """Return a row for each number of the paper whose counterpart is in `rows`."""
    import pandas as pd

    ours = {
        (row.method, row.theft): tables.estimate(row.mean, row.low, row.high)
        for row in rows.dropna(subset="mean").itertuples()
    }
    pairs = [(method, column) for method in rows["method"].unique() for column in PAPER.get(method, {})]
    return pd.DataFrame(
        [
            {
                "method": m,
                "theft": column,
                "axis": OURS[column],
                "ours": ours[m, OURS[column]],
                "paper": PAPER[m][column],
            }
            for m, column in pairs
            if (m, OURS[column]) in ours
        ]
    )
