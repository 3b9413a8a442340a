"""Tasks, and a whole benchmark on a regression: diabetes, perceptrons, MetaV."""

import pandas as pd
import pytest
import torch
from conftest import run
from torch.nn import functional as F

import fingerbench as fb
from fingerbench import config, ops
from fingerbench.data import SPLITS, check, digest
from fingerbench.data.diabetes import PATIENTS, Diabetes
from fingerbench.errors import UserError
from fingerbench.evaluate import experiment
from fingerbench.evaluate.images import query_grid
from fingerbench.evaluate.run import models
from fingerbench.nets import PERCEPTRONS, final_layer, network
from fingerbench.records import Dataset, Images
from fingerbench.task import Classification, Regression

LOGITS = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 1.0]])


def test_a_classification_answers_softmax_and_counts_equal_labels():
    task = Classification(3)
    torch.testing.assert_close(task.answer(LOGITS), LOGITS.exp() / LOGITS.exp().sum(1, keepdim=True))
    assert task.outputs == 3 and task.label(LOGITS).tolist() == [0, 1]
    assert task.quality(LOGITS, torch.tensor([0, 2])) == 0.5
    assert task.agreement(LOGITS, LOGITS.flip(0)) == 0.0
    assert torch.equal(task.loss(LOGITS, torch.tensor([0, 2])), F.cross_entropy(LOGITS, torch.tensor([0, 2])))


def test_a_regression_answers_its_predictions_and_is_measured_by_r2():
    from sklearn.metrics import r2_score

    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(20, 2, generator=generator)
    predicted = truth + 0.3 * torch.randn(20, 2, generator=generator)
    task = Regression(2)
    assert torch.equal(task.answer(predicted), predicted)
    assert task.quality(predicted, truth) == pytest.approx(r2_score(truth, predicted), abs=1e-6)
    assert task.agreement(predicted, truth) == pytest.approx(r2_score(truth, predicted), abs=1e-6)
    squares = (truth - predicted).square().mean().item()
    assert task.loss(predicted, truth).item() == pytest.approx(squares)
    assert task.imitation(predicted, truth, 4.0).item() == pytest.approx(squares)


def test_r2_of_a_constant_truth_is_finite():
    assert ops.r2(torch.ones(4, 1), torch.ones(4, 1)) == 1.0
    assert -float("inf") < ops.r2(torch.ones(4, 1), torch.zeros(4, 1)) < -1e6


def test_a_regression_has_no_labels_and_a_classification_two_classes():
    with pytest.raises(UserError, match="a regression has no labels"):
        Regression().label(LOGITS)
    with pytest.raises(UserError, match="expected 2 or more classes; got 1"):
        Classification(1)


def test_pixels_are_scaled_by_255_or_taken_as_they_are():
    assert ops.pixels(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    assert torch.equal(ops.pixels(torch.tensor([0.1, 0.9])), torch.tensor([0.1, 0.9]))


def test_diabetes_is_split_without_loss_and_scaled_to_the_unit_interval():
    from sklearn.datasets import load_diabetes

    dataset = Diabetes().load()
    check(dataset)
    assert [len(getattr(dataset, name)) for name in SPLITS[:-1]] == [150, 150, 71, 71] and dataset.transfer is None
    assert dataset.shape == (1, 1, 10) and dataset.task == Regression()
    rows = torch.cat([getattr(dataset, name).x.flatten(1) for name in SPLITS[:-1]])
    truth = torch.cat([getattr(dataset, name).y for name in SPLITS[:-1]])
    together = torch.cat([rows, truth], 1)
    assert together.min(0).values.tolist() == [0] * 11 and together.max(0).values.tolist() == [1] * 11
    x, y = load_diabetes(return_X_y=True, scaled=False)
    whole = torch.cat([torch.from_numpy(x), torch.from_numpy(y)[:, None]], 1)
    restored = together.double() * (whole.max(0).values - whole.min(0).values) + whole.min(0).values
    distance = torch.cdist(restored, whole)
    assert distance.min(1).values.max() < 1e-3 and len(distance.argmin(1).unique()) == PATIENTS
    assert digest(dataset) == digest(Diabetes().load()) != digest(Diabetes(seed=1).load())


def test_too_large_halves_of_diabetes_are_refused():
    with pytest.raises(UserError, match=r"data\.half: expected a number of patients from 2 to 200; got 221"):
        Diabetes(half=221).load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: Images(i.x + 1, i.y), "a: expected uint8 images .* or float32 ones in .0, 1."),
        (lambda i: Images(i.x, i.y[:, 0]), r"a: expected float32 values \(150, 1\)"),
        (lambda i: Images(i.x, i.y * float("nan")), "a: expected finite values, not all the same"),
        (lambda i: Images(i.x, i.y * 0), "a: expected finite values, not all the same"),
    ],
)
def test_a_wrong_regression_is_refused(change, message):
    d = Diabetes().load()
    with pytest.raises(UserError, match=message):
        check(Dataset(d.name, d.task, change(d.a), d.b, d.finetune, d.test, None))


