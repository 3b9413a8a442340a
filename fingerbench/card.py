"""The model card of an exported zoo or model: what it is, how it was made, what it is for."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fingerbench import config
from fingerbench.gans.spec import GanSpec
from fingerbench.manifest import versions
from fingerbench.nets.own import PREFIX
from fingerbench.store import PAYLOAD, Spec
from fingerbench.zoo.model import ModelSpec
from fingerbench.zoo.train import Scratch

if TYPE_CHECKING:
    from fingerbench.bench import Bench

HEAD = "---\nlicense: other\nlibrary_name: fingerbench\ntags: [model-fingerprinting, fingerbench]\n---\n"
COLUMNS = ("name", "architecture", "width", "half", "attack", "variant", "parent")
PURPOSE = """\
For evaluating methods of model fingerprinting: whether they tell models that were stolen from the source from those
that were trained without it. The models are no good for anything else: they are as accurate as the benchmark needs, and
some are attacked on purpose.
"""

LEGEND = """\
An attack turns the parent into the model; all hyperparameters and seeds stand in `model/KEY/record.json`. Half: of the
data on which the model, or its ancestor, was trained; of one that is Given, which its owner brought, nobody checks it.
Quality and agreement with the parent are on the test split."""


def licence(bench: Bench) -> str:
    """Return what the configuration says about the data set and its licence."""
    return str(bench.settings.data.get("licence", "no licence is stated in its configuration; ask who exported this"))


def words(bench: Bench) -> list[str]:
    """Return the overrides that make the configuration, without those that are the exporter's alone.

    Where the source was given, its file is FILE: without that word they would make another zoo.
    """
    kept = config.without(bench.overrides, [*config.LOCAL, "hydra"])
    return [*kept, *(["zoo.weights=FILE"] if bench.zoo.given else [])]


def text(bench: Bench, specs: Sequence[Spec], model: str | None = None) -> str:
    """Return the card of `specs`, which are in the store, as markdown; `model`: the name of the one it is about."""
    models = [spec for spec in specs if isinstance(spec, ModelSpec)]
    gans = [spec for spec in specs if isinstance(spec, GanSpec)]
    title = f"Model `{model}` of a FingerBench zoo" if model else f"A FingerBench zoo of {len(models)} models"
    data = bench.data
    halves = f"{len(data.a)} images of half A (the owner's) and {len(data.b)} of half B (everybody else's)"
    parts = [
        f"{HEAD}\n# {title}",
        f"Made by fingerbench {versions()['fingerbench']}, profile `{bench.settings.profile}`.",
        f"## Use\n\n{PURPOSE}\n```sh\npython -m fingerbench import FOLDER store=DIR\n```\n\n```python\n"
        f"import fingerbench as fb\n\nbench = fb.open({', '.join(map(repr, [*words(bench), 'store=DIR']))})\n"
        f'model = bench.model("{model or "source"}")  # [0, 1] images {data.shape} to {data.task.outputs} outputs\n```'
        + _wanting(bench, specs),
        f"## Data\n\n`{bench.settings.data.name}`: {licence(bench)}. Trained on {halves}; images have the shape "
        f"{data.shape}. sha256 of the splits: `{bench.zoo.data}`.",
        f"## Models\n\n{_table(bench, models)}\n\n{LEGEND}",
    ]
    if gans:
        steps = ", ".join(f"{spec.label} ({spec.design.steps} steps, on half A)" for spec in gans)
        parts.append(f"## GAN\n\n{steps}")
    parts.append(f"## Made with\n\n```sh\n{shlex.join(['python', 'run.py', *words(bench)])}\n```")
    return "\n\n".join(parts) + "\n"


def _wanting(bench: Bench, specs: Sequence[Spec]) -> str:
    """Return what these words need beside the artefacts: weights of a source that was given, modules of networks."""
    source, needs = bench.zoo.original(), []
    if bench.zoo.given:
        place = (
            f"`{source.kind}/{source.key}/{PAYLOAD}` here" if source in specs else "which the owner of the source has"
        )
        needs.append(f"FILE: the weights of the source, {place}.")
    names = {spec.architecture for spec in specs if isinstance(spec, ModelSpec)}
    own = sorted(name for name in names if name.startswith(PREFIX))
    if own:
        needs.append(f"Code that is not here, of whoever made this: {', '.join(f'`{name}`' for name in own)}.")
    return "".join(f"\n\n{line}" for line in needs)


def _table(bench: Bench, models: Sequence[ModelSpec]) -> str:
    quality = bench.data.task.quality_name
    lines = ["| " + " | ".join([*COLUMNS, quality, "agreement", "key"]) + " |", "| :--- " * (len(COLUMNS) + 3) + "|"]
    for spec in models:
        facts = bench.store.facts(spec)
        parent = spec.parent.name if spec.parent else "-"
        attack = "trained from scratch" if isinstance(spec.attack, Scratch) else type(spec.attack).__name__
        variant = spec.variant if spec.parent else "-"
        cells = [f"`{spec.name}`", spec.architecture, f"{spec.width:g}", spec.half, attack, variant, parent]
        cells += [_number(facts[quality]), _number(facts["agreement"]), spec.key[:16]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}"
