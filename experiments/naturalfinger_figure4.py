"""Robustness and uniqueness of four methods against the threshold, and the area that both share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from experiments.common import averaged, by_label, queries_of
from fingerbench.evaluate import tables
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.curves import aruc_panels, curve_points
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.evaluate.report import comparison, summaries

# ARUC in the text of NaturalFinger (Yang et al. 2023), that of MetaV as 0.1330 below; the others are only drawn, lower.
PAPER = {"naturalfinger": "0.9112", "metav": "0.7782", "metafinger": "< 0.7782", "ipguard": "< 0.7782"}


@dataclass(frozen=True)
class Figure4(Experiment):
    """One panel a method, and the ARUC of each beside the paper's."""

    paper: ClassVar[str] = "NaturalFinger, figure 4"
    title: ClassVar[str] = "robustness and uniqueness against the threshold"

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return the curves and the table of ARUCs."""
        runs = comparison([cell.run for cell in cells])
        best = summaries(runs)
        table = best[["method"]].copy()
        table["ARUC"] = tables.estimates(best, "aruc", "aruc_low", "aruc_high")
        table["paper"] = [PAPER.get(method, tables.NOTHING) for method in best["method"]]
        table["separating"] = tables.separating(best)
        table["AUC"] = best["auc"]
        curves = (
            f"{caption(cells, queries=False)} {queries_of(cells)} Curves and areas are {averaged(cells)}; a "
            "suspect is accused if its score is at least t; robustness is the share of positives accused, uniqueness "
            "that of negatives not accused."
        )
        numbers = (
            f"{caption(cells, paper=True, queries=False)} {queries_of(cells)} ARUC and AUC are {averaged(cells)}, "
            "in brackets the 95 % bootstrap interval of ARUC over suspects; separating: the thresholds that make no "
            "error under any seed."
        )
        frames = {label: [cell.scores for cell in group] for label, group in by_label(cells).items()}
        return [
            Exhibit("curves", curves, figure=aruc_panels(frames, curves), data=curve_points(frames)),
            Exhibit("aruc", numbers, table=table, data=runs),
        ]
