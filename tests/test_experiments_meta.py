"""The experiments of MetaFinger's and FreqGAN's papers and of the evasions, on a zoo that nobody has trained."""

import itertools
import shutil

import numpy as np
import pytest
import torch

from experiments.common import SHORT
from experiments.freqgan_table1 import PAPER
from experiments.metafinger_table1 import PAPER as CLEAN
from fingerbench import bench as benches
from fingerbench import config
from fingerbench.data.digits import Digits
from fingerbench.errors import UserError
from fingerbench.evaluate import metrics, plots, tables
from fingerbench.evaluate.experiment import LackingError, cells, composed, page, write
from fingerbench.evaluate.panels import Panel, radar_panels
from fingerbench.evaluate.run import scores
from fingerbench.zoo.model import ModelSpec

ALL = ["source", "finetune", "prune", "noise", "adversarial", "distill", "knockoff"]
TINY = [
    "zoo.architectures=[resnet18,vgg19_bn]",
    "zoo.width=0.0625",
    "data.transfer=64",
    "queries=10",
]
VARIANTS = {"finetune": "[FTLL,RTAL]", "prune": "[0.1,0.9]", "noise": "[1]", "adversarial": "[0.5]"}


def make(spec, bench):
    """Put `spec` and what it needs into the store; a model keeps the weights that it was born with."""
    if bench.store.has(spec):
        return
    for parent in spec.needs():
        make(parent, bench)
    if not isinstance(spec, ModelSpec):
        bench.store.save(spec, *spec.make(bench.workshop))
        return
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed % 2**32)
        weights = spec.network(bench.data.shape).state_dict()
    bench.store.save(spec, weights, {"name": spec.name, "accuracy": spec.seed % 100 / 100, "seconds": 0.0})


@pytest.fixture(scope="module")
def draw(tmp_path_factory):
    """Return a function that fills an experiment and gives its page and its cells."""
    store = tmp_path_factory.mktemp("meta")
    data = benches.open(*TINY).data

    def fill_and_draw(name, *words, families=ALL):
        thin = [f"attack.{family}.variants={VARIANTS[family]}" for family in families if family in VARIANTS]
        given = [f"experiment={name}", f"store={store}", f"attack=[{','.join(families)}]", *TINY, *thin, *words]
        experiment = composed(config.compose(given))
        every = cells(experiment, given)
        for cell in every:
            for spec in cell.bench.plan():
                make(spec, cell.bench)
        return page(name, experiment, every), every

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Digits, "load", lambda _: data)  # rendering the fonts takes seconds each time
        yield fill_and_draw


def table(drawn, name):
    return next(exhibit for exhibit in drawn.exhibits if exhibit.name == name).table


def cell_of(every, **settings):
    return next(cell for cell in every if settings.items() <= cell.settings.items())


TWO = ("experiment.grid.method=[random,akh]", "experiment.seeds=[0,1]")


def test_figure_3_has_means_and_ranges_of_what_is_there(draw, tmp_path):
    drawn, every = draw("metafinger_figure3", *TWO, families=["source", "finetune", "prune"])
    assert [exhibit.name for exhibit in drawn.exhibits] == [
        "metafinger_figure3_finetune",
        "metafinger_figure3_lines",
        "metafinger_figure3",
    ]
    lines = drawn.exhibits[1]
    assert "0.7" not in lines.data["variant"].tolist()
    assert "70 %" in lines.caption and len(lines.figure.axes) == 1
    values = [c.scores.set_index("suspect").loc["prune/0.9", "score"] for c in every if c.settings["method"] == "akh"]
    row = lines.data.set_index(["method", "variant"]).loc[("akh", "0.9")]
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((np.mean(values), min(values), max(values)))
    shown = table(drawn, "metafinger_figure3")
    assert shown["family"].tolist() == ["finetune", "prune", "all"]
    means = [c.scores.set_index("suspect").loc["prune/0.1", "score"] for c in every if c.label == "akh"]  # not 0.9
    assert shown.loc[1, "akh"] == f"{np.mean(means):.3f} [{min(means):.3f}, {max(means):.3f}]"
    assert all(file.stat().st_size for file in write(drawn, tmp_path))


