"""Experiments as one HTML page: parsed, every link followed, every image decoded."""

import base64
import io
import itertools
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from conftest import TINY
from PIL import Image

from fingerbench import config
from fingerbench.__main__ import main
from fingerbench.errors import UserError
from fingerbench.evaluate import html, plots
from fingerbench.evaluate.experiment import Exhibit, Page
from fingerbench.evaluate.panels import Panel, bar_panels

ODD = "<b>prune</b> & \"noise\" 'n' {{ 7 * 7 }}"
LONG = f"{ODD}: " + "what a reader must know of every line, bar and interval, and of what cannot be compared. " * 12
VOID = {"meta", "link", "img", "br"}


class Parsed(HTMLParser):
    """The elements of a page in order, each (tag, attributes), and all text; it must be well nested."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.open = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(set(names)) == len(names), (tag, names)
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def values(self, name):
        return [attributes[name] for _, attributes in self.elements if name in attributes]

    def texts(self, tag):
        return [data for inside, data in self.text if inside == tag]


def figure(caption="caption", groups=3):
    names = {"alpha": np.linspace(0.2, 0.9, 5), ODD: np.linspace(0.8, -0.1, 5)}
    panel = Panel([f"case {i}" for i in range(5)], names)
    return bar_panels({f"panel {i}": panel for i in range(groups)}, "margin", caption)


def page(name="synthetic", **changes):
    wide = pd.DataFrame({f"column {i}": [0.5, -0.25 * i, None] for i in range(15)})
    wide.insert(0, "method", [ODD, "a method whose label is long enough to be folded on a phone", "random"])
    exhibits = (
        Exhibit("wide_table", LONG, table=wide),
        Exhibit("tall", "A tall figure.", figure=figure("A tall figure.", 6)),
        Exhibit("both", ODD, table=wide.iloc[:, :3], figure=figure()),
    )
    command = f"python run.py experiment={name} 'label={ODD}'"
    whole = Page(name, "NaturalFinger, table <3>", "tricks & trifles", exhibits, (command,), 4, "method: {a: <b>}\n")
    return replace(whole, **changes)


@pytest.fixture(scope="module")
def text():
    return html.render([page(), page("gone", exhibits=()), page("whole", missing=())], ["store=a b", "experiment=x"])


@pytest.fixture(scope="module")
def parsed(text):
    return Parsed(text)


def test_every_exhibit_stands_there_once(parsed):
    ids = parsed.values("id")
    assert len(set(ids)) == len(ids)
    wanted = {f"{name}/{exhibit}" for name in ("synthetic", "whole") for exhibit in ("wide_table", "tall", "both")}
    assert {word for word in ids if "/" in word} == wanted
    assert len(parsed.all("table")) == len(parsed.all("img")) == 4
    assert parsed.texts("figcaption").count(LONG) == 2
    levels = [int(tag[1]) for tag, _ in parsed.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1 and all(below - above <= 1 for above, below in itertools.pairwise(levels))


def test_every_link_resolves_and_nothing_is_outside(parsed, text):
    links = [a["href"] for a in parsed.all("a")]
    assert {link[1:] for link in links} <= set(parsed.values("id"))
    assert all(link.startswith("#") for link in links)
    assert {f"#{word}" for word in parsed.values("id")} == set(links)
    assert all(word.startswith("data:") for word in [*parsed.values("src"), *(x["href"] for x in parsed.all("link"))])
    assert not any(word in text.lower() for word in ("http:", "https:", "file:", "url(", "@import", "<script"))


def test_images_decode_and_are_described(parsed):
    captions = parsed.texts("figcaption")
    for image in parsed.all("img"):
        kind, _, content = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(content, validate=True))) as drawn:
            drawn.load()
            assert drawn.width / drawn.height == pytest.approx(int(image["width"]) / int(image["height"]), rel=0.01)
        assert image["alt"] in captions


def test_texts_are_escaped(parsed, text):
    assert "<b>" not in text and not parsed.all("b")
    for tag, times in (("th", 4), ("figcaption", 2)):
        assert parsed.texts(tag).count(ODD) == times
    assert "NaturalFinger, table <3>: tricks & trifles" in parsed.texts("a")


def test_tables_name_their_columns_and_rows(parsed):
    scopes = [head["scope"] for head in parsed.all("th")]
    assert scopes.count("col") == 2 * (16 + 3) and scopes.count("row") == 2 * (3 + 3)
    cells = parsed.texts("td")
    assert len(cells) == 2 * 3 * (15 + 2)
    assert {"0.500", "-3.500", "-"} <= set(cells)


def test_what_is_missing_is_listed_with_its_commands(parsed):
    assert parsed.texts("span") == ["1 of 4 cells missing", "not drawn, 1 of 4 cells missing"] * 2
    commands = [word for word in parsed.texts("pre") if word.startswith("python")]
    for name, command in zip(("synthetic", "gone"), commands, strict=True):
        lines = command.split("\n")
        assert lines == [
            f"python run.py experiment={name} 'store=a b'",
            "",
            f"python run.py experiment={name} 'label={ODD}'",
        ]


def test_a_caption_that_the_page_says_is_not_drawn_again():
    once, twice = (
        plots.png(figure("of the figure"), 60, without=told) for told in ("Partial. of the\nfigure", "other")
    )
    assert once != twice == plots.png(figure("of the figure"), 60)
    drawn = figure("of the figure")
    before = plots.png(drawn, 60)
    assert plots.png(drawn, 60, without="of the figure") == once
    assert plots.png(drawn, 60) == before


def test_equal_pages_make_equal_bytes(text):
    times = [line for line in text.splitlines() if line.startswith("<dd>20")]
    again = html.render([page(), page("gone", exhibits=()), page("whole", missing=())], ["store=a b"]).splitlines()
    assert len(times) == 1
    assert [line for line in again if not line.startswith("<dd>20")] == [
        line for line in text.splitlines() if line not in times
    ]


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Leave two experiments: methods, and a group of settings, which no page can show."""
    conf = shutil.copytree(config.CONF, tmp_path / "conf")
    for file in (conf / "experiment").glob("*.yaml"):
        if file.stem != "methods":
            file.unlink()
    (conf / "experiment" / "settings.yaml").write_text("# @package _global_\nqueries: 5\n")
    monkeypatch.setattr(config, "CONF", conf)


