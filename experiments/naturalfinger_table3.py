"""Ablation: NaturalFinger with every combination of its three tricks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from experiments.common import averaged
from fingerbench.evaluate import tables
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.evaluate.report import comparison

if TYPE_CHECKING:
    from pandas import DataFrame

TRICKS = {
    "method.adversarial_labels": "adversarial labels",
    "method.input_transforms": "input transforms",
    "method.discriminator_loss": "discriminator loss",
}
# ARUC in table 3 of NaturalFinger (Yang et al. 2023), in its order; without error bars.
PAPER: dict[tuple[bool, ...], float] = {
    (False, False, False): 0.79,
    (True, False, False): 0.84,
    (False, True, False): 0.86,
    (False, False, True): 0.80,
    (True, True, False): 0.87,
    (True, False, True): 0.86,
    (False, True, True): 0.86,
    (True, True, True): 0.91,
}


@dataclass(frozen=True)
class Table3(Experiment):
    """One row a combination: which tricks, ARUC ours and the paper's, queries."""

    paper: ClassVar[str] = "NaturalFinger, table 3"
    title: ClassVar[str] = "ablation of its three tricks"
    closed: ClassVar[bool] = True

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return the table, without the combinations that are not there."""
        import pandas as pd

        groups: dict[tuple[bool, ...], list[Cell]] = {}
        for cell in cells:
            groups.setdefault(tuple(cell.settings[key] for key in TRICKS), []).append(cell)
        there = {tricks: groups[tricks] for tricks in PAPER if tricks in groups}
        runs = {tricks: comparison([cell.run for cell in group]) for tricks, group in there.items()}
        said = (
            f"{caption(cells, paper=True)} x: with the trick. ARUCs are {averaged(cells)}, in brackets the 95 % "
            "bootstrap interval over suspects; queries: the range over the seeds."
        )
        marked = [run.assign(**dict(zip(TRICKS.values(), tricks, strict=True))) for tricks, run in runs.items()]
        table = pd.DataFrame([_row(tricks, run, there[tricks]) for tricks, run in runs.items()])
        return [Exhibit("ablation", said, table=table, data=pd.concat(marked))]


def _row(tricks: tuple[bool, ...], runs: DataFrame, cells: Sequence[Cell]) -> dict[str, object]:
    last = runs.iloc[-1]  # the mean over seeds, or the only one
    return {
        **{name: "x" if on else tables.NOTHING for name, on in zip(TRICKS.values(), tricks, strict=True)},
        "ARUC": tables.estimate(last["aruc"], last["aruc_low"], last["aruc_high"]),
        "paper": f"{PAPER[tricks]:.2f}",
        "queries": tables.range_of(cell.run.row["queries"] for cell in cells),
    }
