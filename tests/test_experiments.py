"""The experiments: that each composes, and that what is drawn is what the scores say."""

import copy
import shlex
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from conftest import METHODS
from matplotlib.lines import Line2D

from fingerbench import config
from fingerbench.bench import Bench
from fingerbench.errors import UserError
from fingerbench.evaluate import experiment, metrics, plots, tables
from fingerbench.evaluate.captions import caption, incomparable
from fingerbench.evaluate.experiment import Exhibit, _require_exhibits
from fingerbench.evaluate.panels import Panel, bar_panels, line_panels
from fingerbench.evaluate.report import Run, comparison

COST = {"seconds": 1.0, "preparation_seconds": 2.0, "peak_mib": 3.0, "surrogates": 15}
SMALL = ["zoo.architectures=[resnet18,vgg19_bn,xception]"]
PAIR = "experiment.grid.method=[metav,ipguard]"
PAPERS = ("naturalfinger_figure4", "naturalfinger_figure5", "naturalfinger_figure6", "naturalfinger_figure7")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """Draw intervals from few resamples: what they are made of is tested with the metrics."""
    monkeypatch.setattr(metrics, "bootstrap", partial(metrics.bootstrap, n=20))


def scores(cell, number):
    """Return made-up scores of the suspects of a cell, the positives mostly above the negatives."""
    rng = np.random.default_rng(number)
    frame = pd.DataFrame([vars(suspect) for suspect in cell.bench.suspects])
    frame = frame.rename(columns={"name": "suspect", "architecture": "arch"})
    drawn = np.where(frame["pirated"], rng.beta(6, 3, len(frame)), rng.beta(3, 6, len(frame)))
    return frame.assign(
        score=drawn.round(2),
        score_8bit=drawn.round(2),
        raw=drawn,
        queries=100 - number,
        method=cell.label,
        seed=cell.bench.settings.seed,
        source="digits/resnet18",
        profile="demo",
        evasion="none",
        accuracy=0.9,
    )


def at(cell, seed):
    """Return a cell at another seed, sooner than by composing it."""
    settings = copy.deepcopy(cell.bench.settings)
    settings.seed = seed
    return replace(cell, settings={**cell.settings, "seed": seed}, bench=Bench(settings, lenders=[cell.bench]))


def cells(name, *words, seeds=(0, 1)):
    """Return an experiment and its cells, each with made-up scores instead of those of a store."""
    chosen = [f"experiment={name}", *SMALL, "experiment.seeds=[0]", *words]
    drawing = experiment.composed(config.compose(chosen))
    every = [at(cell, seed) for cell in experiment.cells(drawing, chosen) for seed in seeds]
    for number, cell in enumerate(every):
        frame = scores(cell, number)
        made = {"scores": frame, "run": Run.of(frame, metrics.summary(frame) | {"cost": COST})}
        vars(cell).update(made)  # where a cached property keeps what it has computed
    return drawing, every


def test_cells_that_differ_by_values_are_as_if_composed(monkeypatch):
    compose, composed, akh = config.compose, [], ["experiment.grid.method=[akh]", "experiment.seeds=[0]"]
    monkeypatch.setattr(config, "compose", lambda words: composed.append(words) or compose(words))
    for name, grid, times in (
        ("naturalfinger_table3", ["experiment.seeds=[0,7]"], 1),
        ("across_zoos", ["experiment.grid.method=[akh,random]", "experiment.grid.zoo.seed=[0,3]"], 2),
        ("methods", [*akh, "+experiment.grid.zoo.architectures=[[resnet18],[resnet34,vgg13_bn]]"], 1),
        ("methods", [*akh, "+experiment.grid.recipe=[demo,fast]", "+experiment.grid.queries=[5,6]"], 2),
    ):
        words = [f"experiment={name}", *grid]
        drawn = experiment.composed(compose(words))
        composed.clear()
        every = experiment.cells(drawn, words)
        assert len(composed) == times and len({repr(cell.settings) for cell in every}) == len(every)
        for cell in (every[1], every[-1]):
            assert cell.bench.settings == compose(cell.bench.overrides)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["+experiment.grid.queries=[5,6]"], {"akh, queries=5": 3, "akh, queries=6": 3}),
        (["++experiment.grid.queries=[5,6]"], {"akh, queries=5": 3, "akh, queries=6": 3}),
        (["+experiment.grid.queries=[5]"], {"akh": 3}),
        (["+experiment.grid.evasion=[none,jpeg]"], {"akh": 3, "akh under jpeg": 3}),
        (["experiment.grid.method=[akh,random]", "label=mine"], {"mine, method=akh": 3, "mine, method=random": 3}),
    ],
)
def test_cells_of_one_label_are_told_apart(words, names):
    _, every = cells("methods", "experiment.grid.method=[akh]", *words)
    assert comparison([cell.run for cell in every])["method"].value_counts().to_dict() == names
    alone = shlex.split(every[-1].command)[2:]
    (cell,) = experiment.cells(experiment.composed(config.compose(alone)), alone)
    assert cell.bench.setting == every[-1].bench.setting


