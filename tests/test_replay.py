"""What a GPU repeats by itself is what it would do step by step, and what cannot be repeated is refused."""

import copy
import itertools
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from devices import CPU, RECIPE, block, opened, small_net
from standin import NO_GPU
from torch import nn
from torch.nn import functional as F

from fingerbench.data.augment import Augment
from fingerbench.ops import pieces
from fingerbench.replay import Graphed, Replay, capturing
from fingerbench.seeds import seeded
from fingerbench.zoo.train import Workbench, _schedule, supervise

LOOKS = """
import torch
from fingerbench.replay import Replay
x = torch.ones(4, device="cuda")
again = Replay(lambda y: y / y.sum().item(), x.device)
[again(x) for _ in range(5)]
"""


@pytest.mark.gpu
@NO_GPU
def test_what_looks_at_a_value_cannot_be_replayed_and_is_told_the_way_out(monkeypatch):
    # In a process of its own, which a capture that failed does not leave as it was.
    done = subprocess.run([sys.executable, "-c", LOOKS], capture_output=True, text=True, check=False)
    assert done.returncode and "run the same command again with replay=false" in done.stderr
    monkeypatch.setattr("fingerbench.replay.allowed", False)
    device = torch.device("cuda")
    plain = Replay(lambda y: y / y.sum().item(), device)
    assert all(torch.equal(plain(torch.ones(4, device=device)).cpu(), torch.full((4,), 0.25)) for _ in range(5))


@pytest.mark.parametrize("source", ["python", "numpy", "torch", "own"])
def test_what_draws_on_the_cpu_is_not_captured(source):
    own = torch.Generator().manual_seed(0)
    draw = {
        "python": random.random,
        "numpy": np.random.rand,
        "torch": lambda: torch.rand(()),
        "own": lambda: torch.rand((), generator=own),
    }
    with capturing([own]):
        torch.ones(3).sum()
    with pytest.raises(RuntimeError, match=r"it draws on the CPU.*replay=false"), capturing([own]):
        draw[source]()


@pytest.mark.gpu
@NO_GPU
def test_dropout_is_drawn_anew_in_every_replay():
    device = torch.device("cuda")
    again = Replay(lambda x: F.dropout(x, 0.5), device)
    seen = [again(torch.ones(1000, device=device)).cpu().clone() for _ in range(8)]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("schedule", ["steps", "cosine", "onecycle"])
def test_replayed_trainings_are_those_whose_kernels_are_launched(tmp_path, schedule, monkeypatch):
    bench, device = opened(tmp_path, "method=random", "attack=source"), torch.device("cuda")
    images = type(bench.data.a)(bench.data.a.x[:335], bench.data.a.y[:335]).to(device)
    assert {len(rows) for rows in torch.arange(335).tensor_split(pieces(335, RECIPE.batch))} == {33, 34}
    recipe, trained = replace(RECIPE, epochs=3, schedule=schedule, milestones=(0.4, 0.8)), []
    for replayed in (True, False):
        monkeypatch.setattr("fingerbench.replay.allowed", replayed)
        with seeded(0) as generator:
            model = nn.Sequential(*block(3, 8), *block(8, 16), nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, 10))
            workbench = Workbench(device, True, Augment(2, True), generator, bench.data.task)
            supervise(model, images, recipe, workbench)
        trained.append((workbench.losses, model.state_dict()))
    (losses, weights), (expected, others) = trained
    assert losses == pytest.approx(expected, rel=1e-3)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("name", ["sagan", "contragan", "reacgan"])  # no other's losses can be replayed
def test_replayed_gans_are_those_whose_kernels_are_launched(tmp_path, name, monkeypatch):
    bench, device = opened(tmp_path, "method=naturalfinger", "attack=source", f"gan={name}"), torch.device("cuda")
    # By turns batches of 16 and of 8, each often enough to be replayed; an average would be what the first step gave.
    design = bench.fingerprint_spec.gan.design
    design = replace(design, steps=6, batch=16, discriminator_steps=2, ema_decay=0.0)
    assert not design.draws
    owned = type(bench.data.a)(bench.data.a.x[:24], bench.data.a.y[:24])
    z, images = torch.randn(8, design.latent, generator=torch.Generator().manual_seed(2)), []
    for replayed in (True, False):
        monkeypatch.setattr("fingerbench.replay.allowed", replayed)
        gan = design.train(owned, 10, torch.Generator().manual_seed(1), device)
        with torch.no_grad():
            images.append(gan.generator(z[:, : gan.latent].to(device), torch.arange(8, device=device)).cpu())
    torch.testing.assert_close(*images, rtol=0.02, atol=0.02)


