"""Would the scores be the same if models were stored in half precision? Takes a zoo, built if it is missing.

    python benchmarks/half_precision.py KEY=VALUE ... --methods ipguard metav [--out TABLE.md]

The weights and buffers of every suspect are rounded to float16 and back, and it is asked the fingerprint's queries
again. Models stay in the store as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import machine
import torch
from torch import Tensor, nn

import fingerbench as fb
from fingerbench.bench import Bench
from fingerbench.errors import UserError
from fingerbench.ops import predict
from fingerbench.records import Fingerprint


@torch.no_grad()
def rounded(model: nn.Module) -> nn.Module:
    """Return the model with its floating-point weights and buffers rounded to float16, computing in float32."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.copy_(tensor.half().float())
    return model


def row(bench: Bench) -> dict[str, str]:
    """Return the line of one method: how many answers and scores change, and by how much at most."""
    fingerprint = bench.fingerprint()
    queries = fingerprint.queries.to(bench.workshop.device)
    changes, labels = [], 0.0
    for spec in bench.models.values():
        full, half = (predict(model, queries) for model in (bench.model(spec.name), rounded(bench.model(spec.name))))
        before, after = (score(bench, fingerprint, outputs) for outputs in (full, half))
        changes.append(abs(after - before))
        labels += 1 - bench.data.task.agreement(half, full)
    return {
        "method": bench.settings.method.name,
        "suspects": str(len(changes)),
        "labels that change": f"{labels / len(changes):.3%}",
        "scores that change": str(sum(change > 0 for change in changes)),
        "by at most": f"{max(changes):.3g}",
    }


def score(bench: Bench, fingerprint: Fingerprint, outputs: Tensor) -> float:
    """Return the score of a suspect with these outputs."""
    task = bench.data.task
    answers = task.label(outputs) if bench.method.access == "label" else task.answer(outputs)
    return bench.method.similarity(fingerprint, answers.cpu())


def main() -> None:
    """Measure and print a table, a line a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", metavar="NAME", default=["naturalfinger"])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for run.py")
    parser.add_argument("--out", type=Path, help="also write the table here")
    arguments = parser.parse_args()
    try:
        bench = fb.open(*arguments.overrides)
        rows = [row(bench.using(method)) for method in arguments.methods]
    except UserError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    machine.publish([machine.describe(bench.workshop.device), machine.table(rows)], arguments.out)


if __name__ == "__main__":
    main()
