"""IPGuard against hand-computed losses and against torch's own Adam, one image at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fingerbench.errors import UserError
from fingerbench.records import Images, Setting
from fingerbench.seeds import fix_order
from fingerbench.task import Classification
from methods import ipguard
from methods.ipguard import IPGuard, boundary_loss, optimise


@pytest.fixture
def source():
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    model[1].weight.data = torch.randn(4, 12, generator=generator)
    model[1].bias.data.zero_()
    return model.eval().requires_grad_(False)


@pytest.fixture
def setting(source):
    x = torch.randint(256, (60, 3, 2, 2), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    y = source(x.float() / 255).argmax(1)
    y[::6] = (y[::6] + 1) % 4  # images that the source gets wrong, not to be started from

    def make(budget=8, seed=0):
        generator = torch.Generator().manual_seed(seed)
        train, heldout = Images(x, y), Images(x[:0], y[:0])
        return Setting(source, train, heldout, (), (), None, Classification(4), budget, torch.device("cpu"), generator)

    return make


METHOD = IPGuard(margin=0.5, lr=0.02, steps=300)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([2.0, 1.0, -1.0], 4.0),  # not there yet: 2 + 1 + 1
        ([3.0, 1.0, 5.0], 0.0),  # target first by 2, true class second
        ([3.0, 4.0, 5.0], 1.0),  # a third class is in between: 4 - 3
        ([4.5, 5.0, 5.0], 1.0),  # short of the margin by 0.5, third class above by 0.5
    ],
)
def test_loss_is_the_formula(logits, expected):
    loss = boundary_loss(torch.tensor([logits]), torch.tensor([0]), torch.tensor([2]), margin=1.0)
    assert loss.item() == pytest.approx(expected)


def test_loss_without_a_third_class():
    loss = boundary_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([0]), torch.tensor([1]), margin=5.0)
    assert loss.item() == pytest.approx(3.0)


def alone(source, x, true, target, method):
    """Optimise one image with torch.optim.Adam, as published."""
    x = x.clone().requires_grad_(True)
    adam = torch.optim.Adam([x], lr=method.lr)
    for _ in range(method.steps):
        loss = boundary_loss(source(x), true, target, method.margin)
        if loss.item() == 0:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    return x.detach()


def test_a_batch_ends_where_each_image_would_alone(source, setting):
    x, true, target = ipguard.start_points(setting(), torch.arange(12))
    batch = optimise(source, x, true, target, METHOD.margin, METHOD.lr, METHOD.steps)
    for row in range(len(x)):
        one = slice(row, row + 1)
        torch.testing.assert_close(batch[one], alone(source, x[one], true[one], target[one], METHOD))


def test_cudnn_makes_no_trials_while_the_batch_shrinks_and_rounds_nothing(source, setting):
    x, true, target = ipguard.start_points(setting(), torch.arange(12))
    seen, flags = [], torch.backends.cudnn
    source.register_forward_pre_hook(lambda _, inputs: seen.append((len(inputs[0]), flags.benchmark, flags.allow_tf32)))
    fix_order(False)
    optimise(source, x, true, target, METHOD.margin, METHOD.lr, METHOD.steps)
    sizes, trials, tf32 = zip(*seen, strict=True)
    assert len(set(sizes)) > 2 and not any(trials) and not any(tf32)
    assert torch.backends.cudnn.benchmark


def test_starts_are_classified_correctly_and_aim_at_the_least_likely_class(source, setting):
    x, true, target = ipguard.start_points(setting(), torch.arange(12))
    assert len(x) == 10
    assert torch.equal(source(x).argmax(1), true)
    assert torch.equal(source(x).argmin(1), target)


def test_every_query_is_first_by_the_margin(source, setting):
    fingerprint = METHOD.fingerprint(setting())
    logits = source(fingerprint.queries).sort(1, descending=True)
    assert (logits.values[:, 0] - logits.values[:, 1] >= METHOD.margin).all()
    assert torch.equal(fingerprint.state["labels"], logits.indices[:, 0])
    assert fingerprint.yields["accepted"] == len(fingerprint) == 8
    assert fingerprint.note == ""


def test_a_smaller_budget_gives_the_first_of_the_same_queries(setting):
    few, many = METHOD.fingerprint(setting(budget=3)), METHOD.fingerprint(setting(budget=8))
    torch.testing.assert_close(few.queries, many.queries[:3])


def test_acceptance_is_checked_on_the_stored_image(setting, monkeypatch):
    monkeypatch.setattr(ipguard, "optimise", lambda source, x, *_: x)
    with pytest.raises(UserError, match=r"none of \d+ start images"):
        METHOD.fingerprint(setting())


def test_too_few_queries_are_explained(setting):
    fingerprint = METHOD.fingerprint(setting(budget=100))
    assert fingerprint.yields["tried"] == 50
    assert 0 < len(fingerprint) <= 50
    assert fingerprint.note.startswith(f"{len(fingerprint)} of 100 queries: 50 start images tried")


def test_tries_bound_the_start_images(setting):
    with pytest.raises(UserError, match="none of"):
        IPGuard(margin=1000.0, steps=2, tries=1.0).fingerprint(setting(budget=5))
