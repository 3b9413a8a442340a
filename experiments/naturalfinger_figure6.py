"""Modified thefts: margins of four methods after pruning, noise on the weights and fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from experiments.common import margins, over_seeds, panel, queries_of, side_by_side, spread
from fingerbench.errors import require
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.evaluate.panels import bar_panels, line_panels

LINES = {
    "prune": ("pruning", "share of weights removed"),
    "noise": ("noise on the weights", "a; noise of std(layer) / a, strongest at 1"),
}
BARS = {"finetune": ("fine-tuning", "last or all layers (L), re-initialised (R) or not (F)")}

PAPER = (  # the text on figure 6 of NaturalFinger (Yang et al. 2023)
    "In the paper margins decline with the share removed, NaturalFinger's and MetaV's from about 0.90 at up to 0.7; "
    "under noise of a = 1 only NaturalFinger's exceeds 0.75; after fine-tuning all but MetaFinger's exceed 0.95."
)


@dataclass(frozen=True)
class Figure6(Experiment):
    """Margins against the strength of pruning and noise as lines, of each mode of fine-tuning as bars; one table."""

    paper: ClassVar[str] = "NaturalFinger, figure 6"
    title: ClassVar[str] = "matching-rate margin after pruning, noise and fine-tuning"

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return the figures of those families that there are, and the table."""
        frame = margins(cells)
        frame = frame[frame["family"].isin([*LINES, *BARS])]
        require(not frame.empty, "attack", "some of prune, noise and finetune", "none of them")
        means = over_seeds(frame, ["method", "family", "variant"], "margin")
        said = (
            f"{caption(cells, paper=True, queries=False)} {queries_of(cells)} {PAPER} Margins, the score of the "
            f"stolen model minus that of its mirror, are {spread(cells)}."
        )
        families = dict(list(means.groupby("family", sort=False)))
        lines = {
            title: panel(families[family].astype({"variant": float}), "variant", xlabel=xlabel)
            for family, (title, xlabel) in LINES.items()
            if family in families
        }
        bars = {
            title: panel(families[family], "variant", xlabel=xlabel)
            for family, (title, xlabel) in BARS.items()
            if family in families
        }
        table = side_by_side(means, ["family", "variant"])
        exhibits = [Exhibit("margins", said, table=table, data=means)]
        if lines:
            exhibits.append(Exhibit("strengths", said, figure=line_panels(lines, "margin", said, limits=None)))
        if bars:
            exhibits.append(Exhibit("finetuning", said, figure=bar_panels(bars, "margin", said)))
        return exhibits
