"""MetaV against its formulas, written out for two queries and a verifier of two hidden units."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fingerbench.errors import UserError
from fingerbench.ops import predict
from fingerbench.records import Fingerprint, Images, Setting
from fingerbench.task import Classification, Regression
from methods.metav import INDEPENDENT, STOLEN, MetaV, images, logits

VERIFIER = {
    "hidden_weight": torch.tensor([[1.0, 0.0, -2.0, 0.0], [0.0, 1.0, 0.0, 1.0]]),
    "hidden_bias": torch.tensor([0.5, -2.0]),
    "out_weight": torch.tensor([[1.0, -1.0], [2.0, 0.5]]),
    "out_bias": torch.tensor([0.0, -0.1]),
}
ANSWERS = torch.tensor([[0.7, 0.3], [0.2, 0.8]])  # two queries, two outputs


def linear(seed, outputs, scale=3.0):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, outputs))
    model[1].weight.data = scale * torch.randn(outputs, 12, generator=torch.Generator().manual_seed(seed))
    model[1].bias.data.zero_()
    return model.eval().requires_grad_(False)


def near(model, seed):
    other = nn.Sequential(nn.Flatten(), nn.Linear(12, model[1].out_features))
    noise = torch.randn(model[1].weight.shape, generator=torch.Generator().manual_seed(seed))
    other[1].weight.data, other[1].bias.data = model[1].weight + 0.2 * noise, model[1].bias.clone()
    return other.eval().requires_grad_(False)


def setting(task, budget=5, seed=0):
    source = linear(0, task.outputs)
    generator = torch.Generator().manual_seed(1)
    train = Images(torch.randint(256, (9, 3, 2, 2), generator=generator, dtype=torch.uint8), torch.zeros(9).long())
    return Setting(
        source=source,
        train=train,
        heldout=train,
        positives=(source, near(source, 1), near(source, 2)),
        negatives=tuple(linear(seed, task.outputs) for seed in (3, 4, 5)),
        gan=None,
        task=task,
        budget=budget,
        device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(seed),
    )


TASKS = pytest.mark.parametrize("task", [Classification(4), Regression(), Regression(2)], ids=str)
METHOD = MetaV(iterations=150, lr=0.02, hidden=16)


def test_the_verifier_is_the_formula():
    # W1 phi + b1 = [0.7 - 0.4 + 0.5, 0.3 + 0.8 - 2] = [0.8, -0.9]; with ReLU [0.8, 0]; W2 h + b2 = [0.8, 1.5]
    score = MetaV().similarity(Fingerprint(torch.zeros(2, 1, 1, 1), VERIFIER), ANSWERS)
    assert score == pytest.approx(1 / (1 + math.exp(0.8 - 1.5)))
    # without: [0.8 + 0.9, 1.6 - 0.45 - 0.1] = [1.7, 1.05]
    linear_score = MetaV(activation="none").similarity(Fingerprint(torch.zeros(2, 1, 1, 1), VERIFIER), ANSWERS)
    assert linear_score == pytest.approx(1 / (1 + math.exp(1.7 - 1.05)))


def test_suspects_of_whom_the_verifier_is_sure_do_not_tie():
    sure = Fingerprint(torch.zeros(2, 1, 1, 1), VERIFIER | {"out_bias": torch.tensor([0.0, 20.0])})
    surer = Fingerprint(torch.zeros(2, 1, 1, 1), VERIFIER | {"out_bias": torch.tensor([0.0, 25.0])})
    scores = [MetaV().similarity(fingerprint, ANSWERS) for fingerprint in (sure, surer)]
    assert scores[0] < scores[1] < 1


def test_logits_are_taken_back_from_probabilities():
    true = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits(true.softmax(1)), true - true.mean(1, keepdim=True))


def test_the_verifier_reads_logits_and_a_probability_of_zero_is_finite():
    probabilities = torch.tensor([[1.0, 0.0], [0.2, 0.8]])
    far, gap = math.log(1e-8) / 2, math.log(0.2 / 0.8) / 2
    phi = torch.tensor([-far, far, gap, -gap])
    h = (VERIFIER["hidden_weight"] @ phi + VERIFIER["hidden_bias"]).relu()
    expected = (VERIFIER["out_weight"] @ h + VERIFIER["out_bias"]).softmax(0)[1].item()
    score = MetaV(features="logits").similarity(Fingerprint(torch.zeros(2, 1, 1, 1), VERIFIER), probabilities)
    assert score == pytest.approx(expected)


def test_the_loss_of_a_model_is_minus_the_log_of_its_side():
    gap = 1.5 - 0.8
    assert MetaV().loss(ANSWERS, STOLEN, VERIFIER).item() == pytest.approx(math.log(1 + math.exp(-gap)))
    assert MetaV().loss(ANSWERS, INDEPENDENT, VERIFIER).item() == pytest.approx(math.log(1 + math.exp(gap)))


def test_queries_are_half_of_tanh_plus_one():
    w = torch.tensor([-50.0, -0.5, 0.0, 1.0, 50.0])
    expected = [0.0, 0.5 * (math.tanh(-0.5) + 1), 0.5, 0.5 * (math.tanh(1.0) + 1), 1.0]
    assert images(w).tolist() == pytest.approx(expected)


def test_one_step_is_one_step_of_adam_on_the_whole_loss():
    s, method = setting(Classification(4)), MetaV(iterations=1, hidden=6, lr=0.01)
    got = method.fingerprint(s)
    fresh = setting(Classification(4))
    w = method._start(fresh).requires_grad_(True)
    verifier = method._verifier(fresh)
    adam = torch.optim.Adam([w, *verifier.values()], 0.01)

    def chance(model, side):
        phi = model(0.5 * (w.tanh() + 1)).softmax(1).flatten()
        h = (verifier["hidden_weight"] @ phi + verifier["hidden_bias"]).relu()
        return (verifier["out_weight"] @ h + verifier["out_bias"]).softmax(0)[side]

    stolen = torch.stack([chance(m, 1) for m in fresh.positives]).log().mean()
    independent = torch.stack([chance(m, 0) for m in fresh.negatives]).log().mean()
    (-stolen - independent).backward()
    adam.step()
    torch.testing.assert_close(got.queries, 0.5 * (w.detach().tanh() + 1))
    for name, weights in verifier.items():
        torch.testing.assert_close(got.state[name], weights.detach())


@TASKS
def test_it_learns_to_part_its_surrogates(task):
    s = setting(task)
    fingerprint = METHOD.fingerprint(s)
    scores = [
        [METHOD.similarity(fingerprint, task.answer(predict(m, fingerprint.queries))) for m in side]
        for side in (s.positives, s.negatives)
    ]
    assert min(scores[0]) > 0.9 > 0.1 > max(scores[1])
    assert ("labels" in fingerprint.state) == task.labelled


@TASKS
def test_raw_is_the_agreement_with_the_source(task):
    s = setting(task)
    fingerprint = METHOD.fingerprint(s)
    own, other = (task.answer(predict(m, fingerprint.queries)) for m in (s.source, s.negatives[0]))
    assert METHOD.raw(fingerprint, own) == 1.0
    if task.labelled:
        assert METHOD.raw(fingerprint, other) == (own.argmax(1) == other.argmax(1)).float().mean().item()
    else:
        explained = 1 - (own - other).square().sum(0) / (own - own.mean(0)).square().sum(0)
        assert METHOD.raw(fingerprint, other) == pytest.approx(max(0.0, explained.mean().item()), abs=1e-5)


def test_grey_starts_near_the_middle_and_training_images_where_they_are():
    s = setting(Classification(4), budget=12)
    grey = images(MetaV()._start(s))
    assert (grey - 0.5).abs().max() < 0.01 and grey.std() == pytest.approx(0.5e-3, rel=0.3)
    started = images(MetaV(init="train_images")._start(s))
    known = s.train.pixels().clamp(0.01, 0.99)
    nearest = torch.cdist(started.flatten(1), known.flatten(1)).min(1)
    assert nearest.values.max() < 1e-5 and len(nearest.indices.unique()) == 9


@pytest.mark.parametrize(
    ("change", "task", "message"),
    [
        ({"features": "logits"}, Regression(), "method.features=logits: expected a task with probabilities"),
        ({"iterations": 0}, Regression(), "method.iterations: expected 1 or more; got 0"),
    ],
)
def test_a_wrong_option_is_named(change, task, message):
    with pytest.raises(UserError, match=message):
        replace(METHOD, **change).fingerprint(setting(task))


def test_it_needs_surrogates():
    with pytest.raises(UserError, match="surrogates"):
        METHOD.fingerprint(replace(setting(Regression()), negatives=()))
