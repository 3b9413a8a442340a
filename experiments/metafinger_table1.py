"""MetaFinger's table 1: how often models that have nothing to do with the source answer as it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from experiments.common import METAFINGER, by_label, over_seeds, queries_of, scores_of, spread, trained_alone
from fingerbench.errors import require
from fingerbench.evaluate import tables
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment

if TYPE_CHECKING:
    from pandas import DataFrame

ARCHITECTURES = {  # of the paper, and that of ours which comes nearest
    "ResNet": "resnet18",
    "VGG": "vgg19_bn",
    "InceptionV3": "inceptionv3",
    "DenseNet": "densenet121",
}
# Yang, Wang, Wang, IJCAI 2022, table 1, CIFAR-10: query accuracy in %, in the order of ARCHITECTURES.
PAPER = {
    "metafinger": (4.00, 4.67, 12.33, 4.00),
    "ipguard": (13.00, 0.67, 0.67, 5.00),
}
WATERMARKS = {  # of the same table; no method of this benchmark
    "Adi (scratch)": (12.67, 10.67, 11.00, 9.67),
    "Adi (pretrained)": (12.33, 12.00, 10.33, 10.67),
    "Jia (pretrained)": (0.33, 0.00, 0.00, 0.33),
}


@dataclass(frozen=True)
class Table1(Experiment):
    """A row a method and architecture, ours beside the paper's, in per cent."""

    paper: ClassVar[str] = "MetaFinger, table 1"
    title: ClassVar[str] = "query accuracy on independent models, in %"

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return the table."""
        rows = _rows(cells)
        names = list(ARCHITECTURES)
        wanted = f"independent networks of some of {', '.join(ARCHITECTURES.values())}"
        require(len(rows) > 0, "zoo.architectures, attack", wanted, "none of them")
        pairs = zip(rows["method"], rows["architecture"], strict=True)
        printed = [PAPER[m][names.index(a)] if m in PAPER else None for m, a in pairs]
        rows["paper"] = printed
        ours = tables.estimates(rows, "mean", "low", "high")
        table = rows[["method", "architecture", "suspect"]].assign(ours=ours, paper=printed)
        others = "; ".join(f"{name} {', '.join(f'{v:.2f}' for v in values)}" for name, values in WATERMARKS.items())
        said = (
            "Per cent of queries to which an independent model answers what the source does; less is better. A "
            "seed without a query has no value. "
            f"{spread(cells).capitalize()}; the seeds are the method's. {METAFINGER} The paper's watermarks, not in "
            f"this benchmark, in the order {', '.join(names)}: {others}. {queries_of(cells)} "
            f"{caption(cells, paper=True, queries=False)}"
        )
        return [Exhibit("metafinger_table1", said, table=table, data=rows)]


def _rows(cells: Sequence[Cell]) -> DataFrame:
    """Return the means over seeds in per cent, method by method, the architectures in the order of the paper."""
    import pandas as pd

    frame = scores_of(cells)
    frame = frame[trained_alone(frame)].assign(percent=100 * frame["score"])
    found = (frame[frame["arch"] == arch].assign(architecture=name) for name, arch in ARCHITECTURES.items())
    rows = over_seeds(pd.concat(found), ["method", "architecture", "suspect"], "percent")
    methods = list(by_label(cells))
    return rows.sort_values("method", key=lambda names: names.map(methods.index), kind="stable", ignore_index=True)
