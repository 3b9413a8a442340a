"""The contract of `Fingerprinter`: every file in conf/method is held to it, so that a method is tested by existing."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import UNREPEATABLE, Recorder
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

from fingerbench import config, transforms
from fingerbench.api import Fingerprinter
from fingerbench.gans.train import Hinge
from fingerbench.ops import predict
from fingerbench.records import Gan, Images, Setting
from fingerbench.seeds import seeded
from fingerbench.task import Classification

FILES = sorted((Path(__file__).parents[1] / "conf/method").glob("*.yaml"))
CONSTANTS = OmegaConf.load(Path(__file__).parents[1] / "conf/data/digits.yaml").constants
TINY = {
    "ipguard": {"margin": 1.0, "lr": 0.01, "steps": 100},
    "metafinger": {"images": 40, "k": 2, "max_restarts": 20},
    "metav": {"iterations": 30, "lr": 0.01},
    "freqgan": {"epochs": 20, "lr": 0.002, "epsilon": 0.3, "width": 0.125},
    "naturalfinger": {"epochs": 8, "latent_batch": 20},
}
CLASSES, BUDGET, LATENT = 4, 12, 8
TASK = Classification(CLASSES)


class Templates(nn.Module):
    """A generator of toy images: the symmetric pattern of a class, bent by the latent."""

    def __init__(self):
        super().__init__()
        coarse = torch.randn(CLASSES + LATENT, 3, 4, 4)
        symmetric = (coarse + coarse.flip(3)) / 2**0.5  # so that a flip keeps the class
        self.register_buffer("patterns", F.interpolate(symmetric, size=16, mode="bilinear"))

    def forward(self, z, labels):
        bend = torch.einsum("nl,lchw->nchw", z, self.patterns[CLASSES:])
        return torch.tanh(self.patterns[labels] + 0.6 * bend)


class Critic(nn.Module):
    """A discriminator of toy images: real ones have a moderate contrast."""

    def forward(self, x, labels):
        return 1 - x.flatten(1).std(1)


def convnet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),  # as it is for 16x16 images; a method may ask larger ones while it makes its queries
        nn.Flatten(),
        nn.Linear(16 * 16, CLASSES),
    )


def trained(data, seed, model=None, steps=40):
    with seeded(seed):
        model = model or convnet()
        model.requires_grad_(True).train()
        adam = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(steps):
            rows = torch.randint(len(data), (64,))
            adam.zero_grad()
            F.cross_entropy(model(data.pixels()[rows]), data.y[rows]).backward()
            adam.step()
    return model.eval().requires_grad_(False)


def copied(model):
    twin = convnet()
    twin.load_state_dict(model.state_dict())
    return twin


def drawn(generator, n):
    y = torch.randint(CLASSES, (n,))
    x = generator(torch.randn(n, LATENT), y) + 1.5 * torch.randn(n, 3, 16, 16)
    return Images(((x.clamp(-1, 1) + 1) * 127.5).to(torch.uint8), y)


@pytest.fixture(scope="module")
def toy():
    """Everything a setting may hold, over a four-class problem on which models are good but not perfect."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # such small tensors only wait for one another on more
    with seeded(0):
        generator = Templates().eval()
        owner, other, heldout = (drawn(generator, n) for n in (200, 200, 300))
    source = trained(owner, 1)
    positives = (source, *(trained(other, seed, copied(source), steps=5) for seed in (2, 3)))
    negatives = tuple(trained(other, seed) for seed in (4, 5, 6))
    gan = Gan(generator, Critic().eval(), LATENT, Hinge())

    def make(needs, seed=0, budget=BUDGET):
        surrogates = (positives, negatives) if "surrogates" in needs else ((), ())
        return Setting(
            source=source,
            train=owner,
            heldout=heldout,
            positives=surrogates[0],
            negatives=surrogates[1],
            gan=gan if "gan" in needs else None,
            task=TASK,
            budget=budget,
            device=torch.device("cpu"),
            generator=torch.Generator().manual_seed(seed),
        )

    yield make
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def method(request):
    own = OmegaConf.merge(OmegaConf.load(request.param), TINY.get(request.param.stem, {}))
    return config.build(OmegaConf.create({"data": {"constants": CONSTANTS}, "method": own}).method)


