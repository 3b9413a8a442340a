"""Is a method sound? What `fingerbench/api.py` asks of it, tried in the toy world.

Each of CHECKS takes a `Trial` and yields what it finds, a line of advice each; none means that the method passes. The
contract test of this project holds every method of `conf/method` to the same.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from yaml import YAMLError

from fingerbench import config
from fingerbench.errors import UserError, is_whole, one_line, raised, require
from fingerbench.ops import predict
from fingerbench.records import Fingerprint, Setting
from fingerbench.seeds import seeded
from fingerbench.store import Spec
from fingerbench.toyworld import BUDGET, SIDE, TASK, Constant, World, convnet, world

NEEDS = {"surrogates", "gan"}


@dataclass(frozen=True)
class Trial:
    """A method in a toy world of its own, with the fingerprint that it makes of seed 0."""

    method: Any

    @cached_property
    def world(self) -> World:
        """A copy: a method that changes what it is given must neither go unnoticed nor disturb the next."""
        return copy.deepcopy(world())

    def setting(self, seed: int = 0, budget: int = BUDGET) -> Setting:
        """Return what the method is given."""
        return self.world.setting(self.method.needs, seed, budget)

    def made(self, seed: int = 0, budget: int = BUDGET) -> Fingerprint:
        """Return a fingerprint, made anew."""
        with seeded(10):
            fingerprint: Fingerprint = self.method.fingerprint(self.setting(seed, budget))
        return fingerprint

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of seed 0."""
        return self.made()

    @cached_property
    def judged(self) -> Fingerprint:
        """A copy of it, for `similarity`, which must not change it."""
        return copy.deepcopy(self.fingerprint)

    def score(self, model: nn.Module) -> Any:
        """Return how much the method says that `model` resembles the source."""
        outputs = predict(model, self.fingerprint.queries)
        answers = TASK.label(outputs) if self.method.access == "label" else TASK.answer(outputs)
        return self.method.similarity(self.judged, answers)


Check = Callable[[Trial], Iterator[str]]


def declares_itself(trial: Trial) -> Iterator[str]:
    """Access, needs and both functions, of the form that the evaluator calls."""
    kind = type(trial.method)
    for name in ("access", "needs", "fingerprint", "similarity"):
        if not hasattr(trial.method, name):
            yield f"{name}: missing; see Fingerprinter in fingerbench/api.py"
    access: Any = getattr(kind, "access", "label")
    needs: Any = getattr(kind, "needs", frozenset())
    if access not in ("label", "output"):
        yield f'access: expected "label" or "output", got {access!r}'
    if not isinstance(needs, frozenset) or not needs <= NEEDS:
        yield f'needs: expected a frozenset of none, one or both of "surrogates" and "gan", got {needs!r}'
    for name, given in (("fingerprint", 1), ("similarity", 2)):
        function = getattr(trial.method, name, None)
        if callable(function) and not _takes(function, given):
            expected = "(self, setting)" if given == 1 else "(self, fingerprint, responses)"
            yield f"{name}: expected the arguments {expected}, got {inspect.signature(function)} after self"


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    return True


def is_frozen(trial: Trial) -> Iterator[str]:
    """A frozen dataclass, whose access is the class's."""
    kind = type(trial.method)
    if not is_dataclass(kind) or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        yield f"{kind.__name__}: expected a frozen dataclass; write @dataclass(frozen=True) above it"
    elif {"access", "needs"} & {f.name for f in fields(kind)}:
        yield "access and needs: expected class variables; annotate them with ClassVar"


@dataclass(frozen=True)
class _Keyed(Spec):
    kind: ClassVar[str] = "check"
    version: ClassVar[int] = 1
    method: Any


def has_a_key(trial: Trial) -> Iterator[str]:
    """Hyperparameters that can be part of a key, and go to a worker."""
    try:
        key = _Keyed(trial.method).key
        same = _Keyed(pickle.loads(pickle.dumps(trial.method))).key == key  # noqa: S301 - what was just written
    except (UserError, TypeError, ValueError, AttributeError, pickle.PicklingError) as error:
        yield f"hyperparameters: {error}; fields may be numbers, texts, lists and frozen dataclasses of such"
        return
    if not same:
        yield "hyperparameters: they change when the method is sent to a worker; keep nothing beside the fields"


def asks_images(trial: Trial) -> Iterator[str]:
    """Queries that are images, no two the same, within the budget; fewer with a note."""
    made = trial.fingerprint
    if not isinstance(made, Fingerprint):
        yield f"fingerprint: expected a fingerbench.records.Fingerprint, got {type(made).__name__}"
        return
    queries, shape = made.queries, (3, SIDE, SIDE)
    if tuple(queries.shape[1:]) != shape:  # `Fingerprint` refuses what else is no image
        yield f"queries: expected (n, 3, {SIDE}, {SIDE}), as the images, got {tuple(queries.shape)}"
    distinct = len(queries.unique(dim=0))
    if distinct < len(queries):
        yield f"queries: {distinct} of {len(queries)} are distinct; one that is asked twice says no more than once"
    if len(queries) > BUDGET:
        yield f"queries: {len(queries)} for a budget of {BUDGET}; make at most setting.budget"
    if len(queries) < BUDGET and not made.note:
        yield f"queries: {len(queries)} for a budget of {BUDGET}, without a note; say why in Fingerprint(note=...)"


