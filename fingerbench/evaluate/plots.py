"""What all figures share: one style, one colour per method, and files of equal bytes from equal data.

Figures are drawn without pyplot: of scores in `curves`, of series in `panels`, of queries in `images`. Colours are
those of Okabe and Ito (2008), made for colour-blind readers; lines also differ by dashes.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def colour(method: str) -> str:
    """Return the colour of a method, "#rrggbb"; for one not in COLOURS it follows from the name alone."""
    digest = hashlib.sha256(method.encode()).digest()
    return COLOURS.get(method, OTHER_COLOURS[digest[0] % len(OTHER_COLOURS)])


def colours(methods: Iterable[str]) -> dict[str, str]:
    """Return the `colour` of each method; where one before it has that, the first of the others that none has."""
    shades: dict[str, str] = {}
    for method in dict.fromkeys(methods):
        free = [shade for shade in (colour(method), *OTHER_COLOURS) if shade not in shades.values()]
        shades[method] = free[0] if free else colour(method)
    return shades


@contextmanager
def canvas(width: float, height: float, caption: str) -> Iterator[Figure]:
    """Give a figure of so many inches to draw on in our style, with `caption` below."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    lines = textwrap.wrap(caption, int(19 * width))  # so many characters of this size fit an inch
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height + 0.15 * len(lines)), layout="constrained")
        if lines:
            figure.supxlabel("\n".join(lines), fontsize=7, color=INK)
        yield figure


def grid_shape(n: int) -> tuple[int, int]:
    """Return how many rows and columns `n` small panels stand in: at most three abreast, four in a square."""
    columns = 2 if n == 4 else min(3, n)
    return math.ceil(n / columns), columns


def axes_grid(figure: Figure, n: int, columns: int, **kwargs: Any) -> list[Axes]:
    """Return `n` axes in rows of `columns`, the last of which may be shorter. kwargs: those of `Figure.subplots`."""
    grid = figure.subplots(math.ceil(n / columns), columns, squeeze=False, **kwargs)
    for axes in grid.flat[n:]:
        axes.remove()
    return list(grid.flat[:n])


def stamp(figure: Figure, text: str) -> None:
    """Write `text`, if any, across the top of a finished figure, so that nobody takes it for more than it is."""
    look: dict[str, Any] = {"color": "#b00020", "fontsize": 9}
    if text and figure.legends:  # which stands where the text would
        figure.legends[0].set_title(text)
        figure.legends[0].get_title().set(**look)
    elif text:
        figure.suptitle(text, **look)


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
