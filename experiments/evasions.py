"""Every method under every evasion; and, as in figure 2 of FreqGAN's paper, the AUCs under four of them as polygons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from experiments.common import SHORT, aucs, averaged, queries_of
from fingerbench.evaluate import metrics
from fingerbench.evaluate.captions import caption, incomparable
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.evaluate.panels import Panel, radar_panels

if TYPE_CHECKING:
    from pandas import DataFrame

STATISTICS = {"ARUC": metrics.aruc, "AUC": metrics.auc}
RADARS = {  # evasion -> what FreqGAN's paper (Liu and Zhong, IJCAI 2025), figure 2, calls it
    "none": "no evasion",
    "autoencoder": "query modification (autoencoder)",
    "nonlocal_means": "input smoothing (non-local means)",
    "bits_truncate": "feature squeezing (fewer bits)",
}
PAPER = (  # the text on figure 2, CIFAR-10, of FreqGAN's paper; 2.22 and 1.62 are the areas of the rows of its table 1
    "In the paper, on its own zoo and without evasion, FreqGAN has about 2 and IPGuard below 1.5, though the rows of "
    "its table 1 give 2.22 and 1.62."
)
NOTE = (
    "The last rows are over the evasions, without none. accuracy: what the evasion leaves the thief, mean over the "
    "positives on the test split. Evasions of answers (round_probabilities, top1, temperature) leave a label as it is: "
    "they matter to methods with access to outputs alone, here metav, and count in the means of all."
)


@dataclass(frozen=True)
class Evasions(Experiment):
    """An evasion a row, a method a column; and a radar chart for each of four evasions."""

    paper: ClassVar[str] = "all methods; FreqGAN, figure 2"
    title: ClassVar[str] = "what evasions do to fingerprints"
    axes: ClassVar[tuple[str, ...]] = ("evasion",)

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return two tables and, where all six families of `metrics.AXES` are there, the radar charts."""
        import pandas as pd

        said = f"Numbers are {averaged(cells)}. {queries_of(cells)} {caption(cells, queries=False)}"
        long = pd.DataFrame([_row(cell) for cell in cells])
        exhibits = []
        for name in STATISTICS:
            shown = _table(long, name)
            exhibits.append(Exhibit(f"evasions_{name.lower()}", f"{name}. {NOTE} {said}", table=shown, data=long))
        panels = _panels(cells)
        if panels:
            text = (
                "Radius: AUC of a family against all negatives; ABP: area of the polygon, 2.598 at most. "
                f"{PAPER} {said} {incomparable(cells[0].bench)}"
            )
            figure = radar_panels(panels, text)
            exhibits.append(Exhibit("evasions_radar", text, figure=figure, data=_corners(panels)))
        return exhibits


def _row(cell: Cell) -> dict[str, str | float]:
    frame = cell.scores
    positives = frame[frame["pirated"]]
    values = {name: statistic(*metrics.sides(frame)) for name, statistic in STATISTICS.items()}
    first = frame.iloc[0]
    shared = {"evasion": first["evasion"], "method": cell.label, "seed": int(first["seed"])}
    return {**shared, **values, "accuracy": float(positives["accuracy"].mean())}


def _table(long: DataFrame, statistic: str) -> DataFrame:
    """Return the table to show of one statistic, means over seeds."""
    import pandas as pd

    kept = long.pivot_table(index="evasion", columns="method", values=statistic, sort=False)
    left = long.groupby("evasion", sort=False)["accuracy"].mean()
    evaded = kept.drop(index="none", errors="ignore")
    summary = pd.DataFrame({"mean of these": evaded.mean(), "worst of these": evaded.min()}).T if len(evaded) else None
    whole = pd.concat([kept.assign(accuracy=left), *([] if summary is None else [summary])])
    return whole.rename_axis(index="evasion", columns=None).reset_index()


def _panels(cells: Sequence[Cell]) -> dict[str, Panel]:
    """Return a panel for each of RADARS that is there, with the means over seeds; empty if a family is missing."""
    import pandas as pd

    long = pd.DataFrame(
        [{"evasion": cell.settings["evasion"], "method": cell.label, **aucs(cell.scores)} for cell in cells]
    )
    axes = [name for name in SHORT.values() if name in long]
    if len(axes) < len(metrics.AXES):
        return {}
    means = long.groupby(["evasion", "method"], sort=False)[axes].mean()
    there = [evasion for evasion in RADARS if evasion in means.index.get_level_values(0)]
    return {
        RADARS[evasion]: Panel(axes, {str(name): row.tolist() for name, row in means.loc[evasion].iterrows()})
        for evasion in there
    }


def _corners(panels: Mapping[str, Panel]) -> DataFrame:
    import pandas as pd

    return pd.DataFrame(
        [
            {"panel": title, "method": name, **dict(zip(panel.x, values, strict=True)), "ABP": metrics.abp(values)}
            for title, panel in panels.items()
            for name, values in panel.series.items()
        ]
    )
