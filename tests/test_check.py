"""python -m fingerbench check: each promise that a method may break is found, and told what to do."""

import random
import sys
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_readme import FILES

from fingerbench import check
from fingerbench.__main__ import main
from fingerbench.ops import matching_rate, predict
from fingerbench.records import Fingerprint


@dataclass(frozen=True)
class Sound:
    access: ClassVar[str] = "label"
    needs: ClassVar[frozenset] = frozenset()
    contrast: float = 1.0

    def fingerprint(self, setting):
        queries = torch.rand((setting.budget, 3, 16, 16), generator=setting.generator) * self.contrast
        return Fingerprint(queries, {"labels": predict(setting.source, queries).argmax(1)})

    def similarity(self, fingerprint, responses):
        return matching_rate(fingerprint.state["labels"], responses)


@dataclass(frozen=True)
class Broken(Sound):
    """The sound method with one function of this file, by name, in place of what it does."""

    maker: str = ""  # (method, setting, sound fingerprint) -> fingerprint
    judge: str = ""  # (method, fingerprint, responses) -> similarity

    def fingerprint(self, setting):
        sound = super().fingerprint(setting)
        return globals()[self.maker](self, setting, sound) if self.maker else sound

    def similarity(self, fingerprint, responses):
        if self.judge:
            return globals()[self.judge](self, fingerprint, responses)
        return super().similarity(fingerprint, responses)


def test_a_sound_method_has_no_findings():
    assert check.findings(Sound()) == []


@dataclass
class Thawed(Sound.__mro__[1]):
    access: ClassVar[str] = "label"
    needs: ClassVar[frozenset] = frozenset()
    fingerprint = Sound.fingerprint
    similarity = Sound.similarity


@dataclass(frozen=True)
class Unkeyed(Sound):
    device: object = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class Field(Sound):
    access: str = "label"


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (object(), "fingerprint: missing"),
        (type("M", (Sound,), {"access": "logits"})(), "access: expected"),
        (type("M", (Sound,), {"needs": frozenset({"suspects"})})(), "needs: expected"),
        (type("M", (Sound,), {"needs": ["gan"]})(), "needs: expected"),
        (type("M", (Sound,), {"fingerprint": lambda self: None})(), "fingerprint: expected the arguments"),
        (type("M", (Sound,), {"similarity": lambda self, responses: 1.0})(), "similarity: expected the arguments"),
        (Thawed(), "expected a frozen dataclass"),
        (Field(), "annotate them with ClassVar"),
        (Unkeyed(), "hyperparameters: expected plain values, lists and frozen dataclasses"),
    ],
)
def test_what_is_not_declared_is_told_before_anything_runs(method, said):
    found = check.findings(method)
    assert any(said in line for line in found), found


def twice(self, setting, made):
    return replace(made, queries=torch.cat([made.queries, made.queries]))


def alike(self, setting, made):
    return replace(made, queries=made.queries[:1].expand_as(made.queries))


def small(self, setting, made):
    return replace(made, queries=made.queries[:, :, :8, :8])


def few(self, setting, made):
    return Fingerprint(made.queries[:-1], {"labels": made.state["labels"][:-1]}, {}, "")


def attached(self, setting, made):
    return replace(made, state=made.state | {"w": torch.zeros(1, requires_grad=True)})


def uncounted(self, setting, made):
    return replace(made, yields={"tried": 0.5})


def weights(self, setting, made):
    next(setting.source.parameters()).add_(1e-3)
    return made


def mode(self, setting, made):
    setting.source.train()
    return made


def gradients(self, setting, made):
    setting.source.requires_grad_(True)
    return made


def images(self, setting, made):
    setting.train.x[0] = 0
    return made


def torch_global(self, setting, made):
    torch.rand(1)
    return made


def numpy_global(self, setting, made):
    np.random.rand()
    return made


def python_global(self, setting, made):
    random.random()
    return made


def undecided(self, setting, made):
    return replace(made, queries=torch.rand(made.queries.shape))


def deaf(self, setting, made):
    generator = torch.Generator().manual_seed(0)
    return Sound.fingerprint(self, replace(setting, generator=generator))


def nothing(self, setting, made):
    return None


def bright(self, setting, made):
    return replace(made, queries=made.queries * 2)


def fails(self, setting, made):
    raise RuntimeError("the moon\nis full")


def leaves(self, setting, made):
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (leaves, "raises SystemExit: 0"),
        (twice, "24 for a budget of 12"),
        (alike, "queries: 1 of 12 are distinct; one that is asked twice"),
        (small, "expected (n, 3, 16, 16)"),
        (few, "without a note"),
        (attached, "w: expected a tensor on the CPU without gradient"),
        (uncounted, "yields: expected counts"),
        (weights, "changes the weights of models"),
        (mode, "changes the mode of models"),
        (gradients, "changes the gradients of models"),
        (images, "changes images"),
        (torch_global, "changes PyTorch's global random state"),
        (numpy_global, "changes NumPy's global random state"),
        (python_global, "changes Python's global random state"),
        (undecided, "the same seed gives another one"),
        (deaf, "another seed gives the same"),
        (nothing, "expected a fingerbench.records.Fingerprint, got NoneType"),
        (bright, "raises ContractError: queries: expected values in [0, 1]"),
        (fails, "raises RuntimeError: the moon is full (test_check.py, line "),
    ],
)
def test_what_a_fingerprint_breaks_is_told_and_disturbs_no_other(change, said):
    found = check.findings(Broken(maker=change.__name__))
    assert any(said in line for line in found), found
    assert not any("\n" in line for line in found)
    assert check.findings(Sound()) == []


