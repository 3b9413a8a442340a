"""MetaFinger, against formulas written out by hand and on surrogates constructed for each rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fingerbench.errors import UserError
from fingerbench.records import Images, Setting
from fingerbench.task import Classification
from fingerbench.transforms import HorizontalFlip, Identity
from methods import metafinger
from methods.metafinger import MetaFinger, Pool

CLASSES, SIZE = 3, 4


class Linear(nn.Module):
    """A linear model of the mean of each quarter of an image, which takes images of any size."""

    def __init__(self, seed, scale=8.0, near=None, distance=1.0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        weight = torch.randn(CLASSES, 12, generator=g) * scale
        self.register_buffer("weight", weight if near is None else near.weight + distance * weight)

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1) @ self.weight.T


class Says(nn.Module):
    """A model that gives each image the label written in its first pixel, in hundredths, moved by `shift`."""

    def __init__(self, shift=0, only=None):
        super().__init__()
        self.shift, self.only = shift, only

    def forward(self, x):
        labels = (x[:, 0, 0, 0] * 100).round().long()
        moved = (labels + self.shift) % CLASSES
        if self.only is not None:
            moved = torch.where(labels == self.only, moved, labels)
        return nn.functional.one_hot(moved, CLASSES).float()


def images(n=60, seed=3):
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (n, 3, SIZE, SIZE), generator=g, dtype=torch.uint8)
    return Images(x, torch.zeros(n, dtype=torch.int64))


def setting(positives=None, negatives=None, budget=10, data=None):
    source = positives[0] if positives else Linear(0)
    data = data or images()
    return Setting(
        source=source,
        train=data,
        heldout=data,
        positives=positives or (source, *(Linear(i, near=source, distance=0.05) for i in range(1, 6))),
        negatives=negatives or tuple(Linear(50 + i) for i in range(6)),
        gan=None,
        task=Classification(CLASSES),
        budget=budget,
        device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(0),
    )


TOY = MetaFinger(images=20, k=2, shift=1, resize_least=3, resize_most=4, resize_out=5, max_restarts=30)


def kl(p, q):
    """KL(p || q) by its definition, over all entries."""
    total = torch.zeros(())
    for b in range(len(p)):
        for c in range(CLASSES):
            total = total + p[b, c] * (p[b, c].log() - q[b, c].log())
    return total / p.numel()


@pytest.mark.parametrize("direction", ["others", "anchor"])
def test_the_triple_loss_and_its_gradient_by_hand(direction):
    x = images(5).pixels().requires_grad_(True)
    anchor, close, far = Linear(0), [Linear(1), Linear(2)], [Linear(3), Linear(4)]

    def pair(other):
        a, o = (model(x).softmax(1) for model in (anchor, other))
        return kl(o, a) if direction == "others" else kl(a, o)

    expected = (pair(close[0]) + pair(close[1])) / 2 - 0.7 * (pair(far[0]) + pair(far[1])) / 2
    loss = replace(TOY, divergence_from=direction, negative_weight=0.7)._loss(x, anchor, close, far)
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, x)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], wanted, rtol=1e-4, atol=1e-7)


def test_the_divergence_of_two_known_distributions():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    ln2 = torch.tensor(2.0).log().item()
    # KL(p || q) = 0.5 ln 2 - 0.25 ln 2, over 3 entries
    assert TOY._divergence(p.log(), q.log()).item() == pytest.approx(0.25 * ln2 / 3)
    skewed = torch.tensor([[0.8, 0.1, 0.1]])
    to_anchor = TOY._divergence(skewed.log(), p.log()).item()
    from_anchor = replace(TOY, divergence_from="anchor")._divergence(skewed.log(), p.log()).item()
    assert to_anchor == pytest.approx(kl(skewed, p).item())
    assert from_anchor == pytest.approx(kl(p, skewed).item()) != pytest.approx(to_anchor)


def test_the_gradient_goes_through_anchor_and_others():
    other, anchor = (torch.randn(4, CLASSES, requires_grad=True) for _ in range(2))
    TOY._divergence(other.log_softmax(1), anchor.log_softmax(1)).backward()
    assert other.grad.abs().min() > 0 and anchor.grad.abs().min() > 0


def test_one_step_is_adams_and_stays_within_the_pixels(monkeypatch):
    # Adam's first step is lr times the sign of the gradient; with one positive there is one step an epoch.
    monkeypatch.setattr(MetaFinger, "_bank", lambda self: (Identity(),))
    source, far = Linear(0), Linear(1)
    pool = Pool((source,), (far,))
    x = images(4).pixels()
    seen = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(-kl(far(seen).softmax(1), source(seen).softmax(1)), seen)
    nf = replace(TOY, k=1, epochs=1, warm_up=0, lr=0.1)
    moved = nf._optimise(x, pool, pool, setting())
    sure = gradient.abs() > 1e-5  # below, Adam's epsilon shows
    torch.testing.assert_close(moved[sure], (x - 0.1 * gradient.sign()).clamp(0, 1)[sure], rtol=0, atol=1e-3)
    assert moved.min() >= 0 and moved.max() <= 1 and sure.float().mean() > 0.9


@pytest.mark.parametrize(("agreements", "best"), [([0.5, 0.3, 0.4], 1), ([0.2, 0.3, 0.2], 2), ([0.1, 0.3, 0.2], 0)])
def test_the_epoch_kept_is_the_last_of_the_best_after_the_warm_up(monkeypatch, agreements, best):
    seen = []

    def agreement(x, *_):
        seen.append(x.clone())
        return agreements[len(seen) - 1]

    monkeypatch.setattr(metafinger, "_agreement", agreement)
    s = setting()
    pool = Pool(s.positives, s.negatives)
    x = replace(TOY, epochs=5, warm_up=2)._optimise(images(4).pixels(), pool, pool, s)
    assert len(seen) == 3  # an epoch of the warm-up is no candidate
    assert torch.equal(x, seen[best])
    assert not torch.equal(seen[0], seen[1])


def test_agreement_is_that_of_negatives_with_the_majority_of_positives():
    x = torch.zeros(4, 3, SIZE, SIZE)
    x[:, 0, 0, 0] = torch.tensor([0, 1, 2, 1]) / 100
    positives = (Says(), Says(1), Says())  # the majority says what is written
    pool = Pool(positives, (Says(), Says(1), Says(1, only=2), Says(2, only=1)))
    # Of four images each: all, none, three, two.
    assert metafinger._agreement(x, pool, CLASSES) == pytest.approx((4 + 0 + 3 + 2) / 16)


def test_screening_wants_every_positive_and_no_negative():
    x = torch.zeros(3, 3, SIZE, SIZE)
    x[:, 0, 0, 0] = torch.tensor([0, 1, 2]) / 100
    pool = Pool((Says(), Says(), Says(1, only=0)), (Says(1), Says(2), Says(1, only=0), Says(2, only=1)))
    labels, agreed, rejected = TOY._judge(x, pool, setting(positives=(Says(),)))
    assert labels.tolist() == [0, 1, 2]
    assert agreed.tolist() == [False, True, True]
    assert rejected.tolist() == [False, False, False]  # each is what the third or the fourth negative says
    pool = Pool((Says(), Says()), (Says(1), Says(1, only=0)))
    assert TOY._judge(x, pool, setting(positives=(Says(),)))[2].tolist() == [True, False, False]


def test_the_source_screens_too_unless_told_otherwise():
    x = torch.zeros(3, 3, SIZE, SIZE)
    x[:, 0, 0, 0] = torch.tensor([0, 1, 2]) / 100
    pool, s = Pool((Says(),), (Says(1),)), setting(positives=(Says(1, only=2),))
    assert TOY._judge(x, pool, s)[1].tolist() == [True, True, False]
    assert replace(TOY, screen_source=False)._judge(x, pool, s)[1].tolist() == [True, True, True]


def test_two_thirds_train_in_their_order_the_source_first():
    s = setting(positives=tuple(Linear(i) for i in range(8)), negatives=tuple(Linear(i) for i in range(36)))
    train, validation = TOY._split(s)
    assert train == Pool(s.positives[:5], s.negatives[:24])
    assert validation == Pool(s.positives[5:], s.negatives[24:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 5}, r"positives of surrogates: expected at least 5 to train on .*; got '4 and 2'"),
        ({"train_share": 1.0}, r"positives of surrogates: expected .* 1 to validate on .*; got '6 and 0'"),
        ({"warm_up": 10}, r"method.warm_up: expected less than method.epochs, 10; got 10"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        replace(TOY, **change).fingerprint(setting())


def test_start_images_are_all_used_before_one_is_used_again():
    data = images(50)
    starts = list(replace(TOY, images=20, max_restarts=5)._starts(setting(data=data)))
    assert [len(x) for x in starts] == [20] * 5
    rows = {tuple(x.flatten().tolist()) for x in data.pixels()}
    chosen = [tuple(x.flatten().tolist()) for x in torch.cat(starts)]
    assert set(chosen[:50]) == set(chosen[50:]) == rows and chosen[:50] != chosen[50:]


def test_no_restart_has_an_image_twice():
    for start in replace(TOY, images=20, max_restarts=9)._starts(setting(data=images(25))):
        assert len({tuple(x.flatten().tolist()) for x in start}) == 20


def test_a_few_images_are_all_taken():
    assert [len(x) for x in replace(TOY, images=70, max_restarts=3)._starts(setting(data=images(30)))] == [30] * 3


def test_queries_part_the_two_kinds_of_models():
    s = setting(budget=25)
    fingerprint = TOY.fingerprint(s)
    assert len(fingerprint) == 25 and not fingerprint.note
    labels = fingerprint.state["labels"]
    for model in [*s.positives[4:], s.source]:
        assert torch.equal(model(fingerprint.queries).argmax(1), labels)
    for model in s.negatives[4:]:
        assert not (model(fingerprint.queries).argmax(1) == labels).any()
    near, far = Linear(90, near=s.source, distance=0.05), Linear(91)  # seen by nobody
    matching = [TOY.similarity(fingerprint, model(fingerprint.queries).argmax(1)) for model in (near, far)]
    assert matching[0] > 0.9 > 0.6 > matching[1]
    y = fingerprint.yields
    assert y["tried"] == 20 * y["restarts"] >= y["unanimous"] >= y["screened"] >= 25


def test_too_few_are_explained():
    fingerprint = replace(TOY, max_restarts=1).fingerprint(setting(budget=500))
    assert len(fingerprint) == fingerprint.yields["screened"] <= 20 == fingerprint.yields["tried"]
    assert fingerprint.note.startswith(f"{len(fingerprint)} of 500 queries: only these of 20 images passed")


def test_none_is_an_error():
    same = (Linear(0),) * 6
    with pytest.raises(UserError, match=r"none of 60 images became a query; 60 got one label .* raise method.epochs"):
        replace(TOY, max_restarts=3).fingerprint(setting(positives=same, negatives=same))


def test_the_mirror_image_is_an_option():
    with_flip, without = (replace(TOY, flip=flip)._bank() for flip in (True, False))
    assert len(with_flip) == 10 and [t for t in with_flip if t not in without] == [HorizontalFlip()]
