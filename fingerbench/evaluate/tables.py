"""Tables of results: as data frames with unrounded numbers, and shown in the terminal, Markdown or LaTeX.

In what is shown the first column names the row and stands to the left, all others to the right.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Group
    from rich.table import Table

NOTHING = "-"
COSTS = {  # of `report.comparison`, as shown
    "seconds": "cost_seconds",
    "seconds before": "cost_preparation_seconds",
    "peak MiB": "cost_peak_mib",
    "surrogates": "cost_surrogates",
    "queries": "queries",
}
COSTS_NOTE = (
    "Costs: seconds of extraction; seconds before it, for training surrogates and GAN; peak memory while extracting; "
    "surrogates beside the source; queries to each suspect."
)
NOTE = "negatives of an attack are its mirrors; AUC of a family is against all negatives"
UNASKED = "without queries ARUC counts as 0, AUC as 0.5, a margin as 0"  # since every score is 0
TOTALS_NOTE = "intervals of ARUC and AUC: 95 % bootstrap; value of the separating thresholds: their width"

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"$<$",
        ">": r"$>$",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    }
)


def title(method: str, evasion: str) -> str:
    """Return what a method is called where it is judged under an evasion; "none" is not worth a word."""
    return method if evasion == "none" else f"{method} under {evasion}"


def family_table(summary: Mapping[str, Any]) -> DataFrame:
    """Return one row per family of `metrics.summary`, in its order, unrounded; missing where undefined.

    Columns: family, n+, n- (models), positives, negatives (mean scores), margin, AUC.
    """
    import pandas as pd

    names = {
        "n_positives": "n+",
        "n_negatives": "n-",
        "positives": "positives",
        "negatives": "negatives",
        "margin": "margin",
        "auc": "AUC",
    }
    rows = [
        {"family": family, **{name: values[key] for key, name in names.items()}}
        for family, values in summary["families"].items()
    ]
    return pd.DataFrame(rows, columns=["family", *names.values()])


def totals_table(summary: Mapping[str, Any]) -> DataFrame:
    """Return the totals of `metrics.summary`, unrounded: columns metric, value, low, high; missing where undefined.

    low and high bound the 95 % bootstrap interval; those of "separating thresholds", whose value is the width, are
    the interval itself.
    """
    import pandas as pd

    low, high = summary["separating_interval"] or (None, None)
    width = None if low is None or high is None else high - low
    rows = [
        ("ARUC", summary["aruc"], *(summary["aruc_interval"] or (None, None))),
        ("AUC", summary["auc"], *(summary["auc_interval"] or (None, None))),
        ("TPR at 1 % FPR", summary["tpr_at_1fpr"], None, None),
        ("TPR at 5 % FPR", summary["tpr_at_5fpr"], None, None),
        ("ARUC, 8-bit queries", summary["aruc_8bit"], None, None),
        ("AUC, 8-bit queries", summary["auc_8bit"], None, None),
        ("separating thresholds", width, low, high),
    ]
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high"])


def suspects(positives: int, negatives: int) -> str:
    """Return how many suspects of either kind there are, such as "1 positive, 91 negatives"."""
    return f"{positives} positive{'s' * (positives != 1)}, {negatives} negative{'s' * (negatives != 1)}"


def range_of(counts: Iterable[int]) -> str:
    """Return whole numbers as "5 to 100", or "100" where they are equal."""
    numbers = list(counts)
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"


def asked(counts: Collection[int]) -> str:
    """Return how many queries there were, such as "5 to 100 queries", and what it counts as that there were none."""
    return f"{range_of(counts)} queries" + (f" ({UNASKED})" if 0 in counts else "")


def setting(source: str, profile: str, seeds: Collection[int], evasion: str = "none", zoo: int = 0) -> str:
    """Return what captions begin with: data set and source, profile, seeds, and what is not as usual.

    evasion: "none" is as usual; zoo: its seed, and so is 0.
    """
    text = f"{source}, profile {profile}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"
    text = f"{text}, zoo seed {zoo}" if zoo else text
    return text if evasion == "none" else f"{text}, evasion {evasion}"


def results(summary: Mapping[str, Any], title: str) -> Group:
    """Return the families and below them the totals of `metrics.summary`, for `show`."""
    from rich.console import Group

    n = summary["n"]
    totals = totals_table(summary)
    *intervals, thresholds = totals[["low", "high"]].to_numpy(float).tolist()
    totals["interval"] = [*(spread(low, high) for low, high in intervals), spread(thresholds[0], thresholds[1], "(]")]
    models = suspects(n["positives"], n["negatives"])
    return Group(
        terminal(family_table(summary), title, NOTE),
        terminal(totals[["metric", "value", "interval"]], models, TOTALS_NOTE),
    )


def comparison_tables(table: DataFrame) -> tuple[DataFrame, DataFrame, DataFrame]:
    """Return the totals, with intervals as text, the margins per family and the costs of `report.comparison`."""
    totals = table[["method", "seed"]].assign(queries=[f"{n:.4g}" for n in table["queries"]])
    totals["ARUC"], totals["AUC"] = (estimates(table, n, f"{n}_low", f"{n}_high") for n in ("aruc", "auc"))
    totals["TPR at 1 % FPR"], totals["TPR at 5 % FPR"] = table["tpr_at_1fpr"], table["tpr_at_5fpr"]
    changes = (table["aruc_8bit"] - table["aruc"]).tolist()
    totals["8-bit"] = [NOTHING if math.isnan(change) else f"{change:+z.3f}" for change in changes]
    totals["separating"] = separating(table)
    families = [name for name in table.columns if name.startswith("margin_")]
    margins = table[["method", "seed", *families]].rename(columns=lambda name: name.removeprefix("margin_"))
    costs = table[["method", "seed"]].copy()
    for name, column in COSTS.items():
        costs[name] = [f"{value:.0f}" for value in table[column]]
    return totals, margins, costs


def partial(missing: int, every: int, what: str) -> str:
    """Return the sentence that marks what is drawn without all of it, such as of "runs"; empty if none is missing."""
    return f"Partial: {missing} of {every} {what} are missing." if missing else ""


def cell(value: object) -> str:
    """Return `value` as a table shows it: floats with three decimals, a dash for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    return f"{value:z.3f}" if isinstance(value, float) else str(value)