def forgets(self, fingerprint, responses):
    return 0.5


def counts(self, fingerprint, responses):
    return 2.0


def returns_a_tensor(self, fingerprint, responses):
    return torch.tensor(1.0)


def draws(self, fingerprint, responses):
    same = bool((fingerprint.state["labels"] == responses).all())
    return 1.0 if same else random.random()


def writes(self, fingerprint, responses):
    fingerprint.queries[0] = 0
    return 1.0


def raises(self, fingerprint, responses):
    return fingerprint.state["centre"]


@pytest.mark.parametrize(
    ("similarity", "said"),
    [
        (forgets, "0.5 to the source's own answers, expected 1"),
        (counts, "expected a float in [0, 1] of the source, got 2.0"),
        (returns_a_tensor, "expected a float in [0, 1] of the source, got tensor(1.)"),
        (draws, "the same answers of a constant give another score"),
        (writes, "similarity changes the fingerprint"),
        (raises, "scores anyone: raises"),
    ],
)
def test_what_a_similarity_breaks_is_told(similarity, said):
    found = check.findings(Broken(judge=similarity.__name__))
    assert any(said in line for line in found), found


def many(self, setting, made):
    return made if setting.budget > 1 else replace(made, queries=made.queries[:0], note="too few")


def test_a_method_that_makes_only_many_is_told():
    assert check.findings(Broken(maker="many")) == [
        "queries: 0 for a budget of 1; budgets are whole numbers from 1",
    ]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the README's method in it, outside this project."""
    for name, text in FILES.items():
        if "static" in name:
            target = tmp_path / name.replace("methods/", "mine/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text.replace("methods.static", "mine.static"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.mark.parametrize("file", ["mine/static.py", "conf/method/static.yaml"])
def test_the_method_of_the_readme_is_sound(place, monkeypatch, capsys, file):
    monkeypatch.syspath_prepend(str(place))
    assert main(["check", str(place / file), "method.contrast=0.5"]) == 0
    out = capsys.readouterr().out
    assert "check only what you trust" in out and "static: sound" in out


def test_its_config_may_be_in_a_folder_that_is_searched(place, monkeypatch, capsys, tmp_path_factory):
    monkeypatch.syspath_prepend(str(place))
    conf = tmp_path_factory.mktemp("conf")
    (place / "conf" / "method").rename(conf / "method")
    words = ["check", str(place / "mine/static.py"), f"hydra.searchpath=[file://{conf}]"]
    assert main(words) == 0 and "static: sound" in capsys.readouterr().out
    (conf / "method" / "static.yaml").rename(place / "conf" / "static.yaml")
    (place / "conf" / "method").mkdir()
    (place / "conf" / "static.yaml").rename(place / "conf" / "method" / "static.yaml")
    assert main(words) == 0, "another folder is searched as well"


def test_a_file_that_python_does_not_find_is_told(place, capsys):
    assert main(["check", str(place / "mine/static.py")]) == 2
    told = capsys.readouterr()
    assert f"static: {place} is not on the Python path" in told.out and "not sound, 1 finding;" in told.err


def test_a_name_that_python_finds_elsewhere_is_told(tmp_path, capsys):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "akh.py").write_text("")
    assert main(["check", str(tmp_path / "methods" / "akh.py")]) == 2
    assert f"Python finds {ROOT / 'methods' / 'akh.py'} under this name" in capsys.readouterr().out


def test_a_file_without_a_config_is_run_with_its_defaults(place, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(place))
    (place / "conf/method/static.yaml").unlink()
    assert main(["check", str(place / "mine/static.py")]) == 2
    out = capsys.readouterr().out.splitlines()[1:]
    assert out == ["Static: no conf/method/static.yaml names mine.static.Static as _target_; run.py needs one"]
    text = (place / "mine/static.py").read_text().replace("contrast: float = 1.0", "contrast: float")
    (place / "mine/bare.py").write_text(text)
    assert main(["check", str(place / "mine/bare.py")]) == 2
    assert "'contrast'; give each field a default" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("broken.py", "import nothing_there", "import: raises ModuleNotFoundError: No module named 'nothing_there'"),
        ("broken.py", "def (", "import: raises SyntaxError"),
        ("empty.py", "class Other: ...", "a class with fingerprint and similarity"),
        ("method.txt", "", "a .py or .yaml file"),
        ("static.yaml", "", "a file in a folder conf/method"),
        ("method/odd.yaml", "name: odd\n_target_: nothing.There\n", "odd: odd.yaml: cannot build nothing.There"),
        ("method/odd.yaml", "name: odd\n_target_: [", "odd: odd.yaml:"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(place, monkeypatch, capsys, name, text, said):
    monkeypatch.syspath_prepend(str(place))
    file = place / "mine" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    assert main(["check", str(file)]) == 2
    told = capsys.readouterr()
    assert said in told.out + told.err and len(told.out.splitlines()) <= 2 and len(told.err.splitlines()) == 1


def test_no_file_is_told(tmp_path, capsys):
    assert main(["check", str(tmp_path / "none.py")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_words_choose_hyperparameters_and_an_error_of_the_method_says_so(capsys):
    assert main(["check", str(ROOT / "conf/method/ipguard.yaml"), "method.steps=1"]) == 2
    out = capsys.readouterr().out
    assert "ipguard: fingerprint: ipguard: none of" in out and "method.KEY=VALUE" in out
