"""Figures: one style and one colour per method everywhere, drawn without pyplot, equal bytes from equal data.

Every function returns a `matplotlib.figure.Figure`; `save` writes it. Colours are those of Okabe and Ito (2008), made
for colour-blind readers; lines also differ by dashes.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fingerbench.evaluate import metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

STYLE: Any = {
    "text.parse_math": False,  # a "$" in a label of a run is a dollar
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same on every machine
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
}
COLOURS = {
    "naturalfinger": "#0072b2",
    "ipguard": "#d55e00",
    "metav": "#009e73",
    "metafinger": "#cc79a7",
    "freqgan": "#56b4e9",
    "akh": "#e69f00",
    "random": "#7f7f7f",
}
OTHER_COLOURS = ("#332288", "#117733", "#882255", "#999933", "#661100", "#44aa99", "#aa4466", "#6699cc")
INK = "#333333"
MARKERS = "os^Dv<>P"
GAP, LABEL_GAP = 1.1, 1.3  # from one image of a grid to the next, and to the next below a label, in sizes of an image
Limits = tuple[float, float] | None
ROBUSTNESS: Any = {"linewidth": 1.8}
UNIQUENESS: Any = {"linewidth": 1.3, "dashes": (4, 2)}
AREA: Any = {"linewidth": 0, "alpha": 0.25}
MARK: Any = {"linestyle": "", "marker": "D", "markersize": 5, "color": INK, "markerfacecolor": "white"}


@dataclass(frozen=True)
class Panel:
    """What one panel shows: series by name, a method as a rule, each with a value for every x.

    x: numbers, or texts; series: name -> values (x,), NaN where there is none; low, high: ends of their intervals,
    for those series that have some; across: a horizontal line at each of these values, by what it is: in the colour
    of the series of that name, if there is one; colours: of series that have another than `colour` gives their name;
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

    def shade(self, name: str) -> str:
        """Return the colour of a series."""
        return self.colours.get(name) or colour(name)


def colour(method: str) -> str:
    """Return the colour of a method, "#rrggbb"; for one not in COLOURS it follows from the name alone."""
    digest = hashlib.sha256(method.encode()).digest()
    return COLOURS.get(method, OTHER_COLOURS[digest[0] % len(OTHER_COLOURS)])


def aruc_figure(frame: DataFrame, title: str = "", caption: str = "") -> Figure:
    """Draw robustness and uniqueness against the threshold; the area that both share, shaded, is the ARUC.

    frame: the scores of one run. title and caption default to the method, and to what `caption_of` says.
    """
    method = str(frame["method"].iloc[0])
    with _figure(5.2, 3.9, caption or caption_of(frame)) as figure:
        axes = figure.add_subplot()
        _draw_curves(axes, [frame], colour(method))
        axes.set_title(f"{title or method}: {_aruc_text([frame])}")
        axes.set_xlabel("threshold t")
        axes.set_ylabel("share of models")
        _legend(figure, colour(method))
    return figure


def aruc_panels(frames: Mapping[str, Sequence[DataFrame]], caption: str = "") -> Figure:
    """Draw one small panel like `aruc_figure` per method, in the given order.

    frames: method -> the scores of its runs, one per seed. Curves and area are means over the seeds, so that the
    area equals the mean ARUC.
    """
    columns = 2 if len(frames) == 4 else min(3, len(frames))
    rows = math.ceil(len(frames) / columns)
    with _figure(max(5.2, 2.9 * columns), 2.5 * rows + 0.5, caption) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for i, (method, runs) in enumerate(frames.items()):
            axes = grid.flat[i]
            _draw_curves(axes, runs, colour(method))
            axes.set_title(f"{_folded(method)}\n{_aruc_text(runs)}", fontsize=9)
            if i % columns == 0:
                axes.set_ylabel("share of models")
            if i + columns >= len(frames):  # the lowest of its column
                axes.set_xlabel("threshold t")
                axes.tick_params(labelbottom=True)
        for axes in grid.flat[len(frames) :]:
            axes.remove()
        _legend(figure, INK)
    return figure


