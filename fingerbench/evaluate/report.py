"""Many runs in one comparison: a table (csv, md, LaTeX) and figures of methods side by side.

Only like is compared with like: runs must agree in data set, source, profile, suspects and, as far as their manifests
tell, in the very models.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fingerbench import config, status
from fingerbench.errors import UserError, is_number, one_line, require_schema
from fingerbench.evaluate import metrics, plots, tables
from fingerbench.evaluate.curves import aruc_panels, comparison_figure, curve_points
from fingerbench.manifest import MANIFEST, SCHEMA
from fingerbench.untrusted import content, parse_json

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = (
    *("method", "source", "suspect", "family", "attack", "variant", "arch", "pirated", "mirror_of"),
    *("score", "score_8bit", "raw", "accuracy", "queries", "evasion", "seed", "profile"),
)
COSTS = ("seconds", "preparation_seconds", "peak_mib", "surrogates")
# Words that do not tell runs of one method on the same suspects apart.
INDIFFERENT = (*config.LOCAL, "hydra", "seed", "label", "attack", "gates", "logger")
PER_RUN = ("method", "source", "evasion", "seed", "profile")  # columns with one value in all rows of a run

# What plain data of another form than expected leads to.
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True, eq=False)
class Run:
    """The results of one run, read back from its folder."""

    folder: Path
    scores: DataFrame  # as `read_scores` gives them
    row: dict[str, Any]  # its row of the comparison
    time: datetime.datetime
    models: str  # which models were judged: a digest of their store keys, empty if the manifest has none
    setting: str = ""  # a digest of what was judged, whatever the seed; empty if the manifest has none
    words: tuple[str, ...] = ()  # the overrides that it was made with, but those of INDIFFERENT
    zoo: int = 0  # the seed of its zoo; 0 if the manifest has none
    code: frozenset[tuple[str, str]] = frozenset()  # classes that made or judged its fingerprint, and their digests

    @classmethod
    def of(cls, scores: DataFrame, results: dict[str, Any]) -> Run:
        """Return a run that has no folder: its scores, and `metrics.summary` of them with the key "cost"."""
        return cls(Path(), scores, _row(scores, results), datetime.datetime.now(datetime.UTC), "")

    def identity(self) -> dict[str, str]:
        """Return what must be equal in all runs of a comparison, by name, in words."""
        first = self.scores.iloc[0]
        suspects = self.scores[["suspect", "pirated", "mirror_of"]].sort_values("suspect").to_csv(index=False)
        families = ", ".join(self.scores["family"].unique())
        return {
            "data sets or sources": first["source"],
            "profiles": first["profile"],
            "suspects": f"{len(self.scores)} suspects of {families} [{_digest(suspects)}]",
            "models": f"models [{self.models}]",
        }


@dataclass(frozen=True, eq=False)
class Report:
    """A written comparison: its table as `comparison` returns it, its files, and what the reader should know."""

    table: DataFrame
    files: tuple[Path, ...]
    notes: tuple[str, ...]


def report(runs: Sequence[Path], out: Path, lost_s: float = status.LOST_S) -> Report:
    """Compare the runs in the folders `runs`, and below them, and write the comparison into the folder `out`.

    Files: comparison.csv (unrounded), comparison.md, comparison.tex, curves.csv (see `curve_points`),
    figures/comparison.{png,pdf} and figures/aruc_panels.{png,pdf}. Where a job of a sweep among `runs` is not done, a
    note says so, and all captions; lost_s: see `status.read`. UserError: no run, a damaged run, runs that must not be
    compared, or `out` cannot be written.
    """
    found, undone = _gather(runs, lost_s)
    refuse_mixtures(found)
    kept, notes = newest(told_apart(found))
    notes += [*edited(kept), *(f"missing: {job.told()}" for job in undone)]
    table = comparison(kept)
    mark = tables.partial(len(undone), len(undone) + len(found), "runs")
    try:
        files = _write(table, kept, notes, out, mark)
    except OSError as error:
        raise UserError(f"{out}: cannot write the report: {error.strerror}; choose another folder") from error
    return Report(table, tuple(files), tuple(notes))


def _gather(paths: Sequence[Path], lost_s: float) -> tuple[list[Run], list[status.Job]]:
    """Return the runs at or below `paths`, and the jobs that are not done, whatever an earlier attempt left there."""
    undone = {job.folder.resolve(): job for job in missing(paths, lost_s)}
    folders = [folder for folder in find(paths) if folder not in undone]
    told = (job for folder in folders if (folder / status.STATUS).exists() for job in status.read(folder, lost_s))
    undone |= {job.folder: job for job in told if job.folder in folders and job.state != "done"}
    found = [load(folder) for folder in folders if folder not in undone]
    if not found:
        raise UserError(f"no run is done; {'; '.join(job.told() for job in undone.values())}")
    return found, list(undone.values())


def missing(paths: Iterable[Path], lost_s: float) -> list[status.Job]:
    """Return the jobs of the sweeps and runs `paths` that are not done; UserError if all jobs of one are not."""
    undone = []
    for path in paths:
        if any((path / name).exists() for name in (status.SWEEP, status.STATUS)):
            jobs = status.read(path, lost_s)
            lacking = [job for job in jobs if job.state != "done"]
            if jobs and len(lacking) == len(jobs):
                told = f"none of its {len(jobs)} runs is done" if len(jobs) > 1 else f"its run is {jobs[0].state}"
                raise UserError(f"{path}: {told}; python -m fingerbench status {path} says why, and how to go on")
            undone += lacking
    return undone


def find(paths: Iterable[Path]) -> list[Path]:
    """Return the folders with results, each once, at or below `paths`; UserError if a path has none."""
    folders: set[Path] = set()
    for path in paths:
        try:
            here = {file.parent for name in ("scores.csv", "metrics.json") for file in path.resolve().rglob(name)}
        except (OSError, RuntimeError):  # may not be read; a link to itself, before Python 3.13
            here = set()
        if not here:
            what = "no run with scores.csv in it" if path.is_dir() else "no such folder"
            raise UserError(f"{path}: {what}; give folders of runs, a folder that holds them, or experiment=NAME")
        folders |= here
    if not folders:
        raise UserError("expected at least one folder of runs, got none")
    return sorted(folders)


def load(folder: Path) -> Run:
    """Read scores.csv, metrics.json and manifest.json of one run; UserError if one is missing, damaged or at odds."""
    scores = read_scores(folder / "scores.csv")
    results, manifest = read_json(folder / "metrics.json"), read_json(folder / MANIFEST)
    remedy = "make the report with that version, or leave the folder out"
    try:
        schema = results.get("schema", metrics.SCHEMA)
        require_schema(folder / "metrics.json", schema, metrics.SCHEMA, remedy)
        row = _row(scores, results)
        same = _belong(results, row, scores)
    except _MALFORMED as error:
        raise _damaged(folder / "metrics.json", f"not the metrics of a run ({one_line(error)})") from error
    if not same:
        raise _damaged(folder / "metrics.json", "not the metrics of scores.csv beside it")
    try:
        schema = manifest.get("schema", SCHEMA)
        require_schema(folder / MANIFEST, schema, SCHEMA, remedy)
        time = datetime.datetime.fromisoformat(manifest["time"])
        stored = manifest.get("store", {})
        models, setting = stored.get("suspects"), str(stored.get("setting", ""))
        digest = _digest(json.dumps(models, sort_keys=True)) if models else ""
        words = tuple(config.without(manifest.get("words", []), INDIFFERENT))
        zoo = int(manifest.get("seeds", {}).get("zoo", 0))
        made, judged = (said.get("code") or {} for said in (results.get("fingerprint", {}), manifest.get("method", {})))
        code = frozenset((str(name), str(digest)) for name, digest in [*made.items(), *judged.items()])
        if not all(text.isprintable() for text in (*words, *(name for name, _ in code))):
            raise ValueError("expected words without control characters")
    except _MALFORMED as error:
        raise _damaged(folder / MANIFEST, f"not the manifest of a run ({one_line(error)})") from error
    time = time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
    return Run(folder, scores, row, time, digest, setting, words, zoo, code)


def _belong(results: dict[str, Any], row: dict[str, Any], scores: DataFrame) -> bool:
    """Tell whether metrics are those of the scores: all but the bootstrap intervals, which must lie in [0, 1]."""
    positive, negative = metrics.sides(scores)
    rounded = metrics.sides(scores, "score_8bit")
    expected = {
        "aruc": metrics.aruc(positive, negative),
        "auc": metrics.auc(positive, negative),
        "tpr_at_1fpr": metrics.tpr_at_fpr(positive, negative, 0.01),
        "tpr_at_5fpr": metrics.tpr_at_fpr(positive, negative, 0.05),
        "aruc_8bit": metrics.aruc(*rounded),
        "auc_8bit": metrics.auc(*rounded),
    }
    ends = metrics.separating_interval(positive, negative) or (float("nan"), float("nan"))
    expected |= dict(zip(("separating_low", "separating_high"), ends, strict=True))
    families = {str(f): metrics.family_summary(scores, str(f))["margin"] for f in scores["family"].unique()}
    expected |= {f"margin_{family}": margin for family, margin in families.items() if margin is not None}
    intervals = [row[f"{name}_{end}"] for name in ("aruc", "auc") for end in ("low", "high")]
    return (
        results["n"] == {"positives": len(positive), "negatives": len(negative)}
        and set(results["families"]) == set(families)
        and {name for name in row if name.startswith("margin_")} <= set(expected)
        and all(np.isclose(row[name], value, rtol=0, atol=1e-9, equal_nan=True) for name, value in expected.items())
        and all(np.isnan(end) or 0 <= end <= 1 for end in intervals)
    )


def read_scores(path: Path) -> DataFrame:
    """Read a scores.csv: COLUMNS, one row a suspect; texts stay texts ("0.1"), empty ones are missing.

    pirated is bool, scores, raw and accuracy float64, queries and seed int64. A file from before there were evasions
    has none, and unknown accuracies. UserError: missing or damaged.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(io.BytesIO(content(path)), dtype=str, keep_default_na=False, na_values=[""])
        if not {"accuracy", "evasion"} & set(frame):
            frame = frame.assign(accuracy=float("nan"), evasion="none")
        frame = frame[list(COLUMNS)]
        frame["pirated"] = frame["pirated"].map({"True": True, "False": False}).astype("boolean").to_numpy(bool)
        frame = frame.astype(dict.fromkeys(("score", "score_8bit", "raw", "accuracy"), float))
        frame = frame.astype({"queries": int, "seed": int})
        metrics.checked(frame[["score", "score_8bit"]])
    except OSError as error:
        raise _damaged(path, str(error.strerror)) from error
    except _MALFORMED as error:
        raise _damaged(path, f"not the scores of a run ({one_line(error)})") from error
    mixed = [name for name in PER_RUN if frame[name].nunique(dropna=False) != 1]
    if mixed:
        raise _damaged(path, f"expected one value in all rows of {', '.join(mixed)}")
    texts = frame[[name for name in COLUMNS if frame[name].dtype not in (bool, float, int)]]
    if not all(str(text).isprintable() for text in np.unique(texts.fillna("").to_numpy(str))):
        raise _damaged(path, "expected texts without control characters")
    if frame["suspect"].duplicated().any() or frame[["suspect", "family"]].isna().any(axis=None):
        raise _damaged(path, "expected a family in every row, and a suspect that occurs once")
    return frame


