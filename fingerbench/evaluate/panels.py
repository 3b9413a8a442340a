"""Figures of panels, each with values of several methods: as lines, bars, dots or a radar chart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fingerbench.evaluate import metrics
from fingerbench.evaluate.plots import INK, axes_grid, canvas, colour, colours, grid_shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "os^Dv<>P"
MARK: Any = {"linestyle": "", "marker": "D", "markersize": 5, "color": INK, "markerfacecolor": "white"}
GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, spread evenly however many there are
Limits = tuple[float, float] | None


@dataclass(frozen=True)
class Panel:
    """What one panel shows: series by name, a method as a rule, each with a value for every x.

    x: numbers, or texts; series: name -> values (x,), NaN where there is none; low, high: ends of their intervals,
    for those series that have some; across: a horizontal line at each of these values, by what it is: in the colour
    of the series of that name, if there is one; colours: of series that have others than `plots.colours` gives;
    marks: open markers at values (x,), NaN where there is none, by what they are.
    """

    x: Sequence[float] | Sequence[str]
    series: Mapping[str, Sequence[float]]
    low: Mapping[str, Sequence[float]] = field(default_factory=dict)
    high: Mapping[str, Sequence[float]] = field(default_factory=dict)
    xlabel: str = ""
    across: Mapping[str, float] = field(default_factory=dict)
    colours: Mapping[str, str] = field(default_factory=dict)
    marks: Mapping[str, Sequence[float]] = field(default_factory=dict)


def line_panels(panels: Mapping[str, Panel], ylabel: str, caption: str = "", *, limits: Limits = (0, 1)) -> Figure:
    """Draw one panel of lines for each title, side by side: a line a method, with its interval as a band.

    The x values of a panel are numbers, or texts at equal distances. limits: of y in all panels; None: as the data.
    """
    rows, columns = grid_shape(len(panels))
    panels, markers = _coloured(panels), _markers(panels)
    with canvas(max(5.2, 3.3 * columns), 2.7 * rows + 0.4, caption) as figure:
        grid = axes_grid(figure, len(panels), columns, sharey=True)
        for axes, (title, panel) in zip(grid, panels.items(), strict=True):
            _draw_lines(axes, panel, markers)
            axes.set(title=title, xlabel=panel.xlabel, **_ylim(limits))
        for axes in grid[::columns]:
            axes.set_ylabel(ylabel)
        _series_legend(figure, panels, markers)
    return figure


def bar_panels(panels: Mapping[str, Panel], ylabel: str, caption: str = "", *, limits: Limits = None) -> Figure:
    """Draw one panel of grouped bars for each title, one below the other: a group an x, a bar a method in it.

    Thin lines are intervals, open markers the `marks`. limits: of y in all panels; None: as the data.
    """
    panels = _coloured(panels)
    most = max(len(panel.x) * max(len(panel.series), 1) for panel in panels.values())
    with canvas(min(10.0, max(5.2, 0.17 * most + 1.5)), 2.6 * len(panels) + 0.6, caption) as figure:
        grid = axes_grid(figure, len(panels), 1, sharey=True)
        for axes, (title, panel) in zip(grid, panels.items(), strict=True):
            _draw_groups(axes, panel)
            axes.set(title=title, xlabel=panel.xlabel, ylabel=ylabel, **_ylim(limits))
        _series_legend(figure, panels)
    return figure


def dot_panels(panels: Mapping[str, Mapping[str, Sequence[float]]], xlabel: str, caption: str = "") -> Figure:
    """Draw one panel for each title, a method as a rule: a row for each name, a dot for each of its values in [0, 1].

    All panels have the same names, in the same order. Dots of a row lie at heights that say nothing, so that none
    hides another.
    """
    rows, columns = grid_shape(len(panels))
    names = next(iter(panels.values()))
    with canvas(max(5.2, 2.9 * columns), (0.45 * len(names) + 0.7) * rows + 0.3, caption) as figure:
        grid = axes_grid(figure, len(panels), columns, sharex=True, sharey=True)
        for axes, (title, groups) in zip(grid, panels.items(), strict=True):
            for place, values in enumerate(groups.values()):
                heights = place + 0.5 * (np.arange(len(values)) * GOLDEN % 1 - 0.5)
                axes.scatter(values, heights, s=14, color=colour(title), alpha=0.6, linewidth=0, clip_on=False)
            axes.set(title=title, xlim=(0, 1), ylim=(len(names) - 0.5, -0.5))
            axes.set_yticks(range(len(names)), list(names))
            axes.tick_params(axis="y", length=0)
            axes.grid(visible=False, axis="y")
        for axes in grid[-columns:]:  # the lowest of each column
            axes.set_xlabel(xlabel)
            axes.tick_params(labelbottom=True)
    return figure


def radar_panels(panels: Mapping[str, Panel], caption: str = "") -> Figure:
    """Draw one radar chart for each title: an axis an x, from 0 in the middle to 1, and a polygon a method.

    x: at least three texts. Where there are six, the area of a polygon, `metrics.abp`, stands beside its name.
    """
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    panels, markers = _coloured(panels), _markers(panels)
    with canvas(4.2 * columns, 4.4 * rows, caption) as figure:
        grid = axes_grid(figure, len(panels), columns, subplot_kw={"projection": "polar"})
        for axes, (title, panel) in zip(grid, panels.items(), strict=True):
            _draw_radar(axes, panel, markers)
            axes.set_title(title)
    return figure


def _coloured(panels: Mapping[str, Panel]) -> dict[str, Panel]:
    """Return the panels of a figure, every series with a colour of its own."""
    shades = colours(name for panel in panels.values() for name in panel.series)
    return {title: replace(panel, colours=shades | dict(panel.colours)) for title, panel in panels.items()}


def _ylim(limits: Limits) -> dict[str, Any]:
    return {"ylim": limits} if limits else {}  # None would freeze what all panels share as the first of them needs it


def _draw_lines(axes: Axes, panel: Panel, markers: Mapping[str, str]) -> None:
    texts = any(isinstance(x, str) for x in panel.x)
    places = np.arange(len(panel.x)) if texts else np.asarray(panel.x, dtype=float)
    for name, value in panel.across.items():
        shade = panel.colours[name] if name in panel.series else INK
        axes.axhline(value, color=shade, linewidth=0.8, dashes=(3, 2))
    for name, values in panel.series.items():
        shade = panel.colours[name]
        if name in panel.low:
            axes.fill_between(places, panel.low[name], panel.high[name], color=shade, alpha=0.15, linewidth=0)
        axes.plot(places, values, color=shade, marker=markers[name], markersize=4)
    axes.set_xticks(places, [str(x) for x in panel.x] if texts else [f"{x:g}" for x in places], fontsize=8)


def _draw_groups(axes: Axes, panel: Panel) -> None:
    width = 0.8 / max(len(panel.series), 1)
    for number, (name, values) in enumerate(panel.series.items()):
        places = np.arange(len(panel.x)) - 0.4 + width * (number + 0.5)
        shade = panel.colours[name]
        axes.bar(places, values, 0.92 * width, color=shade, edgecolor=shade)  # 0 has an edge
        if name in panel.low:
            for ink, linewidth in (("white", 2.4), (INK, 1.0)):  # the white edge parts the line from a dark bar
                axes.vlines(places, panel.low[name], panel.high[name], color=ink, linewidth=linewidth)
    for values in panel.marks.values():
        axes.plot(np.arange(len(panel.x)), values, **MARK)
    turned = max(len(str(x)) for x in panel.x) * len(panel.x) > 60
    labels: Any = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    axes.set_xticks(np.arange(len(panel.x)), [str(x) for x in panel.x], fontsize=8, **labels)
    axes.axhline(0, color=INK, linewidth=0.8, zorder=0.9)  # below the bars
    axes.set_xlim(-0.6, len(panel.x) - 0.4)
    axes.grid(visible=False, axis="x")


def _draw_radar(axes: Axes, panel: Panel, markers: Mapping[str, str]) -> None:
    angles = np.linspace(0, 2 * np.pi, len(panel.x), endpoint=False)
    for name, values in panel.series.items():
        area = f", ABP {metrics.abp(values):.2f}" if len(values) == 6 else ""
        style: Any = {"color": panel.colours[name], "marker": markers[name], "markersize": 3.5, "linewidth": 1.3}
        axes.plot(np.append(angles, 0), [*values, values[0]], label=name + area, **style)
    axes.set_xticks(angles, [str(x) for x in panel.x], fontsize=8)
    axes.set_yticks([0.25, 0.5, 0.75, 1], ["", "0.5", "", "1"], fontsize=7, color=INK)
    axes.set_ylim(0, 1.02)
    axes.set(theta_offset=np.pi / 2, theta_direction=-1, rlabel_position=180 / len(panel.x))
    axes.spines["polar"].set_visible(False)
    axes.tick_params(axis="x", pad=7)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, fontsize=7)


def _markers(panels: Mapping[str, Panel]) -> dict[str, str]:
    """Return the marker of each series, the same in all panels."""
    names = dict.fromkeys(name for panel in panels.values() for name in panel.series)
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}


def _series_legend(figure: Figure, panels: Mapping[str, Panel], markers: Mapping[str, str] | None = None) -> None:
    """Put a legend above the axes: each series once with all its colours, lines if `markers`, else bars; each mark."""
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shades: dict[str, list[str]] = {}
    for panel in panels.values():
        for name in panel.series:
            shades.setdefault(name, []).append(panel.colours[name])
    handles: list[Any] = [
        tuple(
            Line2D([], [], color=shade, marker=markers[name], markersize=5) if markers else Patch(color=shade)
            for shade in dict.fromkeys(found)
        )
        for name, found in shades.items()
    ]
    marks = dict.fromkeys(name for panel in panels.values() for name in panel.marks)
    handles += [(Line2D([], [], **MARK),) for _ in marks]
    figure.legend(
        handles,
        [*shades, *marks],
        handler_map={tuple: HandlerTuple(ndivide=None)},
        handlelength=max(2.0, 1.2 * max(map(len, handles))),  # room for every colour of a series
        loc="outside upper center",
        ncols=min(4, len(handles)),
        fontsize=8,
    )