def comparison_figure(means: DataFrame, seeds: DataFrame, caption: str = "") -> Figure:
    """Draw ARUC and AUC of every method as bars with intervals, the single seeds as dots.

    means: one row per method, in the order of the bars; seeds: one row per run. Both have the columns method, aruc,
    auc, in [0, 1]; means also aruc_low, aruc_high, auc_low, auc_high; any may be missing.
    """
    legend = "Bars: means; lines: 95 % intervals; dots: seeds."
    with _figure(7.2, 0.45 * len(means) + 0.9, f"{caption.rstrip('.')}. {legend}" if caption else legend) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, metric in ((left, "aruc"), (right, "auc")):
            _draw_bars(axes, means, seeds, metric)
            axes.set_xlabel(metric.upper())
    return figure


def line_panels(panels: Mapping[str, Panel], ylabel: str, caption: str = "", *, limits: Limits = (0, 1)) -> Figure:
    """Draw one panel of lines for each title, side by side: a line a method, with its interval as a band.

    The x values of a panel are numbers, or texts at equal distances. limits: of y in all panels; None: as the data.
    """
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    markers = _markers(panels)
    with _figure(max(5.2, 3.3 * columns), 2.7 * rows + 0.4, caption) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, (title, panel) in zip(grid.flat, panels.items(), strict=False):
            _draw_lines(axes, panel, markers)
            axes.set(title=title, xlabel=panel.xlabel, **_ylim(limits))
        for row in grid:
            row[0].set_ylabel(ylabel)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        _series_legend(figure, panels, markers)
    return figure


def bar_panels(panels: Mapping[str, Panel], ylabel: str, caption: str = "", *, limits: Limits = None) -> Figure:
    """Draw one panel of grouped bars for each title, one below the other: a group an x, a bar a method in it.

    Thin lines are intervals, open markers the `marks`. limits: of y in all panels; None: as the data.
    """
    most = max(len(panel.x) * max(len(panel.series), 1) for panel in panels.values())
    with _figure(min(10.0, max(5.2, 0.17 * most + 1.5)), 2.6 * len(panels) + 0.6, caption) as figure:
        grid = figure.subplots(len(panels), 1, squeeze=False, sharey=True)
        for axes, (title, panel) in zip(grid.flat, panels.items(), strict=True):
            _draw_groups(axes, panel)
            axes.set(title=title, xlabel=panel.xlabel, ylabel=ylabel, **_ylim(limits))
        _series_legend(figure, panels)
    return figure


def radar_panels(panels: Mapping[str, Panel], caption: str = "") -> Figure:
    """Draw one radar chart for each title: an axis an x, from 0 in the middle to 1, and a polygon a method.

    x: at least three texts. Where there are six, the area of a polygon, `metrics.abp`, stands beside its name.
    """
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    markers = _markers(panels)
    with _figure(4.2 * columns, 4.4 * rows, caption) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, subplot_kw={"projection": "polar"})
        for axes, (title, panel) in zip(grid.flat, panels.items(), strict=False):
            _draw_radar(axes, panel, markers)
            axes.set_title(title)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
    return figure


def stamp(figure: Figure, text: str) -> None:
    """Write `text`, if any, across the top of a finished figure, so that nobody takes it for more than it is."""
    look: dict[str, Any] = {"color": "#b00020", "fontsize": 9}
    if text and figure.legends:  # which stands where the text would
        figure.legends[0].set_title(text)
        figure.legends[0].get_title().set(**look)
    elif text:
        figure.suptitle(text, **look)


