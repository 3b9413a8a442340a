"""NaturalFinger, against formulas written out by hand on toy models."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from fingerbench.api import Fingerprinter
from fingerbench.errors import UserError
from fingerbench.gans.train import Hinge
from fingerbench.gans.wgan_gp import Wasserstein
from fingerbench.records import Gan, Images, Setting
from fingerbench.seeds import seeded
from fingerbench.task import Classification
from methods.naturalfinger import Candidates, NaturalFinger, margin

CLASSES, SIZE, LATENT = 3, 4, 6


class ToyGenerator(nn.Module):
    """tanh of a fixed linear map of the latent, shifted by class."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(5)
        self.register_buffer("map", torch.randn(LATENT, 3 * SIZE * SIZE, generator=g) / 2)

    def forward(self, z, labels):
        return torch.tanh(z @ self.map + 0.1 * labels[:, None]).view(-1, 3, SIZE, SIZE)


class ToyDiscriminator(nn.Module):
    def forward(self, x, labels):
        return x.mean((1, 2, 3)) * 3 + labels


def linear(seed, scale=1.0):
    with seeded(seed):
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, CLASSES)).eval().requires_grad_(False)
    model[1].weight.mul_(scale)
    return model


def setting(budget=2, seed=0, positives=2, negatives=2):
    source = linear(0, 4.0)
    images = Images(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    return Setting(
        source=source,
        train=images,
        heldout=images,
        positives=(source, *[_near(source, i) for i in range(1, positives)]),
        negatives=tuple(linear(50 + i, 4.0) for i in range(negatives)),
        gan=Gan(ToyGenerator(), ToyDiscriminator(), LATENT, Hinge()),
        task=Classification(CLASSES),
        budget=budget,
        device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(seed),
    )


def _near(model, seed):
    other = linear(0, 4.0)
    other[1].weight.add_(0.05 * torch.randn(other[1].weight.shape, generator=torch.Generator().manual_seed(seed)))
    return other


TOY = NaturalFinger(epochs=60, latent_batch=8, model_batch=2, lr=4.0, fgsm=0.3, shift=1, draws=40, pool=80.0)


def candidates(n=4, seed=3):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, LATENT, generator=g)
    return Candidates(z, torch.arange(n) % CLASSES, torch.arange(n) % CLASSES, (torch.arange(n) + 1) % CLASSES)


def test_margin_by_hand():
    logits = torch.tensor([[5.0, 2.0, 1.0], [1.0, 4.0, 2.0], [90.0, 0.0, 0.0]])
    assert margin(logits, torch.zeros(3, dtype=torch.int64), 50.0).tolist() == [-3.0, 3.0, -50.0]


def hand_loss(nf, z, c, s, sign):
    """The published loss for one group of all models, written with loops, images untransformed."""
    image = s.gan.generator(z, c.classes)
    total = torch.zeros(())
    for b in range(len(z)):
        x = (image[b : b + 1] + 1) / 2
        for models, labels in ((s.positives, c.labels), (s.negatives, c.negative_labels)):
            for model in models:
                scores = model(x)[0]
                y = int(labels[b])
                rest = max(scores[i] for i in range(CLASSES) if i != y)
                total = total + torch.clamp(rest - scores[y], min=-nf.kappa) / len(models)
        d = s.gan.discriminator(image[b : b + 1], c.classes[b : b + 1])[0]
        total = total + nf.beta * (torch.relu(1 - d) if sign == "intent" else -d)
    return total


@pytest.mark.parametrize("sign", ["intent", "generator"])
def test_one_step_against_an_independent_formula(sign):
    nf = replace(TOY, epochs=1, input_transforms=False, discriminator_sign=sign, lr=0.8)
    s, c = setting(), candidates()
    z = c.z.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(hand_loss(nf, z, c, s, sign), z)
    # The first Nesterov step is lr * (1 + momentum) * gradient; lr is for the mean over a full batch of 8.
    expected = c.z - 0.8 / 8 * 1.9 * gradient
    torch.testing.assert_close(nf._optimise(c, s, s.gan), expected, rtol=1e-4, atol=1e-6)


