"""The zoo itself: everything that is trained, for any number of jobs to build together, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fingerbench.bench import Bench
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.store import Spec

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class ZooTable(Experiment):
    """A row a family, with quality, agreement and cost of its models; the data behind it has a row a model."""

    paper: ClassVar[str] = "the zoo"
    title: ClassVar[str] = "what was trained"
    closed: ClassVar[bool] = True

    def needs(self, bench: Bench) -> list[Spec]:
        """Return suspects, surrogates and GAN."""
        return bench.trained()

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return one table."""
        import pandas as pd

        bench = cells[0].bench
        quality = bench.data.task.quality_name
        models = pd.DataFrame(_rows(bench, quality))
        families = [_summary(str(name), group, quality) for name, group in models.groupby("family", sort=False)]
        rows = [*families, _summary("all", models, quality)]
        said = (
            f"{caption(cells, queries=False)} {quality}: on the test split, mean, lowest and highest; agreement: with "
            "the parent there, mean over those that have one; seconds: of one worker, all together; peak MiB: of a "
            "worker, the highest."
        )
        return [Exhibit("zoo", said, table=pd.DataFrame(rows, dtype=object), data=models)]


def _rows(bench: Bench, quality: str) -> Iterator[dict[str, Any]]:
    """Yield the facts of everything that is trained, each once: suspects by family, surrogates, GAN."""
    suspects = {bench.models[suspect.name].key: suspect for suspect in bench.suspects}
    trained = {spec.key: spec for spec in bench.trained()}
    for key in [*suspects, *(key for key in trained if key not in suspects)]:
        spec, suspect, facts = trained[key], suspects.get(key), bench.store.facts(trained[key])
        yield {
            "name": spec.label,
            "family": suspect.family if suspect else "gan" if spec.kind == "gan" else "surrogates",
            "pirated": suspect.pirated if suspect else None,
            "architecture": facts.get("architecture"),
            quality: facts.get(quality),
            "agreement": facts.get("agreement"),
            "seconds": facts["seconds"],
            "peak_mib": facts.get("peak_mib"),  # older stores lack it
            "key": key,
        }


def _summary(name: str, models: DataFrame, quality: str) -> dict[str, Any]:
    columns = models[[quality, "agreement", "seconds", "peak_mib"]].astype(float)
    return {
        "family": name,
        "models": len(models),
        quality: columns[quality].mean(),
        "lowest": columns[quality].min(),
        "highest": columns[quality].max(),
        "agreement": columns["agreement"].mean(),
        "seconds": f"{columns['seconds'].sum():.0f}",
        "peak MiB": f"{columns['peak_mib'].max():.0f}",
    }
