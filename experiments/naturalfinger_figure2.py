"""NaturalFinger, figure 2: sample queries with their pair of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fingerbench.bench import Bench
from fingerbench.errors import require
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.evaluate.images import query_grid
from fingerbench.store import Spec

# NaturalFinger (Yang et al. 2023), figure 2.
PAIRS = ("Frog/Bird", "Bird/Airplane", "Horse/Deer", "Airplane/Ship")
NAMES = {  # of the classes, by data set; a number is its own name
    "cifar10": ("Airplane", "Automobile", "Bird", "Cat", "Deer", "Dog", "Frog", "Horse", "Ship", "Truck"),
}
COLUMNS = 4  # of queries; more leave no room for two names


@dataclass(frozen=True)
class Figure2(Experiment):
    """Queries of different label pairs. samples: how many a figure shows at most, one figure for each number."""

    paper: ClassVar[str] = "NaturalFinger, figure 2"
    title: ClassVar[str] = "sample queries and their labels"
    closed: ClassVar[bool] = True

    samples: tuple[int, ...] = (4, 20)

    def needs(self, bench: Bench) -> list[Spec]:
        """Return the fingerprint alone: no suspect is asked."""
        return [bench.fingerprint_spec]

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return a figure for each of `samples`, from the first seed.

        Raises:
            UserError: the method gives its queries no second label, or made none.
        """
        bench = cells[0].bench
        tensors = bench.store.load(bench.fingerprint_spec).tensors
        got = f"{len(tensors['queries'])} queries of {bench.settings.method.name}"
        require("negative_labels" in tensors, "sample queries", "some with labels y-, as naturalfinger makes them", got)
        pairs = list(zip(tensors["labels"].tolist(), tensors["negative_labels"].tolist(), strict=True))
        names = NAMES.get(bench.settings.data.name, range(bench.data.task.outputs))
        exhibits = []
        for most in self.samples:
            rows = different(pairs)[:most]
            said = (
                f"{caption(cells[:1])} Below each query what stolen models are to answer / what independent ones are; "
                f"{len(rows)} of {len(set(pairs))} pairs, one query each. The paper shows {', '.join(PAIRS)}."
            )
            texts = [f"{names[pairs[row][0]]}/{names[pairs[row][1]]}" for row in rows]
            figure = query_grid(tensors["queries"][rows].numpy(), texts, COLUMNS, said)
            exhibits.append(Exhibit(f"queries_{most}", said, figure=figure))
        return exhibits


def different(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Return the first row of each of `pairs` (y+, y-), those first whose y+ few rows before them have."""
    first: dict[tuple[int, int], int] = {}
    for row, pair in enumerate(pairs):
        first.setdefault(pair, row)
    seen: Counter[int] = Counter()
    ranked = []
    for (positive, _), row in first.items():
        ranked.append((seen[positive], row))
        seen[positive] += 1
    return [row for _, row in sorted(ranked)]