def spread(low: float | None, high: float | None, brackets: str = "[]") -> str:
    """Return an interval as a table shows it, a dash if an end is missing; "(]" leaves out the low end itself."""
    if NOTHING in (cell(low), cell(high)):
        return NOTHING
    return f"{brackets[0]}{cell(low)}, {cell(high)}{brackets[1]}"


def estimate(value: float | None, low: float | None, high: float | None) -> str:
    """Return a number with its interval as a table shows it, without the interval if that is missing."""
    interval = spread(low, high)
    return cell(value) if interval == NOTHING else f"{cell(value)} {interval}"


def estimates(frame: DataFrame, *columns: str) -> list[str]:
    """Return `estimate` of each row of `frame`: `columns` are those of the number and of the ends of its interval."""
    return [estimate(*numbers) for numbers in frame[list(columns)].to_numpy().tolist()]


def separating(frame: DataFrame) -> list[str]:
    """Return of each row of `report.comparison` the thresholds that make no error, as a table shows them."""
    return [spread(low, high, "(]") for low, high in frame[["separating_low", "separating_high"]].to_numpy().tolist()]


def terminal(frame: DataFrame, title: str = "", caption: str = "") -> Table:
    """Return `frame` as a rich table."""
    from rich.table import Table
    from rich.text import Text

    # Text, so that a "[" in a title or a cell is no markup
    table = Table(title=Text(title) if title else None, caption=Text(caption) if caption else None)
    for i, name in enumerate(frame.columns):
        table.add_column(Text(str(name)), justify="right" if i else "left", overflow="ellipsis" if i else "fold")
    for row in cells(frame)[1:]:
        table.add_row(*map(Text, row))
    return table


def show(*renderables: Group | Table, width: int = 120) -> None:
    """Print what rich renders; `width`: of the lines where the output is no terminal."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else width)
    for renderable in renderables:
        console.print(renderable)


def markdown(frame: DataFrame) -> str:
    """Return `frame` as a pipe table, without a newline at the end."""
    head, *body = [[c.replace("|", r"\|") for c in row] for row in cells(frame)]
    rule = [":---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *body])


def latex(frame: DataFrame, caption: str, label: str) -> str:
    """Return `frame` as a LaTeX table with booktabs rules, all text escaped; it needs the package booktabs."""
    layout = "l" + "r" * (len(frame.columns) - 1)
    head, *body = [
        " & ".join("--" if c == NOTHING else c.translate(_LATEX) for c in row) + r" \\" for row in cells(frame)
    ]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption.translate(_LATEX)}}}",
        rf"\label{{{label}}}",
    ]
    lines += [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}", r"\end{table}"]) + "\n"


def cells(frame: DataFrame) -> list[list[str]]:
    """Return the header and then the rows, as texts."""
    # as objects, or integers beside floats would become floats
    rows = frame.astype(object).itertuples(index=False)
    return [[str(name) for name in frame.columns], *([cell(value) for value in row] for row in rows)]