def test_from_the_store_to_the_file(built, two, tmp_path, capsys):
    some = [*TINY, f"store={built[0]}", "attack=[source,finetune,distill]", "experiment.seeds=[0]"]
    # No other test that shares the store has surrogates in it.
    names = ("random", "random,metafinger", "metafinger")
    there, partly, nothing = ([*some, f"experiment.grid.method=[{n}]"] for n in names)
    out = tmp_path / "deep" / "page.html"

    assert main(["report", "experiment=methods", *there, "--html", str(out)]) == 0
    assert {"methods/comparison", "methods/comparison_bars"} <= set(Parsed(out.read_text()).values("id"))
    assert main(["report", "all", *partly, "--html", str(out), "--partial"]) == 0
    assert Parsed(out.read_text()).texts("span") == ["1 of 2 cells missing"] * 2
    assert main(["report", "all", *partly, "--html", str(out)]) == 0
    assert "methods/comparison" not in Parsed(out.read_text()).values("id")
    assert "not drawn: methods, 1 of 2 cells" in capsys.readouterr().out
    assert main(["report", "experiment=methods", *nothing, "--html", str(out)]) == 2
    assert main(["report", "all", *nothing, "--out", str(tmp_path / "files"), "--partial"]) == 0
    assert "not drawn: methods, 1 of 1 cells" in capsys.readouterr().out
    assert not (tmp_path / "files").exists()


def test_without_partial_what_all_experiments_lack_is_listed_and_nothing_is_written(monkeypatch, tmp_path, capsys):
    pages = [page("one", exhibits=()), page("two", exhibits=()), page("three", missing=())]
    monkeypatch.setattr("fingerbench.evaluate.experiment.read_all", lambda *_, **__: pages)
    assert main(["report", "all", "--out", str(tmp_path / "files")]) == 2
    told = capsys.readouterr().err
    assert all(f"experiment={name}: 1 of 4 cells" in told and page(name).missing[0] in told for name in ("one", "two"))
    assert not (tmp_path / "files").exists()


def test_misplaced_options_are_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "x.html")]) == 2
    assert "--html: expected all or experiment=NAME" in capsys.readouterr().err
    with pytest.raises(UserError, match="--html: expected the name of a file"):
        html.write([page()], [], tmp_path)


def test_settings_that_draw_nothing_are_refused(two, capsys):
    assert main(["report", "experiment=settings"]) == 2
    assert "experiment: expected one that draws" in capsys.readouterr().err
