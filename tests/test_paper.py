"""Every figure and table of the papers that can be regenerated, on a zoo that is real in every part and hardly trained.

What stands in the papers is listed here once more, on its own: the experiments must bring the same numbers.
"""

import pytest
from conftest import ROOT

from fingerbench import config
from fingerbench.evaluate import experiment, html, tables

FEW = ["attack.prune.variants=['0.5']", "attack.noise.variants=['1','2']"]
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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Every experiment as (words, experiment, cells), all they need being made in one store: as one plan a data set."""
    store = f"store={tmp_path_factory.mktemp('paper') / 'store'}"
    shared = [store, "jobs=2", "queries=10", "experiment.seeds=[0]"]
    images = [
        f"hydra.searchpath=[file://{ROOT / 'tests' / 'conf'}]",
        "profile=tiny",
        "data.half=300",
        "data.transfer=200",
    ]
    words = {
        name: [f"experiment={name}", *shared, *short, *(images if name != "metav_regression" else [])]
        for name, (_, _, short) in ENTRIES.items()
    }
    every, plans = {}, {}
    for name, mine in words.items():
        drawn = experiment.composed(config.compose(mine))
        every[name] = mine, drawn, experiment.cells(drawn, mine)
        for cell in every[name][-1]:
            bench, specs = plans.setdefault(cell.bench.settings.data.name, (cell.bench, []))
            specs += drawn.needs(cell.bench)
    for bench, specs in plans.values():
        bench.build(specs)
    return every


def test_every_experiment_is_an_entry():
    assert set(ENTRIES) == set(config.options("experiment"))


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_is_drawn_beside_the_papers_numbers(name, tiny, tmp_path):
    where, numbers, _ = ENTRIES[name]
    words, drawn, cells = tiny[name]
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


def test_a_missing_cell_is_told_with_its_command(tiny):
    words = [*tiny["naturalfinger_table3"][0], "experiment.seeds=[7]"]
    with pytest.raises(
        experiment.LackingError, match=r"8 of 8 cells are not in the store(.|\n)*experiment.seeds=\[7\]"
    ):
        experiment.read("naturalfinger_table3", words)