def test_the_file_of_all_scores_has_the_queries_found(tmp_path):
    drawing, every = cells("methods", "experiment.grid.method=[akh]", "+experiment.grid.queries=[5,6]", seeds=(0,))
    experiment._write_scores(drawing, every, tmp_path / "cells.csv")
    written = pd.read_csv(tmp_path / "cells.csv").groupby("method")["queries"].unique()
    assert written.map(list).to_dict() == {"akh, queries=5": [100], "akh, queries=6": [99]}


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("naturalfinger_table3", "+experiment.grid.queries=[5,6]", "queries: expected one value: this experiment"),
        ("metafinger_figure7", "+experiment.grid.queries=[5,6]", "queries: expected one value: this experiment"),
        ("zoo", "+experiment.grid.zoo.seed=[0,1]", "zoo.seed: expected one value: this experiment draws its own axes"),
        ("methods", "experiment.seeds=[0,0]", r"experiment.seeds: expected each value once; got \[0, 0\]"),
    ],
)
def test_what_an_experiment_would_draw_as_one_is_refused(name, words, said):
    chosen = [f"experiment={name}", words]
    with pytest.raises(UserError, match=said):
        experiment.cells(experiment.composed(config.compose(chosen)), chosen)


def test_a_caption_has_the_suspects_of_all_cells():
    varied = "+experiment.grid.attack.prune.variants=[[0.1],[0.1,0.2]]"
    _, every = cells("methods", "experiment.grid.method=[akh]", "attack=prune", varied, seeds=(0,))
    assert "seed 0; 1 positive, 1 negative or 2 positives, 2 negatives" in caption(every)


def test_cells_share_what_they_agree_on_and_nothing_else():
    words = ["experiment=across_zoos", *SMALL, "experiment.grid.method=[metav,random]"]
    drawn = experiment.composed(config.compose(words))
    benches = {tuple(cell.settings.values())[:2]: cell.bench for cell in experiment.cells(drawn, words)}
    metav, again, other = benches["metav", 0], benches["random", 0], benches["metav", 1]
    assert metav.models is again.models and metav.surrogates is again.surrogates
    assert metav.data is other.data and metav.models["source"] != other.models["source"]
    for bench in (again, other):
        alone = Bench(bench.settings)
        assert [spec.key for spec in bench.plan()] == [spec.key for spec in alone.plan()]
    others = Bench(config.changed(metav.settings, ["surrogates.halves=[A]"]), lenders=[metav])
    assert others.models is metav.models and others.surrogates[1] != metav.surrogates[1]
    with pytest.raises(UserError, match=r"zoo\.seed: expected a whole number from 0; got False"):
        _ = Bench(config.changed(metav.settings, ["zoo.seed=false"]), lenders=[metav]).models


