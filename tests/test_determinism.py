"""The same seed gives the same bytes, however many workers there are; what deterministic=true sets in a worker."""

import json
import os
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from conftest import TINY

import fingerbench as fb
from fingerbench.errors import UserError
from fingerbench.store import Spec

FEW = ["attack=[source,noise]", "attack.noise.variants=['1','5']", "zoo.training.epochs=1", "zoo.tuning.epochs=1"]


def results(folder, *words):
    """Return the scores as scores.csv has them, from a store of its own, and the checksum of every payload in it."""
    bench = fb.open(*TINY, f"store={folder}", *words)
    text = bench.scores().to_csv(index=False)
    records = [json.loads(path.read_bytes()) for path in folder.glob("*/*/record.json")]
    assert {record["kind"] for record in records} >= {"model", "fingerprint", "response"}
    return text, {(record["kind"], record["label"], record["key"]): record["sha256"] for record in records}


def test_the_number_of_workers_changes_no_byte(tmp_path):
    one, three = (results(tmp_path / str(jobs), "method=random", *FEW, f"jobs={jobs}") for jobs in (1, 3))
    assert one == three and len(one[1]) > 10


@pytest.mark.slow
def test_neither_workers_nor_the_switch_change_a_byte_of_the_tiny_zoo(tmp_path):
    choices = ["jobs=1", "jobs=2", "jobs=4", "deterministic=true"]
    words = ["method=naturalfinger", "attack=all", "gan.steps=20", "method.epochs=2"]
    first, *others = (results(tmp_path / str(i), *words, choice) for i, choice in enumerate(choices))
    assert len(first[1]) > 100 and {kind for kind, _, _ in first[1]} >= {"gan", "fid"}
    for choice, other in zip(choices[1:], others, strict=True):
        assert other == first, choice


@dataclass(frozen=True)
class Flags(Spec):
    """What a worker is set to, noted by itself."""

    kind: ClassVar[str] = "flags"
    version: ClassVar[int] = 1
    number: int

    def make(self, workshop):
        return {}, {
            "algorithms": torch.are_deterministic_algorithms_enabled(),
            "warns": torch.is_deterministic_algorithms_warn_only_enabled(),
            "cudnn": torch.backends.cudnn.deterministic,
            "trials": torch.backends.cudnn.benchmark,
            "cublas": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        }


@pytest.mark.parametrize("switch", [False, True])
def test_what_the_switch_sets_in_a_worker(tmp_path, switch, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    bench = fb.open(f"store={tmp_path}", "jobs=1", f"deterministic={switch}")
    bench.build([Flags(1)])
    expected = {"algorithms": switch, "warns": False, "cudnn": switch, "trials": not switch}
    assert bench.store.facts(Flags(1)).items() >= (expected | {"cublas": ":4096:8" if switch else None}).items()


def test_the_switch_is_no_part_of_a_key():
    on, off = (fb.open(f"deterministic={switch}") for switch in ("true", "false"))
    assert [spec.key for spec in on.plan()] == [spec.key for spec in off.plan()]


def test_the_switch_is_true_or_false(tmp_path):
    with pytest.raises(UserError, match="deterministic: expected true or false; got 'sometimes'"):
        fb.open(f"store={tmp_path}", "deterministic=sometimes").build([])