def test_the_paper_stands_beside_the_methods_that_it_has(draw):
    alone = ("experiment.grid.method=[random]", "experiment.seeds=[0]", "label=ipguard")
    drawn, _ = draw("metafinger_table1", *alone, families=["source", "scratch"])
    shown = table(drawn, "metafinger_table1")
    assert shown["suspect"].tolist() == ["mirror/source", "scratch/vgg19_bn"]
    assert shown["paper"].tolist() == list(CLEAN["ipguard"][:2])
    assert "12.67, 10.67, 11.00, 9.67" in drawn.exhibits[0].caption
    assert "cannot be compared" in drawn.exhibits[0].caption
    drawn, (cell,) = draw("freqgan_table1", *alone, families=["source", "prune"])
    shown = table(drawn, "freqgan_table1_paper").set_index("theft")
    assert shown["paper"].to_dict() == {column: PAPER["ipguard"][column] for column in ("WP", "AVG")}
    scores = cell.scores.set_index("suspect")
    negative = scores.loc["mirror/source", "score"]
    expected = np.mean([(s > negative) + (s == negative) / 2 for s in scores.loc[["prune/0.1", "prune/0.9"], "score"]])
    assert shown["ours"].tolist() == [f"{expected:.3f}"] * 2  # the paper has no mirrors


def test_what_stands_beside_freqgans_paper_is_of_its_kind(draw):
    words = ("experiment.grid.method=[random]", "experiment.seeds=[0]", "label=freqgan")
    drawn, (cell,) = draw("freqgan_table1", *words, families=["source", "distill", "scratch"])
    scores = cell.scores.set_index("suspect")["score"]
    negatives = scores[["mirror/source", "scratch/vgg19_bn"]].tolist()
    assert "mirror/distill/resnet18" in scores and "distill/vgg19_bn" in scores
    shown = table(drawn, "freqgan_table1_paper").set_index("theft")
    assert shown.loc["MEP", "ours"] == f"{metrics.auc([scores['distill/resnet18']], negatives):.3f}"


def test_a_table_without_a_counterpart_in_freqgans_paper_is_drawn_alone(draw):
    words = ("experiment.grid.method=[random]", "experiment.seeds=[0]", "label=freqgan")
    drawn, _ = draw("freqgan_table1", *words, "attack.distill.variants=[vgg19_bn]", families=["source", "distill"])
    assert [exhibit.name for exhibit in drawn.exhibits] == ["freqgan_table1"]


def test_figure_3_has_the_strongest_noise_of_its_own(draw):
    drawn, (cell,) = draw(
        "metafinger_figure3",
        "experiment.grid.method=[akh]",
        "experiment.seeds=[0]",
        "attack.noise.variants=[2,9]",
        families=["source", "noise"],
    )
    shown, scores = table(drawn, "metafinger_figure3").set_index("family")["akh"], cell.scores.set_index("suspect")
    assert list(shown.index) == ["noise", "strongest noise", "all"]
    assert shown["strongest noise"] == f"{scores.loc['noise/2', 'score']:.3f}"


def test_table_1_is_in_per_cent(draw):
    drawn, every = draw("metafinger_table1", *TWO, families=["source", "scratch"])
    mirror = [c.scores.set_index("suspect").loc["mirror/source", "score"] for c in every if c.label == "random"]
    shown = table(drawn, "metafinger_table1")
    assert shown["method"].tolist() == ["random"] * 2 + ["akh"] * 2
    assert shown["architecture"].tolist() == ["ResNet", "VGG"] * 2
    row = drawn.exhibits[0].data.set_index(["method", "suspect"]).loc[("random", "mirror/source")]
    assert row["mean"] == pytest.approx(100 * np.mean(mirror))
    assert row["high"] == pytest.approx(100 * max(mirror))