def test_cells_of_several_data_sets_are_made_of_their_own(monkeypatch):
    words = ["experiment=across_zoos", *SMALL, "experiment.grid.method=[random]", "data.seed=${zoo.seed}"]
    drawn = experiment.composed(config.compose(words))
    built = []
    monkeypatch.setattr(Bench, "build", lambda bench, specs: built.append((bench.zoo.data, {s.data for s in specs})))
    monkeypatch.setattr(experiment.Experiment, "needs", lambda _, bench: [bench.zoo.original()])
    experiment.fill(drawn, experiment.cells(drawn, words))
    assert len(built) == 3 and all(specs == {data} for data, specs in built)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["experiment=naturalfinger_table3", "method.input_transforms=false"], ""),  # varies it itself
        (["experiment=metafinger_figure7", "surrogates.factor=3", "zoo.seed=3", "jobs=1"], ""),
        (["experiment=naturalfinger_figure9", "gan=logan", "gan.steps=9"], "with gan.steps=9."),
        (["experiment=naturalfinger_table3", "gan=wgan_gp"], "with gan=wgan_gp."),
        (["experiment=methods", "surrogates=fifteen"], "with surrogates=fifteen."),
        (["experiment=methods", "queries=10", "attack=[source,prune]"], "with attack=[source, prune], queries=10."),
        (
            ["experiment=methods", "attack=[source,prune]", "attack.prune.variants=['0.9']"],
            "attack.prune.variants=[0.9].",
        ),
        (["experiment=methods", "recipe=lite"], "with zoo.training.epochs=2, zoo.training.batch=64, "),
        (["experiment=methods", "zoo.weights=/home/me/mine.safetensors"], "with zoo.weights=FILE."),
        (["experiment=methods", "data=digits"], "ours, of digits with profile paper, cannot be compared"),
        (["experiment=methods", "profile=lite"], "ours, of cifar10 with profile lite, cannot be compared"),
        (["experiment=methods", "profile=wide"], "Ours, of profile wide, are not of profile paper as it is, but with "),
    ],
)
def test_a_caption_says_what_differs_from_the_papers_profile(words, said):
    words = ["data=cifar10", *(["profile=paper"] if "profile=" not in str(words) else []), *words]
    found = incomparable(Bench(config.compose(words), words))
    assert said in found if said else found == ""


def test_a_caption_names_a_zoo_that_is_not_the_first():
    zoos = [[at(cell, 0) for cell in cells("methods", PAIR, seeds=[0])[1]] for _ in range(2)]
    for cell in zoos[1]:
        cell.bench.settings.zoo.seed = 1
    first, second, both = (caption(drawn, queries=False) for drawn in (*zoos, zoos[0] + zoos[1]))
    assert first.startswith("digits/resnet18, profile demo, seed 0; ") and both == first
    assert second == first.replace("seed 0; ", "seed 0, zoo seed 1; ")
    assert caption([*zoos[1], *zoos[0]], queries=False) == first


def test_a_caption_names_an_evasion_that_all_cells_are_under():
    clean, evaded = [[at(cell, 0) for cell in cells("methods", PAIR, seeds=[0])[1]] for _ in range(2)]
    for cell in evaded:
        cell.bench.settings.evasion.name = "jpeg"
    assert "jpeg" in caption(evaded, queries=False)
    assert caption(clean + evaded, queries=False) == caption(clean, queries=False)


def test_no_method_waits_for_suspects(monkeypatch):
    drawing, every = cells("methods", "experiment.grid.method=[ipguard,metafinger]", seeds=[0])
    built = []
    monkeypatch.setattr(Bench, "build", lambda bench, specs: built.extend(specs))
    experiment.fill(drawing, every)
    kinds = [spec.kind for spec in built]
    last, prints = len(kinds) - 1 - kinds[::-1].index("fingerprint"), [s for s in built if s.kind == "fingerprint"]
    needed = {spec.key for one in prints for spec in one.needs()}
    assert len(prints) == 2 and {spec.key for spec in built[: last - 1]} == needed
    asked = [spec.suspect.key for spec in built if spec.kind == "response"]
    assert kinds[-len(asked) :] == ["response"] * len(asked) and asked == sorted(asked)


def drawn(name, *words, seeds=(0, 1)):
    """Return the cells and the exhibits, by name."""
    drawing, every = cells(name, *words, seeds=seeds)
    return every, {exhibit.name: exhibit for exhibit in drawing.exhibits(every)}


def of(cell, suspect):
    return cell.scores.set_index("suspect").score[suspect]


def margin(cell, suspect):
    return of(cell, suspect) - of(cell, f"mirror/{suspect}")


