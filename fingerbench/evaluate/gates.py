"""Gates: what must hold of a zoo before methods are judged by it.

A stolen model that forgot its task, an independent one that never learnt it, or a mirror unlike its positive makes
every score say something else than it seems to. Gates compare accuracies and labels, so a regression has none; a
selection in which a gate has nothing to compare skips it. They are the zoo's own: an evasion changes nothing.
"""

from __future__ import annotations

import io
import logging
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fingerbench import config
from fingerbench.errors import UserError, is_number, one_line, require, writing
from fingerbench.evaluate.metrics import DIGITS
from fingerbench.evaluate.specs import AgreementSpec
from fingerbench.untrusted import content
from fingerbench.zoo.table import MIRROR, SOURCE

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    from fingerbench.bench import Bench
    from fingerbench.zoo.model import ModelSpec

log = logging.getLogger(__name__)

GATES = {  # name: how a value stands to its limit, and how it is written where it does not
    "learnt": (operator.ge, "<"),  # accuracy of the source, and of the surrogates that the method learns from
    "kept": (operator.ge, "<"),  # accuracy of a positive
    "independent": (operator.ge, "<"),  # accuracy of an independent model
    "mirror": (operator.le, ">"),  # difference in accuracy between a mirror and its positive
    "agreement": (operator.gt, "<="),  # of a positive with the source; the limit is its mirror's
}
COLUMNS = ("suspect", "gate", "value", "limit", "holds")
RECIPES = {  # of `zoo`, by which a family is trained; others, yours perhaps, by its tuning
    "surrogate": "training",  # or by `distill`, which trains as long unless told otherwise
    "source": "training",
    "scratch": "training",
    "same-half": "training",
    "distill": "distill",
    "scratch-distill": "distill",
    "knockoff": "knockoff",
}
FILE = "gates.csv"  # in the folder of a run
NAMED = 3  # of those that fail a gate, the worst first

Finding = tuple[str, str, float, float]
"""Suspect, gate, value, limit."""


@dataclass(frozen=True)
class Gates:
    """The limits, and what happens to a zoo that breaks one. Default of each: not published.

    action: "stop" refuses the zoo, "warn" says so and goes on, "off" does not look. learnt: share of the errors of a
    guess, the most frequent class, that the source and the surrogates make at most, so that a zoo in which nothing was
    learnt does not hold for being alike; kept: share of the source's accuracy that a positive keeps; independent: share
    of the median accuracy of the independent models that each of them has; mirror: the largest difference in accuracy
    between a mirror and its positive; spared: patterns of positives, such as "prune/*", that need not keep what `kept`
    says.
    """

    action: Literal["stop", "warn", "off"]
    learnt: float
    kept: float
    independent: float
    mirror: float
    spared: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("learnt", "kept", "independent", "mirror"):
            value = getattr(self, name)
            sound = is_number(value) and 0 <= value <= 1
            require(sound, f"gates.{name}", "a number from 0 to 1", value)
        require(not isinstance(self.spared, str), "gates.spared", "a list such as [prune/0.9]", self.spared)

    def findings(self, facts: DataFrame, surrogates: Mapping[str, float], guess: float) -> DataFrame:
        """Return a row for each thing that is to hold: suspect, gate (see GATES), value, limit, holds.

        facts: a row a suspect, the source among them: suspect, pirated, mirror_of, accuracy, agreement (share of labels
        that are the source's; missing where unknown). surrogates: accuracies by name. guess: accuracy of who always
        says the most frequent class.
        """
        import pandas as pd

        learners = {SOURCE: _by_name(facts, "accuracy")[SOURCE], **surrogates}
        learnt = ((name, "learnt", value, 1 - self.learnt * (1 - guess)) for name, value in learners.items())
        every = (*learnt, *self._kept(facts), *self._independent(facts), *self._pairs(facts))
        rows = ((name, gate, round(value, DIGITS), round(limit, DIGITS)) for name, gate, value, limit in every)
        return pd.DataFrame([(*row, GATES[row[1]][0](*row[2:])) for row in rows], columns=list(COLUMNS))

    def _kept(self, facts: DataFrame) -> Iterator[Finding]:
        accuracies = _by_name(facts, "accuracy")
        for name in facts["suspect"][facts["pirated"]]:
            if name != SOURCE and not any(fnmatchcase(name, pattern) for pattern in self.spared):
                yield name, "kept", accuracies[name], self.kept * accuracies[SOURCE]

    def _independent(self, facts: DataFrame) -> Iterator[Finding]:
        copied = facts["mirror_of"].notna() & (facts["mirror_of"] != SOURCE)  # mirrors of thefts, made from its mirror
        alone = facts[~facts["pirated"] & ~copied]
        for name, accuracy in _by_name(alone, "accuracy").items() if len(alone) > 1 else ():
            yield name, "independent", accuracy, self.independent * float(alone["accuracy"].median())

    def _pairs(self, facts: DataFrame) -> Iterator[Finding]:
        accuracies, agreements = _by_name(facts, "accuracy"), _by_name(facts.dropna(subset="agreement"), "agreement")
        both = facts[facts["mirror_of"].isin(accuracies)]
        for mirror, positive in both[["suspect", "mirror_of"]].itertuples(index=False):
            yield mirror, "mirror", abs(accuracies[mirror] - accuracies[positive]), self.mirror
            if mirror in agreements and positive in agreements:
                yield positive, "agreement", agreements[positive], agreements[mirror]