def test_answers_to_what_was_a_fingerprint_once_are_not_drawn(draw):
    words = ("experiment.grid.method=[random]", "experiment.seeds=[5]")
    _, every = draw("metafinger_table1", *words, families=["source", "scratch"])
    spec, store = every[0].bench.fingerprint_spec, every[0].bench.store
    made = store.load(spec)
    shutil.rmtree(store.path(spec))
    store.save(spec, {**made.tensors, "queries": 1 - made.tensors["queries"]}, made.facts)
    with pytest.raises(LackingError, match="1 of 1 cells are not in the store, or of what has been made again since"):
        page("metafinger_table1", composed(config.compose(["experiment=metafinger_table1"])), every)


def test_the_resnet_of_table_1_is_one_whatever_the_source(draw):
    words = ("experiment.grid.method=[random]", "experiment.seeds=[0]", "zoo.source=vgg19_bn")
    drawn, _ = draw("metafinger_table1", *words, families=["source", "scratch"])
    shown = table(drawn, "metafinger_table1").set_index("architecture")["suspect"]
    assert shown.to_dict() == {"ResNet": "scratch/resnet18", "VGG": "mirror/source"}


def test_networks_of_the_sources_half_are_beside_all_others(draw):
    drawn, every = draw("same_half", *TWO, families=["source", "distill", "scratch", "same-half"])
    runs = [cell.scores.set_index("suspect")["score"] for cell in every if cell.label == "random"]
    stolen, innocent = ["source", "distill/resnet18", "distill/vgg19_bn"], ["same-half/resnet18", "same-half/vgg19_bn"]
    others = ["mirror/source", "mirror/distill/resnet18", "mirror/distill/vgg19_bn", "scratch/vgg19_bn"]
    assert all({*stolen, *innocent, *others} == {*run.index} for run in runs)
    expected = {
        "scratch B": [run[["mirror/source", "scratch/vgg19_bn"]].mean() for run in runs],
        "scratch A": [run[innocent].mean() for run in runs],
        "max B": [run[others].max() for run in runs],
        "max A": [run[innocent].max() for run in runs],
        "min stolen": [run[stolen].min() for run in runs],
        "AUC B": [metrics.auc(run[stolen], run[others]) for run in runs],
        "AUC A": [metrics.auc(run[stolen], run[innocent]) for run in runs],
    }
    found = drawn.exhibits[0].data.set_index(["method", "measure"]).loc["random"]
    assert list(found.index) == list(expected)
    for name, values in expected.items():
        assert found.loc[name, "mean"] == pytest.approx(np.mean(values))
        assert found.loc[name, ["low", "high"]].tolist() == pytest.approx([min(values), max(values)])
    left, _ = drawn.exhibits[1].figure.axes
    assert [len(points.get_offsets()) for points in left.collections] == [2 * 3, 2 * 4, 2 * 2]
    assert left.collections[2].get_offsets()[:, 0].tolist() == [value for run in runs for value in run[innocent]]


def test_a_method_without_queries_has_no_scores_and_the_auc_of_a_guess(draw):
    _, every = draw("same_half", *TWO, families=["source", "scratch", "same-half"])
    for cell in every:
        if cell.label == "akh":
            cell.__dict__["scores"] = cell.scores.assign(queries=0, score=0.0)
    table, dots = composed(config.compose(["experiment=same_half"])).exhibits(every)
    found = table.data.set_index(["method", "measure"])["mean"]
    judged = found.loc["akh"].index.str.startswith("AUC")
    assert found.loc["akh"][~judged].isna().all() and found.loc["random"].notna().all()
    assert found.loc["akh"][judged].tolist() == [0.5, 0.5]
    assert set(table.table.set_index("method").loc["akh"][~judged]) == {tables.NOTHING}
    _, right = dots.figure.axes
    assert not any(np.ma.count(row.get_offsets()[:, 0]) for row in right.collections)


def test_without_networks_of_the_sources_half_there_is_nothing_to_compare(draw):
    with pytest.raises(UserError, match="attack: expected thefts, independent networks and same-half; got"):
        draw("same_half", *TWO, families=["source", "scratch"])