def query_grid(queries: Any, labels: Sequence[object] | None = None, columns: int = 10, caption: str = "") -> Figure:
    """Draw query images in rows of `columns`, each above its label if there are any.

    queries: (n, c, h, w) in [0, 1], c = 1 or 3, an array or a tensor on the CPU; labels: n of them.
    """
    images = np.asarray(queries, dtype=np.float64)
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"expected {len(images)} labels, one for each query, got {len(labels)}")
    columns = min(columns, len(images))
    width = max(4.0, 0.62 * columns)
    across, down = _image_grid(len(images), columns, labels is not None)
    with _figure(width, width * down / across, caption) as figure:
        axes = figure.add_subplot()
        _draw_images(axes, images, columns, labels)
        axes.set(xlim=(0, across - 0.1), ylim=(down, 0))
    return figure


def query_blocks(blocks: Mapping[str, Any], columns: int = 8, caption: str = "") -> Figure:
    """Draw a block of query images for each title, two blocks side by side, each in rows of `columns`.

    blocks: title -> queries as `query_grid` takes them, or none; all images are drawn of one size.
    """
    across, down = _image_grid(max(1, *map(len, blocks.values())), columns, labelled=False)
    beside = min(2, len(blocks))
    rows = math.ceil(len(blocks) / beside)
    with _figure(3.6 * beside, rows * (3.6 * down / across + 0.3), caption) as figure:
        grid = figure.subplots(rows, beside, squeeze=False)
        for axes, (title, queries) in zip(grid.flat, blocks.items(), strict=False):
            _draw_images(axes, np.asarray(queries, dtype=np.float64), columns)
            axes.set(xlim=(0, across - 0.1), ylim=(down, 0))
            axes.set_title(title, loc="left", fontsize=8)
        for axes in grid.flat[len(blocks) :]:
            axes.remove()
    return figure


def caption_of(frame: DataFrame) -> str:
    """Return the line below the figures of one run: data set and source, profile, seed, evasion, models, queries."""
    pirated = frame["pirated"].astype(bool)
    first = frame.iloc[0]
    models = f"{pirated.sum()} positives, {(~pirated).sum()} negatives"
    setting = f"{first['source']}, profile {first['profile']}, seed {first['seed']}"
    setting += "" if first["evasion"] == "none" else f", evasion {first['evasion']}"
    return f"{setting}; {models}; {first['queries']} queries"


def save(figure: Figure, path: Path, formats: Sequence[str] = ("png", "pdf")) -> list[Path]:
    """Write `figure` to `path` + "." + each format, making folders as needed; return the files."""
    import matplotlib as mpl

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # else it tells every step of embedding a font in a PDF
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(f"{path.name}.{suffix}") for suffix in formats]
    with mpl.rc_context(STYLE):
        for file in files:
            dated = file.suffix == ".pdf"  # a date would make each file differ from the last
            figure.savefig(file, metadata={"CreationDate": None} if dated else None)
    return files


def png(figure: Figure, dpi: int, *, without: str = "") -> bytes:
    """Return `figure` as the bytes of a PNG. without: a text to whose end the caption below it may be left out."""
    import matplotlib as mpl

    below = figure.get_supxlabel()
    told = "".join(without.split()).endswith("".join(below.split()))  # but for the breaks of lines
    captions = [text for text in figure.texts if told and text.get_text() == below]
    for text in captions:
        text.set(visible=False, in_layout=False)
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=dpi)
    for text in captions:
        text.set(visible=True, in_layout=True)
    return buffer.getvalue()


