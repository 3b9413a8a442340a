"""The losses of the GANs, by hand."""

import math

import pytest
import torch
from toygans import digits, fresh, small

from fingerbench.gans.contragan import Contragan
from fingerbench.gans.icrgan import Icrgan
from fingerbench.gans.logan import Logan
from fingerbench.gans.reacgan import Reacgan
from fingerbench.gans.train import Batch, Hinge
from fingerbench.gans.wgan_gp import Wasserstein, WganGp, gradient_penalty
from fingerbench.records import Gan


def test_adversarial_losses_by_hand():
    scores = torch.tensor([2.0, 0.5, -1.0, -3.0])
    assert Hinge().real(scores).tolist() == [0, 0.5, 2, 4]
    assert Hinge().fake(scores).tolist() == [3, 1.5, 0, 0]
    assert Wasserstein().real(scores).tolist() == [-2, -0.5, 1, 3]
    assert Wasserstein().fake(scores).tolist() == scores.tolist()


class Score(torch.nn.Module):
    """A discriminator whose score is linear in the image."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x, labels):
        return (x * self.weight).flatten(1).sum(1)


class Scale(torch.nn.Module):
    """A generator whose image is the latent itself, times a weight."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def forward(self, z, labels):
        return (self.weight * z)[:, :, None, None]


def plain(n=6, latent=2, seed=0):
    z = torch.rand(n, latent, generator=fresh(seed)) - 0.5
    return Batch(z, torch.arange(n) % 3)


def test_gradient_penalty_by_hand():
    x = torch.rand(4, 3, 2, 2, generator=fresh())
    score = Score(torch.full((3, 2, 2), 0.5))
    assert gradient_penalty(lambda x: score(x, None), x).item() == pytest.approx((0.5 * 12**0.5 - 1) ** 2)
    # The gradient of |x|^2 is 2x, image by image.
    expected = (2 * x.flatten(1).norm(dim=1) - 1).square().mean()
    torch.testing.assert_close(gradient_penalty(lambda x: x.square().sum((1, 2, 3)), x), expected)


def test_wgan_gp_adds_the_penalty_to_the_distance():
    gan = Gan(Scale(), Score(torch.tensor([[[3.0]], [[4.0]]])), 2, Wasserstein())
    real, latents = Batch(torch.ones(4, 2, 1, 1), torch.zeros(4).long()), plain()
    loss = WganGp(penalty=10).discriminator_loss(gan, real, latents, fresh())
    fake = (latents.x[:4] * torch.tensor([3.0, 4.0])).sum(1).mean()
    torch.testing.assert_close(loss, fake - 7 + 10 * (5 - 1.0) ** 2)
    loss.backward()
    assert gan.generator.weight.grad is None and gan.discriminator.weight.grad is not None


def test_logan_moves_latents_by_the_natural_gradient_and_learns_through_the_move():
    weight = torch.tensor([[[0.3]], [[0.4]]])
    gan = Gan(Scale(2.0), Score(weight), 2, Hinge(), "uniform")
    latents = plain(400)
    design = Logan(alpha=0.9, beta=0.1, rate=0.8)
    moved, cost = design.optimise(gan, latents, fresh())
    g = 2 * weight.flatten()  # of the score 2 w z
    move = 0.9 * g / (0.1 + 1.0)  # |g|^2 = 4 * 0.25
    moves = (moved.x - latents.x).detach()
    free = (latents.x + move).abs().max(1).values < 1
    still = (moves == 0).all(1)
    torch.testing.assert_close(moves[~still & free], move.expand(int((~still & free).sum()), 2))
    assert still.float().mean().item() == pytest.approx(0.2, abs=0.06)
    assert moved.x.abs().max() <= 1
    torch.testing.assert_close(cost, move.square().sum())
    loss = design.generator_loss(gan, latents, fresh())
    torch.testing.assert_close(loss, -(2 * moved.x * weight.flatten()).sum(1).mean() + 0.1 * cost)
    real = Batch(plain(6, 2, 5).x[:, :, None, None], plain().labels)
    d_real, d_fake = real.x[:, :, 0, 0] @ weight.flatten(), 2 * moved.x @ weight.flatten()
    hinge = torch.relu(1 - d_real).mean() + torch.relu(1 + d_fake).mean()
    torch.testing.assert_close(design.discriminator_loss(gan, real, latents, fresh()), hinge + 0.1 * cost)
    cost.backward()
    assert gan.generator.weight.grad is not None and gan.discriminator.weight.grad is not None


def embedded(n=5, size=4):
    unit = torch.nn.functional.normalize(torch.randn(2, n, size, generator=fresh()), dim=2)
    return unit[0], unit[1], torch.tensor([0, 1, 0, 2, 1])


def test_2c_loss_against_loops():
    e, p, y = embedded()
    total = 0.0
    for i in range(5):
        proxy = math.exp(float(e[i] @ p[i]) / 0.7)
        pair = [math.exp(float(e[i] @ e[k]) / 0.7) for k in range(5)]
        alike = sum(pair[k] for k in range(5) if k != i and y[k] == y[i])
        others = sum(pair[k] for k in range(5) if k != i)
        total -= math.log((proxy + alike) / (proxy + others)) / 5
    assert Contragan(temperature=0.7).conditional_loss(e, p, y).item() == pytest.approx(total, rel=1e-5)