def _by_name(facts: DataFrame, column: str) -> dict[str, float]:
    return dict(zip(facts["suspect"], facts[column].astype(float).tolist(), strict=True))


def chosen(bench: Bench) -> Gates | None:
    """Return the gates of a benchmark; None where they are off, or where there are no classes."""
    gates: Gates = config.build(bench.settings.gates)
    return gates if gates.action != "off" and bench.data.task.labelled else None


def plan(bench: Bench) -> list[AgreementSpec]:
    """Return what the gates need beside the models: how often mirrors answer what the source does."""
    return list(_agreements(bench).values())


def _agreements(bench: Bench) -> dict[str, AgreementSpec]:
    """Return what is to be measured of mirrors and their positives, by name."""
    gates, source = chosen(bench), bench.zoo.original()
    if gates is None:
        return {}
    pairs = ((s.name, s.mirror_of) for s in bench.suspects if s.mirror_of in bench.models)
    specs = {name: bench.models[name] for pair in pairs for name in pair if name}
    asked = {name: spec for name, spec in specs.items() if spec.key != source.key and not _made_of(spec, source)}
    return {name: AgreementSpec(spec, source) for name, spec in asked.items()}


def _made_of(spec: ModelSpec, source: ModelSpec) -> bool:
    """Tell whether the record of a model has its agreement with the source, since that is its parent."""
    return spec.parent is not None and spec.parent.key == source.key


def facts(bench: Bench) -> DataFrame:
    """Return what `Gates.findings` takes, from stored records alone. The source is there even if not selected."""
    import pandas as pd

    source, asked, store = bench.zoo.original(), _agreements(bench), bench.store
    models, quality = {**bench.models, SOURCE: source}, bench.data.task.quality_name

    def row(name: str, pirated: bool, mirror_of: str | None) -> dict[str, Any]:
        record = store.facts(models[name])
        agreement = record["agreement"] if _made_of(models[name], source) else None
        if name in asked:
            agreement = store.facts(asked[name])["agreement"]
        measured = {"accuracy": record[quality], "agreement": 1.0 if name == SOURCE else agreement}
        return {"suspect": name, "pirated": pirated, "mirror_of": mirror_of, **measured}

    selected = [(s.name, s.pirated, s.mirror_of) for s in bench.suspects if s.name != SOURCE]
    return pd.DataFrame([row(*suspect) for suspect in [(SOURCE, True, None), *selected]])


def surrogates(bench: Bench) -> dict[str, float]:
    """Return the accuracies of the surrogates that the method learns from, by name; a copy of a suspect is none."""
    spec, suspects = bench.fingerprint_spec, {model.key for model in bench.models.values()}
    own = [model for model in (*spec.positives, *spec.negatives) if model.key not in suspects]
    return {model.name: bench.store.facts(model)[bench.data.task.quality_name] for model in own}


def guess(bench: Bench) -> float:
    """Return the accuracy on the test split of who always says its most frequent class."""
    labels = bench.data.test.y
    return float(labels.bincount().max()) / len(labels)


