"""NaturalFinger, table 1: the models of the zoo, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from fingerbench.bench import Bench
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.store import Spec

# NaturalFinger (Yang et al. 2023), table 1. It prints one number for the mirrors of all families together.
STOLEN = {
    "source": 1,
    "finetune": 4,
    "prune": 9,
    "noise": 9,
    "adversarial": 10,
    "distill": 15,
    "knockoff": 15,
}
INDEPENDENT = {"scratch": 14, "scratch-distill": 14}
MIRRORS = 63


@dataclass(frozen=True)
class Table1(Experiment):
    """A row a family: stolen models, their mirrors, other independent models."""

    paper: ClassVar[str] = "NaturalFinger, table 1"
    title: ClassVar[str] = "composition of the zoo"
    closed: ClassVar[bool] = True

    def needs(self, bench: Bench) -> list[Spec]:
        """Return nothing: the plan of the zoo says it all."""
        return []

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return one table."""
        import pandas as pd

        kinds = Counter((s.family, _kind(s.pirated, s.mirror_of)) for s in cells[0].bench.suspects)
        families = list(dict.fromkeys(family for family, _ in kinds))
        rows = [_row(f, *(kinds[f, kind] for kind in ("stolen", "mirrors", "independent"))) for f in families]
        totals = (sum(row[kind] for row in rows) for kind in ("stolen", "mirrors", "independent"))
        paper = {"paper stolen": sum(STOLEN.values()), "paper mirrors": MIRRORS}
        rows.append(_row("all", *totals) | paper | {"paper independent": sum(INDEPENDENT.values())})
        said = (
            f"{caption(cells, queries=False)} Mirrors went through the same attacks as the stolen models, from an "
            "independent source; mirrors and other independent models are the negatives. "
            "The paper counts 63 positives and 91 negatives."
        )
        return [Exhibit("composition", said, table=pd.DataFrame(rows, dtype=object))]


def _kind(pirated: bool, mirror_of: str | None) -> str:
    if pirated:
        return "stolen"
    return "mirrors" if mirror_of else "independent"


def _row(family: str, stolen: int, mirrors: int, independent: int) -> dict[str, Any]:
    return {
        "family": family,
        "stolen": stolen,
        "mirrors": mirrors,
        "independent": independent,
        "total": stolen + mirrors + independent,
        "paper stolen": STOLEN.get(family),
        "paper mirrors": None,
        "paper independent": INDEPENDENT.get(family),
    }
