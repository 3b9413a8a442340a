"""NaturalFinger, figure 9: the ARUC with each of six GANs, how good each GAN is, and samples of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from experiments.common import averaged, by_label
from fingerbench.evaluate import tables
from fingerbench.evaluate.captions import caption
from fingerbench.evaluate.experiment import Cell, Exhibit, Experiment
from fingerbench.evaluate.images import query_grid
from fingerbench.evaluate.panels import Panel, bar_panels
from fingerbench.evaluate.report import comparison, summaries
from fingerbench.evaluate.run import gan_caption
from fingerbench.store import Artefact

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

# NaturalFinger (Yang et al. 2023), figure 9; the numbers stand in the plotting script of its code.
PAPER = {"wgan_gp": 0.86, "sagan": 0.91, "logan": 0.88, "contragan": 0.86, "icrgan": 0.84, "reacgan": 0.8471}


@dataclass(frozen=True)
class Figure9(Experiment):
    """A bar a GAN, and below it a table and samples."""

    paper: ClassVar[str] = "NaturalFinger, figure 9"
    title: ClassVar[str] = "ARUC by GAN"

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return the bars, their table, and a figure of samples for each GAN."""
        fids = {str(same[0].run.row["method"]): _fid(same[0]) for same in by_label(cells).values()}
        table = summaries(comparison([cell.run for cell in cells]))
        table = table.set_index("method").loc[list(fids)].rename_axis("gan").reset_index()
        table["fid"] = [fid.facts["fid"] for fid in fids.values()]
        table["paper"] = [PAPER.get(gan, math.nan) for gan in by_label(cells)]
        said = (
            f"{caption(cells, paper=True)} ARUC and AUC are {averaged(cells)}, with 95 % bootstrap intervals over "
            "suspects."
        )
        drawn = f"{said} Bars: ours, lines: intervals, open markers: the paper's, from its plotting script."
        features = next(iter(fids.values())).facts["features"]
        about = f"{said} FID to the owner's half, of images of the GAN's own latents, with the {features}."
        numbers = ["gan", "queries", "aruc", "aruc_low", "aruc_high", "auc", "auc_low", "auc_high", "fid", "paper"]
        return [
            Exhibit("aruc_by_gan", drawn, figure=_bars(table, str(cells[0].bench.settings.method.name), drawn)),
            Exhibit("gans", about, table=_shown(table), data=table[numbers]),
            *(_samples(gan, fid, caption(cells)) for gan, fid in fids.items()),
        ]


def _fid(cell: Cell) -> Artefact:
    spec = cell.bench.fid_spec()
    if spec is None:
        raise ValueError(f"{cell.label}: expected a method with a GAN")
    return cell.bench.store.load(spec)


def _bars(table: DataFrame, method: str, said: str) -> Figure:
    panel = Panel(
        x=table["gan"].tolist(),
        series={method: table["aruc"].tolist()},
        low={method: table["aruc_low"].tolist()},
        high={method: table["aruc_high"].tolist()},
        marks={"the paper": table["paper"].tolist()},
    )
    return bar_panels({Figure9.title: panel}, "ARUC", said, limits=(0, 1))


def _shown(table: DataFrame) -> DataFrame:
    shown = table[["gan"]].assign(queries=[f"{n:g}" for n in table["queries"]])
    for name in ("aruc", "auc"):
        shown[name.upper()] = tables.estimates(table, name, f"{name}_low", f"{name}_high")
    return shown.assign(
        FID=[f"{fid:.3g}" for fid in table["fid"]],
        paper=[tables.NOTHING if math.isnan(aruc) else f"{aruc:g}" for aruc in table["paper"]],
    )


def _samples(gan: str, fid: Artefact, said: str) -> Exhibit:
    text = f"{said} {gan_caption(fid)}."
    return Exhibit(f"samples_{gan}", text, figure=query_grid(fid.tensors["samples"].numpy(), caption=text))