@pytest.mark.gpu
@NO_GPU
def test_a_compiled_network_learns_the_same(tmp_path):
    bench, device = opened(tmp_path, "method=random", "attack=source"), torch.device("cuda")
    images = type(bench.data.a)(bench.data.a.x[:160], bench.data.a.y[:160]).to(device)
    losses = []
    for compiled in (False, True):
        generator = torch.Generator().manual_seed(1)
        workbench = Workbench(device, False, Augment(2, True), generator, bench.data.task, compiled=compiled)
        supervise(small_net(), images, RECIPE, workbench)
        losses.append(workbench.losses)
    torch.testing.assert_close(*losses, rtol=0.02, atol=0.01)


def test_a_graphed_network_gives_the_same_gradients(device):
    with seeded(0):
        plain = (
            nn.Sequential(*block(3, 8), *block(8, 16), nn.Flatten(), nn.Linear(256, 10)).eval().requires_grad_(False)
        )
    graphed = Graphed(copy.deepcopy(plain).to(device), device)
    for n in (4, 4, 6, 4):
        x = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(n))
        there = x.to(device).requires_grad_(True)
        # Asked twice before any gradient is taken, as MetaFinger may ask its anchor.
        loss = (graphed(there).square() + 2 * graphed(there * 0.5)).sum()
        (gradient,) = torch.autograd.grad(loss, there)
        here = x.requires_grad_(True)
        (expected,) = torch.autograd.grad((plain(here).square() + 2 * plain(here * 0.5)).sum(), here)
        torch.testing.assert_close(gradient.cpu(), expected, rtol=1e-3, atol=1e-4)


def test_a_replayed_function_does_what_it_does(device):
    weight = torch.ones(3, device=device)

    def act(x, y):
        weight.add_(x.sum(0))
        return weight * y

    again = Replay(act, device)
    for i in range(12):
        x, y = torch.full((4 if i % 3 else 2, 3), float(i)), torch.tensor([1.0, 2.0, 3.0])
        before = weight.clone().cpu()
        torch.testing.assert_close(again(x.to(device), y.to(device)).cpu(), (before + x.sum(0)) * y)


@pytest.mark.parametrize("schedule", ["steps", "cosine", "onecycle"])
def test_a_rate_on_the_device_is_that_of_the_number(schedule):
    recipe, rates = replace(RECIPE, schedule=schedule, milestones=(0.4, 0.8)), []
    for rate in (recipe.lr, torch.tensor(recipe.lr)):
        sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], rate, recipe.momentum, nesterov=True, fused=True)
        planned, seen = _schedule(sgd, recipe, 50), []
        for _ in range(50):
            seen.append(float(sgd.param_groups[0]["lr"]))
            sgd.step()
            planned.step()
        rates.append(seen)
        assert sgd.param_groups[0]["lr"] is rate or not isinstance(rate, torch.Tensor)  # a graph reads it where it lies
    assert rates[1] == pytest.approx(rates[0], rel=1e-5) and len(set(rates[0])) > 2


@pytest.mark.parametrize(("ended", "told"), [("previous error during capture", "looks at a value"), ("other", "other")])
def test_the_error_that_the_end_of_a_capture_hides_is_told(ended, told):
    with pytest.raises(RuntimeError, match=rf"cannot be replayed \(.*{told}\)"), capturing():
        try:
            raise RuntimeError("looks at a value")
        except RuntimeError:
            raise RuntimeError(f"CUDA error: {ended}")  # noqa: B904 - as a context that is left raises it


def test_lack_of_memory_in_a_capture_stays_what_it_is():
    with pytest.raises(torch.OutOfMemoryError), capturing():
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except RuntimeError:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # noqa: B904


class Swaps(nn.Module):
    """Puts a new tensor in the place of its buffer, which a graph would not see."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 10)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + 1
        return self.layer(x.flatten(1))


def test_a_network_that_swaps_its_buffers_is_not_replayed(tmp_path, monkeypatch):
    bench = opened(tmp_path, "method=random", "attack=source")
    images = type(bench.data.a)(bench.data.a.x[:64], bench.data.a.y[:64])
    workbench = Workbench(CPU, False, Augment(0, False), torch.Generator(), bench.data.task)
    supervise(Swaps(), images, RECIPE, workbench)
    monkeypatch.setattr(Replay, "replayed", True)
    with pytest.raises(RuntimeError, match=r"new tensors in the place of its buffers.*replay=false"):
        supervise(Swaps(), images, RECIPE, workbench)