def refuse_mixtures(runs: Sequence[Run]) -> None:
    """Raise UserError, naming the runs, if they do not agree in all of `Run.identity`."""
    identities = [run.identity() for run in runs]
    for aspect in identities[0]:
        groups: dict[str, list[str]] = {}
        for run, identity in zip(runs, identities, strict=True):
            groups.setdefault(identity[aspect], []).append(str(run.folder))
        if len(groups) > 1:
            parts = [f"{value}: {', '.join(folders)}" for value, folders in groups.items()]
            raise UserError(f"cannot compare runs with different {aspect}; report them apart. {'; '.join(parts)}")


def told_apart(runs: Sequence[Run]) -> list[Run]:
    """Return `runs`, each named after its setting, where there are several settings of its method.

    The name has the words that not all of them were made with; where the words are the same, since a file was edited or
    a version raised, the first digits of `Run.setting`, too. Runs from before manifests had it keep their names.
    """
    words: dict[str, dict[str, tuple[str, ...]]] = {}
    for run in runs:
        if run.setting:
            given = words.setdefault(run.row["method"], {})
            given[run.setting] = min(given.get(run.setting, run.words), run.words, key=lambda w: (len(w), w))
    names = {(method, setting): name for method, of in words.items() for setting, name in _names(method, of).items()}
    return [replace(r, row=r.row | {"method": names.get((r.row["method"], r.setting), r.row["method"])}) for r in runs]