def test_the_discriminator_signs():
    s, c = setting(), candidates(6)
    image = s.gan.generator(c.z, c.classes)
    d = s.gan.discriminator(image, c.classes)

    def unreal(sign):
        return replace(TOY, discriminator_sign=sign)._unreal(image, c.classes, s, s.gan)

    torch.testing.assert_close(unreal("intent"), torch.relu(1 - d))
    torch.testing.assert_close(unreal("generator"), -d)
    twin = torch.Generator()
    twin.set_state(s.generator.get_state())
    fresh = torch.randint(CLASSES, (6,), generator=twin)
    torch.testing.assert_close(unreal("released"), torch.relu(1 + s.gan.discriminator(image, fresh)))


def test_the_discriminator_term_is_that_of_the_gans_own_loss():
    s, c = setting(), candidates(6)
    gan = replace(s.gan, loss=Wasserstein())
    image = gan.generator(c.z, c.classes)
    unreal = TOY._unreal(image, c.classes, s, gan)
    torch.testing.assert_close(unreal, -gan.discriminator(image, c.classes))


def test_latents_are_normal_unless_the_prior_of_the_gan_is_asked_for():
    s = setting()
    gan = replace(s.gan, prior="uniform")
    assert TOY._latents(s, gan).abs().max() > 1
    assert replace(TOY, prior="gan")._latents(s, gan).abs().max() <= 1


def test_a_smaller_batch_takes_the_same_steps():
    nf = replace(TOY, epochs=5, input_transforms=False)
    whole = nf._optimise(candidates(), setting(), setting().gan)
    first = nf._optimise(candidates()[:1], setting(), setting().gan)
    torch.testing.assert_close(first, whole[:1], rtol=1e-4, atol=1e-5)


def test_groups_pair_every_surrogate_once_an_epoch_in_random_order():
    s = setting(positives=8, negatives=8)
    groups = list(replace(TOY, model_batch=4)._groups(s))
    assert [(len(p), len(n)) for p, n in groups] == [(4, 4), (4, 4)]
    assert {id(m) for p, _ in groups for m in p} == {id(m) for m in s.positives}
    assert {id(m) for _, n in groups for m in n} == {id(m) for m in s.negatives}
    places = [[s.positives.index(p) - s.negatives.index(n) for p, n in zip(*g, strict=True)] for g in groups]
    assert any(any(shift) for shift in places)  # permuted independently


def test_unequal_surrogates_are_all_met_in_an_epoch():
    s = setting(positives=3, negatives=10)
    groups = list(replace(TOY, model_batch=4)._groups(s))
    assert [(len(p), len(n)) for p, n in groups] == [(3, 4), (3, 4), (3, 2)]
    assert sorted(map(id, s.negatives)) == sorted(id(m) for _, n in groups for m in n)


def test_the_papers_plain_sgd_is_an_option():
    s = setting()
    moved = [replace(TOY, epochs=2, momentum=m)._optimise(candidates(), s, s.gan) for m in (0.0, 0.9)]
    assert not torch.equal(*moved) and not torch.equal(moved[0], candidates().z)


@pytest.mark.parametrize(("budget", "tried"), [(1, 8), (3, 16)])
def test_the_more_queries_the_more_latents_are_tried(budget, tried):
    s = setting(budget=budget)
    print_ = replace(TOY, epochs=1, fgsm=0.3, pool=4.0, input_transforms=False)
    chunks = list(print_._chunks(s, s.gan, Counter()))
    assert sum(map(len, chunks)) == tried


class Constant(nn.Module):
    """Answers one label, whatever it is shown."""

    def __init__(self, label):
        super().__init__()
        self.label = label

    def forward(self, x):
        return torch.eye(CLASSES)[self.label].repeat(len(x), 1) + 0 * x.sum((1, 2, 3))[:, None]


