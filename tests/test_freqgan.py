"""FreqGAN: published sizes, transforms by their properties, losses by hand, who learns from what, the screen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toygans import parameters

from fingerbench import ops
from fingerbench.errors import DivergedError, UserError
from fingerbench.gans.freqgan import Discriminator, Logistic, Profile, WaveletUNet, build, haar
from fingerbench.gans.train import descend
from fingerbench.records import Images, Setting
from fingerbench.task import Classification
from methods.freqgan import FreqGAN, Pair

METHOD = FreqGAN(epochs=12, batch=16, lr=2e-3, epsilon=0.3, misclassification=10.0, width=0.125)


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class Source(nn.Module):
    """A linear classifier of four classes behind dropout, so that train mode shows."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.score = nn.Linear(3 * 16 * 16, 4)
        weight = torch.randn(4, 3 * 16 * 16, generator=torch.Generator().manual_seed(1))
        self.score.weight.data, self.score.bias.data = weight - weight.mean(1, keepdim=True), torch.zeros(4)

    def forward(self, x):
        return self.score(self.dropout(x.flatten(1)))


@pytest.fixture
def setting():
    source = Source().eval().requires_grad_(False)
    x = (noise(50, 3, 16, 16) * 255).to(torch.uint8)
    y = source(x.float() / 255).argmax(1)
    y[::5] = (y[::5] + 1) % 4  # images that the source gets wrong already

    def make(budget=8, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return Setting(
            source, Images(x, y), Images(x, y), (), (), None, Classification(4), budget, torch.device("cpu"), generator
        )

    return make


def unhaar(low, high):
    """The inverse of `haar`, as the transpose of its matrix."""
    right, down, both = high.chunk(3, dim=1)
    n, c, h, w = low.shape
    x = torch.empty(n, c, 2 * h, 2 * w)
    x[..., 0::2, 0::2] = low - right - down + both
    x[..., 0::2, 1::2] = low + right - down - both
    x[..., 1::2, 0::2] = low - right + down - both
    x[..., 1::2, 1::2] = low + right + down + both
    return x / 2


def test_haar_by_hand():
    low, high = haar(torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]]))
    assert low.flatten().tolist() == [7.5]
    assert high.flatten().tolist() == [2.5, 4.5, 1.5]  # right - left, bottom - top, the difference of differences


def test_haar_keeps_energy_and_can_be_undone():
    x = noise(2, 3, 8, 12)
    low, high = haar(x)
    assert low.shape == (2, 3, 4, 6) and high.shape == (2, 9, 4, 6)
    torch.testing.assert_close(low.square().sum() + high.square().sum(), x.square().sum())
    torch.testing.assert_close(unhaar(low, high), x)


def test_full_size_has_the_published_parameter_counts():
    assert parameters(WaveletUNet(64)) == 1_875_217
    discriminator = Discriminator(32)
    assert parameters(discriminator.blocks) + parameters(discriminator.spatial) == 1_053_825
    assert parameters(discriminator.spectral) == 20 + 1


@pytest.mark.parametrize(("size", "deepest"), [(16, 1), (32, 1), (48, 3), (64, 1), (128, 2)])
def test_the_generator_is_as_deep_as_the_image_allows(size, deepest):
    generator, discriminator = build((3, size, size), 0, width=1 / 16)
    sides = []
    for layer in generator.modules():
        if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
            layer.register_forward_hook(lambda _m, _args, out: sides.append(out.shape[-1]))
    images = noise(2, 3, size, size) * 2 - 1
    assert generator(images).shape == images.shape
    assert min(sides) == deepest
    assert [tuple(out.shape) for out in discriminator(images)] == [(2,), (2,)]


