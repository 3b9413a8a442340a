"""The README's examples are run, to the letter."""

import re
import shlex
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import METHODS, ROOT, TINY, finish, start
from sklearn.datasets import load_digits

from fingerbench import config
from fingerbench.nets import require_known

README = (ROOT / "README.md").read_text()
FILES = dict(re.findall(r"<!-- test: (\S+) -->\n```\w+\n(.*?)```", README, re.DOTALL))


@pytest.fixture
def checkout(tmp_path):
    """A copy of the repository with the files of the README added."""
    for part in ("run.py", "conf", "fingerbench", "methods"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    for name, text in FILES.items():
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_new_method_a_new_attack_and_a_new_data_set_are_two_files_each(checkout):
    assert len(FILES) == 7
    images, root = load_digits(), checkout / "images"
    root.mkdir()
    x = np.repeat(images.images[:, None] * 15, 3, 1).astype(np.uint8).repeat(2, 2).repeat(2, 3)
    np.savez(root / "images.npz", x=x, y=images.target)
    tiny = [word for word in TINY if not word.startswith("data.")]
    words = ["data=npz", f"data.root={root}", "method=static", "method.contrast=0.5", "attack=[source,binarise]"]
    places = [f"store={checkout / 'store'}", f"hydra.run.dir={checkout / 'run'}"]
    finish(start(["run.py"], *tiny, *words, *places, "gates.action=warn", cwd=checkout))
    scores = pd.read_csv(checkout / "run" / "scores.csv").set_index("suspect")
    assert list(scores.index) == ["source", "mirror/source", "binarise/once", "mirror/binarise/once"]
    assert scores.score["source"] == 1.0 and set(scores.method) == {"static"} and set(scores.source) == {"npz/resnet18"}


def test_the_python_example(built, tmp_path):
    (block,) = re.findall(r"```python\n(import fingerbench as fb\n.*?)```", README, re.DOTALL)
    shutil.copytree(built[0], tmp_path / "store")
    overrides = [*TINY, f"store={tmp_path / 'store'}", "attack=[source,prune]", "attack.prune.variants=['0.9']"]
    block = block.replace('"data=digits"', ", ".join(map(repr, overrides))).replace("runs/TIME", str(built[1]))
    finish(start(["-c", f"my_api = lambda image: 0\n{block}\nassert 0 <= verdict.score <= 1 and verdict.p > 0"]))


def test_the_commands_for_ones_own_networks_and_images_compose():
    section = README.split("## Bring your own networks and images\n")[1].split("\n## ")[0].replace("\\\n", "")
    lines = [shlex.split(line, comments=True) for line in section.splitlines() if line.startswith("python run.py")]
    assert len(lines) == 5
    for _, _, *words in lines:
        config.check(words)
    named = config.compose(lines[1][2:]).zoo.architectures
    assert named == ["timm:vit_tiny_patch16_224", "torchvision:resnet18", "resnet18"]
    for name in named:
        require_known(name)


def test_every_family_method_and_file_is_described(built):
    files = [p.name for p in built[1].iterdir() if p.is_file()]
    for name in (*METHODS, *config.options("experiment"), *config.options("gan"), *config.options("evasion"), *files):
        assert f"`{name}`" in README, name