def lines(axes):
    """Return the y values of the lines and of the dashes across, by colour."""
    every = [(line.get_color(), list(line.get_ydata())) for line in axes.lines]
    return dict(pair for pair in every if len(pair[1]) > 2), {c: y[0] for c, y in every if len(y) == 2}


@pytest.mark.parametrize("name", config.options("experiment"))
def test_every_experiment_composes_and_builds(name):
    settings = config.compose([f"experiment={name}"])
    assert settings.label
    if "experiment" in settings:
        drawing = experiment.composed(settings)
        assert drawing.paper and drawing.title and drawing.seeds


def test_the_comparison_is_of_every_method():
    settings = config.compose(["experiment=methods"])
    assert list(settings.experiment.grid.method) == METHODS
    assert set(METHODS) <= set(config.options("method"))


def test_a_part_of_a_grid_is_a_list_and_no_sweep():
    config.check(["experiment=methods", "experiment.grid.method=[akh,random]"])
    with pytest.raises(UserError, match=r"method=akh,random: an experiment takes one value .* experiment.grid"):
        config.check(["experiment=methods", "method=akh,random"])
    with pytest.raises(UserError, match="add -m"):
        config.check(["method=akh,random"])


def test_a_sweep_may_be_a_pattern_and_has_values_to_list():
    config.check(["-m", "method=glob([a*,r*])"])
    with pytest.raises(UserError, match=r"unknown config key 'method.stesp'"):
        config.check(["-m", "method=glob(a*)", "method.stesp=2"])
    for word, got in (("method=glob(z*)", "none"), ("seed=glob(*)", "none"), ("seed=interval(0,1)", "an interval")):
        with pytest.raises(UserError, match=rf"=.*: expected values such as a,b or range\(0,2\); got {got}; list"):
            config.check(["-m", word])


def test_a_sweep_over_a_group_takes_the_keys_of_what_it_chooses():
    config.check(["-m", "data=cifar10,imagefolder", "data.root=/data"])  # the digits, chosen otherwise, have none
    with pytest.raises(UserError, match=r"unknown config key 'data.root'"):
        config.check(["-m", "data=cifar10,digits", "data.root=/data"])


def test_figure_4_has_the_mean_aruc_beside_the_papers():
    every, made = drawn("naturalfinger_figure4", PAIR, "attack=[source,prune,scratch]")
    table = made["aruc"].table.set_index("method")
    for method in ("metav", "ipguard"):
        own = [metrics.aruc(*metrics.sides(cell.scores)) for cell in every if cell.label == method]
        assert len(own) == 2
        assert table.ARUC[method].startswith(tables.cell(float(np.mean(own))))
        numbers = made["aruc"].data.set_index(["method", "seed"]).loc[(method, "mean")]
        assert numbers.aruc == pytest.approx(np.mean(own))
        assert table.ARUC[method].endswith(tables.spread(numbers.aruc_low, numbers.aruc_high))
    assert table.paper.to_dict() == {"metav": "0.7782", "ipguard": "< 0.7782"}
    titles = [axes.get_title() for axes in made["curves"].figure.axes]
    assert [title.split()[0] for title in titles] == ["metav", "ipguard"]
    assert "cannot be compared" in made["aruc"].caption and "seeds 0, 1" in made["aruc"].caption


def test_figure_5_draws_the_scores_of_each_share_of_adversarial_examples():
    every, made = drawn("naturalfinger_figure5", PAIR)
    names = ["source", *(f"adversarial/{share / 10:.1f}" for share in range(1, 11))]
    for axes, method in zip(made["scores"].figure.axes, ("metav", "ipguard"), strict=True):
        own = [cell for cell in every if cell.label == method]
        series, across = lines(axes)
        for shade, prefix, extreme in ((plots.colour(method), "", min), (plots.INK, "mirror/", max)):
            both = [[of(cell, prefix + name) for name in names] for cell in own]
            assert series[shade] == pytest.approx(np.mean(both, axis=0).tolist())
            assert across[shade] == extreme(map(extreme, both))
    assert list(axes.lines[-1].get_xdata()) == [share / 10 for share in range(11)]
    bands = made["scores"].data.set_index(["method", "side", "share"]).loc[("metav", "positive", 0.3)]
    ends = sorted(of(cell, "adversarial/0.3") for cell in every if cell.label == "metav")
    assert [bands.low, bands.high] == ends and ends[0] < ends[1]


