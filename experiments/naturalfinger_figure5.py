"""Adversarial training: how a thief who fine-tunes with adversarial examples moves the scores of four methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from experiments.common import by_label, over_seeds, panel, queries_of, scores_of, spread
from fingerbench.errors import require
from fingerbench.evaluate import plots
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.evaluate.panels import Panel, line_panels

if TYPE_CHECKING:
    from pandas import DataFrame

SIDES = {True: "positive", False: "mirror"}

PAPER = (  # the text on figure 5 of NaturalFinger (Yang et al. 2023)
    "In the paper the positives of MetaV and IPGuard fall to about 0, those of NaturalFinger and MetaFinger fall a "
    "little, and their mirrors rise a little."
)


@dataclass(frozen=True)
class Figure5(Experiment):
    """One panel a method: the scores of the source and of its mirror, the more adversarial examples they learn from."""

    paper: ClassVar[str] = "NaturalFinger, figure 5"
    title: ClassVar[str] = "matching rate after adversarial training"

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return the curves, with their numbers."""
        scores = _scores(cells)
        require(not scores.empty, "attack", "some of source and adversarial", "none of them")
        means = over_seeds(scores, ["method", "side", "share"], "score")
        panels = {label: _panel(label, means, scores) for label in by_label(cells)}
        said = (
            f"{caption(cells, paper=True, queries=False)} {queries_of(cells)} {PAPER} Scores are {spread(cells)}; none "
            "of a seed without a query. "
            "Share: of the images fine-tuned with, those whose adversarial examples were added, at 0 the source and "
            "its mirror, unattacked. Dashed: the lowest positive and, in the colour of the mirrors, the highest "
            "mirror here under any seed."
        )
        figure = line_panels(panels, "score", said, limits=(-0.03, 1.03))
        return [Exhibit("scores", said, figure=figure, data=means)]


def _scores(cells: Sequence[Cell]) -> DataFrame:
    """Return method, seed, side, share, score of the unattacked and the adversarially trained pairs."""
    frame = scores_of(cells)
    frame = frame[frame["family"].isin(["source", "adversarial"])]
    shares = frame["variant"].where(frame["family"] == "adversarial", "0").astype(float)
    sides = frame["pirated"].map(SIDES)
    return frame.assign(share=shares, side=sides)[["method", "seed", "side", "share", "score"]].sort_values(
        "share", kind="stable"
    )


def _panel(method: str, means: DataFrame, scores: DataFrame) -> Panel:
    drawn = panel(means[means["method"] == method], "share", "side", "share of adversarial examples")
    own = scores[scores["method"] == method].groupby("side")["score"]
    across = {"positive": own.min()["positive"], "mirror": own.max()["mirror"]}
    return replace(drawn, across=across, colours={"positive": plots.colour(method), "mirror": plots.INK})