@pytest.fixture(scope="module")
def fingerprint(method, toy):
    return method.fingerprint(toy(method.needs))


def answers(method, model, queries):
    outputs = predict(model, queries)
    return TASK.label(outputs) if method.access == "label" else TASK.answer(outputs)


def everything(setting):
    """A copy of all weights and buffers that a method can reach, and of every global random state."""
    modules = [*setting.positives, *setting.negatives, setting.source]
    modules += [setting.gan.generator, setting.gan.discriminator] if setting.gan else []
    weights = [tensor.clone() for module in modules for tensor in module.state_dict().values()]
    data = [setting.train.x.clone(), setting.heldout.x.clone()]
    flags = torch.tensor([part.training for module in modules for part in module.modules()])
    wanted = torch.tensor([p.requires_grad or p.grad is not None for m in modules for p in m.parameters()])
    states = [torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].astype(np.int64))]
    return [*weights, *data, flags, wanted, *states, torch.tensor(random.getstate()[1])]


def test_it_is_a_fingerprinter(method):
    assert isinstance(method, Fingerprinter)
    assert method.access in ("label", "output")
    assert method.needs <= {"surrogates", "gan"}


def test_hyperparameters_are_frozen(method):
    with pytest.raises(AttributeError):
        method.access = "output"


def test_queries_are_images_within_the_budget(method, fingerprint):
    assert fingerprint.queries.dtype == torch.float32
    assert fingerprint.queries.shape[1:] == (3, 16, 16)
    assert 0 <= fingerprint.queries.min() <= fingerprint.queries.max() <= 1
    assert len(fingerprint) <= BUDGET
    assert (len(fingerprint) < BUDGET) == bool(fingerprint.note)


def test_it_carries_plain_tensors(fingerprint):
    for _, tensor in fingerprint.tensors():
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad
    assert all(isinstance(count, int) and count >= 0 for count in fingerprint.yields.values())


def test_the_seed_decides_and_nothing_else_is_touched(method, toy, fingerprint):
    setting = toy(method.needs)
    before = everything(setting)
    torch.rand(1)  # a method that draws from a global generator gives other queries now
    moved = torch.get_rng_state()
    again = method.fingerprint(setting)
    assert torch.equal(torch.get_rng_state(), moved)
    torch.set_rng_state(before[-3])
    assert all(map(torch.equal, before, everything(setting)))
    assert list(dict(again.tensors())) == list(dict(fingerprint.tensors()))
    for (name, first), (_, second) in zip(fingerprint.tensors(), again.tensors(), strict=True):
        assert torch.equal(first, second), name


def test_another_seed_gives_other_queries(method, toy, fingerprint):
    other = method.fingerprint(toy(method.needs, seed=1))
    assert not torch.equal(other.queries, fingerprint.queries)


def test_the_source_matches_itself(method, toy, fingerprint):
    score = method.similarity(fingerprint, answers(method, toy(method.needs).source, fingerprint.queries))
    if method.access == "label":
        assert score == 1.0
    assert 0 <= score <= 1


class Constant(nn.Module):
    """A suspect that always gives the same answer."""

    def forward(self, x):
        return torch.eye(CLASSES)[1].expand(len(x), -1)


@pytest.mark.parametrize("suspect", [Constant, convnet])
def test_any_suspect_scores_between_0_and_1(method, fingerprint, suspect):
    with seeded(7):
        model = suspect().eval()
    score = method.similarity(fingerprint, answers(method, model, fingerprint.queries))
    assert isinstance(score, float)
    assert 0 <= score <= 1


def test_one_query_can_be_asked_for(method, toy):
    assert len(method.fingerprint(toy(method.needs, budget=1))) == 1


def test_a_gpu_can_repeat_what_a_method_computes(method, toy, monkeypatch):
    monkeypatch.setattr(transforms, "_must_repeat", lambda x: True)
    with Recorder() as ran:
        method.fingerprint(toy(method.needs))
    assert "mm" in ran.names or "addmm" in ran.names
    assert not ran.names & (UNREPEATABLE - {"_adaptive_avg_pool2d_backward"})  # of the toy models, and none of ours