def test_figure_6_draws_signed_margins():
    every, made = drawn("naturalfinger_figure6", PAIR)
    data = made["margins"].data.set_index(["method", "family", "variant"])
    assert len(data) == 2 * (9 + 9 + 4) and (data["mean"] < 0).any()
    for family, variant in (("prune", "0.9"), ("noise", "1"), ("finetune", "RTAL")):
        both = [margin(cell, f"{family}/{variant}") for cell in every if cell.label == "ipguard"]
        row = data.loc[("ipguard", family, variant)]
        assert row.tolist() == pytest.approx([np.mean(both), min(both), max(both)])
        shown = made["margins"].table.set_index(["family", "variant"]).loc[(family, variant), "ipguard"]
        assert shown == tables.estimate(*row)
    pruning, noise = made["strengths"].figure.axes
    assert list(pruning.lines[0].get_xdata()) == pytest.approx([rate / 10 for rate in range(1, 10)])
    assert list(noise.lines[0].get_xdata()) == list(range(1, 10))
    own = [margin(cell, "noise/1") for cell in every if cell.label == "metav"]
    assert lines(noise)[0][plots.colour("metav")][0] == pytest.approx(np.mean(own))
    (bars,) = made["finetuning"].figure.axes
    own = [margin(cell, "finetune/FTLL") for cell in every if cell.label == "metav"]
    assert bars.patches[0].get_height() == pytest.approx(np.mean(own))


def test_figure_7_tells_seen_from_unseen_architectures():
    every, made = drawn("naturalfinger_figure7", PAIR, "surrogates.positives=[xception]")
    table = made["table"].table.set_index(["family", "architecture", "unseen"])
    rows = [("resnet18", "no"), ("vgg19_bn", "yes"), ("xception", "no"), ("mean", "no"), ("mean", "yes")]
    assert list(table.index) == [(family, *row) for family in ("distill", "knockoff") for row in rows]
    data = made["table"].data.set_index(["method", "family", "architecture", "unseen"])
    seen = [
        np.mean([margin(cell, f"knockoff/{name}") for name in ("resnet18", "xception")])
        for cell in every
        if cell.label == "metav"
    ]
    expected = [np.mean(seen), min(seen), max(seen)]
    assert data.loc[("metav", "knockoff", "mean", "no")].tolist() == pytest.approx(expected)
    distill, knockoff = made["margins"].figure.axes
    heights = [patch.get_height() for patch in knockoff.patches]
    architectures = [label.get_text() for label in knockoff.get_xticklabels()]
    assert architectures == ["resnet18", "vgg19_bn", "xception"] and distill.get_title() == "distillation"
    both = [margin(cell, "knockoff/xception") for cell in every if cell.label == "ipguard"]
    assert heights[-1] == pytest.approx(np.mean(both))


def test_a_seed_without_queries_has_no_scores():
    drawing, every = cells("naturalfinger_figure5", "experiment.grid.method=[ipguard]")
    alone = drawing.exhibits(every[:1])[0].data
    vars(every[1])["scores"] = every[1].scores.assign(queries=0, score=0.0)
    both = drawing.exhibits(every)[0].data
    assert both["mean"].to_list() == pytest.approx(alone["mean"].to_list()) and alone["mean"].notna().all()
    vars(every[0])["scores"] = every[0].scores.assign(queries=0, score=0.0)
    drawn = drawing.exhibits(every)[0]
    assert drawn.data["mean"].isna().all() and f"Queries: ipguard 0; {tables.UNASKED}." in drawn.caption


@pytest.mark.parametrize(("name", "nothing"), [("naturalfinger_figure6", 0.0), ("freqgan_table1", 0.5)])
def test_a_seed_without_queries_counts_where_methods_are_judged(name, nothing):
    drawing, every = cells(name, "experiment.grid.method=[ipguard]")
    alone = drawing.exhibits(every[:1])[0].data
    vars(every[1])["scores"] = every[1].scores.assign(queries=0, score=0.0)
    drawn = drawing.exhibits(every)[0]
    areas = drawn.data.get("theft", pd.Series(index=drawn.data.index)) == "ABP"
    expected = (alone["mean"] + areas.map({False: nothing, True: metrics.abp([nothing] * 6)})) / 2
    assert drawn.data["mean"].to_list() == pytest.approx(expected.to_list())
    assert f"{tables.UNASKED}." in drawn.caption


