"""Gates: each breaks alone on a table made for it, and a run stops, warns or goes on as it is told."""

from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import TINY, run

import fingerbench as fb
from fingerbench import config
from fingerbench.bench import Bench
from fingerbench.errors import UserError
from fingerbench.evaluate import gates
from fingerbench.evaluate.gates import Gates

SELECTED = "attack=[source,finetune,distill]"
LIMITS = {"learnt": 0.75, "kept": 0.85, "independent": 0.85, "mirror": 0.05}

SOUND = [  # suspect, pirated, mirror_of, accuracy, agreement
    ("source", True, None, 0.90, 1.0),
    ("mirror/source", False, "source", 0.92, 0.88),
    ("prune/0.1", True, None, 0.88, 0.95),
    ("mirror/prune/0.1", False, "prune/0.1", 0.91, 0.86),
    ("knockoff/vgg", True, None, 0.80, 0.85),
    ("mirror/knockoff/vgg", False, "knockoff/vgg", 0.82, 0.80),
    ("scratch/vgg", False, None, 0.93, None),
    ("scratch-distill/vgg", False, None, 0.88, None),
]


def table(**changes):
    """Return facts of a sound zoo, but for `changes`: a column -> {suspect: value}."""
    frame = pd.DataFrame(SOUND, columns=["suspect", "pirated", "mirror_of", "accuracy", "agreement"])
    for column, values in changes.items():
        for suspect, value in values.items():
            frame.loc[frame["suspect"] == suspect, column] = value
    return frame


def findings(frame, surrogates=None, guess=0.1, **options):
    return Gates("stop", **{**LIMITS, **options}).findings(frame, surrogates or {}, guess)


def broken(found):
    return [(row.gate, row.suspect) for row in found[~found["holds"]].itertuples()]


def test_a_sound_zoo_holds():
    found = findings(table())
    assert found["holds"].all() and found["gate"].value_counts().to_dict() == {
        "learnt": 1,
        "kept": 2,
        "independent": 3,
        "mirror": 3,
        "agreement": 3,
    }
    row = found[(found["gate"] == "kept") & (found["suspect"] == "knockoff/vgg")].iloc[0]
    assert (row["value"], row["limit"]) == (0.8, 0.765)
    assert gates.summary(found) == "gates: 12 of 12 hold; worst: mirror/prune/0.1, mirror 0.030 with limit 0.050"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"accuracy": {"knockoff/vgg": 0.76, "mirror/knockoff/vgg": 0.78}}, [("kept", "knockoff/vgg")]),
        ({"accuracy": {"scratch/vgg": 0.70}}, [("independent", "scratch/vgg")]),  # median 0.88
        ({"accuracy": {"scratch-distill/vgg": 0.70}}, [("independent", "scratch-distill/vgg")]),
        ({"accuracy": {"mirror/prune/0.1": 0.94}}, [("mirror", "mirror/prune/0.1")]),
        ({"accuracy": {"mirror/prune/0.1": 0.82}}, [("mirror", "mirror/prune/0.1")]),
        ({"agreement": {"mirror/prune/0.1": 0.95}}, [("agreement", "prune/0.1")]),  # as often is not more often
    ],
)
def test_each_gate_breaks_alone(changes, expected):
    assert broken(findings(table(**changes))) == expected


def test_a_zoo_that_learnt_nothing_does_not_hold_for_being_alike():
    frame = table(accuracy=dict.fromkeys(table()["suspect"], 0.10), agreement={"mirror/prune/0.1": 0.9})
    assert broken(findings(frame)) == [("learnt", "source")]
    limits = findings(frame, surrogates={"surrogate/vit": 0.32, "surrogate/vgg": 0.33}).set_index("suspect")
    assert limits.loc["surrogate/vit", ["value", "limit", "holds"]].tolist() == [0.32, 0.325, False]
    assert limits.loc["surrogate/vgg", "holds"]
    assert broken(findings(table(), guess=0.9)) == [("learnt", "source")], "0.925 is what one class of nine tenths asks"
    assert not broken(findings(frame, learnt=1))


