"""How long the demo takes on this machine: every command a new user types, timed once, from an empty store.

    python benchmarks/demo_speed.py [--out TABLE.md] [--folder DIR]

Peak memory is that of the largest single process, workers included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import torch

ROOT = Path(__file__).resolve().parents[1]


def timed(words: list[str], store: Path, run: Path) -> tuple[float, str]:
    """Run run.py and return its seconds and its output."""
    command = [sys.executable, "run.py", *words]
    if "--help" not in words:
        command += [f"store={store}", f"hydra.run.dir={run}"]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return seconds, done.stdout


def peak_gib() -> float:
    """Return the peak resident memory of the largest process that has ended below this one."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def main() -> None:
    """Time the commands and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="also write the table here")
    parser.add_argument(
        "--folder", type=Path, help="an empty folder for store and runs, kept (default: a temporary one)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        store, runs = folder / "store", folder / "runs"
        if store.exists():
            sys.exit(f"expected an empty folder, but there is {store}")
        rows: list[dict[str, str]] = []
        for title, words in (
            ("main job, empty store", ["method=naturalfinger", "attack=all"]),
            ("the same again", ["method=naturalfinger", "attack=all"]),
            ("IPGuard on the built zoo", ["method=ipguard"]),
            ("--help", ["--help"]),
        ):
            seconds, _ = timed(words, store, runs / str(len(rows)))
            peak = "peak GiB of one process so far"
            rows.append({"command": title, "seconds": f"{seconds:.1f}", peak: f"{peak_gib():.2f}"})
        made = json.loads((runs / "0" / "manifest.json").read_text())["seconds"]["made"]
    place = f"{machine.describe(torch.device('cpu'))} at the end"
    work = "Seconds of work of one thread: " + ", ".join(f"{kind}s {s:.0f}" for kind, s in made.items())
    machine.publish([place, machine.table(rows), work], arguments.out)


if __name__ == "__main__":
    main()