def _names(method: str, words: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return what a method is called in each of its settings; `words`: what each of them was made with."""
    shared = set.intersection(*map(set, words.values()))
    names = {s: ", ".join([method, *(w.lstrip("+") for w in of if w not in shared)]) for s, of in words.items()}
    counts = Counter(names.values())
    return {s: f"{name} [{s[:6]}]" if counts[name] > 1 else name for s, name in names.items()}


def newest(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Return the newest run of every method and seed, by the time in its manifest, and a note on each left out."""
    kept: dict[tuple[str, int], Run] = {}
    notes = []
    for run in sorted(runs, key=lambda r: (r.time, r.folder), reverse=True):
        method, seed = run.row["method"], run.row["seed"]
        best = kept.setdefault((method, seed), run)
        if best is not run:
            notes.append(f"{method}, seed {seed}: left out {run.folder}, as {best.folder} is newer")
    return list(kept.values()), notes


def edited(runs: Sequence[Run]) -> list[str]:
    """Return a note on each class whose code changed between runs of one method, or between making and judging."""
    digests: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        for name, digest in run.code:
            digests.setdefault((run.row["method"], name), set()).add(digest)
    several = sorted(key for key, found in digests.items() if len(found) > 1)
    hint = "if they do not do the same, raise `version` and run again"
    return [f"{method}: its numbers are of several states of the code of {name}; {hint}" for method, name in several]


def comparison(runs: Sequence[Run]) -> DataFrame:
    """Return the comparison table, unrounded: one row per run, and per method with several seeds one "mean" below.

    Columns: method, seed (text), queries, aruc, aruc_low, aruc_high, auc, auc_low, auc_high, tpr_at_1fpr,
    tpr_at_5fpr, aruc_8bit, auc_8bit (of the queries rounded to 8 bits), cost_NAME... (see `run.cost`),
    separating_low, separating_high, margin_FAMILY...; the best mean ARUC first. The intervals of a mean
    come from a bootstrap that draws the same suspects for all seeds; separating thresholds of a "mean" separate under
    every seed. Undefined values are missing.
    """
    import pandas as pd

    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda r: (r.row["method"], r.row["seed"])):
        groups.setdefault(run.row["method"], []).append(run)
    blocks = [
        [*(run.row for run in group), *([_mean_row(group)] if len(group) > 1 else [])] for group in groups.values()
    ]
    blocks.sort(key=lambda rows: -np.nan_to_num(rows[-1]["aruc"], nan=-1.0))
    return pd.DataFrame([{**row, "seed": str(row["seed"])} for rows in blocks for row in rows])


def summaries(table: DataFrame) -> DataFrame:
    """Return one row of a `comparison` for each method: the mean over its seeds, or its only one."""
    return table.groupby("method", sort=False).tail(1)


def _row(scores: DataFrame, results: dict[str, Any]) -> dict[str, Any]:
    """Return the row of one run; its numbers are those that the run itself wrote.

    Under an evasion a method is another method: it has a name, and seeds to average over, of its own.
    """
    first = scores.iloc[0]
    row: dict[str, Any] = {
        "method": tables.title(first["method"], first["evasion"]),
        "seed": int(first["seed"]),
        "queries": int(first["queries"]),
    }
    for name in ("aruc", "auc"):
        row[name] = _number(results[name])
        row[f"{name}_low"], row[f"{name}_high"] = map(_number, results[f"{name}_interval"] or (None, None))
    row |= {name: _number(results[name]) for name in ("tpr_at_1fpr", "tpr_at_5fpr", "aruc_8bit", "auc_8bit")}
    row |= {f"cost_{name}": _number(results["cost"][name]) for name in COSTS}
    row["separating_low"], row["separating_high"] = map(_number, results["separating_interval"] or (None, None))
    margins = {f"margin_{family}": values["margin"] for family, values in results["families"].items()}
    return row | {name: _number(margin) for name, margin in margins.items() if margin is not None}


