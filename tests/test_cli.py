"""python -m fingerbench, and the Python API."""

import json
import shutil

import pytest
from conftest import ROOT, TINY, finish, start

import fingerbench as fb
from fingerbench.__main__ import _parsed, main
from fingerbench.errors import unknown


def test_a_zoo_of_no_family_is_not_listed(capsys):
    assert main(["list", "zoo", "attack=[]"]) == 2
    assert "attack: expected one family or more" in capsys.readouterr().err


def test_list_zoo_as_json(capsys):
    assert main(["list", "zoo", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 154
    names = ["name", "family", "attack", "variant", "architecture", "parent", "half", "pirated", "mirror_of"]
    assert all(list(row) == names for row in rows)


@pytest.mark.parametrize("line", ["report all --partial store=x", "gc all --delete store=x", "list all --json store=x"])
def test_words_may_follow_options(line):
    assert _parsed(line.split()).overrides[-1] == "store=x"


def test_list_methods_and_friends(capsys):
    for what, expected in (
        ("methods", "ipguard"),
        ("attack", "prune"),
        ("evasions", "jpeg"),
        ("architectures", "xception"),
    ):
        assert main(["list", what]) == 0
        assert expected in capsys.readouterr().out.split()


def test_what_a_search_path_brings_is_listed(tmp_path, capsys):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("name: mine\n")
    assert main(["list", "methods", f"hydra.searchpath=[file://{tmp_path}]"]) == 0
    assert {"mine", "ipguard"} <= set(capsys.readouterr().out.split())
    assert main(["list", "methods"]) == 0
    assert "mine" not in capsys.readouterr().out.split()
    assert main(["list", "methods", "data=digits"]) == 2
    assert "list methods: expected no words but hydra.searchpath=[...]; got 'data=digits'" in capsys.readouterr().err


def test_an_unknown_name_is_answered_with_so_many_names():
    names = [f"n{i:03d}" for i in range(100)]
    assert str(unknown("number", "n7", names)).endswith(f"known: {', '.join(names[:30])}, ... (100 in all)")
    assert str(unknown("number", "n7", names[:30])).endswith(f"known: {', '.join(names[:30])}")


def test_an_unknown_list_is_answered_with_the_nearest(capsys):
    assert main(["list", "metod"]) == 2
    assert "did you mean 'method'" in capsys.readouterr().err


def test_show_prints_the_configuration(capsys):
    assert main(["show", "method=ipguard"]) == 0
    assert "methods.ipguard.IPGuard" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (b"name: x\n  _target_: [\n", "odd.yaml, line 2: not YAML (mapping values are not allowed here); mend it"),
        (b"name: \xff\n", "not UTF-8"),
        (b"- a\n", "expected a config node with a _target_, got ['a']; let it name a class"),
        (b"name: x\n_target_: os.odd\n", "cannot build os.odd: Error loading 'os.odd': ModuleNotFoundError"),
        (
            b"name: x\n_target_: nobodys.Odd\n",
            "check its config file, and that PYTHONPATH has the folder of that module",
        ),
    ],
)
def test_a_config_file_that_makes_no_sense_is_told_in_one_line(tmp_path, capsys, content, answer):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "odd.yaml").write_bytes(content)
    assert main(["verify", "method=odd", f"hydra.searchpath=[file://{tmp_path}]", f"store={tmp_path / 'store'}"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and answer in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("group", "content", "answer"),
    [
        ("method", "_target_: methods.random.RandomImages\n", "method.name of RandomImages: expected a name: in its"),
        (
            "method",
            "name: akh\n_target_: methods.random.RandomImages\n",
            "method.name of RandomImages: expected a name of its own, not that of methods.akh.AKH; got 'akh'",
        ),
        (
            "evasion",
            "name: none\n_target_: fingerbench.evaluate.evasions.Top1\n",
            "evasion.name of Top1: expected a name of its own, not that of fingerbench.evaluate.evasions.Evasion; got",
        ),
        ("attack", "", "attack: expected one family or more, such as attack=[source,prune]; got {}"),
        ("attack", "name: odd\n_target_: x.Y\n", "attack: expected files that begin with the name of a family, as"),
        ("attack", "odd: 1\n", "attack.odd: expected the _target_ of an attack and its settings, as in"),
        ("attack", "odd: {epochs: 1}\n", "attack.odd: expected the _target_ of an attack and its settings, as in"),
        ("attack", "odd: ${zoo.nope}\n", "attack.odd: Interpolation key 'zoo.nope' not found; name a setting"),
        (
            "attack",
            "odd: {_target_: fingerbench.data.augment.Augment, pad: 0, flip: false}\n",
            "attack.odd: expected an attack, with variants, students and make, as fingerbench.zoo.model.Attack has "
            "them; got 'Augment without variants, students, make'",
        ),
    ],
)
def test_a_config_file_without_what_its_choice_needs(tmp_path, capsys, group, content, answer):
    (tmp_path / group).mkdir()
    (tmp_path / group / "odd.yaml").write_text(content)
    words = ["method=random", f"{group}=odd", f"hydra.searchpath=[file://{tmp_path}]", f"store={tmp_path / 'store'}"]
    assert main(["verify", *words]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {answer}") and told.count("\n") == 1


def test_a_config_file_that_would_never_be_read_is_refused(tmp_path, capsys):
    """Hydra takes fingerbench's own of that name, so a change to a copy would change nothing."""
    (tmp_path / "method").mkdir()
    copy = tmp_path / "method" / "akh.yaml"
    copy.write_bytes((ROOT / "conf" / "method" / "akh.yaml").read_bytes())
    words = ["show", "method=akh", f"hydra.searchpath=[file://{tmp_path}]"]
    assert main(words) == 0
    assert main([*words, words[-1]]) == 2  # Hydra reads the first alone
    assert "hydra.searchpath: expected one list, such as [file:///A,file:///B]; got" in capsys.readouterr().err
    copy.write_text(copy.read_text().replace("rounds: 20", "rounds: 2"))
    assert main(words) == 2
    told = f"error: {copy}: expected a name that is not in fingerbench's conf/method, which wins; got 'akh'"
    assert capsys.readouterr().err.startswith(told)
    shrunk = tmp_path / "shrink" / "demo" / "ipguard.yaml"
    shrunk.parent.mkdir(parents=True)
    shrunk.write_text("margin: 1.0\n")
    copy.unlink()
    assert main(words) == 2 and "conf/shrink/demo, which wins; got 'ipguard'" in capsys.readouterr().err


def test_verify_counts_what_is_sound(built, capsys):
    words = [*TINY, f"store={built[0]}", "method=random", "attack=[source,finetune,distill]"]
    assert main(["verify", *words]) == 0
    assert "36 of 36 artefacts are sound" in capsys.readouterr().out


def test_verify_fails_where_something_is_damaged(built, tmp_path, capsys):
    copy = shutil.copytree(built[0], tmp_path / "store")
    next(copy.glob("model/*/payload.safetensors")).write_bytes(b"")
    words = [*TINY, f"store={copy}", "method=random", "attack=[source,finetune,distill]"]
    assert main(["verify", *words]) == 1
    assert "35 of 36 artefacts are sound" in capsys.readouterr().out


def test_an_interruption_is_one_line(monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fingerbench.__main__._show", interrupted)
    assert main(["show"]) == 130
    assert capsys.readouterr().err == "interrupted; nothing finished is lost\n"


def test_nothing_heavy_is_imported_for_help():
    code = (
        "import sys, run, fingerbench; print(sorted({'torch', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    assert finish(start(["-c", code])).strip() == "[]"
    assert "method: akh" in finish(start(["run.py"], "--help"))


def test_the_python_api(built):
    bench = fb.open(*TINY, f"store={built[0]}", "method=random", "attack=[source,finetune,distill]")
    assert len(bench.suspects) == 14
    model = bench.model("finetune/FTLL")
    fingerprint = bench.fingerprint()
    assert not model.training and model(fingerprint.queries).shape == (20, 10)
    scores = bench.scores()
    assert len(scores) == 14 and scores.set_index("suspect").score["source"] == 1.0
    assert len(bench.scores("akh")) == 14
    assert fb.network("resnet18", classes=7, width=0.25)(fingerprint.queries).shape == (20, 7)


def test_hydras_own_flags_reach_hydra():
    assert "architectures:" in finish(start(["run.py"], "--cfg", "job", "-p", "zoo", "method=akh"))