def test_a_guess_says_the_most_frequent_class():
    bench = Bench(config.compose(["attack=source"]))
    labels = bench.data.test.y.tolist()
    assert gates.guess(bench) == max(map(labels.count, labels)) / len(labels) < 0.2


def test_limits_belong_to_what_holds():
    frame = table(accuracy={"prune/0.1": 0.8, "mirror/prune/0.1": 0.8, "knockoff/vgg": 0.85})
    assert findings(frame, mirror=0.03, kept=0.8 / 0.9)["holds"].all()  # 0.85 - 0.82 is 0.03 and a little


def test_what_is_meant_to_hurt_is_spared_but_must_have_a_mirror_like_it():
    frame = table(accuracy={"knockoff/vgg": 0.30})
    assert broken(findings(frame)) == [("kept", "knockoff/vgg"), ("mirror", "mirror/knockoff/vgg")]
    assert broken(findings(frame, spared=("knockoff/*",))) == [("mirror", "mirror/knockoff/vgg")]


@pytest.mark.parametrize(
    ("rows", "left"),
    [
        (["source"], {"learnt"}),
        (["source", "prune/0.1"], {"learnt", "kept"}),
        (["source", "scratch/vgg"], {"learnt"}),  # alone it is the median
        (["source", "scratch/vgg", "scratch-distill/vgg"], {"learnt", "independent"}),
        (["source", "mirror/prune/0.1"], {"learnt"}),  # without its positive
    ],
)
def test_a_gate_with_nothing_to_compare_is_skipped(rows, left):
    frame = table()
    found = findings(frame[frame["suspect"].isin(rows)])
    assert list(found.columns) == ["suspect", "gate", "value", "limit", "holds"] and set(found["gate"]) == left
    assert found["holds"].all() and gates.summary(found).startswith("gates: ")


def test_the_complaint_names_gates_numbers_and_the_worst_three():
    names = [f"prune/{i}" for i in range(5)]
    frame = pd.concat([table(), table().iloc[[2] * 5].assign(suspect=names, accuracy=[0.5, 0.1, 0.4, 0.9, 0.3])])
    assert gates.complaint(findings(frame)) == (
        "gates: the zoo breaks kept of 4 suspects (prune/1 0.100 < 0.765, prune/4 0.300 < 0.765, prune/2 0.400 < 0.765)"
    )


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [(0.7477, "0.748 < 0.765"), (0.76499, "0.76499 < 0.76500"), (0.7649, "0.7649 < 0.7650")],
)
def test_a_value_and_its_limit_are_told_apart(accuracy, said):
    found = findings(table(accuracy={"knockoff/vgg": accuracy, "mirror/knockoff/vgg": accuracy}))
    assert f"(knockoff/vgg {said})" in gates.complaint(found)
    assert f"kept {said.replace('<', 'with limit')}" in gates.summary(found)


def test_equal_ones_have_three_decimals():
    found = findings(table(agreement={"mirror/prune/0.1": 0.95}))
    assert "agreement of 1 suspect (prune/0.1 0.950 <= 0.950)" in gates.complaint(found)


def test_rates_are_named_where_networks_collapsed():
    assert gates._rates(findings(table())) == ""
    assert gates._rates(findings(table(accuracy={"mirror/prune/0.1": 0.94}))) == ""
    recipes = {"prune/0.1": "tuning", "scratch/vgg": "training", "knockoff/vgg": "knockoff"}
    for name, recipe in recipes.items():
        assert f"a lower zoo.{recipe}.lr may save" in gates._rates(findings(table(accuracy={name: 0.1}))), name
    both = findings(table(accuracy={"prune/0.1": 0.1, "knockoff/vgg": 0.1}))
    assert "a lower zoo.knockoff.lr or zoo.tuning.lr may save" in gates._rates(both)
    assert gates._recipes(findings(table(accuracy={"source": 0.1}))) == ["training"]
    assert gates._recipes(findings(table(accuracy={"mirror/knockoff/vgg": 0.9}))) == ["knockoff"]