def test_screening_wants_every_positive_and_every_negative():
    x = torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    c = Candidates(torch.zeros(3, LATENT), torch.zeros(3).long(), torch.tensor([1, 1, 2]), torch.tensor([0, 1, 0]))
    s = replace(setting(), positives=(Constant(1), Constant(1)), negatives=(Constant(0), Constant(0)))
    assert TOY._screen(x, c, s).tolist() == [True, False, False]
    assert not TOY._screen(x, c, replace(s, negatives=(Constant(0), Constant(2)))).any()
    assert not TOY._screen(x, c, replace(s, positives=(Constant(0), Constant(1)))).any()


def test_adversarial_labels_are_the_vote_of_the_named_surrogates_smallest_on_a_tie():
    x = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    s = replace(setting(), positives=(Constant(0),), negatives=(Constant(2), Constant(1), Constant(2), Constant(1)))
    y = torch.zeros(2, dtype=torch.int64)
    assert TOY._negative_labels(x, y, s).tolist() == [1, 1]
    assert replace(TOY, adversarial_labels_from="positives")._negative_labels(x, y, s).tolist() == [0, 0]


def test_fingerprint_holds_what_it_promises():
    s = setting()
    before = torch.random.get_rng_state()
    weights = [p.clone() for m in (*s.positives, *s.negatives) for p in m.parameters()]
    print_ = TOY.fingerprint(s)
    assert isinstance(TOY, Fingerprinter)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights, (p for m in (*s.positives, *s.negatives) for p in m.parameters()), strict=True)
    )
    assert len(print_) == 2
    assert print_.note == ""
    assert list(print_.yields) == ["tried", "unanimous", "label_changed", "optimised", "screened"]
    counts = list(print_.yields.values())
    assert counts == sorted(counts, reverse=True)
    for model in s.positives:
        assert TOY.similarity(print_, model(print_.queries).argmax(1)) == 1.0
    for model in s.negatives:
        assert torch.equal(model(print_.queries).argmax(1), print_.state["negative_labels"])
        assert TOY.similarity(print_, model(print_.queries).argmax(1)) == 0.0


def test_repeatable_with_the_seed():
    first, second, other = (TOY.fingerprint(setting(budget=1, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first.queries, second.queries)
    assert not torch.equal(first.queries, other.queries)


def test_fewer_queries_than_asked_for_are_explained():
    print_ = replace(TOY, pool=0.1).fingerprint(setting(budget=50))
    assert 0 < len(print_) <= 8
    assert print_.yields["optimised"] == 8
    assert f"{len(print_)} of 50 queries" in print_.note


@pytest.mark.parametrize("trick", ["adversarial_labels", "input_transforms", "discriminator_loss"])
def test_each_trick_can_be_switched_off(trick):
    print_ = replace(TOY, **{trick: False}).fingerprint(setting(budget=1))
    assert len(print_) == 1
    if trick == "input_transforms":
        assert len(replace(TOY, input_transforms=False)._bank()) == 1


@pytest.mark.parametrize("trick", [True, False])
def test_latents_that_cannot_pass_do_not_count(trick):
    s, yields = setting(), Counter()
    found = replace(TOY, adversarial_labels=trick)._draw(s, s.gan, yields)
    assert len(found) == yields["label_changed"] and (trick or len(found) < yields["unanimous"])
    assert not (found.labels == found.negative_labels).any()


def test_no_survivor_names_the_stage():
    s = setting()
    with pytest.raises(UserError, match="initial screening"):
        replace(TOY, max_draws=40).fingerprint(replace(s, positives=(Constant(0), Constant(1))))
    with pytest.raises(UserError, match="adversarial labels"):
        replace(TOY, fgsm=0.0, max_draws=40).fingerprint(replace(s, negatives=s.positives))
    with pytest.raises(UserError, match="final screening"):
        replace(TOY, epochs=1, pool=1.0).fingerprint(replace(s, negatives=(Constant(0), Constant(1))))
    with pytest.raises(UserError, match="expected a GAN"):
        TOY.fingerprint(replace(s, gan=None))
