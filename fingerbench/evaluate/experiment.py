"""Experiments: what a paper's figure or table needs, cell by cell, and how it is drawn from stored scores alone.

An experiment is a grid of settings, in `conf/experiment/NAME.yaml`, and a class that draws it, in
`experiments/NAME.py`. `fill` makes everything that the cells of the grid need, all at once, so that no core idles
between two cells; `page` reads it back from the store and draws; it never makes anything.
"""

from __future__ import annotations

import itertools
import json
import logging
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import DictConfig, OmegaConf

from fingerbench import config
from fingerbench.bench import Bench
from fingerbench.errors import UserError, require, unknown, writing
from fingerbench.evaluate import metrics, plots, report, tables
from fingerbench.evaluate.run import cost, describe, scores
from fingerbench.evaluate.specs import FingerprintSpec, ResponseSpec
from fingerbench.files import write_json
from fingerbench.manifest import MANIFEST
from fingerbench.store import Spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Cell:
    """One point of the grid of an experiment: its settings by key, the seed among them, and the benchmark there.

    command: what to type to fill this cell alone. told: the keys of the settings that its label needs to have.
    """

    settings: Mapping[str, Any]
    command: str
    bench: Bench
    told: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What tables and figures call the row that this cell belongs to: its method, or what its YAML file says."""
        evasion = str(self.settings["evasion"]) if "evasion" in self.told else "none"
        return tables.title(self._name, evasion)

    @property
    def _name(self) -> str:
        told = (f"{key}={config.text(self.settings[key])}" for key in self.told if key != "evasion")
        return ", ".join([str(self.bench.settings.label), *told])

    @cached_property
    def scores(self) -> DataFrame:
        """The scores of this cell, with the columns of scores.csv, from the store."""
        return scores(self.bench).assign(method=self.label)

    @cached_property
    def run(self) -> report.Run:
        """This cell as a run that `report.comparison` takes."""
        results = metrics.summary(self.scores) | {"cost": cost(self.bench)}
        return report.Run.of(self.scores.assign(method=self._name), results)  # which names the evasion itself


@dataclass(frozen=True, eq=False)
class Exhibit:
    """One table or one figure, with the caption that it carries.

    data: the unrounded numbers behind it, for its csv file; by default the table itself.
    """

    name: str  # of its files
    caption: str
    table: DataFrame | None = None
    figure: Figure | None = None
    data: DataFrame | None = None


@dataclass(frozen=True, eq=False)
class Page:
    """An experiment as the store has it: its exhibits, none if it is not drawn, and what they lack.

    missing: the commands that would fill the cells that are missing, of `cells` in all; settings: the composed
    configuration of the first cell, as YAML.
    """

    name: str
    paper: str
    title: str
    exhibits: tuple[Exhibit, ...]
    missing: tuple[str, ...]
    cells: int
    settings: str


class LackingError(UserError):
    """Cells of an experiment are missing, and it is not drawn without them. page: the experiment, undrawn."""

    def __init__(self, page: Page) -> None:
        self.page = page
        hint = ", and --partial draws what is there" if len(page.missing) < page.cells else ""
        listed = "".join(f"\n  {command}" for command in page.missing)
        super().__init__(
            f"experiment={page.name}: {len(page.missing)} of {page.cells} cells are not in the store, or of what has "
            f"been made again since; run.py with the same words fills them{hint}. One by one:{listed}"
        )


@dataclass(frozen=True)
class Experiment:
    """One figure or table: a frozen dataclass, its fields from `conf/experiment/NAME.yaml`.

    grid: keys of the configuration, nested as they are there, each with the list of values that it takes; every
    combination, with every seed, is a cell. seeds: of the method.
    """

    paper: ClassVar[str]
    """Where the paper has it, such as "NaturalFinger, table 3"."""

    title: ClassVar[str]
    """What it shows, in a few words."""

    axes: ClassVar[tuple[str, ...]] = ()
    """Keys of its grid that it tells apart itself. Cells of one label that differ in others bear these in it."""

    closed: ClassVar[bool] = False
    """Its drawing has no place for axes beside its own: they are refused."""

    grid: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)

    def needs(self, bench: Bench) -> list[Spec]:
        """Return what one cell needs in the store; by default everything that the scores of its suspects need."""
        return bench.plan()

    def exhibits(self, cells: Sequence[Cell]) -> list[Exhibit]:
        """Return the tables and figures of `cells`, at least one, everything they need being in the store."""
        raise NotImplementedError


def composed(settings: DictConfig) -> Experiment:
    """Return the experiment that a composed configuration has chosen.

    Raises:
        UserError: what it has chosen is a group of settings, which a plain run follows.
    """
    require("experiment" in settings, "experiment", "one that draws", "a group of settings; report its run's folder")
    built: Experiment = config.build(settings.experiment)
    return built


def cells(experiment: Experiment, words: Sequence[str]) -> list[Cell]:
    """Return the cells of an experiment under the overrides `words` of the command line, in the order of the grid.

    Raises:
        UserError: an override of what the experiment varies itself.
    """
    grid = {**dict(config.leaves(experiment.grid)), "seed": experiment.seeds}
    for axis, values in grid.items():
        require(isinstance(values, list | tuple) and len(values) > 0, _axis(axis), "a list such as [a,b]", values)
        require(len({*map(repr, values)}) == len(values), _axis(axis), "each value once", values)
    for key in (word.lstrip("+").partition("=")[0] for word in words):
        if key in grid or ("evasion" in grid and key.startswith("evasion.")):
            axis = key.partition(".")[0] if key.startswith("evasion.") else key
            raise UserError(f"{key}=: this experiment varies {axis} itself; choose with {_axis(axis)}=[...]")
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    benches: dict[str, Bench] = {}
    groups = [key for key in grid if config.options(key, words)]
    evasion = cache(lambda name: config.choice("evasion", name, words))

    def bench(point: Mapping[str, Any]) -> Bench:
        clean, name = _bench(point, words, benches, groups), point.get("evasion")
        return clean if name is None else clean.under(name, evasion(name))

    every = [Cell(point, _command(point, words), bench(point)) for point in points]
    apart = _told_apart(every, {*experiment.axes, "seed"})
    others = sorted({_axis(key) for cell in apart for key in cell.told}) if experiment.closed else []
    require(not others, ", ".join(others), "one value: this experiment draws its own axes alone", "several")
    return apart


def _told_apart(every: Sequence[Cell], known: Collection[str]) -> list[Cell]:
    """Return the cells, those of one label with what they differ in, but for the keys that are `known`."""
    values: dict[tuple[str, str], set[str]] = {}
    for cell in every:
        for key, value in cell.settings.items():
            values.setdefault((cell.label, key), set()).add(repr(value))
    keys = {c.label: tuple(k for k in c.settings if k not in known and len(values[c.label, k]) > 1) for c in every}
    return [replace(cell, told=keys[cell.label]) for cell in every]


def _axis(key: str) -> str:
    return "experiment.seeds" if key == "seed" else f"experiment.grid.{key}"


def _command(point: Mapping[str, Any], words: Sequence[str]) -> str:
    choices = {_axis(key): f"[{config.text(value)}]" for key, value in point.items()}
    others = config.without(words, [*choices, *config.WHERE])
    signs = {word.lstrip("+").partition("=")[0]: "+" for word in words if word.startswith("+")}  # of an axis added
    own = (f"{signs.get(axis, '')}{axis}={value}" for axis, value in choices.items())
    return shlex.join(["python", "run.py", *others, *own])


def _bench(point: Mapping[str, Any], words: Sequence[str], benches: dict[str, Bench], groups: Sequence[str]) -> Bench:
    """Return the benchmark at a point of the grid, evasions aside; `benches` made before lend it what is the same.

    groups: those keys of the grid that choose from a group of configuration.
    """
    varied = (f"{key}={config.text(value)}" for key, value in point.items() if key != "evasion")
    overrides = (*words, *varied)
    key = json.dumps(overrides)
    if key not in benches:
        settings = _composed(overrides, benches.values(), groups)
        benches[key] = Bench(settings, overrides, lenders=list(benches.values()))
    return benches[key]


def _composed(overrides: Sequence[str], benches: Iterable[Bench], groups: Sequence[str]) -> DictConfig:
    """Return what `overrides` compose to: of a bench whose choices are the same, since that takes a third of a second.

    The overrides of each bench are of the same keys.
    """
    for bench in benches:
        changed = [word for word, before in zip(overrides, bench.overrides, strict=True) if word != before]
        if {word.partition("=")[0] for word in changed}.isdisjoint(groups):
            return config.changed(bench.settings, changed)
    return config.compose(overrides)


def fill(experiment: Experiment, filled: Sequence[Cell]) -> None:
    """Make whatever the cells need and the store lacks, as one plan a data set."""
    groups: dict[str, list[Cell]] = {}
    for cell in filled:
        groups.setdefault(cell.bench.zoo.data, []).append(cell)
    for group in groups.values():
        group[0].bench.build(_in_order(spec for cell in group for spec in experiment.needs(cell.bench)))


def plan(settings: DictConfig, words: Sequence[str]) -> list[Spec]:
    """Return what all cells of the experiment that `settings`, composed from `words`, has chosen need."""
    experiment = composed(settings)
    return [spec for cell in cells(experiment, words) for spec in experiment.needs(cell.bench)]


def _in_order(specs: Iterable[Spec]) -> list[Spec]:
    """Return `specs`, each once: what fingerprints wait for, they, then the rest, last the questions.

    So the method that takes longest is not left alone at the end. Questions to one suspect are together, since a worker
    has the suspect that it asked last at hand.
    """
    unique = list({spec.key: spec for spec in specs}.values())
    awaited = {need.key for spec in unique if isinstance(spec, FingerprintSpec) for need in spec.needs()}

    def place(spec: Spec) -> tuple[int, str]:
        if isinstance(spec, ResponseSpec):
            return 3, spec.suspect.key
        return (0 if spec.key in awaited else 1 if isinstance(spec, FingerprintSpec) else 2), ""

    return sorted(unique, key=place)


def page(name: str, experiment: Experiment, every: Sequence[Cell], *, partial: bool = False) -> Page:
    """Draw an experiment, called `name`, from the store alone; `partial`: the cells that are there, if not all are.

    Raises:
        LackingError: something is missing, and `partial` is not set, or nothing at all is there.
    """
    current = _current(experiment, every)
    there = [cell for cell, whole in zip(every, current, strict=True) if whole]
    commands = tuple(cell.command for cell, whole in zip(every, current, strict=True) if not whole)
    settings = OmegaConf.to_yaml(every[0].bench.settings, resolve=True)
    undrawn = Page(name, experiment.paper, experiment.title, (), commands, len(every), settings)
    if commands and not (partial and there):
        raise LackingError(undrawn)
    mark = tables.partial(len(commands), len(every), "cells")
    drawn = experiment.exhibits(there)
    _require_exhibits(name, drawn)
    return replace(undrawn, exhibits=tuple(_marked(exhibit, mark) for exhibit in drawn))


def _current(experiment: Experiment, every: Sequence[Cell]) -> list[bool]:
    """Tell of each cell whether the store has all that it needs, made of what the store has now."""
    known: dict[str, bool] = {}  # by key, since cells share most

    def current(bench: Bench, spec: Spec) -> bool:
        if spec.key not in known:
            known[spec.key] = bench.store.current(spec)
        return known[spec.key]

    return [all(current(cell.bench, spec) for spec in experiment.needs(cell.bench)) for cell in every]


def _require_exhibits(name: str, drawn: Any) -> None:
    what = f"experiment={name}, exhibits"
    sound = isinstance(drawn, list | tuple) and drawn and all(isinstance(exhibit, Exhibit) for exhibit in drawn)
    got = [type(each).__name__ for each in drawn] if isinstance(drawn, list | tuple) else type(drawn).__name__
    require(bool(sound), what, "a list of Exhibits, at least one", got)
    names = [exhibit.name for exhibit in drawn]
    require(all(Path(each).name == each != ".." for each in names), what, "names of files", names)
    require(len({*names}) == len(names), what, "each name once, since files bear it", names)


def _marked(exhibit: Exhibit, mark: str) -> Exhibit:
    if exhibit.figure is not None:
        plots.stamp(exhibit.figure, mark)
    return replace(exhibit, caption=f"{mark} {exhibit.caption}".strip())


def read(name: str, words: Sequence[str], *, partial: bool = False) -> Page:
    """Draw the experiment called `name` from the store alone, under further overrides `words`; see `page`."""
    choice = f"experiment={name}"
    every = [choice, *(word for word in words if not word.startswith("experiment="))]
    experiment = composed(config.compose(every))
    return page(name, experiment, cells(experiment, every), partial=partial)


def read_all(words: Sequence[str], *, partial: bool = False) -> list[Page]:
    """Read every experiment that draws as `read` does; the page of one that lacks cells may be undrawn.

    One that makes no sense under `words`, or with what its methods found, is left out, with a warning.
    """
    pages = []
    for name in config.options("experiment", words):
        if "experiment" not in config.compose([f"experiment={name}", *config.searched(words)]):
            continue  # a group of settings
        try:
            pages.append(read(name, words, partial=partial))
        except LackingError as error:
            pages.append(error.page)
        except UserError as error:
            log.warning("left out: experiment=%s: %s", name, error)
    require(bool(pages), "report all", "settings under which some experiment can be drawn", " ".join(words))
    return pages


def write(drawn: Page, out: Path) -> list[Path]:
    """Write each table of a page as csv (unrounded), md and tex, each figure as png and pdf; return the files."""
    files: list[Path] = []
    with writing(out, "hydra.run.dir or --out"):
        out.mkdir(parents=True, exist_ok=True)
        for exhibit in drawn.exhibits:
            files += _write_exhibit(exhibit, out)
    return files


def _write_exhibit(exhibit: Exhibit, out: Path) -> list[Path]:
    files = []
    csv, md, tex = (out / f"{exhibit.name}.{suffix}" for suffix in ("csv", "md", "tex"))
    numbers = exhibit.table if exhibit.data is None else exhibit.data
    if numbers is not None:
        numbers.to_csv(csv, index=False)
        files.append(csv)
    if exhibit.figure is not None:
        files += plots.save(exhibit.figure, out / exhibit.name)
    if exhibit.table is not None:
        md.write_text(f"{exhibit.caption}\n\n{tables.markdown(exhibit.table)}\n", encoding="utf-8")
        tex.write_text(tables.latex(exhibit.table, exhibit.caption, f"tab:{exhibit.name}"), encoding="utf-8")
        files += [md, tex]
    return files


def perform(settings: DictConfig, words: Sequence[str], folder: Path) -> Page:
    """Fill an experiment and write its page into `folder`, with the scores of its cells and the manifest beside it."""
    name = chosen(words)
    experiment = composed(settings)
    every = cells(experiment, words)
    fill(experiment, every)
    drawn = page(name, experiment, every)
    write(drawn, folder)
    with writing(folder, "hydra.run.dir"):
        manifest = describe(every[0].bench, seconds={}) | {
            "experiment": name,
            "cells": [cell.command for cell in every],
        }
        write_json(folder / MANIFEST, manifest)
        _write_scores(experiment, every, folder / "cells.csv")
    show(drawn)
    log.info("tables and figures: %s", folder)
    return drawn


def _write_scores(experiment: Experiment, filled: Sequence[Cell], path: Path) -> None:
    """Write the scores of all cells, each with the settings of its cell, if the experiment asks suspects at all.

    A setting that scores have as well, such as the queries asked for, gives way to what was measured.
    """
    import pandas as pd

    asking = [c for c in filled if any(isinstance(spec, ResponseSpec) for spec in experiment.needs(c.bench))]
    if asking:
        frames = [cell.scores.assign(**_others(cell)) for cell in asking]
        pd.concat(frames).to_csv(path, index=False)


def _others(cell: Cell) -> dict[str, str]:
    """Return the settings of a cell that its scores do not have, as texts."""
    return {key: config.text(value) for key, value in cell.settings.items() if key not in cell.scores}


def show(drawn: Page) -> None:
    """Print the tables of a page."""
    for exhibit in drawn.exhibits:
        if exhibit.table is not None:
            tables.show(tables.terminal(exhibit.table, f"{drawn.paper}: {drawn.title}", exhibit.caption))


def chosen(words: Sequence[str]) -> str:
    """Return the name that `experiment=NAME` gives among the overrides.

    Raises:
        UserError: none is named, or several.
    """
    names = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
    if len(names) != 1:
        raise unknown("experiment", ", ".join(names), config.options("experiment", words))
    return names[0]
