"""Configuration: composed by Hydra from `conf/`, checked before anything runs, turned into typed objects."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fingerbench import cluster
from fingerbench.errors import UserError, one_line, require, unknown

CONF = Path(__file__).resolve().parents[1] / "conf"
# Keys of a method or data file that describe it and are no constructor arguments.
RESERVED = ("name", "licence", "constants")
# Keys that say which job makes things, and in which order; and those that say where they are and on what machine, too.
# Neither is part of what is made.
WHERE = ("launcher", "shard")
LOCAL = (*WHERE, "store", "locks", "data.root", "data.transfer_root", "zoo.weights", "jobs", "device")

# Groups of which there is one choice, and those that take lists.
SINGLE = ("method", "data", "gan", "evasion", "surrogates", "profile", "recipe", "zoo", "launcher", "experiment")
LISTS = ("attack", "logger")
GROUPS = (*SINGLE, *LISTS)


def compose(words: Sequence[str] = ()) -> DictConfig:
    """Return the configuration for command-line `words` such as "method=ipguard".

    Raises:
        UserError: a name or key that does not exist, with the nearest that do.
    """
    with _hydra():
        return _composed(words)


def check(arguments: Sequence[str]) -> None:
    """Refuse command-line words that would not compose, each value of a sweep on its own.

    Raises:
        UserError: the first that does not, in one line.
    """
    given, _ = get_args_parser().parse_known_args(arguments)
    with _hydra():
        parsed = _parsed(given.overrides)
        if given.cfg and given.multirun:
            raise UserError("--cfg shows the configuration of one run; leave out -m, or --cfg")
        swept = [override for override in parsed if override.is_sweep_override()]
        lines = (override.input_line for override in parsed if not override.is_sweep_override())
        fixed = [line for line in lines if line is not None]
        groups = [override for override in swept if override.key_or_group in GROUPS]
        chosen = [_choices(override)[0] for override in groups]  # a key may be there with what is chosen alone
        whole = _composed([*fixed, *chosen], return_hydra_config=True)
        many = whole.hydra.mode == RunMode.MULTIRUN or given.multirun
        if swept and not many:
            key, _, values = (swept[0].input_line or "").partition("=")
            if "experiment" in whole:
                varied = "what it varies stands in experiment.grid.KEY=[...] and experiment.seeds=[...]"
                raise UserError(f"{key}={values}: an experiment takes one value of a key; {varied}")
            listed = key in LISTS or isinstance(OmegaConf.select(whole, key), ListConfig)
            hint = f", or write {key}=[{values}] for a list" if listed else ""
            raise UserError(f"{key}={values} is a sweep: add -m for one run each{hint}")
        for override in swept:
            others = [_choices(group)[0] for group in groups if group is not override]
            for choice in _choices(override):
                _composed([*fixed, *others, choice])
        cluster.check(whole.hydra, bool(many))


def _require_searchable(override: Override) -> None:
    """Refuse folders to search for configuration where Hydra goes on without a word and without what they hold.

    That is where there is no such folder, or where a file in it goes by the name of one of fingerbench's, which is
    taken.
    """
    paths = override.value() if override.key_or_group == "hydra.searchpath" else None
    for path in map(str, paths if isinstance(paths, list) else []):
        scheme, _, rest = path.rpartition("://")
        if scheme not in ("", "file"):
            continue
        require(Path(rest).is_dir(), "hydra.searchpath", "folders that there are, such as [file:///home/me/conf]", path)
        for ours in CONF.glob("*/**/*.yaml"):
            theirs = Path(rest, ours.relative_to(CONF))
            same = not theirs.is_file() or theirs.read_bytes() == ours.read_bytes()
            expected = f"a name that is not in fingerbench's conf/{ours.relative_to(CONF).parent}, which wins"
            require(same, str(theirs), expected, ours.stem)


def _composed(words: Sequence[str], **more: Any) -> DictConfig:
    """Compose, but refuse what Hydra takes or refuses without a word of use.

    That is several choices of a group of which there is one, choices that are no names, such as null or 3, and folders
    to search of which it takes nothing.
    """
    folders = [word.partition("=")[2] for word in searched(words)]
    require(len(folders) < 2, "hydra.searchpath", "one list, such as [file:///A,file:///B]", " and ".join(folders))
    for override in _parsed(words):
        _require_searchable(override)
        group, value = override.key_or_group, override.value()
        if group in GROUPS and not override.is_delete():
            for name in value if isinstance(value, list) else [value]:
                if not isinstance(name, str):
                    raise unknown(group, "null" if name is None else str(name), options(group, words))
        if group in SINGLE and isinstance(value, list) and len(value) != 1:
            sweep = f", or {group}={','.join(map(str, value))} with -m for one run each" if value else ""
            raise UserError(f"{override.input_line}: expected one choice; got {len(value)}; give one{sweep}")
    with _explained(words):
        return hydra_compose("config", overrides=list(words), **more)


def changed(settings: DictConfig, words: Sequence[str]) -> DictConfig:
    """Return composed settings with other values than they were composed with; other choices from groups compose."""
    other = copy.deepcopy(settings)
    for override in _parsed(words):
        OmegaConf.update(other, override.key_or_group, override.value(), merge=True)  # as Hydra does
    return other


def _parsed(words: Sequence[str]) -> list[Override]:
    with _hydra() as hydra, _explained(words):
        return OverridesParser.create(hydra.config_loader).parse_overrides(list(words))


def without(words: Iterable[str], keys: Collection[str]) -> list[str]:
    """Return those of the words that set none of `keys`, nor anything within one."""
    within = tuple(f"{key}{end}" for key in keys for end in "=./")
    return [word for word in words if not f"{word}=".lstrip("+~").startswith(within)]


def searched(words: Sequence[str]) -> list[str]:
    """Return those of the words that say where else configuration is, such as "hydra.searchpath=[file:///DIR]"."""
    return [word for word in words if word.startswith("hydra.searchpath=")]


def options(group: str, words: Sequence[str] = ()) -> list[str]:
    """Return the names that a config group knows, such as the methods for "method"; `words`: see `searched`."""
    with _hydra() as hydra, _explained():
        return sorted(hydra.config_loader.get_group_options(group, overrides=searched(words)))


def choice(group: str, name: str, words: Sequence[str] = ()) -> DictConfig:
    """Return the node of one choice of a group, such as "jpeg" of "evasion", its references to other groups still open.

    words: see `searched`.

    Raises:
        UserError: there is no such choice.
    """
    known = options(group, words)
    if name not in known:
        raise unknown(group, name, known)
    with _hydra():
        return hydra_compose(overrides=[*searched(words), f"+{group}={name}"])[group]


def require_resolved(settings: DictConfig, key: str) -> None:
    """Raise a UserError if the value at `key` names a setting that there is not."""
    try:
        OmegaConf.select(settings, key)
    except OmegaConfBaseException as error:
        raise UserError(f"{key}: {_first_line(error)}; name a setting, as in ${{method.name}}") from None


def build(node: DictConfig) -> Any:
    """Return the object that a config node with a `_target_` describes.

    Raises:
        UserError: the target cannot be imported, does not take these arguments, or takes them of another type.
    """
    from hydra.utils import instantiate

    try:
        plain = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{_first_line(error)}; does conf/data name that constant?") from None
    if not isinstance(plain, dict) or "_target_" not in plain:
        raise UserError(
            f"expected a config node with a _target_, got {plain!r}; let it name a class, as in conf/method"
        )
    arguments = {key: value for key, value in plain.items() if key not in RESERVED}
    if "torchvision." in json.dumps(arguments, default=str):
        import fingerbench.vision  # noqa: F401 - without it torchvision cannot be imported beside a CPU build of torch
    try:
        built = instantiate(arguments, _convert_="all")
    except HydraException as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from None
        missing = "ModuleNotFoundError" in str(cause)  # as Hydra tells it
        hint = ", and that PYTHONPATH has the folder of that module" if missing else ""
        raise UserError(f"cannot build {plain['_target_']}: {one_line(cause)}; check its config file{hint}") from error
    _check_fields(built)
    return built


def named(group: str, node: DictConfig) -> Any:
    """Return the object of a choice that tables and the store call by its name, such as a method.

    Raises:
        UserError: see `build`; or it has no name, or that of one of fingerbench's, which is of another class.
    """
    built = build(node)
    name, what = OmegaConf.select(node, "name"), f"{group}.name of {type(built).__name__}"
    expected = f"a name: in its config file, as those in conf/{group}"
    require(isinstance(name, str) and name != "", what, expected, name)
    ours = CONF / group / f"{name}.yaml"
    taken = OmegaConf.select(OmegaConf.load(ours), "_target_") if ours.is_file() else node["_target_"]
    require(taken == node["_target_"], what, f"a name of its own, not that of {taken}", name)
    return built


def _check_fields(built: Any) -> None:
    """Refuse a dataclass whose numbers, switches, texts and choices are not what is declared: YAML promises nothing."""
    if not is_dataclass(built) or isinstance(built, type):
        return
    hints = get_type_hints(type(built))
    for f in fields(built):
        value, hint = getattr(built, f.name), hints[f.name]
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise unknown(f"{type(built).__name__}.{f.name}", str(value), get_args(hint))
        allowed: tuple[type, ...] = (int, float) if hint is float else (hint,)
        plain = hint in (int, float, bool, str)
        mistaken = plain and (not isinstance(value, allowed) or (isinstance(value, bool) and hint is not bool))
        require(
            not mistaken,
            f"{type(built).__name__}.{f.name}",
            f"a value of type {getattr(hint, '__name__', hint)}",
            value,
        )
        _check_fields(value)


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values in nested mappings, lists being values, each with its key, such as "zoo.training.lr"."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from leaves(value, f"{path}{key}.")
    else:
        yield path.removesuffix("."), node


def text(value: Any) -> str:
    """Return a value as the command line takes it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(text, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


@contextmanager
def _hydra() -> Iterator[Any]:
    if GlobalHydra.instance().is_initialized():  # inside a job of run.py, whose Hydra reads the same files
        yield GlobalHydra.instance().hydra
        return
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield GlobalHydra.instance().hydra


@contextmanager
def _explained(words: Sequence[str] = ()) -> Iterator[None]:
    try:
        yield
    except MissingConfigException as error:
        raise _missing(error) from None
    except OverrideParseException as error:
        hint = f"a list is attack=[prune,noise]{_quoted(error.override or '')}"
        raise UserError(f"cannot read {error.override!r}: expected key=value; {hint}") from None
    except (ConfigCompositionException, OmegaConfBaseException) as error:
        raise _misplaced(error, words) from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{mark.name}, line {mark.line + 1}" if mark else "a config file"
        raise UserError(f"{place}: not YAML ({getattr(error, 'problem', None) or one_line(error)}); mend it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"a config file on the search path is not UTF-8 ({error}); save it as UTF-8") from None


def _quoted(word: str) -> str:
    """Return how to write a word with signs in its value that Hydra reads in quotes alone; empty where it is a list."""
    key, _, value = word.partition("=")
    if not value or value[0] in "[{'\"" or "$" in value:
        return ""
    escaped = value.replace("'", "\\'")
    return f"; a value with signs such as = or ü stands in quotes: \"{key}='{escaped}'\""


def _missing(error: MissingConfigException) -> UserError:
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    if group == "hydra/launcher" and name in cluster.PLUGINS:
        return cluster.uninstalled(name)
    known = list(error.options or [])  # Hydra leaves them out where one name of a list is wrong
    hydra = GlobalHydra.instance().hydra
    if not known and group and hydra:
        known = hydra.config_loader.get_group_options(group)
    return unknown(group, name, known) if known else UserError(_first_line(error))


def _misplaced(error: Exception, words: Sequence[str]) -> UserError:
    key = getattr(error.__cause__ or error, "full_key", None)
    if not key or not _first_line(error).startswith("Could not override"):
        return UserError(_first_line(error))
    branch, _, leaf = key.rpartition(".")
    whole = hydra_compose("config", overrides=[*searched(words), *_group_choices(words)])
    node = OmegaConf.to_container(whole, resolve=False)
    for part in branch.split("."):
        node = node.get(part) if isinstance(node, dict) else node
    if isinstance(node, str) and node.startswith("${"):
        return UserError(f"{key}: {branch} is a reference to {node}; set {node[2:-1]}.{leaf}, or all of {branch}")
    siblings = OmegaConf.select(whole, branch) if branch else whole
    known = [f"{branch}.{name!s}".lstrip(".") for name in siblings] if isinstance(siblings, DictConfig) else []
    return unknown("config key", key, known)


def _group_choices(words: Sequence[str]) -> list[str]:
    """Return those of the words that choose from a group, such as "method=ipguard"; neither sweeps nor + nor ~."""
    with _hydra() as hydra:
        groups = hydra.config_loader.list_groups("")
    chosen = [o for o in _parsed(words) if o.type == OverrideType.CHANGE and o.key_or_group in groups]
    return [o.input_line for o in chosen if o.input_line is not None and not o.is_sweep_override()]


def _choices(override: Override) -> list[str]:
    """Return an override for each value of a sweep, at least one."""
    key, interval = override.get_key_element(), override.is_interval_sweep()
    values = [] if interval else [f"{key}={value}" for value in override.sweep_string_iterator()]
    if not values:
        got = "an interval" if interval else "none"
        raise UserError(f"{override.input_line}: expected values such as a,b or range(0,2); got {got}; list them")
    return values


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
