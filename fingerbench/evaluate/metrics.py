"""What the scores of one run say: pure functions of the scores of positives and negatives.

A score lies in [0, 1], higher = more likely stolen; a suspect is accused at threshold t if its score >= t.
Positives are the models stolen from the source, negatives the independent ones. Robustness R(t) is the share of
positives with score >= t (the true positive rate), uniqueness U(t) the share of negatives with score < t (the true
negative rate). Where a side has no models, what needs it is NaN, and None in `summary`.

Sources: ARUC is due to MetaV (Pan et al., KDD 2022) and, like the mirrors and the matching-rate margin, used as in
NaturalFinger (Yang et al. 2023, arXiv 2305.17868). The matching rate that most methods score with goes back to IPGuard
(Cao et al., AsiaCCS 2021); MetaFinger (IJCAI 2022) uses it as query accuracy. AUC, TPR at a given FPR and the
bootstrap are standard statistics. The bootstrap draws suspects as if they were independent of each other; but all
positives descend from one source and most negatives from one mirror (`origins`), so its intervals are about this source
alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from pandas import DataFrame, Series

SCHEMA = 1  # of metrics.json; those of before it had one are the same
Floats = NDArray[np.float64]
Statistic = Callable[[Floats, Floats], float]

AXES = ("finetune", "prune", "noise", "adversarial", "distill", "knockoff")  # of `abp`; default: not published
DIGITS = 12  # after the point, of scores that are compared: 0.62 + 0.63 + 0.64 must tie with 0.63 + 0.63 + 0.63
SNAP = 1e-9  # a number this close to a multiple of 0.01 is meant to be it: 0.29 and 29/100 may differ in the last bit


def checked(values: ArrayLike) -> Floats:
    """Return `values` as float64.

    ValueError: a value is not a number in [0, 1].
    """
    x = np.asarray(values, dtype=np.float64)
    outside = x[~((x >= -SNAP) & (x <= 1 + SNAP))]
    if outside.size:
        raise ValueError(f"expected scores and thresholds in [0, 1], got {outside[0]}")
    return x


def snapped(values: ArrayLike) -> Floats:
    """Return `checked` values, those within 1e-9 of a multiple of 0.01 set to that multiple.

    For what compares scores with thresholds. What ranks scores takes them as they are: a verifier that saturates, such
    as MetaV's, gives many that differ by less. Means over draws are exact to DIGITS alone.
    """
    x = checked(values)
    near = np.round(x * 100) / 100
    return np.where(np.abs(x - near) <= SNAP, near, x)


def curves(positive: ArrayLike, negative: ArrayLike, thresholds: ArrayLike) -> tuple[Floats, Floats]:
    """Return robustness R(t) and uniqueness U(t), each (t,) in [0, 1], at `thresholds` (t,) in [0, 1].

    R counts scores >= t, U scores < t. A side without scores gives NaN.
    """
    p, n, t = np.sort(snapped(positive)), np.sort(snapped(negative)), snapped(thresholds)
    robustness = (len(p) - np.searchsorted(p, t)) / len(p) if len(p) else np.full(t.shape, np.nan)
    uniqueness = np.searchsorted(n, t) / len(n) if len(n) else np.full(t.shape, np.nan)
    return robustness, uniqueness


def breakpoints(*scores: ArrayLike) -> Floats:
    """Return 0, 1 and every distinct score between, ascending: where `curves` may step.

    Both curves are constant on each interval (b[i - 1], b[i]], with the value that they have at b[i].
    """
    return np.unique(np.concatenate([[0.0, 1.0], *(snapped(s) for s in scores)]))


def aruc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Return the area under both curves at once: the integral of min(R(t), U(t)) over t in [0, 1]; in [0, 1].

    The integral is exact. If all scores are multiples of 0.01, both curves are constant on each ((i - 1)/100, i/100],
    so that it equals the usual sum, the mean over t = 0.01, 0.02, ..., 1 of min(R(t), U(t)); it also holds for
    continuous scores, and for query counts that do not divide 100. NaN if a side is empty.
    Source: MetaV (Pan et al., KDD 2022); NaturalFinger (Yang et al. 2023).
    """
    t = breakpoints(positive, negative)
    robustness, uniqueness = curves(positive, negative, t[1:])
    return float(np.diff(t) @ np.minimum(robustness, uniqueness))


