"""Code outside fingerbench, and whether it is still what made what is stored."""

import importlib
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from fingerbench import plugins
from fingerbench.evaluate.evasions import Transformed
from fingerbench.plugins import changed, code
from fingerbench.store import Spec, Store
from fingerbench.zoo.noise import Noise

MINE = '"""Mine."""\nfrom dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Mine:\n    power: int = 1\n'


@dataclass(frozen=True)
class Made(Spec):
    kind: ClassVar[str] = "made"
    version: ClassVar[int] = 1
    by: Any
    of: "Made | None" = None

    @property
    def label(self):
        return "the thing"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Return the file of a module with a class `Mine`, and an instance."""
    file = tmp_path / "my_plugin.py"
    file.write_text(MINE)
    plugins._digest.cache_clear()
    monkeypatch.syspath_prepend(tmp_path)
    yield file, importlib.import_module("my_plugin").Mine()
    sys.modules.pop("my_plugin")


def edit(file, text):
    """Change the file, and ask as a process that is started then would."""
    file.write_text(text)
    plugins._digest.cache_clear()


def test_code_that_changed_is_told_and_comments_are_not(mine, tmp_path):
    file, maker = mine
    store, spec = Store(tmp_path / "store"), Made(maker)
    assert code(spec).keys() == {"my_plugin.Mine"}
    store.save(spec, {}, {"code": code(spec)})
    assert not changed(store, [spec])
    edit(file, MINE.replace("Mine.", "All mine.").replace("power", "# of what?\n    power"))
    assert not changed(store, [spec])
    file.write_text(MINE.replace("= 1", "= 2"))
    assert not changed(store, [spec]), "what this process imported"
    edit(file, MINE.replace("= 1", "= 2"))
    assert changed(store, [spec]) == {"my_plugin.Mine": ["the thing"]}
    assert not changed(store, [Made(maker, spec)]), "one that another process has set aside meanwhile"


def test_what_is_ours_or_told_nothing_is_no_matter(mine, tmp_path):
    file, maker = mine
    store, ours, old = Store(tmp_path / "store"), Made(Noise(None)), Made(maker)
    assert code(ours) == {} == code(Made(None, ours))
    for spec in (ours, old):
        store.save(spec, {}, {})
    edit(file, MINE.replace("= 1", "= 2"))
    assert not changed(store, [ours, old])


def test_code_inside_of_what_is_ours_counts(mine):
    _, maker = mine
    assert code(Made(Transformed(transform=maker))).keys() == {"my_plugin.Mine"}
    assert code(Made({"a": [maker]})).keys() == {"my_plugin.Mine"}
    assert not code(Made(None, Made(maker))), "a parent has its own record"