@pytest.mark.parametrize("shape", [(3, 16, 32), (3, 24, 24), (1, 16, 16)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(UserError, match="3x16x16"):
        build(shape, 0)


@pytest.mark.parametrize(("size", "length"), [(16, 9), (32, 20), (48, 31), (64, 43), (128, 88)])
def test_profile_length(size, length):
    profile = Profile(size)(noise(2, 3, size, size))
    assert profile.shape == (2, length)
    assert profile.amin(1).tolist() == [0, 0] and profile.amax(1).tolist() == [1, 1]


def test_profile_peaks_at_the_frequency_of_a_wave():
    angle = 2 * torch.pi * 5 * torch.arange(32) / 32
    for wave in (angle.cos().expand(3, 32, 32), angle.cos()[:, None].expand(3, 32, 32)):
        assert Profile(32)(wave[None]).argmax().item() == 5 - 1  # frequency 0 is left out


def test_profile_is_that_of_the_grey_image():
    x, wave = noise(1, 3, 32, 32), 0.1 * (2 * torch.pi * 3 * torch.arange(32) / 32).cos()
    wave = wave.expand(32, 32)
    zero = torch.zeros_like(wave)
    unseen = torch.stack([wave / 0.2989, -2 * wave / 0.587, wave / 0.114])  # the three cancel in grey
    torch.testing.assert_close(Profile(32)(x + unseen), Profile(32)(x), rtol=1e-4, atol=1e-4)
    assert (Profile(32)(x + torch.stack([wave, zero, zero])) - Profile(32)(x)).abs().max() > 0.01


def test_profile_of_one_colour_is_finite_with_its_gradient():
    flat = torch.full((1, 3, 16, 16), -1.0, requires_grad=True)
    profile = Profile(16)(flat)
    profile.sum().backward()
    assert profile.isfinite().all() and flat.grad.isfinite().all()


@pytest.mark.parametrize("differentiable", [False, True])
def test_who_learns_through_the_spectral_branch(differentiable):
    discriminator = Discriminator(16, 8, share=1.0, differentiable=differentiable)
    images = noise(4, 3, 16, 16).requires_grad_(True)
    score, spectral = discriminator(images)
    torch.testing.assert_close(score, spectral)
    score.sum().backward(retain_graph=True)  # with a share of 1 there is no other way to weights and image
    weight = discriminator.spectral.parametrizations.weight.original
    assert (weight.grad is not None) == differentiable
    assert bool(images.grad.any()) == differentiable
    spectral.sum().backward()
    assert weight.grad.any()


def test_share_blends_the_branches():
    images, scores = noise(4, 3, 16, 16), []
    for share in (0.0, 0.25, 1.0):
        scores.append(build((3, 16, 16), 0, width=0.125, share=share)[1].eval()(images)[0])
    torch.testing.assert_close(scores[1], 0.75 * scores[0] + 0.25 * scores[2])


def test_log_losses_by_hand():
    real, fake = torch.tensor([0.75, 0.5]).logit(), torch.tensor([0.2, 0.9]).logit()  # scores of these probabilities
    expected = -torch.tensor([0.75, 0.5]).log().mean() - torch.tensor([0.8, 0.1]).log().mean()
    torch.testing.assert_close(Logistic().real(real).mean() + Logistic().fake(fake).mean(), expected)
    torch.testing.assert_close(
        FreqGAN(loss="log", misclassification=0.0).generator_loss(fake, torch.tensor(1.0)),
        torch.tensor([0.8, 0.1]).log().mean(),
    )


class Scores(nn.Module):
    """A discriminator with given scores and spectral scores."""

    def forward(self, x):
        assert x.min() >= -1 and x.min() < 0  # it takes images in [-1, 1]
        return torch.tensor([2.0, 0.5, -1.0, 0.5]), torch.tensor([0.0, 3.0, 0.0, -2.0])


def test_losses_by_hand():
    method = FreqGAN(spectral=2.0, misclassification=3.0)
    images = torch.zeros(2, 3, 16, 16)
    loss, score = method.discriminator_loss(Scores(), images, images)
    scores, spectral = (0 + 0.5) / 2 + (0 + 1.5) / 2, (1 + 0) / 2 + (1 + 0) / 2
    assert loss.item() == pytest.approx(scores + 2 * spectral)
    assert score.tolist() == [-1.0, 0.5]
    assert method.generator_loss(score, torch.tensor(0.7)).item() == pytest.approx(0.25 - 3 * 0.7)


def test_perturbation_is_bounded_and_an_image_is_not():
    x = noise(2, 3, 16, 16)
    x[0] = 0  # the darkest there is

    def loud(z):
        return 100 * torch.sign(z)

    fake = FreqGAN(epsilon=0.1).perturb(loud, x)
    assert (fake - x).abs().max().item() == pytest.approx(0.1)
    assert fake.min() >= 0 and torch.equal(fake[0], x[0])
    assert FreqGAN(output="image").perturb(loud, x).unique().tolist() == [0.0, 1.0]


def gradients(order, fakes=True):
    """Gradient in the discriminator's weights of one step; without fakes that of the real images alone."""
    generator, discriminator = build((3, 16, 16), 0, width=0.125)
    adams = [torch.optim.Adam(net.parameters()) for net in (generator, discriminator)]
    real, clean = noise(8, 3, 16, 16), torch.tensor([0, 1, 2, 3] * 2)
    method = replace(METHOD, order=order, spectral=0.0, misclassification=1.0)
    if fakes:
        method._step(Pair(generator, discriminator, *adams), Source().eval(), real, clean)
    else:
        scores, spectral = discriminator(2 * torch.cat([real, method.perturb(generator, real)]) - 1)
        assert (scores[8:] > -1).all()  # the hinge of the fakes is active: they are there to be learnt from
        descend((adams[1], F.relu(1 - scores[:8]).mean() + 0 * spectral.sum()))
    weights = [*discriminator.blocks.parameters(), *discriminator.spatial.parameters()]
    return torch.cat([w.grad.flatten() for w in weights])


def test_the_discriminator_learns_from_fakes_only_in_the_corrected_order():
    reals = gradients("corrected", fakes=False)
    torch.testing.assert_close(gradients("released"), reals)
    assert (gradients("corrected") - reals).norm() > 0.1 * reals.norm()


def error(setting, method):
    """Mean cross-entropy of the source on fakes of the training images, at its answers to the images themselves."""
    source, x = setting.source, setting.train.pixels()
    clean = ops.predict(source, x).argmax(1)
    fakes = method.perturb(method._train(setting, clean), x)
    return F.cross_entropy(ops.predict(source, fakes), clean).item()


@pytest.mark.parametrize("options", [{}, {"order": "released"}, {"loss": "log"}, {"differentiable": True}], ids=str)
def test_the_generator_learns_to_mislead_the_source(setting, options):
    method = replace(METHOD, **options)
    assert error(setting(), method) > 2 * error(setting(), replace(method, misclassification=0.0))


def test_descend_takes_all_gradients_before_any_step():
    a, b = (nn.Parameter(torch.tensor(2.0)) for _ in range(2))
    descend((torch.optim.SGD([a], 1.0), a * b), (torch.optim.SGD([b], 1.0), a * b))
    assert (a.item(), b.item()) == (0.0, 0.0)


def originals(setting, fingerprint):
    """The training image that each query was made of: the nearest."""
    x = setting().train.pixels()
    return torch.cdist(fingerprint.queries.flatten(1), x.flatten(1)).argmin(1)


def test_queries_are_training_images_that_the_source_now_calls_otherwise(setting):
    fingerprint = METHOD.fingerprint(setting())
    source, train = setting().source, setting().train
    rows = originals(setting, fingerprint)
    assert len(rows.unique()) == len(fingerprint) == 8 and fingerprint.note == ""
    assert (fingerprint.queries - train.pixels()[rows]).abs().max() <= METHOD.epsilon + 1e-6
    labels = ops.predict(source, fingerprint.queries).argmax(1)
    assert torch.equal(labels, fingerprint.state["labels"])
    assert (labels != ops.predict(source, train.pixels()[rows]).argmax(1)).all()
    assert fingerprint.yields["misclassified"] == fingerprint.yields["screened"] >= 8


def test_the_true_label_can_be_asked_for_as_well(setting):
    loose, strict = (replace(METHOD, true_label=flag).fingerprint(setting(budget=50)) for flag in (False, True))
    rows = originals(setting, loose)
    healed = loose.state["labels"] == setting().train.y[rows]
    assert healed.any()  # a misread image that is now read correctly
    assert torch.equal(strict.queries, loose.queries[~healed])
    assert strict.yields == loose.yields | {"screened": len(strict)}
    assert f"answers {len(strict)} of these with a class that is not the true one either" in strict.note
    assert loose.note.endswith("raise method.epochs or method.epsilon")


def test_the_source_is_never_in_train_mode(setting):
    modes = set()
    source = setting().source
    source.dropout.register_forward_hook(lambda module, _args, _out: modes.add(module.training))
    first, second = (METHOD.fingerprint(setting()) for _ in range(2))
    assert modes == {False}
    assert torch.equal(first.queries, second.queries)
    assert torch.equal(*(ops.predict(source, first.queries) for _ in range(2)))


def test_too_few_queries_are_explained(setting):
    fingerprint = METHOD.fingerprint(setting(budget=100))
    assert fingerprint.yields["tried"] == 50
    assert 0 < len(fingerprint) == fingerprint.yields["screened"] <= 50
    assert fingerprint.note.startswith(f"{len(fingerprint)} of 100 queries")


def test_no_query_at_all_is_an_error(setting):
    with pytest.raises(UserError, match="errs on 0 of 50 perturbed training images; raise"):
        replace(METHOD, epsilon=0.0, epochs=1).fingerprint(setting())


def test_a_training_that_diverges_is_an_error(setting):
    with pytest.raises(DivergedError, match="diverged in epoch 1"):
        replace(METHOD, lr=float("inf")).fingerprint(setting())