def test_several_zoos_have_means_ranges_and_ranks(draw):
    words = ("experiment.grid.method=[random,akh]", "experiment.grid.zoo.seed=[0,1,2]", "experiment.seeds=[0,1]")
    drawn, every = draw("across_zoos", *words, families=["source", "finetune", "scratch"])
    assert len({cell.bench.models["source"].seed for cell in every}) == 3
    values = drawn.exhibits[0].data.set_index(["zoo", "method"])
    both = [metrics.auc(*metrics.sides(cell_of(every, method="akh", seed=s, **{"zoo.seed": 1}).scores)) for s in (0, 1)]
    assert values.loc[(1, "akh"), "auc"] == pytest.approx(np.mean(both))
    shown = table(drawn, "across_zoos").set_index("method")
    own = values.xs("akh", level="method")["auc"]
    assert shown.loc["akh", "AUC"] == f"{own.mean():.3f} [{own.min():.3f}, {own.max():.3f}]"
    places = {1 + int(values.loc[(zoo, "random"), "aruc"] > values.loc[(zoo, "akh"), "aruc"]) for zoo in range(3)}
    assert shown.loc["akh", "rank by ARUC"] == " to ".join(map(str, sorted(places)))
    left, _ = drawn.exhibits[1].figure.axes
    assert len(left.collections[-1].get_offsets()) == 2 * 3
    assert "Zoos of seeds 0, 1, 2:" in drawn.exhibits[1].caption and "zoo seed" not in drawn.exhibits[1].caption


def test_figure_5_asks_the_source_alone(draw):
    words = ("experiment.grid.evasion=[gaussian_noise,median]", "experiment.grid.method=[akh]", "experiment.seeds=[0]")
    drawn, every = draw("metafinger_figure5", *words, families=["source"])
    data = drawn.exhibits[0].data.set_index(["evasion", "method"])
    assert len(data) == 2
    (noised,) = cell_of(every, evasion="gaussian_noise").scores.query("pirated")["score"]
    assert data.loc[("gaussian noise", "akh"), "mean"] == noised
    assert np.isnan(data["low"]).all()
    assert "drawn 3 times" in drawn.exhibits[0].caption
    assert table(drawn, "metafinger_figure5_table")["akh"].tolist() == [f"{value:.3f}" for value in data["mean"]]
    bars = drawn.exhibits[0].figure.axes[0].patches
    assert sorted(bar.get_height() for bar in bars) == pytest.approx(sorted(data["mean"]))


def test_the_cells_of_figure_7_hold_out_whole_models():
    settings = config.compose(["experiment=metafinger_figure7"])
    grid = settings.experiment.grid.surrogates
    for n, factor in itertools.product(grid.negatives, grid.factor):
        trained = round(settings.method.train_share * n * (1 + factor))
        assert trained % (1 + factor) == 0 and 0 < trained < n * (1 + factor)


def test_the_cells_of_figure_7_share_their_models():
    zoo = benches.open("method=random", "attack=source").zoo

    def surrogates(*words):
        return config.build(config.compose(["surrogates=fifteen", *words]).surrogates).specs(zoo)

    positives, most = surrogates()
    same, few = surrogates("surrogates.negatives=6", "surrogates.factor=1")
    _, none = surrogates("surrogates.negatives=6", "surrogates.factor=0")
    assert (len(most), len(few), len(none)) == (90, 12, 6)
    assert {s.key for s in none} < {s.key for s in few} < {s.key for s in most}
    assert positives == same
    assert not any("copy" in spec.name for spec in none)
    for word in ("surrogates.negatives=0", "surrogates.negatives=16", "surrogates.factor=6", "surrogates.factor=x"):
        with pytest.raises(UserError, match="null or a whole number from"):
            surrogates(word)


def test_figure_7_is_a_line_a_factor(draw):
    grid = ("experiment.grid.surrogates.negatives=[5,15]", "experiment.grid.surrogates.factor=[0,5]")
    drawn, every = draw("metafinger_figure7", "method=random", *grid, families=["source", "prune"])
    positive, negative = metrics.sides(every[0].scores)
    shown = table(drawn, "metafinger_figure7_table")
    assert shown["gap"].tolist() == pytest.approx([positive.mean() - negative.mean()] * 4)
    assert shown["paper"].dropna().to_dict() == {2: "low"}
    assert [line.get_xdata().tolist() for line in drawn.exhibits[0].figure.axes[0].lines] == [[5, 15]] * 2


