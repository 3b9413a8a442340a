"""NaturalFinger, table 2: the share of each method's queries that a thief's detector flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from experiments.common import over_seeds
from fingerbench.bench import Bench
from fingerbench.evaluate import tables
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.evaluate.stealth import DetectionSpec, Detector, DetectorSpec
from fingerbench.seeds import seed_for
from fingerbench.store import Spec

if TYPE_CHECKING:
    from pandas import DataFrame

# NaturalFinger (Yang et al. 2023), table 2: the mean detection rate of 3 runs.
PAPER = {"naturalfinger": 0.003, "metafinger": 1.00, "metav": 0.48, "ipguard": 0.85}
HELD_OUT = {  # facts of a detector, by the images of the test split that they are about
    "clean": "false_positive_rate",
    "noised": "true_positive_rate_noise",
    "FGSM": "true_positive_rate_fgsm",
}


@dataclass(frozen=True)
class Table2(Experiment):
    """A row a method: its detection rate. detector: how the thief trains one; runs: how many he trains."""

    paper: ClassVar[str] = "NaturalFinger, table 2"
    title: ClassVar[str] = "stealthiness: queries that a detector flags"
    closed: ClassVar[bool] = True

    runs: int = 3
    detector: Detector = field(default_factory=Detector)

    def needs(self, bench: Bench) -> list[Spec]:
        """Return the fingerprint, the detectors and what each says to it."""
        return [bench.fingerprint_spec, *self.detectors(bench), *self.detections(bench)]

    def detectors(self, bench: Bench) -> list[DetectorSpec]:
        """Return the `runs` detectors of a zoo, the same for every method."""
        seeds = [seed_for(bench.settings.zoo.seed, "detector", str(i)) for i in range(self.runs)]
        return [DetectorSpec(bench.zoo.data, self.detector, bench.zoo.original(), seed) for seed in seeds]

    def detections(self, bench: Bench) -> list[DetectionSpec]:
        """Return what each detector says to the queries of the selected method."""
        return [DetectionSpec(detector, bench.fingerprint_spec) for detector in self.detectors(bench)]

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return the table of methods, and that of the detectors themselves."""
        import pandas as pd

        bench = cells[0].bench
        facts = [bench.store.facts(spec) for spec in self.detectors(bench)]
        rates = [{"images": name, "rate": fact[key]} for name, key in HELD_OUT.items() for fact in facts]
        held_out = over_seeds(pd.DataFrame(rates), ["images"], "rate")
        methods = self._methods(cells)
        clean = held_out.set_index("images").loc["clean", "mean"]
        said = (
            f"{caption(cells, paper=True)} Share of the queries, at 8 bits a value, that a detector flags: mean over "
            f"{self.runs} detectors and the seeds, in brackets the range over both. Of clean test images the detectors "
            f"flag {clean:.3f}."
        )
        about = (
            f"{caption(cells)} Share of the test images that a detector flags: mean over {self.runs} detectors, in "
            "brackets their range. Detectors learn from clean, noised and FGSM versions of the fine-tuning images; "
            f"noise of std {self.detector.noise_std:g}, FGSM on the source with step {self.detector.fgsm:.3g}, both "
            "for pixels in [0, 1]."
        )
        return [
            Exhibit("detection", said, _shown(methods, "detection rate"), data=methods),
            Exhibit("detectors", about, _shown(held_out, "flagged"), data=held_out),
        ]

    def _methods(self, cells: Sequence[Cell]) -> DataFrame:
        """Return a row a method: queries (range over seeds), mean, low, high of the detection rate, paper."""
        import pandas as pd

        facts = [
            {"method": cell.label, **cell.bench.store.facts(spec)}
            for cell in cells
            for spec in self.detections(cell.bench)
        ]
        frame = pd.DataFrame(facts).astype({"detection_rate": float})  # missing of a method that made no query
        table = over_seeds(frame, ["method"], "detection_rate")
        table.insert(1, "queries", frame.groupby("method", sort=False)["queries"].agg(tables.range_of).to_numpy())
        return table.assign(paper=[PAPER.get(method) for method in table["method"]])


def _shown(table: DataFrame, name: str) -> DataFrame:
    """Return `table` with mean, low and high as one column called `name`."""
    shown = table.assign(**{name: tables.estimates(table, "mean", "low", "high")})
    return shown[[c for c in (table.columns[0], "queries", name, "paper") if c in shown]]
