"""The same seed gives the same bytes, however many workers there are; what deterministic=true sets in a worker."""

import json
import os
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from conftest import TINY, UNREPEATABLE, Recorder, slow_but
from torch.nn import functional as F

import fingerbench as fb
from fingerbench import config
from fingerbench.errors import UserError
from fingerbench.nets import NETWORKS
from fingerbench.records import Images
from fingerbench.store import Spec
from fingerbench.transforms import shear

FEW = ["attack=[source,noise]", "attack.noise.variants=['1','5']", "zoo.training.epochs=1", "zoo.tuning.epochs=1"]


def results(folder, *words):
    """Return the scores as scores.csv has them, from a store of its own, and the checksum of every payload in it."""
    bench = fb.open(*TINY, f"store={folder}", *words)
    text = bench.scores().to_csv(index=False)
    records = [json.loads(path.read_bytes()) for path in folder.glob("*/*/record.json")]
    assert {record["kind"] for record in records} >= {"model", "fingerprint", "response"}
    return text, {(record["kind"], record["label"], record["key"]): record["sha256"] for record in records}


@pytest.mark.slow
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


@pytest.mark.parametrize("switch", slow_but((True,), [False, True]))
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
    with pytest.raises(UserError, match="unknown compiled 'sometimes'"):
        fb.open(f"store={tmp_path}", "compiled=sometimes").build([])
    for switch in ("deterministic", "replay"):
        with pytest.raises(UserError, match=f"{switch}: expected true or false; got 'sometimes'"):
            fb.open(f"store={tmp_path}", f"{switch}=sometimes").build([])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_gpu_can_repeat_the_training_of_a_network(name):
    model = fb.network(name, classes=3, width=1 / 8, shape=(3, 32, 32)).train()
    with Recorder() as ran:
        F.cross_entropy(model(torch.rand(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    assert any(op.startswith(("convolution_backward", "mm")) for op in ran.names) and not ran.names & UNREPEATABLE


@pytest.mark.parametrize("name", config.options("gan"))
def test_a_gpu_can_repeat_the_training_of_a_gan(name):
    gan = config.build(config.compose([f"gan={name}", "gan.width=0.03125", "gan.steps=1", "gan.batch=4"]).gan)
    images = Images(torch.zeros(8, 3, 16, 16, dtype=torch.uint8), torch.arange(8) % 2)
    with Recorder() as ran:
        gan.train(images, 2, torch.Generator(), torch.device("cpu"))
    assert "convolution_backward" in ran.names and not ran.names & UNREPEATABLE


def test_the_recorder_finds_what_a_gpu_cannot_repeat():
    x = torch.rand(1, 1, 4, 4, requires_grad=True)
    with Recorder() as ran:
        (F.pad(x, (1, 1, 1, 1), mode="reflect").sum() + shear(x, 0.1, 0.2).sum()).backward()
        x.median(0)
    assert ran.names & UNREPEATABLE == {"reflection_pad2d_backward", "grid_sampler_2d_backward", "median"}
