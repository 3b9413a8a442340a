"""How GANs are trained: repeatable, to the same end after a kill, once more where one diverges."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace

import pytest
import safetensors.torch
import torch
from conftest import KilledError, same_weights, slow_but
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from toygans import DESIGNS, answers, digits, every_gan, fresh, parameters, small

import fingerbench as fb
from fingerbench import checkpoint
from fingerbench.checkpoint import Checkpoint
from fingerbench.errors import DivergedError, UserError
from fingerbench.gans.sagan import Sagan
from fingerbench.gans.spec import GanSpec
from fingerbench.gans.train import Hinge, _settle, train
from fingerbench.records import Gan, Images

SMALL = Sagan(width=1 / 32, steps=3, batch=8, discriminator_steps=2)


def trained(seed=0, name="sagan"):
    return small(name).train(digits(), 10, fresh(seed), torch.device("cpu"))


def equal(a, b):
    return same_weights(a.generator, b.generator) and same_weights(a.discriminator, b.discriminator)


@every_gan
def test_training_is_repeatable_frozen_and_leaves_global_randomness_alone(name):
    before = torch.random.get_rng_state()
    first, second, other = (trained(seed, name) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert equal(first, second)
    assert not torch.equal(answers(first)[0], answers(other)[0])
    for net in (first.generator, first.discriminator):
        assert not net.training
        assert parameters(net) == 0


@every_gan
def test_training_moves_both_networks(name):
    gan = trained(name=name)
    seed = int(torch.randint(2**62, (), generator=fresh()))
    untrained = small(name).build(10, (3, 16, 16), seed)
    for old, new in ((untrained.generator, gan.generator), (untrained.discriminator, gan.discriminator)):
        assert all(
            not torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True) if b.numel() > 64
        )


def test_the_average_starts_late_and_follows_the_generator():
    generators = {}
    for decay, start, steps in [(0.0, 0, 2), (0.0, 0, 3), (0.5, 9, 3), (0.5, 2, 3)]:
        design = small("contragan", ema_decay=decay, ema_start=start, steps=steps)
        gan = design.train(digits(), 10, fresh(), torch.device("cpu"))
        generators[decay, start, steps] = torch.cat([p.flatten() for p in gan.generator.parameters()])
    assert torch.equal(generators[0.5, 9, 3], generators[0.0, 0, 3])  # not begun: the generator itself
    expected = (generators[0.0, 0, 2] + generators[0.0, 0, 3]) / 2
    torch.testing.assert_close(generators[0.5, 2, 3], expected)


def test_spectral_norms_of_the_average_begin_where_those_of_the_generator_are():
    draw = torch.Generator().manual_seed(0)
    net, average = (spectral_norm(nn.Linear(9, 9)) for _ in range(2))
    net.load_state_dict(average.state_dict())
    for name, start in average.named_buffers():
        start.copy_(torch.randn(start.shape, generator=draw))
        net.get_buffer(name).copy_(F.normalize(torch.randn(start.shape, generator=draw), dim=0))
    began = {name: buffer.clone() for name, buffer in net.named_buffers()}
    seen = []  # before each batch
    average.register_forward_pre_hook(lambda *_: seen.append(copy.deepcopy(dict(average.named_buffers()))))
    _settle(average, net, lambda: [torch.zeros(1, 9)])
    assert began and all(torch.equal(seen[0][name], there) for name, there in began.items())


@pytest.mark.parametrize("name", slow_but(("sagan", "reacgan"), DESIGNS))
def test_a_killed_training_goes_on_to_the_same_gan(name, tmp_path, monkeypatch):
    whole, file = trained(name=name), tmp_path / "some" / "key.pt"
    design, cpu = small(name), torch.device("cpu")
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)

    def die(self, *args):
        if file.exists() and torch.load(file, weights_only=True)["step"] == 2:
            raise KilledError
        return type(self).__mro__[1].discriminator_loss(self, *args)

    mortal = type("Mortal", (DESIGNS[name],), {"discriminator_loss": die})(**vars(design))
    with pytest.raises(KilledError):
        mortal.train(digits(), 10, fresh(), cpu, Checkpoint(file))
    counted = []
    count = lambda self, *a: counted.append(1) or DESIGNS[name].generator_loss(self, *a)  # noqa: E731
    resumed = type("Counted", (DESIGNS[name],), {"generator_loss": count})(**vars(design))
    assert equal(resumed.train(digits(), 10, fresh(), cpu, Checkpoint(file)), whole)
    assert len(counted) == 2  # of four steps
    assert [path.name for path in file.parent.iterdir()] == ["key.pt"]


def test_a_checkpoint_of_a_gpu_goes_on_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)
    file = tmp_path / "key.pt"
    SMALL.train(digits(), 10, fresh(), torch.device("cpu"), Checkpoint(file))
    content = torch.load(file, weights_only=True)
    for name in ("adam_g", "adam_d"):
        content[name]["param_groups"][0]["capturable"] = True
    torch.save(content | {"step": content["step"] - 1}, file)
    counted = []
    count = lambda self, *a: counted.append(1) or Sagan.generator_loss(self, *a)  # noqa: E731
    counting = type("Counting", (Sagan,), {"generator_loss": count})(**vars(SMALL))
    gan = counting.train(digits(), 10, fresh(), torch.device("cpu"), Checkpoint(file))
    assert len(counted) == 1 and all(bool(weight.isfinite().all()) for weight in gan.generator.parameters())


def test_a_gan_that_diverges_is_no_gan():
    design = replace(SMALL, lr=float("inf"))
    with pytest.raises(DivergedError, match="weights that are not finite at lr inf"):
        design.train(digits(), 10, fresh(), torch.device("cpu"))


@dataclass(frozen=True)
class Frail(type(SMALL)):
    """Diverges in its first training, the one with a checkpoint, and in the second unless `sound`."""

    sound: bool = True

    def train(self, images, classes, generator, device, checkpoint=None):
        if checkpoint is not None or not self.sound:
            raise DivergedError(f"weights that are not finite at lr {self.lr:g}")
        return super().train(images, classes, generator, device)


def test_a_gan_that_diverges_is_begun_once_more_and_says_so(tmp_path):
    workshop = fb.open("data=digits", f"store={tmp_path}").workshop
    own = {f.name: getattr(SMALL, f.name) for f in fields(SMALL)}
    frail = GanSpec("frail", "data", 10, Frail(**{**own, "lr": 0.002}), 0)
    tensors, facts = frail.make(workshop)
    told = "weights that are not finite at lr 0.002; begun once more, learning rates times 0.1"
    assert facts["retried"] == told and all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    broken = GanSpec("frail", "data", 10, Frail(**{**own, "lr": 0.002, "sound": False}), 0)
    with pytest.raises(DivergedError, match=r"times 0\.1: .* at lr 0\.0002; nothing of it is stored: lower gan\.lr"):
        broken.make(workshop)


@dataclass(frozen=True)
class Wrong(type(SMALL)):
    """A GAN of a user's own that is none."""

    how: str = ""

    def build(self, classes, shape, seed=0):
        gan = super().build(classes, (3, 32, 32) if self.how == "large" else shape, seed)
        scaled = torch.nn.Module()
        scaled.forward = lambda z, labels: 3 * gan.generator(z, labels) if self.how == "bright" else 1 / 0
        return gan if self.how == "large" else replace(gan, generator=scaled)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("large", r"got '\(2, 3, 32, 32\), "),
        ("bright", r"expected a generator of images \(2, 3, 16, 16\) in \[-1, 1\]; got '\(2, 3, 16, 16\), up to"),
        ("broken", r"it raises ZeroDivisionError: division by zero \(test_gan_training.py, line \d+\); mend that"),
    ],
)
def test_what_is_no_gan_is_told_before_it_is_trained(tmp_path, how, told):
    workshop = fb.open("data=digits", f"store={tmp_path}").workshop
    own = {f.name: getattr(SMALL, f.name) for f in fields(SMALL)}
    with pytest.raises(UserError, match=f"gan=wrong: {told}" if how == "broken" else f"gan=wrong: .*{told}"):
        GanSpec("wrong", "data", 10, Wrong(**own, how=how), 0).make(workshop)