def test_d2d_ce_against_loops_and_its_margins():
    e, p, y = embedded()
    total = 0.0
    for i in range(5):
        near = math.exp(min(float(e[i] @ p[i]) - 0.9, 0) / 0.5)
        far = sum(math.exp(max(float(e[i] @ e[k]) - 0.1, 0) / 0.5) for k in range(5) if y[k] != y[i])
        total -= math.log(near / (near + far)) / 5
    design = Reacgan(margin=0.9, temperature=0.5)
    assert design.conditional_loss(e, p, y).item() == pytest.approx(total, rel=1e-5)
    easy = torch.eye(3).requires_grad_(True)  # at their proxies, orthogonal to one another: nothing left to gain
    (gradient,) = torch.autograd.grad(design.conditional_loss(easy, torch.eye(3), torch.arange(3)), easy)
    assert not gradient.any()


@pytest.mark.parametrize("name", ["contragan", "reacgan"])
def test_the_conditional_loss_is_of_real_images_for_one_network_and_of_fake_ones_for_the_other(name):
    design, gan = small(name), small(name).build(10, (3, 16, 16))
    for net in (gan.generator, gan.discriminator):
        net.eval()
    real, latents = Batch(digits(8).x / 127.5 - 1, digits(8).y), Batch(gan.latents(8, fresh()), torch.arange(8) % 3)
    fake = gan.generator(*latents)
    (r, *of_real), (f, *of_fake) = gan.discriminator.judge(*real), gan.discriminator.judge(fake, latents.labels)
    d = torch.relu(1 - r).mean() + torch.relu(1 + f).mean() + design.weight * design.conditional_loss(*of_real, real[1])
    g = -f.mean() + design.weight * design.conditional_loss(*of_fake, latents.labels)
    torch.testing.assert_close(design.discriminator_loss(gan, real, latents, fresh()), d)
    torch.testing.assert_close(design.generator_loss(gan, latents, fresh()), g)


def test_consistency_by_hand():
    gan = Gan(Scale(2.0), Score(torch.tensor([[[0.3]], [[0.4]]])), 2, Hinge())
    real, latents = Batch(plain(6, 2, 5).x[:, :, None, None], plain().labels), plain()
    design = Icrgan(shift=0.0, flip=False)
    noise = 0.05 * torch.randn(6, 2, generator=fresh())
    w = torch.tensor([0.3, 0.4])
    r, f = real.x[:, :, 0, 0] @ w, 2 * latents.x @ w
    hinge = torch.relu(1 - r).mean() + torch.relu(1 + f).mean()
    zcr = (2 * noise @ w).square().mean()
    loss = design.discriminator_loss(gan, real, latents, fresh())
    torch.testing.assert_close(loss, hinge + 20 * zcr)  # images that are not augmented cost nothing
    loss = design.generator_loss(gan, latents, fresh())
    torch.testing.assert_close(loss, -f.mean() - 0.5 * (2 * noise).square().mean())
    shifted = Icrgan(flip=False, zcr_discriminator=0.0, bcr_real=3.0, bcr_fake=0.0)
    shifted = shifted.discriminator_loss(_pixels(), *_pixel_batches(), fresh())
    torch.testing.assert_close(shifted, _shifted_by_hand())


class Negating(Icrgan):
    def augmented(self, x, generator):
        return -x


def test_consistency_of_real_and_of_fake_images_has_its_own_weight():
    w = torch.tensor([0.3, 0.4])
    gan = Gan(Scale(2.0), Score(w.view(1, 2, 1, 1)[0]), 2, Hinge())
    real, latents = Batch(plain(6, 2, 5).x[:, :, None, None], plain().labels), plain()
    r, f = real.x[:, :, 0, 0] @ w, 2 * latents.x @ w
    hinge = torch.relu(1 - r).mean() + torch.relu(1 + f).mean()
    design = Negating(zcr_discriminator=0.0, bcr_real=3.0, bcr_fake=5.0)
    expected = hinge + 3 * (2 * r).square().mean() + 5 * (2 * f).square().mean()
    torch.testing.assert_close(design.discriminator_loss(gan, real, latents, fresh()), expected)


class Grey(torch.nn.Module):
    def forward(self, z, labels):
        return torch.zeros(len(z), 1, 8, 8)


def _pixels():
    return Gan(Grey(), Score(torch.linspace(0, 1, 64).view(1, 8, 8)), 1, Hinge())


def _pixel_batches():
    x = torch.rand(4, 1, 8, 8, generator=fresh(7))
    return Batch(x, torch.arange(4)), Batch(torch.zeros(4, 1), torch.arange(4))


def _shifted_by_hand():
    """The loss of real images moved by the crops that the design draws, after its noise on the latents."""
    (x, _), _ = _pixel_batches()
    g = fresh()
    torch.randn(4, 1, generator=g)
    corner = torch.randint(0, 3, (2, 4, 1), generator=g)
    weight = torch.linspace(0, 1, 64).view(8, 8)
    total = torch.zeros(())
    for image, top, left in zip(x[:, 0], corner[0, :, 0].tolist(), corner[1, :, 0].tolist(), strict=True):
        moved = torch.full((10, 10), -1.0)
        moved[1:9, 1:9] = image
        before, after = (image * weight).sum(), (moved[top : top + 8, left : left + 8] * weight).sum()
        total = total + 3 * (before - after) ** 2 / 4 + torch.relu(1 - before) / 4
    return total + 1  # fake images are grey: score 0, price 1
