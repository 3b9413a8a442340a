"""Experiments as one HTML page: every table and figure in a single file, read without a network.

The layout is `page.html.jinja` beside this file. An experiment that is not drawn stands there with what it lacks.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fingerbench.errors import require, writing
from fingerbench.evaluate import plots, tables
from fingerbench.evaluate.experiment import Exhibit, Page
from fingerbench.manifest import manifest

if TYPE_CHECKING:
    from jinja2 import Environment

DPI = 120  # of the figures: sharp enough to enlarge, small enough for tens of them in one file


def write(pages: Sequence[Page], words: Sequence[str], out: Path) -> None:
    """Write `pages`, read under the overrides `words`, as the HTML file `out`.

    Raises:
        UserError: `out` is a folder or cannot be written.
    """
    require(not out.is_dir(), "--html", "the name of a file, such as report.html", str(out))
    with writing(out, "--html"):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(render(pages, words), encoding="utf-8")


def render(pages: Sequence[Page], words: Sequence[str]) -> str:
    """Return the HTML of `pages`; from equal pages the same, but for the time in the manifest.

    Its ids are the name of an experiment, NAME/EXHIBIT, and page-...: all differ, as no file's name has a "/" and no
    module's a "-".
    """
    template = _environment().get_template("page.html.jinja")
    settings = shlex.join(word for word in words if not word.startswith("experiment="))
    return template.render(pages=pages, settings=settings, manifest=manifest())


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fingerbench", "evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"rows": tables.cells, "image": _image}
    return environment


def _image(exhibit: Exhibit) -> str:
    """Return the figure of an exhibit as the address of a PNG, without the caption that the page says itself."""
    assert exhibit.figure is not None
    return "data:image/png;base64," + base64.b64encode(plots.png(exhibit.figure, DPI, without=exhibit.caption)).decode()
