"""Figures of the scores of runs: robustness and uniqueness against the threshold, and methods compared."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fingerbench.evaluate import metrics, tables
from fingerbench.evaluate.plots import INK, axes_grid, canvas, colour, grid_shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from fingerbench.evaluate.metrics import Floats

ROBUSTNESS: Any = {"linewidth": 1.8}
UNIQUENESS: Any = {"linewidth": 1.3, "dashes": (4, 2)}
AREA: Any = {"linewidth": 0, "alpha": 0.25}


def aruc_figure(frame: DataFrame, zoo: int = 0) -> Figure:
    """Draw robustness and uniqueness against the threshold; the area that both share, shaded, is the ARUC.

    frame: the scores of one run; zoo: the seed of its zoo.
    """
    method = str(frame["method"].iloc[0])
    with canvas(5.2, 3.9, caption_of(frame, zoo)) as figure:
        axes = figure.add_subplot()
        _draw_curves(axes, [frame], colour(method))
        axes.set_title(f"{method}: {_aruc_text([frame])}")
        axes.set_xlabel("threshold t")
        axes.set_ylabel("share of models")
        _legend(figure, colour(method))
    return figure


def aruc_panels(frames: Mapping[str, Sequence[DataFrame]], caption: str = "") -> Figure:
    """Draw one small panel like `aruc_figure` per method, in the given order.

    frames: method -> the scores of its runs, one per seed. Curves and area are means over the seeds, so that the
    area equals the mean ARUC.
    """
    rows, columns = grid_shape(len(frames))
    with canvas(max(5.2, 2.9 * columns), 2.5 * rows + 0.5, caption) as figure:
        grid = axes_grid(figure, len(frames), columns, sharex=True, sharey=True)
        for i, (axes, (method, runs)) in enumerate(zip(grid, frames.items(), strict=True)):
            _draw_curves(axes, runs, colour(method))
            axes.set_title(f"{_folded(method)}\n{_aruc_text(runs)}", fontsize=9)
            if i % columns == 0:
                axes.set_ylabel("share of models")
            if i + columns >= len(frames):  # the lowest of its column
                axes.set_xlabel("threshold t")
                axes.tick_params(labelbottom=True)
        _legend(figure, INK)
    return figure


def curve_points(frames: Mapping[str, Sequence[DataFrame]]) -> DataFrame:
    """Return the points of the curves that `aruc_panels` draws of the same frames, unrounded.

    Columns: method; t, every threshold in [0, 1] where a curve may step; robustness, uniqueness and their lower one,
    shared, each a mean over the seeds that holds from the row above, without its t, up to its own t.
    """
    import pandas as pd

    every = {method: pd.DataFrame(_points(runs)) for method, runs in frames.items()}
    return pd.concat(every, names=["method", None]).reset_index("method").reset_index(drop=True)


def comparison_figure(means: DataFrame, seeds: DataFrame, caption: str = "", legend: str = "") -> Figure:
    """Draw ARUC and AUC of every method as bars with intervals, the single seeds, where there are several, as dots.

    means: one row per method, in the order of the bars; seeds: one row per run. Both have the columns method, aruc,
    auc, in [0, 1]; means also aruc_low, aruc_high, auc_low, auc_high; any may be missing. legend: what the marks are,
    where it is not what `bars_legend` says.
    """
    legend = legend or bars_legend(means, seeds)
    seeds = seeds[seeds["method"].duplicated(keep=False)]
    lines = max((_folded(method).count("\n") + 1 for method in means["method"]), default=1)
    told = f"{caption.rstrip('.')}. {legend}" if caption else legend
    with canvas(7.2, max(0.45, 0.15 * lines) * len(means) + 0.9, told) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, metric in ((left, "aruc"), (right, "auc")):
            _draw_bars(axes, means, seeds, metric)
            axes.set_xlabel(metric.upper())
    return figure


def bars_legend(means: DataFrame, seeds: DataFrame) -> str:
    """Return what the marks of `comparison_figure` are."""
    if len(seeds) == len(means):
        return "Lines: 95 % intervals over suspects."
    return "Bars: means over seeds; lines: 95 % intervals; dots: seeds."


def caption_of(frame: DataFrame, zoo: int = 0) -> str:
    """Return the line below the figures of one run: data set and source, profile, seeds, evasion, models, queries.

    zoo: the seed of the zoo, which is named where it is not 0.
    """
    pirated = frame["pirated"].astype(bool)
    first = frame.iloc[0]
    models = tables.suspects(int(pirated.sum()), int((~pirated).sum()))
    setting = tables.setting(first["source"], first["profile"], [first["seed"]], first["evasion"], zoo)
    return f"{setting}; {models}; {tables.asked([first['queries']])}"


def _points(runs: Sequence[DataFrame]) -> dict[str, Floats]:
    """Return the mean curves of `runs`, as `curve_points` has them."""
    scores = [metrics.sides(run) for run in runs]
    t = metrics.breakpoints(*(side for pair in scores for side in pair))
    both = np.array([metrics.curves(positive, negative, t) for positive, negative in scores])
    robustness, uniqueness = both.mean(axis=0)
    return {"t": t, "robustness": robustness, "uniqueness": uniqueness, "shared": both.min(axis=1).mean(axis=0)}


def _draw_curves(axes: Axes, runs: Sequence[DataFrame], shade: str) -> None:
    """Draw the mean curves of `runs`: exact steps, each value holding from the last breakpoint up to its own."""
    t, robustness, uniqueness, shared = _points(runs).values()
    axes.fill_between(t, shared, step="pre", color=shade, **AREA)
    axes.plot(t, robustness, drawstyle="steps-pre", color=shade, **ROBUSTNESS)
    axes.plot(t, uniqueness, drawstyle="steps-pre", color=INK, **UNIQUENESS)
    axes.set(xlim=(0, 1), ylim=(0, 1.03))


def _draw_bars(axes: Axes, means: DataFrame, seeds: DataFrame, metric: str) -> None:
    places = {method: i for i, method in enumerate(means["method"])}
    axes.barh(list(places.values()), means[metric], color=[colour(m) for m in places], alpha=0.75, height=0.62)
    ends = means[f"{metric}_low"], means[f"{metric}_high"]
    for ink, linewidth in (("white", 3.0), (INK, 1.4)):  # the white edge parts the line from a dark bar
        axes.hlines(list(places.values()), *ends, color=ink, linewidth=linewidth)
    rows = [places[method] + 0.18 for method in seeds["method"]]  # below the line, not on it
    axes.scatter(seeds[metric], rows, s=11, facecolor="white", edgecolor=INK, linewidth=0.8, zorder=3, clip_on=False)
    axes.set_yticks(list(places.values()), [_folded(method) for method in places])
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1), ylim=(len(places) - 0.5, -0.5))
    axes.grid(visible=False, axis="y")


def _folded(label: str) -> str:
    """Return a label in lines short enough to stand above a panel or beside a bar."""
    return "\n".join(textwrap.wrap(label.replace(", ", ",").replace(",", ", "), 26))


def _aruc_text(runs: Sequence[DataFrame]) -> str:
    values = [metrics.aruc(*metrics.sides(run)) for run in runs]
    if any(math.isnan(value) for value in values):
        return "ARUC undefined, one side is empty"
    return f"ARUC {np.mean(values):.3f}" + (f", mean of {len(values)} seeds" if len(values) > 1 else "")


def _legend(figure: Figure, shade: str) -> None:
    """Put the legend above the axes, where it hides no data."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D([], [], color=shade, label="robustness R(t)", **ROBUSTNESS),
        Line2D([], [], color=INK, label="uniqueness U(t)", **UNIQUENESS),
        Patch(color=shade, label="shared area = ARUC", **AREA),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8)