def judge(bench: Bench, folder: Path) -> None:
    """Write FILE into `folder`, all findings on a built zoo, and do with a zoo that breaks a gate what is asked.

    Where there are no gates there is no FILE.

    Raises:
        UserError: it breaks one, and the action is "stop".
    """
    gates = chosen(bench)
    if gates is None:
        with writing(folder, "hydra.run.dir"):
            (folder / FILE).unlink(missing_ok=True)  # an earlier run's: nobody looked at this zoo
        return
    findings = gates.findings(facts(bench), surrogates(bench), guess(bench))
    with writing(folder, "hydra.run.dir"):
        folder.mkdir(parents=True, exist_ok=True)
        findings.to_csv(folder / FILE, index=False)
    log.info("%s", summary(findings))
    if findings["holds"].all():
        return
    broken = f"{complaint(findings)}; all findings: {folder / FILE}{_doubt(bench, findings)}"
    if gates.action == "warn":
        log.warning("%s", broken)
        return
    recipes = _recipes(findings)
    longer = " or ".join(f"zoo.{name}.epochs=N above {bench.settings.zoo[name].epochs}" for name in recipes)
    raise UserError(
        f"{broken}; nothing built is lost: gates.action=warn goes on all the same, {longer} trains longer what broke "
        f"them, {_rates(findings)}and gates.spared=[PATTERN,...] lists attacks that are meant to hurt"
    )


def _rates(findings: DataFrame) -> str:
    """Return what may help networks that collapsed; pairs that are unlike each other are no sign of it."""
    collapsed = findings[findings["gate"].isin(["learnt", "kept", "independent"])]
    rates = " or ".join(f"zoo.{name}.lr" for name in _recipes(collapsed))
    return f"a lower {rates} may save networks that collapsed, " if rates else ""


def _recipes(findings: DataFrame) -> list[str]:
    """Return the recipes of `zoo` by which what breaks a gate was trained."""
    broken = findings.loc[~findings["holds"], "suspect"]
    families = (name.removeprefix(MIRROR).partition("/")[0] for name in broken)
    return sorted({RECIPES.get(family, "tuning") for family in families})


def _doubt(bench: Bench, findings: DataFrame) -> str:
    """Return what to ask about a source that was given and knows nothing of these images; no training helps it."""
    of_source = findings[(findings["suspect"] == SOURCE) & (findings["gate"] == "learnt")]
    if bench.settings.zoo.weights is None or of_source["holds"].all():
        return ""
    return "; has zoo.weights the classes in the order of the data, and does its network take images in [0, 1]?"


def read(folder: Path) -> DataFrame:
    """Return the findings in the folder of a run, which may be a stranger's; none where nobody looked.

    Raises:
        UserError: the file is damaged.
    """
    import pandas as pd

    path = folder / FILE
    if not path.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    try:
        frame = pd.read_csv(io.BytesIO(content(path)), dtype=str)[list(COLUMNS)]
        frame["holds"] = frame["holds"].map({"True": True, "False": False}).astype("boolean").to_numpy(bool)
        frame = frame.astype({"value": float, "limit": float})
        sound = frame["gate"].isin(GATES).all() and all(map(str.isprintable, frame["suspect"]))
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not the gates of a run ({one_line(error)}); run it again") from error
    require(bool(sound), str(path), f"gates {', '.join(GATES)} of suspects, as runs write them", "others")
    return frame


def shortfall(findings: DataFrame) -> Series:
    """Return by how much each value is on the wrong side of its limit, in accuracy; negative = on the right side."""
    short = findings["limit"] - findings["value"]
    return short.where(findings["gate"] != "mirror", -short)


def summary(findings: DataFrame) -> str:
    """Return how many hold, and the worst, in one line."""
    if not len(findings):
        return "gates: nothing to compare"
    worst = findings.loc[shortfall(findings).idxmax()]
    value, limit = _apart(worst["value"], worst["limit"])
    where = f"{worst['suspect']}, {worst['gate']} {value} with limit {limit}"
    return f"gates: {findings['holds'].sum()} of {len(findings)} hold; worst: {where}"


def _apart(value: float, limit: float) -> tuple[str, str]:
    """Return both with three decimals, or as many more as it takes to tell them apart; equal ones need none."""
    for decimals in range(3, DIGITS + 1):  # findings have no more
        texts = f"{value:.{decimals}f}", f"{limit:.{decimals}f}"
        if value == limit or texts[0] != texts[1]:
            break
    return texts


def complaint(findings: DataFrame) -> str:
    """Return which gates are broken, each with the number of suspects that break it and the worst of them."""
    failed = findings[~findings["holds"]]
    failed = failed.assign(short=shortfall(failed)).sort_values("short", ascending=False, kind="stable")
    parts = []
    for gate, (_, sign) in GATES.items():
        here = failed[failed["gate"] == gate]
        worst = [f"{r.suspect} {f' {sign} '.join(_apart(r.value, r.limit))}" for r in here.head(NAMED).itertuples()]
        if worst:
            parts.append(f"{gate} of {len(here)} suspect{'s' * (len(here) > 1)} ({', '.join(worst)})")
    return f"gates: the zoo breaks {'; '.join(parts)}"