@contextmanager
def _figure(width: float, height: float, caption: str) -> Iterator[Figure]:
    """Give a figure of so many inches to draw on in our style, with `caption` below."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    lines = textwrap.wrap(caption, int(19 * width))  # so many characters of this size fit an inch
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height + 0.15 * len(lines)), layout="constrained")
        if lines:
            figure.supxlabel("\n".join(lines), fontsize=7, color=INK)
        yield figure


def _image_grid(n: int, columns: int, labelled: bool) -> tuple[float, float]:
    """Return the width and the height of a grid of `n` images, in sizes of an image, the gaps between them included."""
    return columns * GAP, math.ceil(n / columns) * (LABEL_GAP if labelled else GAP)


def _draw_images(axes: Axes, images: Any, columns: int, labels: Sequence[object] | None = None) -> None:
    """Draw images (n, c, h, w), each one unit wide and high, in rows of `columns` from the upper left."""
    down = GAP if labels is None else LABEL_GAP
    for i, image in enumerate(images):
        top, left = i // columns * down, i % columns * GAP
        pixels = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
        axes.imshow(pixels, extent=(left, left + 1, top + 1, top), interpolation="nearest")
        if labels is not None:
            axes.text(left + 0.5, top + 1.03, str(labels[i]), ha="center", va="top", fontsize=6, color=INK)
    axes.set_axis_off()


def _draw_curves(axes: Axes, runs: Sequence[DataFrame], shade: str) -> None:
    """Draw the mean curves of `runs`: exact steps, each value holding from the last breakpoint up to its own."""
    scores = [metrics.sides(run) for run in runs]
    t = metrics.breakpoints(*(side for pair in scores for side in pair))
    both = np.array([metrics.curves(positive, negative, t) for positive, negative in scores])
    robustness, uniqueness = both.mean(axis=0)
    area = both.min(axis=1).mean(axis=0)
    axes.fill_between(t, area, step="pre", color=shade, **AREA)
    axes.plot(t, robustness, drawstyle="steps-pre", color=shade, **ROBUSTNESS)
    axes.plot(t, uniqueness, drawstyle="steps-pre", color=INK, **UNIQUENESS)
    axes.set(xlim=(0, 1), ylim=(0, 1.03))


def _ylim(limits: Limits) -> dict[str, Any]:
    return {"ylim": limits} if limits else {}  # None would freeze what all panels share as the first of them needs it


def _draw_lines(axes: Axes, panel: Panel, markers: Mapping[str, str]) -> None:
    texts = any(isinstance(x, str) for x in panel.x)
    places = np.arange(len(panel.x)) if texts else np.asarray(panel.x, dtype=float)
    for name, value in panel.across.items():
        shade = panel.shade(name) if name in panel.series else INK
        axes.axhline(value, color=shade, linewidth=0.8, dashes=(3, 2))
    for name, values in panel.series.items():
        shade = panel.shade(name)
        if name in panel.low:
            axes.fill_between(places, panel.low[name], panel.high[name], color=shade, alpha=0.15, linewidth=0)
        axes.plot(places, values, color=shade, marker=markers[name], markersize=4)
    axes.set_xticks(places, [str(x) for x in panel.x] if texts else [f"{x:g}" for x in places], fontsize=8)


def _draw_groups(axes: Axes, panel: Panel) -> None:
    width = 0.8 / max(len(panel.series), 1)
    for number, (name, values) in enumerate(panel.series.items()):
        places = np.arange(len(panel.x)) - 0.4 + width * (number + 0.5)
        axes.bar(places, values, 0.92 * width, color=panel.shade(name))
        if name in panel.low:
            for ink, linewidth in (("white", 2.4), (INK, 1.0)):  # the white edge parts the line from a dark bar
                axes.vlines(places, panel.low[name], panel.high[name], color=ink, linewidth=linewidth)
    for values in panel.marks.values():
        axes.plot(np.arange(len(panel.x)), values, **MARK)
    turned = max(len(str(x)) for x in panel.x) * len(panel.x) > 60
    labels: Any = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if turned else {}
    axes.set_xticks(np.arange(len(panel.x)), [str(x) for x in panel.x], fontsize=8, **labels)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlim(-0.6, len(panel.x) - 0.4)
    axes.grid(visible=False, axis="x")


def _draw_radar(axes: Axes, panel: Panel, markers: Mapping[str, str]) -> None:
    angles = np.linspace(0, 2 * np.pi, len(panel.x), endpoint=False)
    for name, values in panel.series.items():
        area = f", ABP {metrics.abp(values):.2f}" if len(values) == 6 else ""
        style: Any = {"color": panel.shade(name), "marker": markers[name], "markersize": 3.5, "linewidth": 1.3}
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
            shades.setdefault(name, []).append(panel.shade(name))
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
    return "\n".join(textwrap.wrap(label, 26))


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
