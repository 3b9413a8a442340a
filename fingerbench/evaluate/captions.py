"""What captions say: of which models and queries numbers are, and what keeps them from comparison with a paper's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from fingerbench import config
from fingerbench.bench import Bench
from fingerbench.evaluate import tables

if TYPE_CHECKING:
    from fingerbench.evaluate.experiment import Cell

NAMED = 4  # settings that a caption names
# Beginnings of keys of the configuration that may differ: numbers can be compared all the same.
HARMLESS = tuple(key for key in config.LOCAL if key != "zoo.weights")
HARMLESS += ("seed", "zoo.seed", "label", "data.download", "gates.", "experiment.", "logger.", "threads")
HARMLESS += ("compiled", "deterministic", "precision", "replay")


def caption(drawn: Sequence[Cell], *, paper: bool = False, queries: bool = True) -> str:
    """Return what every caption of an experiment says: data set and source, profile, seeds, evasion, models, queries.

    The seed of the zoo, too, where it is not 0; where there are several zoos, the experiment itself says which.

    paper: numbers of the paper stand beside ours; where they cannot be compared, the caption says so. queries: whether
    their number matters.
    """
    bench = drawn[0].bench
    sides = [[suspect.pirated for suspect in cell.bench.suspects] for cell in drawn]
    models = dict.fromkeys(tables.suspects(sum(pirated), len(pirated) - sum(pirated)) for pirated in sides)
    made = [cell.bench.store.facts(cell.bench.fingerprint_spec) for cell in drawn if queries and _made(cell)]
    count = f"; {tables.asked([facts['queries'] for facts in made])}" if made else ""
    evasions = {str(cell.bench.settings.evasion.name) for cell in drawn}
    zoos = {cell.bench.settings.zoo.seed for cell in drawn}
    setting = tables.setting(
        f"{bench.settings.data.name}/{bench.settings.zoo.source}",
        bench.settings.profile,
        {cell.bench.settings.seed for cell in drawn},
        evasions.pop() if len(evasions) == 1 else "none",
        zoos.pop() if len(zoos) == 1 else 0,
    )
    text = f"{setting}; {' or '.join(models)}{count}."
    return f"{text} {incomparable(bench)}".strip() if paper else text


def _made(cell: Cell) -> bool:
    return cell.bench.store.has(cell.bench.fingerprint_spec)


def incomparable(bench: Bench) -> str:
    """Return what keeps the numbers of this benchmark from comparison with the paper's, as far as settings tell.

    Empty where nothing but what the experiment itself varies differs from `data=cifar10 profile=paper`.
    """
    name, profile = bench.settings.data.name, bench.settings.profile
    if name != "cifar10" or bench.settings.zoo.width != 1:
        return (
            f"The paper's numbers are of CIFAR-10 and networks of full width; ours, of {name} with profile {profile}, "
            "cannot be compared with them."
        )
    changed = _changed(bench)
    if not changed:
        return ""
    more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
    return (
        f"Ours, of profile {profile}, are not of profile paper as it is, but with {', '.join(changed[:NAMED])}{more}."
    )


def _changed(bench: Bench) -> list[str]:
    """Return as KEY=VALUE what differs from the same experiment with plain `data=cifar10 profile=paper`."""
    varied = {"experiment", "method", "evasion", "hydra.searchpath"}
    if "experiment" in bench.settings:
        varied |= {key for key, _ in config.leaves(config.build(bench.settings.experiment).grid)}
    words = {word.partition("=")[0]: word for word in bench.overrides}
    plain = config.compose(["data=cifar10", "profile=paper", *(words[key] for key in words if key in varied)])
    ours, theirs = (dict(config.leaves(OmegaConf.to_container(settings))) for settings in (bench.settings, plain))
    differ = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key) and not key.startswith(HARMLESS)]
    differ.sort(key=lambda key: not key.startswith("zoo."))  # what the suspects are matters most
    told = [f"{key}={'FILE' if key in config.LOCAL else config.text(ours.get(key))}" for key in differ]
    chosen = [words[key] for key in ("gan", "surrogates") if key in words and key not in varied]
    if set(bench.settings.attack) != set(plain.attack):
        chosen.append(f"attack={config.text(list(bench.settings.attack))}")
    named = [*chosen, *(text for text in told if not text.startswith(_within(bench, plain, chosen)))]
    return [text.replace(",", ", ") for text in named]  # so that a line can break within a long list


def _within(bench: Bench, plain: DictConfig, chosen: list[str]) -> tuple[str, ...]:
    """Return the beginnings of what the choice of another GAN, surrogates or families has changed."""
    groups = [word.partition("=")[0] for word in chosen if not word.startswith("attack=")]
    groups += [f"attack.{family}" for family in {*bench.settings.attack} ^ {*plain.attack}]
    return tuple(f"{group}{end}" for group in groups for end in (".", "="))
