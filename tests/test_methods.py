"""The contract of `Fingerprinter`: every file in conf/method is held to it, so that a method is tested by existing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import UNREPEATABLE, Recorder
from omegaconf import OmegaConf

from fingerbench import config, transforms
from fingerbench.api import Fingerprinter
from fingerbench.check import CHECKS, Trial
from fingerbench.errors import UserError

FILES = sorted((Path(__file__).parents[1] / "conf/method").glob("*.yaml"))
CONSTANTS = OmegaConf.load(Path(__file__).parents[1] / "conf/data/digits.yaml").constants
TINY = {
    "ipguard": {"margin": 1.0, "lr": 0.01, "steps": 100},
    "metafinger": {"images": 40, "k": 2, "max_restarts": 20},
    "metav": {"iterations": 30, "lr": 0.01},
    "freqgan": {"epochs": 20, "lr": 0.002, "epsilon": 0.3, "width": 0.125},
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
