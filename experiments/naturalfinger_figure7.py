"""Extraction: margins of four methods on students of every architecture, those seen in surrogates and those not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from experiments.common import margins, over_seeds, panel, queries_of, side_by_side, spread
from fingerbench.errors import require
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.evaluate.panels import bar_panels

if TYPE_CHECKING:
    from pandas import DataFrame

TITLES = {"distill": "distillation", "knockoff": "knockoff"}  # the latter in the paper's supplement
MEAN = "mean"

PAPER = (  # the text on figure 7 of NaturalFinger (Yang et al. 2023) and on its supplement
    "In the paper NaturalFinger's margins exceed 0.70 on all 15 architectures after either attack, and are about 1.00 "
    "after distillation on SE-ResNet18, VGG19_BN and Xception."
)


@dataclass(frozen=True)
class Figure7(Experiment):
    """Margins by architecture of the student, as bars and in a table with means over seen and unseen ones."""

    paper: ClassVar[str] = "NaturalFinger, figure 7"
    title: ClassVar[str] = "matching-rate margin after extraction, by architecture"

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return the bars and the table, of those families that there are."""
        frame = margins(cells)
        frame = frame[frame["family"].isin(TITLES)]
        require(not frame.empty, "attack", "some of distill and knockoff", "none of them")
        seen = _seen(cells)
        marked = frame.assign(unseen=["no" if name in seen else "yes" for name in frame["variant"]])
        means = over_seeds(_with_means(marked), ["method", "family", "variant", "unseen"], "margin")
        means = means.rename(columns={"variant": "architecture"})
        single = means[means["architecture"] != MEAN]
        panels = {TITLES[family]: panel(part, "architecture") for family, part in single.groupby("family", sort=False)}
        said = (
            f"{caption(cells, paper=True, queries=False)} {queries_of(cells)} {PAPER} Margins, the score of the "
            f"source's student minus that of the mirror's, are {spread(cells)}."
        )
        unseen = (
            f"{said} Unseen: neither the source nor a surrogate that a method learned from is of this architecture "
            f"({', '.join(seen)} are seen); mean: over all seen or all unseen ones."
        )
        return [
            Exhibit("margins", said, figure=bar_panels(panels, "margin", said)),
            Exhibit("table", unseen, table=side_by_side(means, ["family", "architecture", "unseen"]), data=means),
        ]


def _seen(cells: Sequence[Cell]) -> list[str]:
    """Return the architectures that a fingerprint of any cell was made from, sorted."""
    specs = [cell.bench.fingerprint_spec for cell in cells]
    models = (model for spec in specs for model in (spec.source, *spec.positives, *spec.negatives))
    return sorted({model.architecture for model in models})


def _with_means(margins: DataFrame) -> DataFrame:
    """Add, below each family, the means over its seen and unseen architectures, for every method and seed."""
    import pandas as pd

    keys = ["method", "seed", "family", "unseen"]
    blocks = []
    for _, block in margins.groupby("family", sort=False):
        blocks += [block, block.groupby(keys, sort=False)["margin"].mean().reset_index().assign(variant=MEAN)]
    return pd.concat(blocks, ignore_index=True)