def carries_plain_tensors(trial: Trial) -> Iterator[str]:
    """State on the CPU without gradients, and counts."""
    for name, tensor in trial.fingerprint.tensors():
        if tensor.device.type != "cpu" or tensor.requires_grad:
            yield f"{name}: expected a tensor on the CPU without gradient; use .detach().cpu()"
    for name, count in trial.fingerprint.yields.items():
        if not is_whole(count) or count < 0:
            yield f"yields: expected counts, whole numbers from 0, got {name}={count!r}"


def touches_nothing(trial: Trial) -> Iterator[str]:
    """The seed decides alone, and models, images and global random states stay as they were."""
    first, setting = trial.fingerprint, trial.setting()
    with seeded(11):  # a method that draws from a global generator gives other queries now
        before = _reachable(world().setting(trial.method.needs))
        again = trial.method.fingerprint(setting)
        after = _reachable(setting)
    for what, tensors in before.items():
        if not all(map(torch.equal, tensors, after[what])):
            yield f"fingerprint changes {what}; work on copies, and draw from setting.generator alone"
    one, two = dict(first.tensors()), dict(again.tensors())
    if list(one) != list(two) or not all(torch.equal(one[name], two[name]) for name in one):
        yield "fingerprint: the same seed gives another one; draw from setting.generator alone, keep nothing in between"


def _reachable(setting: Setting) -> dict[str, list[Tensor]]:
    """Return a copy of all that a method can reach, by what it is."""
    modules = [*setting.positives, *setting.negatives, setting.source]
    modules += [setting.gan.generator, setting.gan.discriminator] if setting.gan else []
    every = [weight for module in modules for weight in module.parameters()]
    numpy: Any = np.random.get_state()
    return {
        "the weights of models": [t.clone() for module in modules for t in module.state_dict().values()],
        "images": [
            setting.train.x.clone(),
            setting.train.y.clone(),
            setting.heldout.x.clone(),
            setting.heldout.y.clone(),
        ],
        "the mode of models": [torch.tensor([part.training for m in modules for part in m.modules()])],
        "the gradients of models": [torch.tensor([w.requires_grad or w.grad is not None for w in every])],
        "PyTorch's global random state": [torch.get_rng_state()],
        "NumPy's global random state": [torch.tensor([*numpy[1].tolist(), numpy[2]])],
        "Python's global random state": [torch.tensor(random.getstate()[1])],
    }


def varies_with_the_seed(trial: Trial) -> Iterator[str]:
    """Another seed gives other queries."""
    if torch.equal(trial.made(seed=1).queries, trial.fingerprint.queries):
        yield "queries: another seed gives the same; draw from setting.generator, or several seeds say no more than one"


def knows_its_source(trial: Trial) -> Iterator[str]:
    """The source's own answers give 1 to a method that reads labels."""
    score = trial.score(trial.world.source)
    if trial.method.access == "label" and score != 1:
        yield f"similarity: {score} to the source's own answers, expected 1; keep the source's labels of the queries"


def scores_anyone(trial: Trial) -> Iterator[str]:
    """Any suspect gets a float in [0, 1], the same each time, and the fingerprint stays as it was."""
    with seeded(7):
        suspects = {"the source": trial.world.source, "a constant": Constant(), "an untrained one": convnet().eval()}
    for who, suspect in suspects.items():
        score = trial.score(suspect)
        if not isinstance(score, float) or not 0 <= score <= 1:
            yield f"similarity: expected a float in [0, 1] of {who}, got {score!r}"
        elif trial.score(suspect) != score:
            yield f"similarity: the same answers of {who} give another score; it must not draw, nor remember"
    judged = dict(trial.judged.tensors())
    if not all(torch.equal(judged[name], tensor) for name, tensor in trial.fingerprint.tensors()):
        yield "similarity changes the fingerprint; work on copies"


def makes_one(trial: Trial) -> Iterator[str]:
    """A budget of one."""
    made = len(trial.made(budget=1))
    if made != 1:
        yield f"queries: {made} for a budget of 1; budgets are whole numbers from 1"


STATIC: tuple[Check, ...] = (declares_itself, is_frozen, has_a_key)
DYNAMIC: tuple[Check, ...] = (
    *(asks_images, carries_plain_tensors, touches_nothing, varies_with_the_seed),
    *(knows_its_source, scores_anyone, makes_one),
)
CHECKS = STATIC + DYNAMIC


def findings(method: Any) -> list[str]:
    """Return what is unsound in a method, a line of advice each; what cannot run ends the trial."""
    trial = Trial(method)
    found = [line for check in STATIC for line in check(trial)]
    if found:
        return found
    try:
        if not isinstance(trial.fingerprint, Fingerprint):
            return list(asks_images(trial))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's code: whatever it raises is a finding
        return [f"fingerprint: {_told(error)}"]
    for check in DYNAMIC:
        try:
            found += check(trial)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
            found.append(f"{check.__name__.replace('_', ' ')}: {_told(error)}")
    return found


