"""The contract of `Fingerprinter`: every file in conf/method is held to it, so that a method is tested by existing."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import UNREPEATABLE, Recorder
from omegaconf import OmegaConf
from torch import nn

import fingerbench as fb
from fingerbench import config, transforms
from fingerbench.api import Fingerprinter
from fingerbench.check import CHECKS, Trial
from fingerbench.errors import UserError
from fingerbench.evaluate.run import scores
from fingerbench.evaluate.specs import summary_of
from fingerbench.records import Fingerprint
from fingerbench.zoo.model import ModelSpec
from methods.random import RandomImages

FILES = sorted((Path(__file__).parents[1] / "conf/method").glob("*.yaml"))
CONSTANTS = OmegaConf.load(Path(__file__).parents[1] / "conf/data/digits.yaml").constants
TINY = {
    "ipguard": {"margin": 1.0, "lr": 0.01, "steps": 100},
    "metafinger": {"images": 40, "k": 2, "max_restarts": 20},
    "metav": {"iterations": 30, "lr": 0.01},
    "freqgan": {"epochs": 8, "lr": 0.005, "epsilon": 0.3, "width": 0.125},
    "naturalfinger": {"epochs": 8, "latent_batch": 20},
}


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def trial(request):
    own = OmegaConf.merge(OmegaConf.load(request.param), TINY.get(request.param.stem, {}))
    return Trial(config.build(OmegaConf.create({"data": {"constants": CONSTANTS}, "method": own}).method))


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("naturalfinger.latent_batch=0", "method.latent_batch: expected at least 1; got 0"),
        ("naturalfinger.model_batch=0", "method.model_batch: expected at least 1; got 0"),
        ("naturalfinger.draws=0", "method.draws: expected at least 1; got 0"),
        ("naturalfinger.pool=0", "method.pool: expected a number above 0; got 0"),
        ("metafinger.images=0", "method.images: expected at least 1; got 0"),
        ("metafinger.images=true", "method.images: expected at least 1; got True"),
        ("metafinger.k=few", "method.k: expected at least 1; got 'few'"),
        (
            "metafinger.resize_most=41",
            "method.resize_least <= resize_most <= resize_out, all above 0; got (12, 41, 20)",
        ),
        ("freqgan.batch=1", "method.batch: expected at least 2; got 1"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(word, told):
    method, _, setting = word.partition(".")
    with pytest.raises(UserError, match=re.escape(told)):
        config.build(config.compose([f"method={method}", f"method.{setting}"]).method)


def test_it_is_a_fingerprinter(trial):
    assert isinstance(trial.method, Fingerprinter)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_the_contract(trial, check):
    assert list(check(trial)) == []


def test_a_gpu_can_repeat_what_it_computes(trial, monkeypatch):
    monkeypatch.setattr(transforms, "_must_repeat", lambda x: True)
    with Recorder() as ran:
        trial.method.fingerprint(trial.world.setting(trial.method.needs))
    assert "mm" in ran.names or "addmm" in ran.names
    assert not ran.names & (UNREPEATABLE - {"_adaptive_avg_pool2d_backward"})  # of the toy models, and none of ours


@pytest.fixture(scope="module")
def answered():
    """A benchmark whose store holds a fingerprint of two queries and the answers to them."""
    bench, labels = fb.open("data.transfer=50", "method=random", "attack=source"), torch.zeros(2, dtype=torch.int64)
    tensors = {"queries": torch.zeros(2, 3, 16, 16), "answers": labels[None], "answers_8bit": labels[None]}
    artefact = SimpleNamespace(tensors=tensors, facts={"yields": {}, "note": ""})
    bench.store = SimpleNamespace(load=lambda spec: artefact, facts=lambda spec: {"accuracy": 1.0})
    return bench


@pytest.mark.parametrize("score", [math.nan, math.inf, 1.001, -0.001, True, None, "0.5"])
def test_a_score_that_is_none_is_refused_with_the_name_of_the_method(answered, monkeypatch, score):
    monkeypatch.setattr(RandomImages, "similarity", lambda *_: score)
    told = (
        f"method random: similarity: expected a number in [0, 1]; got {score!r}; python -m fingerbench check methods/"
    )
    with pytest.raises(UserError, match=re.escape(f"{told}random.py says more")):
        scores(answered)


@pytest.fixture
def own(monkeypatch):
    """A benchmark whose source was not trained."""
    monkeypatch.setattr(ModelSpec, "load", lambda self, workshop: nn.Sequential(nn.Flatten(), nn.Linear(768, 10)))
    return fb.open("data.transfer=50", "method=random", "attack=source", "device=cpu")


@pytest.mark.parametrize(
    ("queries", "told"),
    [
        (
            torch.zeros(3, 3, 14, 14),
            "queries: expected a float32 tensor (n, 3, 16, 16), got torch.float32 (3, 3, 14, 14)",
        ),
        (
            torch.zeros(3, 3, 16, 16).double(),
            "queries: expected a float32 tensor (n, 3, 16, 16), got torch.float64 (3, ",
        ),
        (np.zeros((3, 3, 16, 16)), "queries: expected a float32 tensor (n, 3, 16, 16), got ndarray"),
        (torch.full((3, 3, 16, 16), 2.0), "queries: expected values in [0, 1], got 2.0 to 2.0"),
        (torch.full((3, 3, 16, 16), math.nan), "queries: expected values in [0, 1], got nan to nan"),
        (torch.zeros(101, 3, 16, 16), "queries: expected at most 100, got 101"),
    ],
)
def test_queries_that_are_none_are_refused_with_the_name_of_the_method(own, monkeypatch, queries, told):
    monkeypatch.setattr(RandomImages, "fingerprint", lambda self, setting: setting.labelled(queries))
    with pytest.raises(UserError, match=f"^method random: {re.escape(told)}") as caught:
        own.fingerprint_spec.make(own.workshop)
    assert str(caught.value).endswith("; python -m fingerbench check methods/random.py says more")


def test_a_state_that_is_no_tensor_and_a_source_that_is_changed_are_refused(own, monkeypatch):
    images = torch.zeros(3, 3, 16, 16)
    monkeypatch.setattr(RandomImages, "fingerprint", lambda self, setting: Fingerprint(images, {"model": nn.ReLU()}))
    with pytest.raises(
        UserError, match=r"^method random: state\['model'\]: expected a tensor; got ReLU\(\); python -m"
    ):
        own.fingerprint_spec.make(own.workshop)

    def careless(self, setting):
        with torch.no_grad():
            setting.source[1].weight.zero_()
        return setting.labelled(images)

    monkeypatch.setattr(RandomImages, "fingerprint", careless)
    with pytest.raises(UserError, match=r"^method random: source: expected its weights as they were given, got others"):
        own.fingerprint_spec.make(own.workshop)


def test_who_makes_too_few_queries_and_does_not_say_why_is_told_so(own, monkeypatch):
    few = torch.zeros(3, 3, 16, 16)
    monkeypatch.setattr(RandomImages, "fingerprint", lambda self, setting: setting.labelled(few))
    assert own.fingerprint_spec.make(own.workshop)[1]["note"] == "3 of 100 queries: it does not say why"


def test_a_score_may_miss_1_by_what_is_rounded_off(answered, monkeypatch):
    monkeypatch.setattr(RandomImages, "similarity", lambda *_: 1 + 1e-15)
    assert scores(answered)["score"].tolist() == [1.0, 1.0]


def test_a_fingerprint_that_counted_nothing_is_summed_up_without_brackets():
    facts = {"name": "random", "queries": 2, "yields": {}, "seconds": 1.0, "note": ""}
    assert summary_of(facts) == "random: 2 queries in 1.0 s"
    assert summary_of(facts | {"yields": {"tried": 3}, "note": "no more"}) == (
        "random: 2 queries in 1.0 s (tried: 3); no more"
    )


@pytest.mark.parametrize("made", [None, torch.zeros(2, 3, 16, 16)], ids=["none", "queries"])
def test_what_is_no_fingerprint_is_refused_with_the_name_of_the_method(own, monkeypatch, made):
    monkeypatch.setattr(RandomImages, "fingerprint", lambda *_: made)
    with pytest.raises(UserError, match="method random: fingerprint: expected a Fingerprint; got ") as caught:
        own.fingerprint_spec.make(own.workshop)
    assert "\n" not in str(caught.value) and "check methods/random.py" in str(caught.value)