def auc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Return the area under the ROC curve, in [0, 1]: how often a positive outscores a negative, ties half.

    The Mann-Whitney form, equal to the trapezoidal area and faster to bootstrap. NaN if a side is empty.
    """
    p, n = checked(positive), np.sort(checked(negative))
    if not len(p) or not len(n):
        return float("nan")
    wins = np.searchsorted(n, p, side="left") + np.searchsorted(n, p, side="right")
    return float(wins.sum() / (2 * len(p) * len(n)))


def tpr_at_fpr(positive: ArrayLike, negative: ArrayLike, fpr: float) -> float:
    """Return the highest true positive rate of all thresholds that accuse at most a share `fpr` of the negatives.

    No interpolation: with fewer than 1 / fpr negatives not one may be accused. NaN if a side is empty.
    """
    p, n = checked(positive), np.sort(checked(negative))[::-1]
    if not len(p) or not len(n):
        return float("nan")
    allowed = int(fpr * len(n) + SNAP)  # 0.29 * 100 is 28.999...
    # The threshold must lie above the first negative too many; just above it is best.
    return float(np.mean(p > n[allowed])) if allowed < len(n) else 1.0


def separating_interval(positive: ArrayLike, negative: ArrayLike) -> tuple[float, float] | None:
    """Return (low, high), low < high: every threshold low < t <= high has TPR = TNR = 1, and no other has.

    low is the largest negative, high the smallest positive score. None if no threshold separates, or a side is
    empty. Source: the comparison of such intervals in NaturalFinger (Yang et al. 2023).
    """
    p, n = snapped(positive), snapped(negative)
    if not len(p) or not len(n) or n.max() >= p.min():
        return None
    return float(n.max()), float(p.min())


def bootstrap(
    statistic: Statistic, positive: ArrayLike, negative: ArrayLike, n: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval (low, high) of `statistic`, from `n` resamples.

    positive, negative: (..., models); the models, the last axis, are drawn with replacement, positives and negatives
    separately, and the same for all leading indices (such as runs with several seeds over the same suspects). The
    interval tells how much hangs on the choice of suspects. NaN, NaN if a side has fewer than two, whose choice no
    resample varies.
    """
    p, q = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    if not p.size or not q.size or min(p.shape[-1], q.shape[-1]) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    draws_p = rng.integers(p.shape[-1], size=(n, p.shape[-1]))
    draws_q = rng.integers(q.shape[-1], size=(n, q.shape[-1]))
    values = [statistic(p[..., i], q[..., j]) for i, j in zip(draws_p, draws_q, strict=True)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def mean_over_runs(statistic: Statistic) -> Statistic:
    """Return the mean of `statistic` over runs, for `bootstrap`: of positives (runs, p) and negatives (runs, n)."""

    def mean(positive: Floats, negative: Floats) -> float:
        return float(np.mean([statistic(p, n) for p, n in zip(positive, negative, strict=True)]))

    return mean


def abp(aucs: ArrayLike) -> float:
    """Return the area bounded by the polygon of six AUCs on a radar chart, in [0, 3 sqrt(3) / 2].

    aucs: (6,) in the order of the axes, on which the area depends. sqrt(3) / 4 times the sum of the products of
    neighbours. Source: FreqGAN (Liu and Zhong, IJCAI 2025), in the form of the same authors' MarginFinger code.
    """
    a = np.asarray(aucs, dtype=np.float64)
    if a.shape != (6,):
        raise ValueError(f"expected six AUCs, got an array of shape {a.shape}")
    return float(np.sqrt(3) / 4 * (a * np.roll(a, -1)).sum())


def sides(frame: DataFrame, column: str = "score") -> tuple[Floats, Floats]:
    """Return the scores of the positives and of the negatives of `frame`, in its order, from `column`."""
    pirated = frame["pirated"].astype(bool)
    scores = frame[column].astype(float)
    return scores[pirated].to_numpy(), scores[~pirated].to_numpy()


def origins(frame: DataFrame) -> Series:
    """Return of each negative of `frame`, in its order, which network trained from random weights it descends from.

    Mirrors descend from that of the source, "mirror"; a student "scratch-distill/X" from "scratch/X"; others from none.
    """
    alone = frame[~frame["pirated"].astype(bool)]
    own = alone["suspect"].str.replace("scratch-distill/", "scratch/", regex=False)
    return own.where(alone["mirror_of"].isna(), "mirror")


def margins(frame: DataFrame) -> DataFrame:
    """Return the matching-rate margin of every positive in the scores of one run, in the order of `frame`.

    Columns: family, attack, variant, suspect, mirror, positive, negative, margin; margin = score of the positive -
    score of its mirror, the independent model that underwent the same attack, in [-1, 1] and signed. Where the frame
    holds no mirror, mirror, negative and margin are missing. ValueError: a suspect or a mirror occurs twice.
    Source: NaturalFinger (Yang et al. 2023).
    """
    pirated = frame["pirated"].astype(bool)
    positives = frame.loc[pirated, ["family", "attack", "variant", "suspect", "score"]]
    mirrors = frame.loc[~pirated & frame["mirror_of"].isin(positives["suspect"]), ["mirror_of", "suspect", "score"]]
    mirrors = mirrors.set_axis(["suspect", "mirror", "negative"], axis=1)
    pairs = positives.rename(columns={"score": "positive"})
    pairs = pairs.merge(mirrors, on="suspect", how="left", validate="one_to_one")
    pairs["margin"] = pairs["positive"] - pairs["negative"]
    return pairs[["family", "attack", "variant", "suspect", "mirror", "positive", "negative", "margin"]]


def summary(frame: DataFrame) -> dict[str, Any]:
    """Return every metric of the scores of one run, ready for JSON and unrounded; None = undefined.

    Keys: n {positives, negatives}; aruc, auc and their 95 % bootstrap intervals aruc_interval, auc_interval [low,
    high]; tpr_at_1fpr, tpr_at_5fpr; aruc_8bit, auc_8bit, of the queries as an API receives them, rounded to 8 bits a
    value; abp, of the AUCs of AXES, None unless all are there; separating_interval [low, high], of the thresholds low <
    t <= high, None also if none separates; families {family: `family_summary`}, in the order of `frame`. It may be any
    part of the suspects: all is then relative to that part. A side of one suspect has no bootstrap interval.
    """
    positive, negative = sides(frame)
    rounded = sides(frame, "score_8bit")
    interval = separating_interval(positive, negative)
    families = {str(f): family_summary(frame, str(f)) for f in frame["family"].unique()}
    corners = [families[name]["auc"] if name in families else None for name in AXES]
    return {
        "n": {"positives": len(positive), "negatives": len(negative)},
        "aruc": _defined(aruc(positive, negative)),
        "aruc_interval": _interval(aruc, positive, negative),
        "auc": _defined(auc(positive, negative)),
        "auc_interval": _interval(auc, positive, negative),
        "tpr_at_1fpr": _defined(tpr_at_fpr(positive, negative, 0.01)),
        "tpr_at_5fpr": _defined(tpr_at_fpr(positive, negative, 0.05)),
        "aruc_8bit": _defined(aruc(*rounded)),
        "auc_8bit": _defined(auc(*rounded)),
        "separating_interval": None if interval is None else list(interval),
        "abp": None if None in corners else abp(np.array(corners, dtype=np.float64)),
        "families": families,
    }


def family_summary(frame: DataFrame, family: str) -> dict[str, float | int | None]:
    """Return the metrics of one family of the scores of one run; None = undefined.

    n_positives, n_negatives: models of the family; positives, negatives: their mean scores, the negatives being the
    mirrors in an attack's family; margin: mean of `margins` over the positives whose mirror is there; auc: of the
    family's positives against *all* negatives in the frame, as a judge would meet them.
    """
    own = frame[frame["family"] == family]
    positive, negative = sides(own)
    return {
        "n_positives": len(positive),
        "n_negatives": len(negative),
        "positives": _mean(positive),
        "negatives": _mean(negative),
        "margin": _mean(margins(own)["margin"].dropna().to_numpy()),
        "auc": _defined(auc(positive, sides(frame)[1])),
    }


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else value


def _interval(statistic: Statistic, positive: Floats, negative: Floats) -> list[float] | None:
    low, high = bootstrap(statistic, positive, negative)
    return None if np.isnan(low) else [low, high]