def _told(error: Exception | SystemExit) -> str:
    if isinstance(error, UserError):
        return f"{one_line(error)}; for this toy world another value may follow the file, method.KEY=VALUE"
    return f"raises {raised(error)}"


def examine(file: Path, words: Sequence[str] = ()) -> dict[str, list[str]]:
    """Run every method that a file, methods/NAME.py or conf/method/NAME.yaml, holds; return its findings by name.

    It is imported and run, as run.py does. Hyperparameters are those of its YAML and of the profile, demo unless
    `words` say otherwise.

    Raises:
        UserError: there is no such file, no method in it, or the file is neither.
    """
    got = "a folder" if file.is_dir() else "no such file"
    require(file.is_file(), str(file), "the file of a method, methods/NAME.py or conf/method/NAME.yaml", got)
    file = file.resolve()
    torch.set_num_threads(1)  # such small tensors only wait for one another on more
    if file.suffix == ".yaml":
        require(file.parent.name == "method", str(file), "a file in a folder conf/method", file.parent.name)
        return {file.stem: _of_config(file, words)}
    require(file.suffix == ".py", str(file), "a .py or .yaml file", file.suffix or "neither")
    configs = _configs(file, words)
    if configs:
        return {path.stem: _of_config(path, words, file, root) for path, root in configs.items()}
    return _of_module(file)


def _configs(file: Path, words: Sequence[str]) -> dict[Path, Path]:
    """Return the files in any conf/method that name a class of a Python file, with the folder that must be on the path.

    They are those of this project, of a folder conf beside the file or above it, and of hydra.searchpath in `words`.
    """
    folders = {config.CONF / "method", *(parent / "conf" / "method" for parent in file.parents)}
    folders |= {Path(folder.removeprefix("file://"), "method").resolve() for folder in _folders(words)}
    paths = sorted(path for folder in folders for path in folder.glob("*.yaml"))
    return {path: root for path in paths if (root := _root(path, file))}


def _folders(words: Sequence[str]) -> list[str]:
    """Return what hydra.searchpath lists in `words`."""
    lists = (word.partition("=")[2].strip("[]") for word in config.searched(words))
    return [folder.strip() for each in lists for folder in each.split(",") if folder.strip()]


def _root(path: Path, file: Path) -> Path | None:
    """Return the folder from which the `_target_` of the config file `path` is the Python file, None if it is not."""
    try:
        target = str(OmegaConf.select(OmegaConf.load(path), "_target_"))
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError):
        return None
    parts = tuple(target.split("."))[:-1]
    return file.parents[len(parts) - 1] if parts and file.with_suffix("").parts[-len(parts) :] == parts else None


def _of_config(path: Path, words: Sequence[str], file: Path | None = None, root: Path | None = None) -> list[str]:
    folder, found = path.parent.parent, []
    if root and root not in (Path(entry or ".").resolve() for entry in sys.path):
        found.append(f"{root} is not on the Python path; start run.py with PYTHONPATH={root}")
        sys.path.append(str(root))
    search = _folders(words)
    if folder != config.CONF and str(folder) not in (each.removeprefix("file://") for each in search):
        search.append(f"file://{folder}")
    where = [f"hydra.searchpath=[{','.join(search)}]"] if search else []
    try:
        rest = config.without(words, ["hydra.searchpath"])
        method = config.build(config.compose([*where, f"method={path.stem}", *rest]).method)
    except UserError as error:
        return [*found, f"{path.name}: {' '.join(str(error).split())}"]
    home = Path(inspect.getfile(type(method))).resolve()
    if file and home != file:
        return [*found, f"{path.name}: Python finds {home} under this name, not this file; give it another"]
    return found + findings(method)


def _of_module(file: Path) -> dict[str, list[str]]:
    name = ".".join(_dotted(file))
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
        return {file.stem: [f"import: {_told(error)}"]}
    kinds = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == name]
    methods = [kind for kind in kinds if hasattr(kind, "fingerprint") or hasattr(kind, "similarity")]
    require(bool(methods), str(file), "a class with fingerprint and similarity", f"{len(kinds)} classes without")
    found = {}
    for kind in methods:
        lines = [f"no conf/method/{file.stem}.yaml names {name}.{kind.__name__} as _target_; run.py needs one"]
        try:
            lines += findings(kind())
        except TypeError as error:
            lines.append(f"{kind.__name__}: {error}; give each field a default, or a value in the YAML file")
        found[kind.__name__] = lines
    return found


def _dotted(file: Path) -> Sequence[str]:
    """Return the parts of the name by which a file can be imported; its folder joins the path where none has it."""
    homes = [Path(entry or ".").resolve() for entry in sys.path]
    for home in sorted(homes, key=lambda path: len(path.parts)):
        if file.is_relative_to(home):
            parts = file.relative_to(home).with_suffix("").parts
            if all(part.isidentifier() for part in parts):
                return parts
    sys.path.append(str(file.parent))
    return (file.stem,)
