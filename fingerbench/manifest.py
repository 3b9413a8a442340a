"""What a run was made of and on: everything needed to tell whether two results may be compared."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

MANIFEST, SCHEMA = "manifest.json", 1
PACKAGES = ("fingerbench", "torch", "torchvision", "timm", "hydra-core", "omegaconf", "numpy", "pandas", "scikit-learn")


def manifest(**parts: Any) -> dict[str, Any]:
    """Return the plain-data manifest of a run: versions, git revision, hardware, time, and `parts`."""
    return {
        "schema": SCHEMA,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": versions(),
        "git": git_state(Path(__file__).resolve().parents[1]),
        "hardware": hardware(),
        **parts,
    }


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of PACKAGES, None of one that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the revision checked out in `folder`, whether files differ from it, and a hash of the difference.

    None where there is no git, or no commit.
    """
    revision = _git(folder, "rev-parse", "HEAD")
    if revision is None:
        return None
    difference = (_git(folder, "diff", "HEAD") or "") + (_git(folder, "status", "--porcelain") or "")
    digest = hashlib.sha256(difference.encode()).hexdigest() if difference else None
    return {"revision": revision.strip(), "dirty": bool(difference), "difference_sha256": digest}


def hardware() -> dict[str, Any]:
    """Return what the run could compute on."""
    import torch

    from fingerbench.workshop import bfloat16_unit

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "bfloat16": bfloat16_unit(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout
