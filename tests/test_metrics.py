"""Metrics against closed forms, brute force and scikit-learn; tables as they are shown."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from fingerbench.evaluate import metrics, tables

GRID = np.arange(1, 101) / 100
NAN = float("nan")


def samples(count, steps=None):
    """Yield `count` pairs of random scores of random size, multiples of 1 / steps where steps is given."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        pair = [rng.beta(*rng.uniform(0.5, 4, 2), rng.integers(1, 40)) for _ in range(2)]
        yield [np.round(s * steps) / steps if steps else s for s in pair]


def grid_aruc(positive, negative):
    p, n = np.round(np.asarray(positive) * 100), np.round(np.asarray(negative) * 100)
    return np.mean([min(np.mean(p >= i), np.mean(n < i)) for i in range(1, 101)])


def frame(rows):
    """Return scores from (suspect, family, pirated, mirror_of, score)."""
    table = pd.DataFrame(rows, columns=["suspect", "family", "pirated", "mirror_of", "score"])
    return table.assign(attack=table["family"], variant=None, score_8bit=table["score"] / 2)


def test_aruc_of_perfect_separation_is_one_and_of_equal_scores_zero():
    assert metrics.aruc([1.0, 1.0], [0.0]) == 1.0
    for score in (0.0, 0.29, 0.5, 1.0):
        assert metrics.aruc([score] * 3, [score] * 5) == 0.0


def test_aruc_by_hand():
    # R = 1 to 0.8, then 0.5; U = 0 to 0.2, 0.5 to 0.4, then 1: 0.2 * 0.5 + 0.4 * 1 + 0.2 * 0.5
    assert metrics.aruc([0.8, 1.0], [0.2, 0.4]) == pytest.approx(0.6, abs=1e-12)
    assert metrics.aruc([0.0], [1.0]) == 0.0
    assert metrics.aruc([0.5], [0.25]) == 0.25


def test_aruc_equals_the_grid_formula_on_multiples_of_a_hundredth():
    for positive, negative in samples(150, steps=100):
        expected = grid_aruc(positive, negative)
        assert metrics.aruc(positive, negative) == pytest.approx(expected, abs=1e-12)
        wobble = np.random.default_rng(1).uniform(-4e-10, 4e-10, len(positive))
        assert metrics.aruc(positive + wobble, negative) == pytest.approx(expected, abs=1e-12)
        robustness, uniqueness = metrics.curves(positive, negative, GRID)
        assert np.minimum(robustness, uniqueness).mean() == pytest.approx(expected, abs=1e-12)


def test_aruc_is_the_limit_of_finer_grids_on_continuous_scores():
    fine = (np.arange(100_000) + 0.5) / 100_000
    for positive, negative in samples(20):
        expected = np.minimum(*metrics.curves(positive, negative, fine)).mean()
        assert metrics.aruc(positive, negative) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("k", range(101))
def test_curves_count_at_the_threshold_whatever_the_last_bit(k):
    for score in (k / 100, k * 0.01, sum([0.01] * k), 1 - (100 - k) / 100):
        for threshold in (k / 100, k * 0.01):
            robustness, uniqueness = metrics.curves([score], [score], [threshold])
            assert (robustness[0], uniqueness[0]) == (1, 0)


def test_scores_outside_zero_to_one_are_refused():
    for bad in (1.1, -0.1, NAN, float("inf")):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            metrics.aruc([bad], [0.5])


@pytest.mark.parametrize("steps", [None, 7, 100])
def test_auc_equals_scikit_learn(steps):
    for positive, negative in samples(100, steps):
        truth = [1] * len(positive) + [0] * len(negative)
        expected = roc_auc_score(truth, np.concatenate([positive, negative]))
        assert metrics.auc(positive, negative) == pytest.approx(expected, abs=1e-12)


def test_scores_of_a_verifier_that_saturates_are_ranked_as_they_are():
    for high, low in ((1 - 1e-13, 1 - 5e-13), (2e-13, 1e-13)):
        assert metrics.auc([high], [low]) == metrics.tpr_at_fpr([high], [low], 0) == 1


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.05, 0.29, 1.0])
@pytest.mark.parametrize("steps", [None, 10, 100])
def test_tpr_at_fpr_equals_brute_force_and_scikit_learn(fpr, steps):
    for positive, negative in samples(50, steps):
        thresholds = [*positive, *negative, 2.0]
        brute = max(np.mean(positive >= t) for t in thresholds if np.mean(negative >= t) <= fpr)
        assert metrics.tpr_at_fpr(positive, negative, fpr) == brute
        truth = [1] * len(positive) + [0] * len(negative)
        rates = roc_curve(truth, np.concatenate([positive, negative]), drop_intermediate=False)
        assert metrics.tpr_at_fpr(positive, negative, fpr) == pytest.approx(rates[1][rates[0] <= fpr].max())


def test_tpr_at_fpr_allows_whole_negatives_only():
    negative = np.arange(100) / 100
    assert metrics.tpr_at_fpr([0.99, 0.98, 0.5], negative, 0.01) == pytest.approx(1 / 3)
    assert metrics.tpr_at_fpr([0.71, 0.7], negative, 0.29) == 0.5  # 0.29 * 100 is a little less than 29
    assert metrics.tpr_at_fpr([0.99, 0.98, 0.5], negative[50:], 0.01) == 0.0


def test_separating_interval():
    assert metrics.separating_interval([0.9, 0.7], [0.2, 0.4]) == (0.4, 0.7)
    assert metrics.separating_interval([0.9, 0.4], [0.2, 0.4]) is None
    assert metrics.separating_interval([0.9], []) is None
    low, high = metrics.separating_interval([0.9, 0.7], [0.2, 0.4])
    robustness, uniqueness = metrics.curves([0.9, 0.7], [0.2, 0.4], [low, low + 1e-6, high, high + 1e-6])
    assert (robustness + uniqueness == 2).tolist() == [False, True, True, False]


def test_an_empty_side_is_undefined():
    for pair in (([], [0.5]), ([0.5], []), ([], [])):
        assert np.isnan(metrics.aruc(*pair))
        assert np.isnan(metrics.auc(*pair))
        assert np.isnan(metrics.tpr_at_fpr(*pair, 0.01))
        assert np.isnan(metrics.bootstrap(metrics.aruc, *pair)).all()


@pytest.mark.parametrize("statistic", [metrics.aruc, metrics.auc])
def test_bootstrap_is_deterministic_and_covers(statistic):
    rng = np.random.default_rng(0)
    positive, negative = rng.beta(6, 3, 63), rng.beta(3, 6, 91)
    low, high = metrics.bootstrap(statistic, positive, negative)
    assert low < statistic(positive, negative) < high
    assert (low, high) == metrics.bootstrap(statistic, positive, negative)
    assert (low, high) != metrics.bootstrap(statistic, positive, negative, seed=1)
    assert metrics.bootstrap(statistic, [1.0] * 5, [0.0] * 5) == (1.0, 1.0)


def test_bootstrap_of_a_mean_is_the_textbook_interval():
    positive = np.random.default_rng(0).uniform(0, 1, 400)
    low, high = metrics.bootstrap(lambda p, n: p.mean(), positive, [0.0] * 2)
    half = 1.96 * positive.std() / np.sqrt(400)
    assert (low, high) == pytest.approx((positive.mean() - half, positive.mean() + half), abs=0.1 * half)


@pytest.mark.parametrize(
    ("kept", "defined"), [([0, 4], False), ([0, 1, 4], False), ([0, 4, 5], False), ([0, 1, 4, 5], True)]
)
def test_one_suspect_of_a_side_leaves_nothing_to_draw(kept, defined):
    found = metrics.summary(frame([ROWS[i] for i in kept]))
    assert found["auc"] is not None and (found["auc_interval"] is not None) == defined
    assert (tables.totals_table(found).set_index("metric")["low"]["ARUC"] >= 0) == defined
    one = metrics.bootstrap(metrics.mean_over_runs(metrics.auc), [[0.9], [0.8]], [[0.1, 0.2]] * 2)
    assert np.isnan(one).all()


def test_bootstrap_draws_the_same_models_for_all_runs():
    rng = np.random.default_rng(0)
    positive, negative = rng.beta(6, 3, 20), rng.beta(3, 6, 30)
    twice = metrics.bootstrap(metrics.mean_over_runs(metrics.auc), [positive] * 2, [negative] * 2, n=200)
    assert twice == pytest.approx(metrics.bootstrap(metrics.auc, positive, negative, n=200))


ROWS = [
    ("source", "source", True, None, 1.0),
    ("prune/0.1", "prune", True, None, 0.9),
    ("prune/0.2", "prune", True, None, 0.3),
    ("prune/0.3", "prune", True, None, 0.8),
    ("mirror/prune/0.2", "prune", False, "prune/0.2", 0.4),
    ("mirror/prune/0.1", "prune", False, "prune/0.1", 0.2),
    ("scratch/vgg", "scratch", False, None, 0.1),
]


def test_margins_are_signed_and_pair_by_mirror_of():
    margins = metrics.margins(frame(ROWS)).set_index("suspect")
    assert margins.index.tolist() == ["source", "prune/0.1", "prune/0.2", "prune/0.3"]
    assert margins["margin"].tolist() == pytest.approx([NAN, 0.7, -0.1, NAN], nan_ok=True)
    assert margins["mirror"].isna().tolist() == [True, False, False, True]
    assert margins.loc["prune/0.2", "mirror"] == "mirror/prune/0.2"