def test_table_3_has_a_row_for_every_combination_of_tricks():
    every, made = drawn("naturalfinger_table3", "attack=[source,prune,scratch]")
    table = made["ablation"].table
    assert len({cell.label for cell in every}) == len(table) == 8
    tricks = [tuple(row) for row in (table.iloc[:, :3] == "x").to_numpy().tolist()]
    assert dict(zip(tricks, table["paper"], strict=True)) == {
        (False, False, False): "0.79",
        (True, False, False): "0.84",
        (False, True, False): "0.86",
        (False, False, True): "0.80",
        (True, True, False): "0.87",
        (True, False, True): "0.86",
        (False, True, True): "0.86",
        (True, True, True): "0.91",
    }
    for row, switches in enumerate(tricks):
        names = ("adversarial_labels", "input_transforms", "discriminator_loss")
        own = [cell for cell in every if tuple(cell.bench.settings.method[name] for name in names) == switches]
        arucs = [metrics.aruc(*metrics.sides(cell.scores)) for cell in own]
        queries = sorted(cell.scores["queries"].iloc[0] for cell in own)
        assert len(own) == 2
        assert table["ARUC"][row].startswith(f"{tables.cell(float(np.mean(arucs)))} [")
        assert table["queries"][row] == f"{queries[0]} to {queries[1]}"


@pytest.mark.parametrize("name", PAPERS)
def test_a_part_of_an_experiment_can_be_drawn(name):
    _, made = drawn(name, "experiment.grid.method=[random]", "attack=[source,finetune,distill]", seeds=(0,))
    assert made
    for exhibit in made.values():
        assert "seed 0;" in exhibit.caption and "their range" not in exhibit.caption
        assert exhibit.table is None or len(exhibit.table)


@pytest.mark.parametrize(
    ("drawn", "told"),
    [
        (None, "a list of Exhibits, at least one; got"),
        ([], r"a list of Exhibits, at least one; got \[\]"),
        ([pd.DataFrame({"a": range(50)})], r"a list of Exhibits, at least one; got \['DataFrame'\]"),
        ([Exhibit("a/b", "")], "names of files"),
        ([Exhibit("..", "")], "names of files"),
        ([Exhibit("a", ""), Exhibit("a", "")], "each name once, since files bear it"),
    ],
)
def test_exhibits_that_are_none_are_refused(drawn, told):
    with pytest.raises(UserError, match=f"experiment=mine, exhibits: expected {told}"):
        _require_exhibits("mine", drawn)


@pytest.mark.parametrize("draw", [line_panels, bar_panels])
def test_panels_share_limits_that_hold_the_data_of_all(draw):
    panels = {"a": Panel(["x", "y"], {"metav": [0.2, 0.3]}), "b": Panel(["x", "y"], {"metav": [-0.9, 0.8]})}
    for axes in draw(panels, "margin", limits=None).axes:
        low, high = axes.get_ylim()
        assert low < -0.9 and 0.8 < high < 1
    assert draw(panels, "margin", limits=(-1, 1)).axes[1].get_ylim() == (-1, 1)


def test_a_legend_shows_every_colour_of_a_series_and_the_marker_of_its_lines():
    shades = ("#112233", "#445566")
    panels = {
        shade: Panel([0, 1], {"mirror": [0, 0], "positive": [1, 1]}, colours={"positive": shade}) for shade in shades
    }
    panels["other"] = Panel([0, 1], {"positive": [1, 1]}, colours={"positive": shades[0]})
    figure = line_panels(panels, "score")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["mirror", "positive"]
    marks = [(line.get_color(), line.get_marker()) for line in legend.findobj(Line2D)]
    assert marks == [(plots.colour("mirror"), "o"), (shades[0], "s"), (shades[1], "s")]
    assert {line.get_marker() for axes in figure.axes for line in axes.lines if line.get_color() in shades} == {"s"}
