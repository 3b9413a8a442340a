"""How good is one recipe against another, architecture by architecture? Trains each from random weights on half B.

    python benchmarks/recipes.py KEY=VALUE ... --recipes paper fast --architectures resnet18 vgg13_bn [--out TABLE.md]

Models go to the store, so the same command goes on where it was. With --stored nothing is trained, and what is not
there is called missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import machine

import fingerbench as fb
from fingerbench.bench import Bench
from fingerbench.errors import UserError
from fingerbench.nets import ARCHITECTURES
from fingerbench.zoo.model import ModelSpec


def specs(recipes: list[str], architectures: list[str], words: list[str]) -> tuple[Bench, dict[str, list[ModelSpec]]]:
    """Return one of the benchmarks, for its store, and by architecture the model of each recipe."""
    benches = [fb.open(*words, f"recipe={recipe}") for recipe in recipes]
    zoos = [bench.zoo for bench in benches]
    return benches[0], {a: [zoo.trained(f"scratch/{a}", a, "B") for zoo in zoos] for a in architectures}


def row(bench: Bench, architecture: str, models: list[ModelSpec], recipes: list[str]) -> dict[str, str]:
    """Return the line of one architecture: quality under each recipe."""
    line = {"architecture": architecture}
    quality = bench.data.task.quality_name
    for recipe, spec in zip(recipes, models, strict=True):
        facts = bench.store.facts(spec) if bench.store.has(spec) else None
        line[f"{quality}, {recipe}"] = f"{facts[quality]:.3f}" if facts else "missing"
    return line


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for run.py")
    parser.add_argument("--recipes", nargs="+", metavar="NAME", default=["paper", "fast"])
    parser.add_argument("--architectures", nargs="+", metavar="NAME", default=list(ARCHITECTURES))
    parser.add_argument("--stored", action="store_true", help="of what is stored alone")
    parser.add_argument("--out", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    try:
        bench, models = specs(arguments.recipes, arguments.architectures, arguments.overrides)
        if not arguments.stored:
            bench.build([spec for group in models.values() for spec in group])
    except UserError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    rows = [row(bench, name, group, arguments.recipes) for name, group in models.items()]
    machine.publish([machine.describe(bench.workshop.device), machine.table(rows)], arguments.out)


if __name__ == "__main__":
    main()
