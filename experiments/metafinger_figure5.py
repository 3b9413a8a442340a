"""MetaFinger's figure 5: how many queries the stolen source still answers when a thief changes what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from experiments.common import METAFINGER, over_seeds, panel, queries_of, scores_of, side_by_side, spread
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.evaluate.panels import bar_panels

# Yang, Wang, Wang, IJCAI 2022, text on figure 5.
PAPER = {"metafinger": "> 0.80", "ipguard": "the lowest"}


@dataclass(frozen=True)
class Figure5(Experiment):
    """A group of bars for each modification of the input."""

    paper: ClassVar[str] = "MetaFinger, figure 5"
    title: ClassVar[str] = "query accuracy of the source under modifications of the input"
    axes: ClassVar[tuple[str, ...]] = ("evasion",)

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return the bars, and the table of the same numbers."""
        frame = scores_of(cells)
        source = frame[frame["suspect"] == "source"]
        rows = over_seeds(source, ["evasion", "method"], "score")
        rows["evasion"] = [name.replace("_", " ") for name in rows["evasion"]]
        said = (
            "Share of queries to which the source itself answers as the fingerprint says, although its input is "
            f"modified; what is random is drawn {_draws(cells)} times: {spread(cells)}; none of a seed without a "
            f"query. Resize pad has the sides of MetaFinger's training, not of its tests, and resizes back. "
            f"{queries_of(cells)} The watermarks of the paper's figure are not in this benchmark. "
            f"{METAFINGER} {caption(cells, paper=True, queries=False)}"
        )
        figure = bar_panels({"": panel(rows, "evasion")}, "query accuracy", said, limits=(0, 1.02))
        table = side_by_side(rows, ["evasion"])
        for method in [m for m in PAPER if m in table]:
            table[f"{method}, paper"] = PAPER[method]
        return [
            Exhibit("metafinger_figure5", said, figure=figure, data=rows),
            Exhibit("metafinger_figure5_table", said, table=table, data=rows),
        ]


def _draws(cells: Sequence[Cell]) -> int:
    specs = (cell.bench.evasion_spec for cell in cells)
    return max((spec.evasion.draws for spec in specs if spec), default=1)
