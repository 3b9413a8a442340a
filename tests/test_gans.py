"""GANs: published sizes, losses by hand, and networks that answer the same after a trip through a file."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from fingerbench.errors import UserError
from fingerbench.gans.sagan import Sagan
from fingerbench.gans.train import Hinge, Training, train
from fingerbench.records import Gan, Images

SMALL = Sagan(width=1 / 32, steps=3, batch=8, discriminator_steps=2)


def digits(n=24, size=16):
    g = torch.Generator().manual_seed(0)
    return Images(torch.randint(256, (n, 3, size, size), generator=g, dtype=torch.uint8), torch.arange(n) % 10)


def trained(seed=0):
    return SMALL.train(digits(), 10, torch.Generator().manual_seed(seed), torch.device("cpu"))


def answers(gan):
    g = torch.Generator().manual_seed(1)
    z, labels = torch.randn(5, gan.latent, generator=g), torch.arange(5)
    with torch.no_grad():
        images = gan.generator(z, labels)
        return images, gan.discriminator(images, labels)


def parameters(net):
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def test_full_size_has_the_published_parameter_counts():
    gan = Sagan().build(10, (3, 32, 32))
    assert parameters(gan.generator) == 4_386_308
    assert parameters(gan.discriminator) == 1_075_586


@pytest.mark.parametrize("size", [16, 32, 64])
def test_shapes_and_ranges(size):
    gan = Sagan(width=1 / 32).build(7, (3, size, size))
    images, scores = answers(gan)
    assert images.shape == (5, 3, size, size)
    assert images.abs().max() <= 1
    assert scores.shape == (5,)


@pytest.mark.parametrize("size", [16, 32])
def test_attention_sees_half_the_resolution(size):
    seen = []
    gan = Sagan(width=1 / 32).build(10, (3, size, size))
    for net in (gan.generator, gan.discriminator):
        net.attention.register_forward_hook(lambda _m, args, _out: seen.append(args[0].shape[-1]))
    answers(gan)
    assert seen == [size // 2, size // 2]


def test_labels_matter_to_both_networks():
    gan = Sagan(width=1 / 32).build(10, (3, 16, 16))
    z = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))[:1].repeat(2, 1)
    images = gan.generator(z, torch.tensor([1, 2]))
    assert not torch.allclose(images[0], images[1])
    scores = gan.discriminator(images[:1].repeat(2, 1, 1, 1), torch.tensor([1, 2]))
    assert scores[0] != scores[1]


@pytest.mark.parametrize("shape", [(3, 16, 32), (3, 24, 24), (3, 8, 8)])
def test_a_size_that_does_not_fit_is_refused(shape):
    with pytest.raises(UserError, match="16x16"):
        Sagan().build(10, shape)


def test_hinge_loss_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.5])
    assert Hinge().discriminator(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1.5) / 2)
    assert Hinge().generator(fake).item() == pytest.approx(1.25)


def test_training_is_repeatable_frozen_and_leaves_global_randomness_alone():
    before = torch.random.get_rng_state()
    first, second, other = answers(trained()), answers(trained()), answers(trained(seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    gan = trained()
    for net in (gan.generator, gan.discriminator):
        assert not net.training
        assert parameters(net) == 0


def test_training_moves_both_networks():
    gan = trained()
    fresh = SMALL.build(10, (3, 16, 16), seed=0)
    for old, new in ((fresh.generator, gan.generator), (fresh.discriminator, gan.discriminator)):
        assert not torch.equal(
            torch.cat([p.flatten() for p in old.parameters()]), torch.cat([p.flatten() for p in new.parameters()])
        )


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
    training = Training(steps=2, batch=4, discriminator_steps=3)
    g = torch.Generator().manual_seed(0)
    train(Gan(generator, recorder, 128), Hinge(), training, images, 10, g, torch.device("cpu"))
    assert len(recorder.seen) == 2 * (3 + 1)
    x, labels = recorder.seen[0]
    assert torch.equal(x[:4], torch.ones(4, 3, 16, 16))
    assert len(labels) == 8