@pytest.mark.parametrize("name", PERCEPTRONS)
def test_perceptrons_take_rows_and_end_in_a_linear_layer(name):
    with torch.device("meta"):
        copy = network(name, 1, 0.5, shape=(1, 1, 10)).eval()
    model, x = network(name, 1, 0.5, shape=(1, 1, 10)).eval(), torch.rand(4, 1, 1, 10)
    copy.load_state_dict(model.state_dict(), assign=True)
    assert model(x).shape == (4, 1) and torch.equal(copy(x), model(x))
    assert final_layer(model).out_features == 1
    full = network(name, 1, shape=(1, 1, 10))
    sizes = {"mlp": 10 * 64 + 64 * 64 + 64, "mlp_deep": 10 * 32 + 3 * 32 * 32 + 32, "mlp_wide": 10 * 256 + 256}
    assert sum(p.numel() for p in full.parameters() if p.ndim == 2) == sizes[name]


def test_a_convolutional_network_refuses_rows():
    with pytest.raises(UserError, match="resnet18: expected 3 channels of 16x16 or more"):
        network("resnet18", 1, shape=(1, 1, 10))


def test_queries_of_one_row_can_be_drawn():
    for channels in (1, 2, 3, 4):
        assert query_grid(torch.rand(12, channels, 1, 10)).axes[0].images[0].get_array().shape == (1, 10, 3)


SMALL = [
    "experiment=metav_regression",
    "surrogates.positives=[mlp,mlp_deep]",
    "surrogates.scratch=[mlp,mlp_deep]",
    "surrogates.distilled=[mlp]",
    "attack=[source,finetune,distill,scratch]",
    "zoo.training.epochs=40",
    "queries=20",
    "jobs=1",
]


def test_a_regression_runs_from_end_to_end(tmp_path):
    store, folder = tmp_path / "store", tmp_path / "run"
    words = [*SMALL, "method.iterations=60", "method.lr=0.01"]
    output = run(store, folder, *words, tiny=False)
    scores = pd.read_csv(folder / "cells.csv").set_index("suspect")
    assert len(scores) == 2 * (1 + 4 + 3) + 2 and scores.score.between(0, 1).all() and scores.score.nunique() > 3
    assert scores.raw["source"] == 1.0 and scores.raw["mirror/source"] < 1.0
    assert set(scores.method) == {"metav"} and set(scores.source) == {"diabetes/mlp"}
    bench = fb.open(*words, f"store={store}")
    made = models(bench).set_index("name")
    assert made.r2["source"] > 0.2 and made.agreement["finetune/FTLL"] > 0.2
    assert 0 <= pd.read_csv(folder / "comparison.csv").aruc[0] <= 1 and "ARUC" in output
    fingerprint = bench.fingerprint()
    assert fingerprint.queries.shape == (20, 1, 1, 10) and "labels" not in fingerprint.state
    families = pd.read_csv(folder / "families.csv").set_index("family")
    own = scores[(scores.family == "finetune") & scores.pirated]
    assert len(own) == families["n+"]["finetune"] == 4
    assert families.positives["finetune"] == pytest.approx(own.score.mean())
    assert (folder / "aruc.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("method=ipguard", "method=ipguard: expected a data set with classes, or a method with access to outputs"),
        ("method=naturalfinger", "method=naturalfinger: expected a data set with classes, or a method with access to"),
        ("attack=adversarial", "attack=adversarial: expected a data set with classes, or attack="),
        ("attack=knockoff", "attack=knockoff: expected a data set with classes, or attack="),
    ],
)
def test_what_a_regression_cannot_do_is_told_in_one_line(word, answer):
    words = [*SMALL, word]
    with pytest.raises(UserError, match=f"^{answer}"):
        experiment.plan(config.compose(words), words)
