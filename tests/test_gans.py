"""GANs: published sizes, losses by hand, and networks that answer the same after a trip through a file."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import pytest
import safetensors.torch
import torch

import fingerbench as fb
from fingerbench import config
from fingerbench.errors import DivergedError, UserError
from fingerbench.gans import train as train_module
from fingerbench.gans.contragan import Contragan
from fingerbench.gans.icrgan import Icrgan
from fingerbench.gans.logan import Logan
from fingerbench.gans.reacgan import Reacgan
from fingerbench.gans.sagan import Sagan
from fingerbench.gans.spec import GanSpec
from fingerbench.gans.train import Batch, Hinge, train
from fingerbench.gans.wgan_gp import Wasserstein, WganGp, gradient_penalty
from fingerbench.records import Gan, Images

SMALL = Sagan(width=1 / 32, steps=3, batch=8, discriminator_steps=2)
DESIGNS = {
    "wgan_gp": WganGp,
    "sagan": Sagan,
    "logan": Logan,
    "contragan": Contragan,
    "icrgan": Icrgan,
    "reacgan": Reacgan,
}
SIZES = {  # StudioGAN at 32x32 with 10 classes: generator, discriminator
    "wgan_gp": (4_276_739, 1_055_879),
    "sagan": (4_386_308, 1_075_586),
    "logan": (4_276_739, 1_053_825),
    "contragan": (9_416_196, 2_517_186),
    "icrgan": (9_416_196, 2_415_170),
    "reacgan": (9_416_196, 2_517_186),
}
every_gan = pytest.mark.parametrize("name", DESIGNS)


def small(name, **changes):
    """Return a design that trains in an instant; the average, where there is one, differs from the last weights."""
    ema = {"ema_decay": 0.5, "ema_start": 1} if DESIGNS[name]().ema_decay else {}
    return DESIGNS[name](**{"width": 1 / 32, "steps": 4, "batch": 8, "discriminator_steps": 2} | ema | changes)


def fresh(seed=0):
    return torch.Generator().manual_seed(seed)


def equal(a, b):
    states = zip([a.generator, a.discriminator], [b.generator, b.discriminator], strict=True)
    return all(torch.equal(v, y.state_dict()[k]) for x, y in states for k, v in x.state_dict().items())


def digits(n=24, size=16):
    g = torch.Generator().manual_seed(0)
    return Images(torch.randint(256, (n, 3, size, size), generator=g, dtype=torch.uint8), torch.arange(n) % 10)


def trained(seed=0, name="sagan"):
    return small(name).train(digits(), 10, fresh(seed), torch.device("cpu"))


def answers(gan):
    g = torch.Generator().manual_seed(1)
    z, labels = gan.latents(5, g), torch.arange(5)
    with torch.no_grad():
        images = gan.generator(z, labels)
        return images, gan.discriminator(images, labels)


def parameters(net):
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


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


class KilledError(Exception):
    pass


@every_gan
def test_a_killed_training_goes_on_to_the_same_gan(name, tmp_path, monkeypatch):
    whole, file = trained(name=name), tmp_path / "some" / "key.pt"
    design, cpu = small(name), torch.device("cpu")
    monkeypatch.setattr(train_module, "CHECKPOINT_S", 0.0)

    def die(self, *args):
        if file.exists() and torch.load(file, weights_only=True)["step"] == 2:
            raise KilledError
        return type(self).__mro__[1].discriminator_loss(self, *args)

    mortal = type("Mortal", (DESIGNS[name],), {"discriminator_loss": die})(**vars(design))
    with pytest.raises(KilledError):
        mortal.train(digits(), 10, fresh(), cpu, file)
    counted = []
    count = lambda self, *a: counted.append(1) or DESIGNS[name].generator_loss(self, *a)  # noqa: E731
    resumed = type("Counted", (DESIGNS[name],), {"generator_loss": count})(**vars(design))
    assert equal(resumed.train(digits(), 10, fresh(), cpu, file), whole)
    assert len(counted) == 2  # of four steps
    assert [path.name for path in file.parent.iterdir()] == ["key.pt"]


def test_a_broken_checkpoint_is_named(tmp_path):
    (tmp_path / "key.pt").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="delete it to start over"):
        SMALL.train(digits(), 10, fresh(), torch.device("cpu"), tmp_path / "key.pt")


def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "CHECKPOINT_S", 0.0)
    file = tmp_path / "key.pt"
    SMALL.train(digits(), 10, fresh(), torch.device("cpu"), file)
    weights = torch.load(file, weights_only=True)["generator"]
    content, weight = bytearray(file.read_bytes()), max(weights.values(), key=torch.numel)
    content[content.index(weight.numpy().tobytes()) + 2] ^= 1
    file.write_bytes(content)
    torch.load(file, weights_only=True)  # PyTorch itself does not notice
    with pytest.raises(UserError, match="does not match its checksum; or delete it to start over"):
        SMALL.train(digits(), 10, fresh(), torch.device("cpu"), file)


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
    frail = GanSpec("data", 10, Frail(**{**own, "lr": 0.002}), 0)
    tensors, facts = frail.make(workshop)
    told = "weights that are not finite at lr 0.002; begun once more, learning rates times 0.1"
    assert facts["retried"] == told and all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    broken = GanSpec("data", 10, Frail(**{**own, "lr": 0.002, "sound": False}), 0)
    with pytest.raises(DivergedError, match=r"times 0\.1: .* at lr 0\.0002; nothing of it is stored: lower gan\.lr"):
        broken.make(workshop)


@pytest.mark.parametrize("schema", [0, 2])
def test_a_checkpoint_of_another_schema_is_refused(tmp_path, schema):
    torch.save({"schema": schema}, tmp_path / "key.pt")
    with pytest.raises(UserError, match=f"schema {schema}, this version reads 1.*delete it to start over"):
        SMALL.train(digits(), 10, fresh(), torch.device("cpu"), tmp_path / "key.pt")


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
