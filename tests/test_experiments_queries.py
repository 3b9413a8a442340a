"""NaturalFinger's exhibits of queries, GANs and the zoo itself, drawn from a store of made-up artefacts."""

from functools import cache

import numpy as np
import pytest
import torch
from conftest import METHODS, TINY

from experiments.naturalfinger_figure2 import NAMES, different
from experiments.naturalfinger_figure2 import PAIRS as SHOWN
from experiments.naturalfinger_figure9 import PAPER as GANS
from experiments.naturalfinger_table2 import HELD_OUT, PAPER
from fingerbench import config
from fingerbench.data.digits import Digits
from fingerbench.errors import UserError
from fingerbench.evaluate import metrics
from fingerbench.evaluate.experiment import cells, composed, read

PAIRS = [(3, 5), (3, 5), (3, 7), (1, 2), (8, 0)]
FLAGGED = {"akh": (0.0, 0.5), "random": (0.25, 0.75)}  # by each of two detectors


@pytest.fixture(autouse=True, scope="module")
def loaded_once():
    """Rendering the glyphs of the digits takes seconds; every benchmark of this module may share them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Digits, "load", cache(Digits.load))
        yield


def words(store, name, *more):
    return [f"experiment={name}", *TINY, "attack=[source,finetune,distill,scratch]", f"store={store}", *more]


def made_up(spec, number):
    """Tensors and facts of an artefact: the `number`-th of its kind, nothing else about it matters."""
    draw = torch.Generator().manual_seed(number)
    facts = {
        "queries": len(PAIRS),
        "seconds": 1.0,
        "yields": {},
        "note": "",
        "fid": float(number),
        "conditional": True,
        "accuracy": 1.0,
    }
    facts |= {"name": spec.label.split()[0], "features": "made-up features", **dict.fromkeys(HELD_OUT.values(), 0.125)}
    images = torch.rand(len(PAIRS), 3, 16, 16, generator=draw)
    if spec.kind == "fingerprint":
        labels, negative = torch.tensor(PAIRS).T
        return {"queries": images, "labels": labels, "negative_labels": negative}, facts
    if spec.kind == "response":
        answers = torch.tensor(PAIRS)[torch.arange(len(PAIRS)), torch.randint(2, (len(PAIRS),), generator=draw)]
        return {"answers": answers[None], "answers_8bit": answers[None].clone()}, facts
    if spec.kind == "detection":
        facts["detection_rate"] = FLAGGED[spec.fingerprint.name][number % 2]
    return {"samples": images}, facts


def filled(store, name, *more):
    """The words of an experiment, with everything in the store that it draws from."""
    chosen = words(store, name, *more)
    experiment = composed(config.compose(chosen))
    counts = {}
    for cell in cells(experiment, chosen):
        for spec in experiment.needs(cell.bench):
            if not cell.bench.store.has(spec):
                number = counts[spec.kind] = counts.get(spec.kind, -1) + 1
                cell.bench.store.save(spec, *made_up(spec, number))
    return chosen


def drawn(store, name, *more):
    return {exhibit.name: exhibit for exhibit in read(name, filled(store, name, *more)).exhibits}


def test_the_zoo_is_the_papers():
    table = read("naturalfinger_table1", ["store=unused"]).exhibits[0].table.set_index("family")
    assert table.loc["all", ["stolen", "mirrors", "independent", "total"]].tolist() == [63, 63, 28, 154]
    for ours, paper in (("stolen", "paper stolen"), ("independent", "paper independent"), ("mirrors", "paper mirrors")):
        printed = table[table[paper].notna()]
        assert len(printed) and printed[ours].tolist() == printed[paper].tolist()


def test_a_part_of_the_zoo_is_counted_as_it_is(tmp_path):
    table = drawn(tmp_path, "naturalfinger_table1")["composition"].table.set_index("family")
    assert list(table.index) == ["source", "finetune", "distill", "scratch", "all"]
    assert table.loc["finetune", "total"] == 8 and table.loc["all", "stolen"] == table["stolen"][:-1].sum()


def test_sample_queries_show_each_pair_once_and_many_positive_labels_first(tmp_path):
    assert different(PAIRS) == [0, 3, 4, 2]
    shown = drawn(tmp_path, "naturalfinger_figure2", "experiment.samples=[2,20]")
    texts = [[text.get_text() for text in e.figure.axes[0].texts] for e in shown.values()]
    assert texts == [["3/5", "1/2"], ["3/5", "1/2", "8/0", "3/7"]]
    assert "; 2 of 4 pairs, one query each" in shown["queries_2"].caption
    assert "; 4 of 4 pairs, one query each" in shown["queries_20"].caption


def test_a_method_without_second_labels_has_no_pairs(tmp_path):
    chosen = words(tmp_path, "naturalfinger_figure2", "method=random")
    (cell,) = cells(composed(config.compose(chosen)), chosen)
    cell.bench.store.save(cell.bench.fingerprint_spec, {"queries": torch.rand(2, 3, 8, 8)}, {"queries": 2})
    with pytest.raises(UserError, match="got '2 queries of random'"):
        read("naturalfinger_figure2", chosen)


def test_a_method_that_made_no_query_has_an_empty_block_and_no_rate(tmp_path):
    grid = ["experiment.grid.method=[akh,random]", "experiment.seeds=[0]", "experiment.runs=2"]
    chosen = words(tmp_path, "naturalfinger_table2", *grid)
    experiment = composed(config.compose(chosen))
    akh = cells(experiment, chosen)[0].bench
    akh.store.save(akh.fingerprint_spec, {"queries": torch.empty(0, 3, 16, 16)}, {"queries": 0})
    for spec in experiment.detections(akh):
        akh.store.save(spec, {}, {"queries": 0, "detection_rate": None})
    table = drawn(tmp_path, "naturalfinger_table2", *grid)["detection"].table.set_index("method")
    assert table.loc["akh", ["queries", "detection rate"]].tolist() == ["0", "-"]
    assert table.loc["random", "detection rate"] == "0.500 [0.250, 0.750]"
    blocks = drawn(tmp_path, "naturalfinger_figure8", *grid[:2])["queries"].figure.axes
    assert [len(axes.images) for axes in blocks] == [0, len(PAIRS)]
    assert blocks[0].get_title(loc="left") == "akh, 0 queries"


def test_class_names_are_ten_in_the_order_of_the_archive_and_those_of_the_papers_pairs():
    names = NAMES["cifar10"]
    assert len(set(names)) == 10 and list(names) == sorted(names)  # CIFAR-10 numbers its classes by the alphabet
    assert {name for pair in SHOWN for name in pair.split("/")} <= set(names)


def test_a_block_a_method_under_its_name(tmp_path):
    methods = ["random", "naturalfinger", "akh"]
    grid = [f"experiment.grid.method=[{','.join(methods)}]", "experiment.seeds=[0,1]"]
    shown = drawn(tmp_path, "naturalfinger_figure8", *grid)["queries"]
    titles = [axes.get_title(loc="left") for axes in shown.figure.axes]
    assert titles == [f"{method}, {len(PAIRS)} queries" for method in methods]
    assert all(len(axes.images) == len(PAIRS) for axes in shown.figure.axes)


def test_detection_rates_are_means_over_detectors_and_seeds(tmp_path):
    grid = ["experiment.grid.method=[akh,random]", "experiment.seeds=[0,1]", "experiment.runs=2"]
    shown = drawn(tmp_path, "naturalfinger_table2", *grid)
    rows = shown["detection"].data.set_index("method")
    for method, rates in FLAGGED.items():
        assert rows.loc[method, ["mean", "low", "high"]].tolist() == [np.mean(rates), *rates]
    assert rows["queries"].tolist() == [str(len(PAIRS))] * 2 and rows["paper"].isna().all()
    assert shown["detection"].table["detection rate"].tolist()[0] == "0.250 [0.000, 0.500]"
    assert shown["detectors"].data["images"].tolist() == list(HELD_OUT)
    assert (shown["detectors"].data["mean"] == 0.125).all()
    assert "flag 0.125" in shown["detection"].caption and "cannot be compared" in shown["detection"].caption
    assert "step 0.125" in shown["detectors"].caption


def test_the_detectors_of_table_2_are_the_zoos_and_differ(tmp_path):
    chosen = words(tmp_path, "naturalfinger_table2", "experiment.grid.method=[akh,random]", "experiment.seeds=[0,1]")
    experiment = composed(config.compose(chosen))
    benches = [cell.bench for cell in cells(experiment, chosen)]
    keys = {tuple(spec.key for spec in experiment.detectors(bench)) for bench in benches}
    assert len(keys) == 1 and len(set(*keys)) == experiment.runs == 3
    assert len({spec.key for bench in benches for spec in experiment.detections(bench)}) == 3 * 4
    assert experiment.detector.fgsm == benches[0].settings.data.constants.fgsm != type(experiment.detector)().fgsm
    assert set(PAPER) < set(METHODS)


def test_gans_stand_beside_the_papers_numbers_in_the_order_of_the_grid(tmp_path):
    assert set(GANS) == set(config.options("gan"))
    gans = ["reacgan", "logan"]
    grid = [f"experiment.grid.gan=[{','.join(gans)}]", "experiment.seeds=[0,1]", "attack=[source,finetune]"]
    chosen = filled(tmp_path, "naturalfinger_figure9", *grid)
    shown = {exhibit.name: exhibit for exhibit in read("naturalfinger_figure9", chosen).exhibits}
    table = shown["gans"].data.set_index("gan")
    assert list(table.index) == gans and table["paper"].tolist() == [GANS[gan] for gan in gans]
    every = cells(composed(config.compose(chosen)), chosen)
    for gan, row in table.iterrows():
        arucs = [metrics.aruc(*metrics.sides(cell.scores)) for cell in every if cell.label == gan]
        assert len(arucs) == 2 and row["aruc"] == pytest.approx(np.mean(arucs))
        assert row["aruc_low"] <= row["aruc"] <= row["aruc_high"]
    axes = shown["aruc_by_gan"].figure.axes[0]
    assert [bar.get_height() for bar in axes.patches] == table["aruc"].tolist()
    assert axes.lines[0].get_ydata().tolist() == table["paper"].tolist()
    assert {f"samples_{gan}" for gan in gans} < set(shown)
    assert len(shown["samples_logan"].figure.axes[0].images) == len(PAIRS)
