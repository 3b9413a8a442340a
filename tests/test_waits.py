"""No step waits for the GPU, counted on the stand-in; and the stand-in is one."""

from dataclasses import replace

import pytest
import torch
from conftest import slow_but
from devices import CPU, GANS, RECIPE, made, opened, shop, small_net
from standin import Waits, standin

from fingerbench.data.augment import Augment
from fingerbench.gans import train
from fingerbench.ops import send
from fingerbench.seeds import fix_order
from fingerbench.transforms import GaussianBlur, GaussianNoise, Shear, UniformNoise
from fingerbench.zoo.train import Workbench, supervise


def test_what_is_sent_arrives(device):
    x = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    there = [send(x + i, device) for i in range(100)]  # memory of one that is on its way must not be taken for the next
    assert all(t.device.type == device.type and torch.equal(t.cpu(), x + i) for i, t in enumerate(there))
    assert torch.equal(send(there[0], CPU), x)


def test_what_is_sent_to_a_gpu_is_pinned_first(monkeypatch):
    x, steps = torch.ones(3), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: steps.append("pinned") or x)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda x, device, non_blocking: steps.append((device.type, non_blocking)) or x
    )
    assert send(x, torch.device("cuda")) is x and send(x, CPU) is x
    assert steps == ["pinned", ("cuda", True), ("cpu", False)]


def waited(work, *sizes):
    """Return how often the host waits for the stand-in in the work of each size."""
    counts = []
    for size in sizes:
        with standin() as device, Waits() as waits:
            work(device, size)
        counts.append(waits.count)
    return counts


def test_no_step_of_a_training_waits_for_the_gpu(tmp_path):
    bench = opened(tmp_path, "method=random", "attack=source")

    def epoch(device, batches):
        rows = slice(batches * 4)
        images = type(bench.data.a)(bench.data.a.x[rows], bench.data.a.y[rows]).to(device)
        workbench = Workbench(device, False, Augment(2, True), torch.Generator(), bench.data.task)
        supervise(small_net(), images, replace(RECIPE, epochs=1, batch=4), workbench)

    few, many = waited(epoch, 2, 5)
    assert few == many > 0  # an epoch does


@pytest.mark.parametrize("name", slow_but(("sagan",), GANS))
def test_no_step_of_a_gan_waits_for_the_gpu(tmp_path, name, monkeypatch):
    monkeypatch.setattr(train, "SETTLE_BATCHES", 1)
    bench = opened(tmp_path, "method=naturalfinger", "attack=source", f"gan={name}")

    def steps(device, count):
        design = replace(bench.fingerprint_spec.gan.design, steps=count)
        design.train(bench.data.a, 10, torch.Generator().manual_seed(1), device)

    few, many = waited(steps, 1, 3)
    assert few == many > 0


def test_no_step_of_freqgan_waits_for_the_gpu(tmp_path):
    bench = opened(tmp_path, "method=freqgan", "attack=source", "method.epochs=1")
    source = made(bench, bench.zoo.original(), CPU)

    def epoch(device, batches):
        here = bench.fingerprint_spec._setting(shop(bench, device), torch.Generator().manual_seed(0))
        method = replace(bench.method, batch=len(here.train) // batches)
        method._train(here, torch.zeros(len(here.train), dtype=torch.long).to(device))

    assert source.key == bench.fingerprint_spec.source.key
    few, many = waited(epoch, 2, 4)
    assert few == many > 0


def test_no_transform_waits_for_the_gpu():
    x = torch.rand(2, 3, 9, 9)
    bank = (GaussianNoise(0.1), UniformNoise(0.1), GaussianBlur(0.8), Shear(0.1))

    def draw(device, transform):
        transform(send(x, device), torch.Generator())

    assert waited(draw, *bank) == [0] * len(bank)
    fix_order(True)
    try:
        assert waited(draw, *bank) == [0] * len(bank)
    finally:
        fix_order(False)
    assert waited(lambda device, _: x.to(device).sum().item(), 0) == [2]


def test_the_stand_in_refuses_what_cuda_refuses():
    here = torch.rand(3, 3)
    with standin() as device:
        there = here.to(device)
        assert torch.equal((2 * there @ there).cpu(), 2 * here @ here) and there[here[0] > 2].device.type == device.type
        for mixed in (lambda: there + here, lambda: here[there.argmax(1)], lambda: torch.cat([here, there])):
            with pytest.raises(RuntimeError, match="expected all tensors on one device"):
                mixed()
        with pytest.raises((TypeError, RuntimeError), match="numpy"):
            there.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device=device, generator=torch.Generator())
