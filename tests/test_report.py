"""Reports of synthetic runs from end to end, and the figures."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import METHODS, ROOT
from matplotlib.collections import PathCollection
from matplotlib.text import Text

from fingerbench.errors import UserError
from fingerbench.evaluate import metrics, plots, tables
from fingerbench.evaluate.curves import aruc_figure, aruc_panels, caption_of, comparison_figure, curve_points
from fingerbench.evaluate.images import query_grid
from fingerbench.evaluate.report import COLUMNS, comparison, find, load, newest, read_scores, report

COST = {"seconds": 12.4, "preparation_seconds": 300.0, "peak_mib": 700.2, "surrogates": 15, "queries": 100}


def scores(
    method="alpha_1", seed=0, profile="small", source="digits/resnet18", rates=("0.1", "0.2", "0.9"), evasion="none"
):
    """Return plausible scores of a run: pruned models, their mirrors and two independent models."""
    rng = np.random.default_rng([seed, len(method)])
    rows = []
    for rate in rates:
        name = f"prune/{rate}"
        rows += [(name, "prune", "prune", rate, True, None), (f"mirror/{name}", "prune", "prune", rate, False, name)]
    rows += [(f"scratch/{i}", "scratch", None, None, False, None) for i in range(2)]
    frame = pd.DataFrame(rows, columns=["suspect", "family", "attack", "variant", "pirated", "mirror_of"])
    frame["score"] = np.round(np.where(frame["pirated"], rng.beta(6, 3, len(frame)), rng.beta(3, 6, len(frame))), 2)
    frame = frame.assign(method=method, source=source, arch="resnet18", raw=frame["score"] * 3 - 1, queries=100)
    frame["score_8bit"] = np.round(0.9 * frame["score"], 2)
    return frame.assign(accuracy=0.9, evasion=evasion, seed=seed, profile=profile)[list(COLUMNS)]


def write(folder, frame, time="2026-01-02T03:04:05+00:00", models=None, words=(), setting="", zoo=0, code=((), ())):
    """Write `frame` and what follows from it as the folder of a run, with what its manifest says of it."""
    folder.mkdir(parents=True)
    frame.to_csv(folder / "scores.csv", index=False)
    made, judged = ({"code": dict(of)} for of in code)
    (folder / "metrics.json").write_text(json.dumps(metrics.summary(frame) | {"cost": COST, "fingerprint": made}))
    stored = {"suspects": models, "setting": setting}
    manifest = {"time": time, "words": list(words), "seeds": {"zoo": zoo}, "method": judged, "store": stored}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("pristine")
    for method, seed in (("alpha_1", 0), ("alpha_1", 1), ("beta", 0)):
        write(root / "sweep" / f"{method},{seed}", scores(method, seed))
    return root


@pytest.fixture
def runs(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "runs")


def test_scores_survive_the_file(tmp_path):
    frame = scores()
    back = read_scores(write(tmp_path / "run", frame) / "scores.csv")
    assert back["variant"].tolist()[:2] == ["0.1", "0.1"]
    assert back["pirated"].dtype == bool
    assert back["mirror_of"].isna().tolist() == frame["mirror_of"].isna().tolist()
    assert (back["score"] == frame["score"]).all()
    assert (back["raw"] == frame["raw"]).all()
    assert metrics.summary(back) == metrics.summary(frame)


def test_report_end_to_end(runs, tmp_path):
    old = write(runs / "old", scores("beta", 0), time="2025-12-31T00:00:00+00:00")
    done = report([runs], tmp_path / "out" / "deep")
    assert len(done.notes) == 1
    assert str(old) in done.notes[0]
    assert done.notes[0] in done.files[1].read_text()
    assert all(file.stat().st_size > 500 for file in done.files)
    assert {str(f.relative_to(tmp_path / "out" / "deep")) for f in done.files} == {
        *(f"comparison.{suffix}" for suffix in ("csv", "md", "tex")),
        "curves.csv",
        *(f"figures/{name}.{suffix}" for name in ("comparison", "aruc_panels") for suffix in ("png", "pdf")),
    }
    table = pd.read_csv(done.files[0], dtype={"seed": str}, keep_default_na=False, na_values=[""])
    pd.testing.assert_frame_equal(table, done.table, check_dtype=False)
    markdown = done.files[1].read_text()
    widths = [line.count("|") for line in markdown.splitlines() if line.startswith("|")]
    assert widths == [10] * 6 + [4] * 6 + [8] * 6
    assert "digits/resnet18, profile small, seeds 0, 1; 3 positives, 5 negatives" in markdown
    latex = done.files[2].read_text()
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}", r"\end{tabular}", r"\end{table}"):
        assert latex.count(rule) == 3
    assert r"alpha\_1 & 0" in latex
    assert not re.search(r"(?<!\\)[_%#]", latex.replace("tab:", ""))


def test_comparison_rows(runs):
    table = comparison([load(folder) for folder in find([runs])])
    means = {m: np.mean([metrics.aruc(*metrics.sides(scores(m, s))) for s in seeds])
             for m, seeds in (("alpha_1", (0, 1)), ("beta", (0,)))}  # fmt: skip
    best, other = sorted(means, key=means.get, reverse=True)
    assert table["method"].tolist() == [best] * (2 * (best == "alpha_1") + 1) + [other] * (2 * (other == "alpha_1") + 1)
    alpha = table[table["method"] == "alpha_1"].set_index("seed")
    assert alpha.index.tolist() == ["0", "1", "mean"]
    assert alpha.loc["mean", "aruc"] == pytest.approx(means["alpha_1"], abs=1e-12)
    assert alpha.loc["mean", "aruc_low"] <= alpha.loc["mean", "aruc"] <= alpha.loc["mean", "aruc_high"]
    run = metrics.summary(scores("alpha_1", 1))
    assert alpha.loc["1", ["aruc", "aruc_low", "aruc_high"]].tolist() == [run["aruc"], *run["aruc_interval"]]
    rounded = [metrics.aruc(*metrics.sides(scores("alpha_1", seed), "score_8bit")) for seed in (0, 1)]
    assert alpha.loc["mean", "aruc_8bit"] == pytest.approx(np.mean(rounded), abs=1e-12)
    assert alpha.loc["mean", "cost_seconds"] == pytest.approx(COST["seconds"])
    assert alpha.loc["1", "margin_prune"] == run["families"]["prune"]["margin"]


def test_a_method_under_an_evasion_is_told_apart(runs, tmp_path):
    write(runs / "jpeg", scores("beta", 0, evasion="jpeg"))
    done = report([runs], tmp_path / "out")
    assert not done.notes
    assert done.table["method"].value_counts().to_dict() == {"alpha_1": 3, "beta": 1, "beta under jpeg": 1}
    assert "seed 0, evasion jpeg;" in caption_of(scores(evasion="jpeg"))
    assert "evasion" not in caption_of(scores())


def test_captions_tell_the_seed_of_the_zoo_and_what_no_query_counts_as(tmp_path):
    frame = scores().assign(queries=0, score=0.0, score_8bit=0.0)
    assert "seed 0, zoo seed 7;" in caption_of(frame, 7) and f"0 queries ({tables.UNASKED})" in caption_of(frame)
    assert "zoo" not in caption_of(scores()) and caption_of(scores()).endswith("; 100 queries")
    write(tmp_path / "a", scores("beta"), zoo=7)
    text = report([tmp_path / "a"], tmp_path / "out").files[1].read_text()
    assert "seed 0, zoo seed 7; " in text and tables.UNASKED not in text
    write(tmp_path / "b", frame, zoo=7)
    text = report([tmp_path / "a", tmp_path / "b"], tmp_path / "out").files[1].read_text()
    assert f"5 negatives; {tables.UNASKED}." in text


def test_a_report_says_where_code_was_edited(tmp_path):
    old, new = ({"own.Method": digest}.items() for digest in ("1", "2"))
    for i, (method, code) in enumerate((("a", (old, old)), ("a", (new, new)), ("b", (old, new)), ("c", (new, new)))):
        write(tmp_path / str(i), scores(method, seed=i), code=code)
    done = report([tmp_path], tmp_path / "out")
    edited = "its numbers are of several states of the code of own.Method;"
    assert [note.partition(" if ")[0] for note in done.notes] == [f"a: {edited}", f"b: {edited}"]
    assert f"Note: b: {edited}" in done.files[1].read_text()


def test_settings_of_a_method_are_told_apart_by_their_words(tmp_path):
    for name, seed, setting, *words in (
        ("a", 0, "default"),
        ("b", 1, "default", "queries=20", "attack=all", "jobs=1"),  # the default, spelt out
        ("c", 0, "fifty", "+queries=50", "method.x=1"),
        ("d", 1, "fifty", "method.x=1", "queries=50"),
        ("e", 0, "nine", "queries=9"),
        ("f", 0, "123456 one", "method.x=2"),  # a file was edited between these two
        ("g", 0, "abcdef two", "method.x=2"),
    ):
        write(tmp_path / name, scores("beta", seed), words=["method=beta", *words], setting=setting)
    write(tmp_path / "old", scores("alpha"), words=["queries=5"], setting="one")
    write(tmp_path / "new", scores("alpha"), setting="one", time="2026-01-03")
    done = report([tmp_path], tmp_path / "out")
    names = done.table["method"].value_counts().to_dict()
    assert names.pop("beta") == names.pop("beta, queries=50, method.x=1") == 3  # two seeds, and their mean
    edited = {"beta, method.x=2 [123456]": 1, "beta, method.x=2 [abcdef]": 1}
    assert names == {"beta, queries=9": 1, "alpha": 1, **edited}
    assert done.notes == (f"alpha, seed 0: left out {tmp_path / 'old'}, as {tmp_path / 'new'} is newer",)


def test_one_suspect_a_side_has_no_interval_and_one_of_an_older_run_is_read(tmp_path):
    two = [scores("beta", seed).groupby("pirated").head(1) for seed in (0, 1)]
    folders = [write(tmp_path / "runs" / str(seed), frame) for seed, frame in enumerate(two)]
    path = folders[0] / "metrics.json"
    found = json.loads(path.read_text())
    assert found["auc_interval"] is None
    path.write_text(json.dumps(found | {"auc_interval": [found["auc"]] * 2}))  # as it was written once
    table = report([tmp_path / "runs"], tmp_path / "out").table.set_index("seed")
    assert table.loc["0", "auc_low"] == found["auc"] and table.loc[["1", "mean"], "auc_low"].isna().all()


def test_scores_from_before_there_were_evasions_are_read(tmp_path):
    folder = write(tmp_path / "run", scores().drop(columns=["accuracy", "evasion"]))
    back = read_scores(folder / "scores.csv")
    assert list(back.columns) == list(COLUMNS)
    assert set(back["evasion"]) == {"none"} and back["accuracy"].isna().all()


def test_thresholds_of_a_mean_separate_under_every_seed(tmp_path):
    for seed, stolen in ((0, 0.9), (1, 0.7)):
        frame = scores(seed=seed)
        frame["score"] = np.where(frame["pirated"], stolen, stolen - 0.3)
        write(tmp_path / f"{seed}", frame)
    mean = comparison([load(folder) for folder in find([tmp_path])]).iloc[-1]
    assert (mean["separating_low"], mean["separating_high"]) == pytest.approx((0.6, 0.7))


def test_newest_of_duplicates_is_kept(runs, tmp_path):
    frame = scores("beta", 0)
    frame["score"] = frame["pirated"].astype(float)
    new = write(runs / "again", frame, time="2026-01-02T05:00:00+01:00")  # an hour before five in UTC, still newer
    old = write(runs / "before", scores("beta", 0), time="2025-12-31T00:00:00")
    kept, notes = newest([load(folder) for folder in find([runs, new])])
    assert sorted(run.folder.name for run in kept) == ["again", "alpha_1,0", "alpha_1,1"]
    assert comparison(kept).set_index("method").loc["beta", "aruc"] == 1.0
    assert len(notes) == 2
    assert all(note.startswith("beta, seed 0: left out ") and str(new) in note for note in notes)
    assert any(str(old) in note for note in notes)


@pytest.mark.parametrize(
    ("other", "aspect"),
    [
        ({"profile": "default"}, "profiles"),
        ({"source": "cifar10/resnet18"}, "data sets"),
        ({"rates": ("0.1", "0.2")}, "suspects"),
        ({"rates": ("0.1", "0.2", "0.8")}, "suspects"),
    ],
)
def test_unlike_runs_are_refused(runs, tmp_path, other, aspect):
    odd = write(tmp_path / "odd", scores("gamma", **other))
    with pytest.raises(UserError, match=f"different {aspect}") as error:
        report([runs, odd], tmp_path / "out")
    assert str(odd) in str(error.value)
    assert "beta,0" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_runs_on_other_models_are_refused(tmp_path):
    write(tmp_path / "a", scores("a"), models={"source": "123"})
    write(tmp_path / "b", scores("b"), models={"source": "456"})
    with pytest.raises(UserError, match="different models"):
        report([tmp_path], tmp_path / "out")


@pytest.mark.parametrize("name", ["metrics.json", "manifest.json"])
@pytest.mark.parametrize("schema", [0, 2])
def test_files_of_another_schema_are_refused(tmp_path, name, schema):
    folder = write(tmp_path / "run", scores())
    content = json.loads((folder / name).read_text())
    assert load(folder).row["method"]  # from before they had one
    (folder / name).write_text(json.dumps(content | {"schema": 1}))
    assert load(folder).row["method"]
    (folder / name).write_text(json.dumps(content | {"schema": schema}))
    with pytest.raises(UserError, match=f"{name} has schema {schema}, this version reads 1.*leave the folder out"):
        load(folder)


@pytest.mark.parametrize("name", ["scores.csv", "metrics.json", "manifest.json"])
@pytest.mark.parametrize("content", [None, "", "{}", "[]", "a,b\n1", b"\xff\x00"])
def test_damaged_files_are_named(runs, tmp_path, name, content):
    victim = runs / "sweep" / "beta,0" / name
    victim.unlink()
    if content is not None:
        victim.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        report([runs], tmp_path / "out")
    assert str(victim) in str(error.value)
    assert "run the command of this folder again" in str(error.value)


@pytest.mark.parametrize(
    ("before", "after"),
    [("True", "maybe"), ("small\n", "large\n"), ("prune/0.2,", "prune/0.1,"), ("mirror/prune/0.1", "")],
)
def test_damaged_scores_are_named(tmp_path, before, after):
    file = write(tmp_path / "run", scores()) / "scores.csv"
    text = file.read_text()
    file.write_text(text.replace(before, after, 1))
    with pytest.raises(UserError, match=re.escape(str(file))):
        load(tmp_path / "run")


def test_metrics_of_other_scores_are_refused(tmp_path):
    folder = write(tmp_path / "run", scores())
    lines = (folder / "scores.csv").read_text().splitlines()
    (folder / "scores.csv").write_text("\n".join(lines[:-1]) + "\n")  # torn off at the end of a line
    with pytest.raises(UserError, match=r"metrics\.json: not the metrics of scores\.csv"):
        load(folder)


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match="no run"):
        report([tmp_path], tmp_path / "out")
    with pytest.raises(UserError, match="no such folder"):
        report([tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(UserError, match="got none"):
        report([], tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_named(runs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the report"):
        report([runs], tmp_path / "file" / "out")


def test_runs_without_negatives_can_be_reported(tmp_path):
    frame = scores()
    write(tmp_path / "runs" / "a", frame[frame["pirated"]])
    write(tmp_path / "runs" / "b", frame[frame["pirated"]].assign(seed=1))
    done = report([tmp_path / "runs"], tmp_path / "out")
    assert done.table["aruc"].isna().all()
    assert "| alpha_1 | mean | 100 | - | - | - | - | - | - |" in done.files[1].read_text()


def figures():
    frame = scores()
    table = pd.DataFrame([{"method": "alpha_1", "aruc": 0.5, "auc": 0.7}])
    ends = {f"{metric}_{end}": 0.5 for metric in ("aruc", "auc") for end in ("low", "high")}
    queries = np.random.default_rng(0).uniform(0, 1, (12, 1, 8, 8))
    yield "aruc", aruc_figure(frame)
    yield "one-sided", aruc_figure(frame[frame["pirated"]])
    yield "panels", aruc_panels({"a": [frame, scores(seed=1)], "b": [frame]}, "caption")
    yield "comparison", comparison_figure(table.assign(**ends), pd.concat([table, table.assign(aruc=0.4)]))
    yield "queries", query_grid(queries, labels=range(12), columns=5, caption="caption")
    yield "few", query_grid(queries[:3])


def test_figures_drawn_twice_are_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        for name, figure in figures():
            plots.save(figure, tmp_path / folder / name, ("png", "pdf") if name in ("aruc", "queries") else ("png",))
    files = sorted((tmp_path / "one").iterdir())
    assert len(files) == 8
    for file in files:
        assert file.stat().st_size > 1000
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_the_shaded_area_is_the_mean_aruc():
    runs = [scores(seed=seed) for seed in range(3)]
    axes = aruc_panels({"a": runs}).axes[0]
    corners = axes.collections[0].get_paths()[0].vertices
    x, y = corners.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2  # the shoelace formula
    assert area == pytest.approx(np.mean([metrics.aruc(*metrics.sides(run)) for run in runs]))


def test_the_points_of_curves_give_the_mean_aruc():
    runs = {"a": [scores(seed=seed) for seed in range(3)], "b": [scores("b", seed=7)]}
    points = curve_points(runs)
    for method, own in points.groupby("method"):
        steps = own["t"].diff().fillna(0.0)
        expected = np.mean([metrics.aruc(*metrics.sides(run)) for run in runs[method]])
        assert (steps * own["shared"]).sum() == pytest.approx(expected)
        assert (own["shared"] <= own[["robustness", "uniqueness"]].min(axis=1) + 1e-12).all()


def test_dots_are_seeds_where_there_are_several():
    seeds = pd.DataFrame({"method": ["a", "b", "b"], "aruc": [0.4, 0.5, 0.7], "auc": [0.6, 0.7, 0.9]})
    means = seeds.groupby("method", sort=False).mean().reset_index()
    means = means.assign(**{f"{metric}_{end}": 0.5 for metric in ("aruc", "auc") for end in ("low", "high")})
    for runs, dots, said in ((seeds, [0.5, 0.7], "dots: seeds."), (seeds[:2], [], "Lines: 95 % intervals")):
        figure = comparison_figure(means, runs)
        drawn = next(c for c in figure.axes[0].collections if isinstance(c, PathCollection))
        assert drawn.get_offsets()[:, 0].tolist() == dots and said in figure.get_supxlabel()


def test_texts_stay_inside_the_figure():
    for name, figure in figures():
        figure.draw_without_rendering()
        box = figure.bbox.padded(1)
        for text in figure.findobj(lambda artist: hasattr(artist, "get_text") and artist.get_text()):
            extent = text.get_window_extent()
            inside = box.x0 <= extent.x0 and extent.x1 <= box.x1 and box.y0 <= extent.y0 and extent.y1 <= box.y1
            assert inside or not text.get_visible(), (name, text.get_text())


def test_a_stamp_hides_nothing():
    for name, figure in figures():
        plots.stamp(figure, "Partial: 2 of 6 runs are missing.")
        figure.draw_without_rendering()
        texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        (mark,) = (text for text in texts if text.get_text().startswith("Partial"))
        box = mark.get_window_extent()
        assert figure.bbox.padded(1).contains(box.x0, box.y0) and figure.bbox.padded(1).contains(box.x1, box.y1), name
        assert not [t.get_text() for t in texts if t is not mark and box.overlaps(t.get_window_extent())], name


def test_drawing_leaves_the_global_style_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    aruc_figure(scores())
    assert dict(mpl.rcParams) == before


def test_colours_are_stable_and_known_methods_differ():
    assert plots.colour("naturalfinger") != plots.colour("ipguard")
    alike = [f"sweep, queries={n}" for n in range(20)]
    shades = plots.colours([*alike[:8], "akh"])
    assert len(set(map(plots.colour, alike[:8]))) < 8 and len(set(shades.values())) == 9
    assert shades["akh"] == plots.COLOURS["akh"]
    assert shades[alike[0]] == plots.colour(alike[0]) and len(plots.colours(alike)) == 20
    assert plots.colour("somebody-elses") == "#661100" in plots.OTHER_COLOURS
    assert len({*plots.COLOURS.values(), *plots.OTHER_COLOURS}) == len(plots.COLOURS) + len(plots.OTHER_COLOURS)


def test_query_grid_needs_a_label_for_each():
    with pytest.raises(ValueError, match="expected 2 labels"):
        query_grid(np.zeros((2, 3, 4, 4)), labels=[1])


def test_markdown_and_latex_escape_what_they_must():
    frame = pd.DataFrame({"a|b_c": ["x|y", r"50 % & {#1}~^\ <$>"], "n": [0.5, None]})
    head, rule, row, _ = tables.markdown(frame).splitlines()
    assert (head, rule, row) == (r"| a\|b_c | n |", "| :--- | ---: |", r"| x\|y | 0.500 |")
    latex = tables.latex(frame, "100 %", "tab:x")
    escaped = r"50 \% \& \{\#1\}\textasciitilde{}\textasciicircum{}\textbackslash{} $<$\$$>$ & -- \\"
    assert escaped in latex.splitlines()
    assert r"\caption{100 \%}" in latex


def test_the_kept_results_follow_from_their_scores(tmp_path):
    kept = ROOT / "results" / "digits"
    assert report([kept / "demo"], tmp_path).table["method"].tolist() == ["naturalfinger"]
    cells = pd.read_csv(kept / "methods" / "cells.csv")
    table = pd.read_csv(kept / "methods" / "comparison.csv", dtype={"seed": str}).set_index(["method", "seed"])
    runs = dict(list(cells.groupby(["method", "seed"])))
    assert {method for method, _ in runs} == set(METHODS)
    for (method, seed), scores in runs.items():
        positive, negative = metrics.sides(scores)
        assert (len(positive), len(negative)) == (63, 91)
        assert table.aruc[method, str(seed)] == pytest.approx(metrics.aruc(positive, negative))
        assert table.auc[method, str(seed)] == pytest.approx(metrics.auc(positive, negative))
