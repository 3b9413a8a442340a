"""Every figure and table of the papers that can be regenerated, on a zoo that is real in every part and hardly trained.

What stands in the papers is listed here once more, on its own: the experiments must bring the same numbers.
"""

import pytest
from conftest import ROOT, slow_but

from fingerbench import config
from fingerbench.evaluate import experiment, html, tables

FEW = ["attack.finetune.variants=[FTAL]", "attack.prune.variants=['0.5']", "attack.noise.variants=['1','2']"]
PERCEPTRONS = ["attack=[source,scratch]", *(f"surrogates.{key}=[mlp]" for key in ("positives", "scratch", "distilled"))]
WHOLE = [*FEW, "attack.adversarial.variants=['0.5','1.0']"]  # with attack=all

# experiment -> (where the paper has it, what it prints there, overrides that keep the test short)
ENTRIES = {
    "naturalfinger_table1": ("NaturalFinger, table 1", ["63", "28"], []),
    "zoo": ("the zoo", [], ["attack=[source,finetune]"]),
    "naturalfinger_table2": (
        "NaturalFinger, table 2",
        ["0.003", "1.000", "0.480", "0.850"],
        ["experiment.runs=1", "experiment.detector.epochs=2"],
    ),
    "naturalfinger_table3": (
        "NaturalFinger, table 3",
        ["0.79", "0.84", "0.86", "0.80", "0.87", "0.91"],
        ["attack=source"],
    ),
    "naturalfinger_figure2": (
        "NaturalFinger, figure 2",
        [],
        ["method.epochs=40", "method.input_transforms=false"],  # so that a latent or two become queries
    ),
    "naturalfinger_figure4": (
        "NaturalFinger, figure 4",
        ["0.9112", "< 0.7782"],
        [*WHOLE, "experiment.grid.method=[ipguard,naturalfinger]"],
    ),
    "naturalfinger_figure5": (
        "NaturalFinger, figure 5",
        ["fall to about 0"],
        [WHOLE[-1], "experiment.grid.method=[ipguard]"],
    ),
    "naturalfinger_figure6": (
        "NaturalFinger, figure 6",
        ["about 0.90", "0.75", "0.95"],
        [*FEW, "experiment.grid.method=[ipguard]"],
    ),
    "naturalfinger_figure7": ("NaturalFinger, figure 7", ["0.70", "about 1.00"], ["experiment.grid.method=[ipguard]"]),
    "naturalfinger_figure8": ("NaturalFinger, figure 8", [], []),
    "naturalfinger_figure9": (
        "NaturalFinger, figure 9",
        ["0.8471", "0.91"],
        ["attack=[source,finetune]", "experiment.grid.gan=[sagan,reacgan]"],
    ),
    "metafinger_figure3": ("MetaFinger, figure 3", ["0.9934"], [*FEW, "experiment.grid.method=[metafinger]"]),
    "metafinger_figure5": ("MetaFinger, figure 5", ["> 0.80"], ["experiment.grid.method=[metafinger]"]),
    "metafinger_figure7": (
        "MetaFinger, figure 7",
        ["0.93"],
        [*FEW, "experiment.grid.surrogates.negatives=[6]", "experiment.grid.surrogates.factor=[0,5]"],
    ),
    "metafinger_table1": ("MetaFinger, table 1", ["4.000", "13.000"], []),
    "freqgan_table1": (
        "FreqGAN, table 1",
        ["0.600", "0.780", "1.62", "2.04", "2.22"],
        [*WHOLE, "experiment.grid.method=[ipguard,freqgan]"],
    ),
    "evasions": (
        "FreqGAN, figure 2",
        ["2.22", "1.62", "2.598"],
        [*WHOLE, "experiment.grid.method=[ipguard]", "experiment.grid.evasion=[none,bits_truncate]"],
    ),
    "methods": ("all methods", [], ["attack=source"]),
    "same_half": (
        "Beyond the papers",
        [],
        ["attack=[source,same-half]", "experiment.grid.method=[ipguard]"],
    ),
    "across_zoos": (
        "Beyond the papers",
        [],
        ["attack=source", "experiment.grid.method=[ipguard]", "experiment.grid.zoo.seed=[0]"],
    ),
    "metav_regression": (
        "Beyond the papers",
        [],
        [*PERCEPTRONS, "zoo.training.epochs=2", "zoo.tuning.epochs=1", "method.iterations=5"],
    ),
}


# Those that CI has time for: all the way from an experiment's file to its page, with every method.
QUICK = {"naturalfinger_table1", "naturalfinger_figure6", "naturalfinger_figure8", "methods", "metav_regression"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store that all experiments share."""
    return tmp_path_factory.mktemp("paper") / "store"


def tiny(name, store):
    """Return the words of an experiment on the tiny zoo of its data."""
    images = [f"hydra.searchpath=[file://{ROOT / 'tests/conf'}]", "profile=tiny", "data.half=300", "data.transfer=200"]
    shared = [f"store={store}", "jobs=1", "queries=10", "experiment.seeds=[0]"]
    return [f"experiment={name}", *shared, *ENTRIES[name][-1], *(images if name != "metav_regression" else [])]


def test_every_experiment_is_an_entry():
    assert set(ENTRIES) == set(config.options("experiment"))


@pytest.mark.parametrize("name", slow_but(QUICK, ENTRIES))
def test_every_entry_is_drawn_beside_the_papers_numbers(name, store, tmp_path):
    where, numbers, _ = ENTRIES[name]
    words = tiny(name, store)
    drawn = experiment.composed(config.compose(words))
    cells = experiment.cells(drawn, words)
    experiment.fill(drawn, cells)
    page = experiment.page(name, drawn, cells)
    assert where in page.paper and not page.missing and page.exhibits
    shown = {
        text
        for exhibit in page.exhibits
        if exhibit.table is not None
        for row in tables.cells(exhibit.table)
        for text in row
    }
    captions = " ".join(exhibit.caption for exhibit in page.exhibits)
    assert all(number in shown or number in captions for number in numbers)
    files = experiment.write(page, tmp_path)
    assert len(files) >= 2 and all(file.stat().st_size for file in files)
    if numbers and name != "naturalfinger_table1":  # a zoo can be counted in any profile
        assert any("cannot be compared" in exhibit.caption for exhibit in page.exhibits)
    html.write([page], words, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("<figure>") == len(page.exhibits)


def test_a_missing_cell_is_told_with_its_command(store):
    expected = r"8 of 8 cells are not in the store(.|\n)*experiment.seeds=\[7\]"
    with pytest.raises(experiment.LackingError, match=expected):
        experiment.read("naturalfinger_table3", [*tiny("naturalfinger_table3", store), "experiment.seeds=[7]"])