def test_a_frozen_gan_answers_the_same_twice_and_after_a_file(tmp_path):
    gan = trained()
    expected = answers(gan)
    assert all(torch.equal(a, b) for a, b in zip(expected, answers(gan), strict=True))
    again = SMALL.build(10, (3, 16, 16), seed=9)
    for name, net in (("generator", gan.generator), ("discriminator", gan.discriminator)):
        safetensors.torch.save_file(net.state_dict(), tmp_path / name)
        getattr(again, name).load_state_dict(safetensors.torch.load_file(tmp_path / name), strict=True)
        getattr(again, name).eval()
    assert all(torch.equal(a, b) for a, b in zip(expected, answers(again), strict=True))


class Recorder(torch.nn.Module):
    """A discriminator that notes what it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, x, labels):
        self.seen.append((x.detach().clone(), labels))
        return self.weight * x.mean((1, 2, 3))


def test_the_discriminator_sees_real_images_in_range_and_takes_its_share_of_steps():
    recorder = Recorder()
    generator = SMALL.build(10, (3, 16, 16)).generator
    images = Images(torch.full((10, 3, 16, 16), 255, dtype=torch.uint8), torch.arange(10))
    training = Sagan(steps=2, batch=4, discriminator_steps=3)
    train(Gan(generator, recorder, 128, Hinge()), training, images, 10, fresh(), torch.device("cpu"))
    assert len(recorder.seen) == 2 * (3 + 1)
    x, labels = recorder.seen[0]
    assert torch.equal(x[:4], torch.ones(4, 3, 16, 16))
    assert len(labels) == 8