def _mean_row(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the mean of the runs of one method with several seeds over the same suspects."""
    rows = [run.row for run in runs]
    order = runs[0].scores["suspect"]
    aligned = [run.scores.set_index("suspect").loc[order] for run in runs]
    positive, negative = (np.stack(side) for side in zip(*(metrics.sides(a) for a in aligned), strict=True))
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name not in ("method", "seed")}
    for name, statistic in (("aruc", metrics.aruc), ("auc", metrics.auc)):
        ends = metrics.bootstrap(metrics.mean_over_runs(statistic), positive, negative)
        mean[f"{name}_low"], mean[f"{name}_high"] = ends
    low, high = (f(row[key] for row in rows) for f, key in ((max, "separating_low"), (min, "separating_high")))
    separates = not np.isnan(mean["separating_low"]) and low < high
    mean["separating_low"], mean["separating_high"] = (low, high) if separates else (np.nan, np.nan)
    return {"method": rows[0]["method"], "seed": "mean", **mean}


def _write(table: DataFrame, runs: Sequence[Run], notes: Sequence[str], out: Path, mark: str) -> list[Path]:
    caption = _caption(runs)
    titles = (
        f"{caption}. In brackets 95 % bootstrap intervals; 8-bit: change of ARUC where suspects receive the queries "
        "rounded to 8 bits a value; separating: thresholds that make no error, of a mean under no seed.",
        f"Matching-rate margins, mean over each family; {caption}.",
        f"{tables.COSTS_NOTE} {caption}.",
    )
    marked = [f"{mark} {title}".lstrip() for title in titles]
    shown = list(zip(marked, tables.comparison_tables(table), ("comparison", "margins", "costs"), strict=True))
    files = [out / f"comparison.{suffix}" for suffix in ("csv", "md", "tex")]
    lines = ["# Comparison", *(part for title, frame, _ in shown for part in (title, tables.markdown(frame)))]
    lines += [f"Note: {note}" for note in notes]
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(files[0], index=False)
    files[1].write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    latex = "\n".join(tables.latex(frame, title, f"tab:{name}") for title, frame, name in shown)
    files[2].write_text(latex, encoding="utf-8")
    best = summaries(table)
    panels = {m: [run.scores for run in runs if run.row["method"] == m] for m in best["method"]}
    files.append(out / "curves.csv")
    curve_points(panels).to_csv(files[-1], index=False)
    figures = {
        "comparison": comparison_figure(best, table[table["seed"] != "mean"], caption),
        "aruc_panels": aruc_panels(panels, caption),
    }
    for name, figure in figures.items():
        plots.stamp(figure, mark)
        files += plots.save(figure, out / "figures" / name)
    return files


def _caption(runs: Sequence[Run]) -> str:
    first = runs[0].scores.iloc[0]
    positive, negative = metrics.sides(runs[0].scores)
    setting = tables.setting(first["source"], first["profile"], {run.row["seed"] for run in runs}, zoo=runs[0].zoo)
    text = f"{setting}; {tables.suspects(len(positive), len(negative))}"
    return text if all(run.row["queries"] for run in runs) else f"{text}; {tables.UNASKED}"


def read_json(path: Path) -> Any:
    """Read a JSON file of a run; UserError: missing or damaged."""
    try:
        return parse_json(content(path))
    except OSError as error:
        raise _damaged(path, str(error.strerror)) from error
    except ValueError as error:
        raise _damaged(path, f"not JSON ({one_line(error)})") from error


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path}: {why}; run the command of this folder again, or leave the folder out of the report")


def _number(value: Any) -> float:
    if value is not None and not is_number(value):
        raise TypeError(f"expected a number or null, got {value!r}")
    return float("nan") if value is None else float(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