def test_margins_refuse_two_mirrors_of_one():
    with pytest.raises(ValueError, match="one-to-one"):
        metrics.margins(frame([*ROWS, ("again", "prune", False, "prune/0.1", 0.2)]))


def test_abp_of_the_printed_rows():
    assert metrics.abp([1.0] * 6) == pytest.approx(3 * 3**0.5 / 2)
    assert metrics.abp([0.98, 0.89, 0.68, 1.00, 1.00, 1.00]) == pytest.approx(2.22, abs=0.005)  # CIFAR-10
    assert metrics.abp([0.68, 0.52, 0.12, 1.00, 0.94, 1.00]) == pytest.approx(1.34, abs=0.005)  # GTSRB
    with pytest.raises(ValueError, match="six"):
        metrics.abp([1.0] * 5)


def test_abp_of_a_whole_run():
    rows = [(f"{f}/{i}", f, True, None, s) for f in metrics.AXES for i, s in enumerate((0.9, 0.1))]
    found = metrics.summary(frame([*rows, ("scratch/a", "scratch", False, None, 0.5)]))
    assert found["abp"] == pytest.approx(metrics.abp([0.5] * 6))
    assert metrics.summary(frame(rows[2:]))["abp"] is None


def test_summary():
    found = metrics.summary(frame(ROWS))
    positive, negative = [1.0, 0.9, 0.3, 0.8], [0.4, 0.2, 0.1]
    assert found["n"] == {"positives": 4, "negatives": 3}
    assert found["aruc"] == metrics.aruc(positive, negative)
    assert found["auc"] == metrics.auc(positive, negative)
    assert found["aruc_interval"] == list(metrics.bootstrap(metrics.aruc, positive, negative))
    assert found["aruc_8bit"] == metrics.aruc(np.array(positive) / 2, np.array(negative) / 2) < found["aruc"]
    assert found["auc_8bit"] == found["auc"]
    assert found["tpr_at_1fpr"] == 0.75
    assert found["separating_interval"] is None
    assert list(found["families"]) == ["source", "prune", "scratch"]
    assert found["families"]["prune"] == {
        "n_positives": 3,
        "n_negatives": 2,
        "positives": pytest.approx(2 / 3),
        "negatives": pytest.approx(0.3),
        "margin": pytest.approx(0.3),
        "auc": pytest.approx(8 / 9),  # against all three negatives
    }
    assert found["families"]["scratch"]["margin"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("kept", [slice(0, 4), slice(4, 7), slice(0, 0)])
def test_summary_of_one_side_is_null_not_a_crash(kept):
    found = metrics.summary(frame(ROWS[kept]))
    undefined = ("aruc", "aruc_interval", "auc", "auc_interval", "tpr_at_1fpr", "tpr_at_5fpr", "separating_interval")
    assert [found[name] for name in undefined] == [None] * 7
    json.dumps(found, allow_nan=False)
    tables.results(found, "title")


def test_tables_hold_unrounded_numbers_and_show_three_decimals():
    found = metrics.summary(frame(ROWS))
    families, totals = tables.family_table(found), tables.totals_table(found)
    assert families.set_index("family").loc["prune", "positives"] == found["families"]["prune"]["positives"]
    assert totals.set_index("metric").loc["ARUC", ["value", "low", "high"]].tolist() == [
        found["aruc"],
        *found["aruc_interval"],
    ]
    lines = tables.markdown(families).splitlines()
    assert lines[3] == "| prune | 3 | 2 | 0.667 | 0.300 | 0.300 | 0.889 |"
    assert lines[4] == "| scratch | 0 | 1 | - | 0.100 | - | - |"


def test_results_print_every_family_and_total(capsys):
    from rich.console import Console

    Console(width=100).print(tables.results(metrics.summary(frame(ROWS)), "method [x]"))
    printed = capsys.readouterr().out
    for text in ("method [x]", "scratch", "ARUC", "AUC", "TPR at 1 % FPR", "separating", "4 positives, 3 negatives"):
        assert text in printed


def test_cells():
    values = (None, NAN, -0.0001, 0.5, 3, "x")
    assert [tables.cell(v) for v in values] == ["-", "-", "0.000", "0.500", "3", "x"]
    assert tables.spread(0.25, 0.5) == "[0.250, 0.500]"
    assert tables.spread(0.25, 0.5, "(]") == "(0.250, 0.500]"
    assert tables.estimate(0.3, 0.25, 0.5) == "0.300 [0.250, 0.500]"
    assert tables.estimate(None, None, None) == "-"