def test_a_source_that_was_given_and_knows_nothing_is_doubted():
    def doubt(weights, accuracy):
        bench = SimpleNamespace(settings=SimpleNamespace(zoo=SimpleNamespace(weights=weights)))
        return gates._doubt(bench, findings(table(accuracy={"source": accuracy})))

    assert doubt(None, 0.1) == doubt("mine.safetensors", 0.9) == ""
    assert "has zoo.weights the classes in the order of the data" in doubt("mine.safetensors", 0.1)


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("gates.action=halt", "unknown Gates.action 'halt'"),
        ("gates.kept=1.5", "gates.kept: expected a number from 0 to 1; got 1.5"),
        ("gates.kept=true", "gates.kept: expected a number from 0 to 1; got True"),
        ("gates.spared=prune", "gates.spared: expected a list such as [prune/0.9]; got 'prune'"),
    ],
)
def test_bad_limits_give_one_line(word, answer):
    with pytest.raises(UserError, match="^" + answer.replace("[", r"\[")):
        gates.plan(Bench(config.compose(["attack=source", word])))


def test_what_is_measured_is_what_no_record_holds():
    asked = gates.plan(Bench(config.compose(["attack=[source,prune,scratch]"])))
    mirrors = ["mirror/source", *(f"mirror/prune/0.{i}" for i in range(1, 10))]
    assert [spec.suspect.name for spec in asked] == mirrors and {spec.source.name for spec in asked} == {"source"}
    assert gates.plan(Bench(config.compose(["attack=[source,prune]", "gates.action=off"]))) == []
    words = ["data=diabetes", "zoo.source=mlp", "method=metav", "attack=[source,prune]"]
    assert gates.plan(Bench(config.compose(words))) == []  # a regression


def test_a_run_of_the_demo_warns(built):
    _, folder, output = built
    found = pd.read_csv(folder / "gates.csv")
    scores = pd.read_csv(folder / "scores.csv").set_index("suspect")
    models = pd.read_csv(folder / "models.csv").set_index("name")
    assert found["gate"].value_counts().to_dict() == {"learnt": 1, "mirror": 7, "agreement": 7, "kept": 6}
    value = found.set_index(["gate", "suspect"])["value"]
    assert value["kept", "distill/vgg13_bn"] == pytest.approx(scores.accuracy["distill/vgg13_bn"])
    assert value["agreement", "finetune/FTLL"] == pytest.approx(models.agreement["finetune/FTLL"])
    held = found["holds"].sum()
    assert f"gates: {held} of 21 hold; worst: " in output
    assert ("gates: the zoo breaks" in output) == (held < 21) and "scores.csv" in {p.name for p in folder.iterdir()}


def test_a_zoo_that_breaks_a_gate_is_refused_and_nothing_is_lost(built, tmp_path):
    words = ["method=random", SELECTED, "gates.mirror=0"]  # no two of these are as accurate as each other to the digit
    output = run(built[0], tmp_path / "stop", *words, "gates.action=stop", code=2)
    assert "error: gates: the zoo breaks " in output and "mirror of " in output and " > 0.000" in output
    assert "nothing to make" in output and "Traceback" not in output
    for step in ("gates.action=warn", "zoo.training.epochs=N", "gates.spared=[PATTERN,...]"):
        assert step in output
    assert not pd.read_csv(tmp_path / "stop" / "gates.csv")["holds"].all()
    assert not (tmp_path / "stop" / "scores.csv").exists()
    off = fb.open(*TINY, f"store={built[0]}", *words, "gates.action=off")
    assert gates.plan(off) == [] and gates.judge(off, tmp_path / "stop") is None
    assert not (tmp_path / "stop" / "gates.csv").exists()  # nor what the run before found


def test_a_zoo_that_holds_passes_where_a_broken_one_would_stop(built, tmp_path, caplog):
    words = ["gates.action=stop", "gates.mirror=1", "attack=finetune", "attack.finetune.variants=[FTLL]"]
    with caplog.at_level("INFO"):
        gates.judge(fb.open(*TINY, f"store={built[0]}", "method=random", *words), tmp_path)
    found = pd.read_csv(tmp_path / "gates.csv")
    assert found["holds"].all() and f"gates: {len(found)} of {len(found)} hold" in caplog.text


def test_what_a_profile_does():
    assert config.compose(["profile=demo"]).gates.action == "warn"
    assert config.compose(["profile=paper"]).gates.action == "stop"
