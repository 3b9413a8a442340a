"""The networks of the GANs: published sizes, shapes, and what they are conditioned on."""

import pytest
import torch
from toygans import DESIGNS, answers, every_gan, fresh, parameters, small

from fingerbench import config
from fingerbench.errors import UserError
from fingerbench.gans.sagan import Sagan

SIZES = {  # StudioGAN at 32x32 with 10 classes: generator, discriminator
    "wgan_gp": (4_276_739, 1_055_879),
    "sagan": (4_386_308, 1_075_586),
    "logan": (4_276_739, 1_053_825),
    "contragan": (9_416_196, 2_517_186),
    "icrgan": (9_416_196, 2_415_170),
    "reacgan": (9_416_196, 2_517_186),
}


@every_gan
def test_the_configuration_is_the_published_one_with_its_parameter_counts(name):
    settings = config.compose([f"gan={name}", "data=cifar10", "profile=paper"])
    design = config.build(settings.gan)
    assert type(design) is DESIGNS[name]
    assert {**vars(design), "betas": tuple(design.betas)} == vars(DESIGNS[name]())
    gan = design.build(10, (3, 32, 32))
    assert (parameters(gan.generator), parameters(gan.discriminator)) == SIZES[name]


@every_gan
@pytest.mark.parametrize("size", [16, 32, 64])
def test_shapes_and_ranges(name, size):
    gan = small(name).build(7, (3, size, size))
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


@every_gan
def test_labels_matter_to_the_networks_they_condition(name):
    design = small(name)
    gan = design.build(10, (3, 16, 16))
    z = gan.latents(1, fresh()).repeat(2, 1)
    for net in (gan.generator, gan.discriminator):
        net.eval()
    images = gan.generator(z, torch.tensor([1, 2]))
    assert torch.equal(images[0], images[1]) is not design.conditional
    scores = gan.discriminator(images[:1].repeat(2, 1, 1, 1), torch.tensor([1, 2]))
    assert (scores[0] != scores[1]).item() is (name in ("sagan", "icrgan"))


@every_gan
def test_latents_come_from_the_prior(name):
    z = small(name).build(10, (3, 16, 16)).latents(2000, fresh())
    uniform = name == "logan"
    assert z.std().item() == pytest.approx(3**-0.5 if uniform else 1.0, abs=0.02)
    assert (z.abs().max() <= 1).item() is uniform


@pytest.mark.parametrize("shape", [(3, 16, 32), (3, 24, 24), (3, 8, 8)])
def test_a_size_that_does_not_fit_is_refused(shape):
    with pytest.raises(UserError, match="16x16"):
        Sagan().build(10, shape)


@every_gan
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("setting", [{"width": 0.001}, {"latent": 0}])
def test_networks_of_nothing_are_refused(name, setting):
    with pytest.raises(UserError, match=f"gan.{next(iter(setting))}: expected a number that leaves"):
        small(name, **setting).build(10, (3, 32, 32))