def test_a_method_without_a_query_accuses_nobody(draw, tmp_path):
    bench = benches.open(f"store={tmp_path}", "method=ipguard", "method.steps=1", "method.margin=1e6", "attack=source",
                         "queries=5", "zoo.width=0.0625")  # fmt: skip
    for spec in bench.plan():
        make(spec, bench)
    facts = bench.store.facts(bench.fingerprint_spec)
    assert facts["queries"] == 0
    assert facts["note"].startswith("ipguard: none of ")
    frame = scores(bench)
    assert frame["score"].tolist() == frame["score_8bit"].tolist() == [0.0, 0.0]
    assert metrics.aruc(*metrics.sides(frame)) == 0


def test_every_family_of_freqgans_table(draw):
    drawn, every = draw("freqgan_table1", *TWO)
    shown = table(drawn, "freqgan_table1").set_index("method")
    assert [exhibit.name for exhibit in drawn.exhibits] == ["freqgan_table1"]  # the paper has none of the methods
    assert list(shown) == [*SHORT.values(), "mean", "ABP"]
    first, second = (metrics.summary(cell.scores) for cell in every if cell.label == "akh")
    assert shown.loc["akh", "AT"] == pytest.approx(
        (first["families"]["adversarial"]["auc"] + second["families"]["adversarial"]["auc"]) / 2
    )
    assert shown.loc["akh", "ABP"] == pytest.approx((first["abp"] + second["abp"]) / 2)


def test_a_part_of_freqgans_table_has_no_area(draw):
    drawn, _ = draw(
        "freqgan_table1", "experiment.grid.method=[akh]", "experiment.seeds=[0]", families=["source", "prune"]
    )
    assert list(table(drawn, "freqgan_table1"))[:3] == ["method", "WP", "mean"]
    assert "ABP" not in table(drawn, "freqgan_table1")


def test_evasions_and_what_they_cost(draw):
    words = ("experiment.grid.method=[akh,random]", "experiment.grid.evasion=[none,median,top1]")
    drawn, every = draw("evasions", *words)
    shown = table(drawn, "evasions_aruc").set_index("evasion")
    assert shown.index.tolist() == ["none", "median", "top1", "mean of these", "worst of these"]
    assert shown.loc["mean of these", "akh"] == pytest.approx(shown.loc[["median", "top1"], "akh"].mean())
    assert shown.loc["worst of these", "akh"] == shown.loc[["median", "top1"], "akh"].min()
    assert shown.loc["top1", "akh"] == shown.loc["none", "akh"]  # a label stays what it is
    frame = cell_of(every, method="akh", evasion="none").scores
    assert shown.loc["none", "accuracy"] == pytest.approx(frame.loc[frame["pirated"], "accuracy"].mean())
    radar = drawn.exhibits[-1]
    assert [axes.get_title() for axes in radar.figure.axes] == ["no evasion"]
    area = metrics.summary(frame)["abp"]
    assert f"akh, ABP {area:.2f}" in [text.get_text() for text in radar.figure.axes[0].get_legend().get_texts()]


def test_no_radar_without_all_six_families(draw):
    words = ("experiment.grid.method=[akh]", "experiment.grid.evasion=[none]")
    drawn, _ = draw("evasions", *words, families=["source", "prune"])
    assert [exhibit.name for exhibit in drawn.exhibits] == ["evasions_aruc", "evasions_auc"]
    assert table(drawn, "evasions_auc")["evasion"].tolist() == ["none"]


def test_a_radar_goes_round():
    aucs = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    figure = radar_panels({"a": Panel("abcdef", {"akh": aucs}), "b": Panel("abc", {"akh": aucs[:3]})})
    line = figure.axes[0].lines[0]
    assert line.get_ydata().tolist() == [*aucs, 1.0]
    assert line.get_color() == plots.colour("akh")
    names = [axes.get_legend().get_texts()[0].get_text() for axes in figure.axes]
    assert names == [f"akh, ABP {metrics.abp(aucs):.2f}", "akh"]
