"""The contract of `Fingerprinter`: every file in conf/method is held to it, so that a method is tested by existing."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import UNREPEATABLE, Recorder
from omegaconf import OmegaConf

from fingerbench import config, transforms
from fingerbench.api import Fingerprinter
from fingerbench.check import CHECKS, Trial

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
