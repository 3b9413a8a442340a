"""Everything but running: list, show, verify, status, report, queries, verdict, gc, du, export, import, check."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fingerbench as fb
from fingerbench.errors import DamagedError, UserError, require, unknown

GROUPS = (
    *("method", "attack", "data", "gan", "surrogates", "evasion", "recipe", "profile", "experiment", "launcher"),
    "logger",
)
LIBRARIES = ("timm", "torchvision")  # of networks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parsed = _parsed(arguments)
    try:
        return parsed.command(parsed) or 0
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except DamagedError as error:
        sys.stderr.write(f"error: {error}; run.py with the same words sets it aside and makes it again\n")
        return UserError.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing finished is lost\n")
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader, such as head, has seen enough
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; KEY=VALUE may also follow options, which argparse alone does not take."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if "overrides" in parsed:
        parsed.overrides += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fingerbench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    overrides: dict[str, Any] = {"nargs": "*", "metavar": "KEY=VALUE", "help": "as for run.py"}

    lister = commands.add_parser("list", help="what there is: the zoo, methods, attacks, data sets, ...")
    lister.add_argument("what", help=f"zoo, architectures, timm, torchvision, {', '.join(GROUPS)}")
    lister.add_argument("overrides", **overrides)
    lister.add_argument("--json", action="store_true", help="as JSON")
    lister.set_defaults(command=_list)

    shower = commands.add_parser("show", help="the composed configuration")
    shower.add_argument("overrides", **overrides)
    shower.set_defaults(command=_show)

    verifier = commands.add_parser("verify", help="check every byte of what a run would use from the store")
    verifier.add_argument("overrides", **overrides)
    verifier.set_defaults(command=_verify)

    teller = commands.add_parser("status", help="which jobs of a sweep are done, and how to run the others again")
    teller.add_argument("folder", type=Path, metavar="SWEEP", help="the folder of a sweep, or of one run")
    teller.add_argument("--json", action="store_true", help="as JSON")
    teller.set_defaults(command=_status)

    reporter = commands.add_parser("report", help="tables and figures of runs, or of experiments, from stored scores")
    text = "folders of runs; or experiment=NAME, or all, and KEY=VALUE"
    reporter.add_argument("overrides", nargs="+", metavar="WHAT", help=text)
    reporter.add_argument("--partial", action="store_true", help="of an experiment: draw what is there, marked")
    reporter.add_argument("--html", type=Path, metavar="FILE", help="of experiments: one page, instead of --out")
    reporter.add_argument("--out", type=Path, default=Path("report"), help="folder to write (default: report)")
    reporter.set_defaults(command=_report)
    _add_case(commands)
    _add_housekeeping(commands, overrides)
    return parser


def _add_case(commands: Any) -> None:
    words: dict[str, Any] = {"nargs": "*", "default": [], "metavar": "KEY=VALUE"}  # with a default they are optional
    words["help"] = "hydra.searchpath=..., for a method of yours"
    asker = commands.add_parser("queries", help="the queries of a run as images, to ask a suspect of your own")
    asker.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    asker.add_argument("overrides", **words)
    asker.add_argument("--out", type=Path, default=Path("queries"), help="folder to write (default: queries)")
    asker.set_defaults(command=_queries)

    judge = commands.add_parser("verdict", help="what the answers of a suspect of your own to those queries are worth")
    judge.add_argument("run", type=Path, metavar="RUN", help="the folder of a run")
    judge.add_argument("answers", type=Path, metavar="ANSWERS", help="answers.csv of `queries`, filled in")
    judge.add_argument("overrides", **words)
    text = "the same of models that are known to be independent, such as of your own; then p is about those"
    judge.add_argument("--controls", nargs="+", action="extend", default=[], metavar="ANSWERS", help=text)
    judge.add_argument("--json", action="store_true", help="as JSON")
    judge.set_defaults(command=_verdict)


def _add_housekeeping(commands: Any, overrides: dict[str, Any]) -> None:
    collector = commands.add_parser("gc", help="what may go of the store: temporary files, unreferenced artefacts")
    collector.add_argument("overrides", **overrides)
    text = "a folder of runs, or words of run.py; then artefacts that nothing so kept needs may go too"
    collector.add_argument("--keep", action="append", default=[], metavar="WORDS", help=text)
    collector.add_argument("--delete", action="store_true", help="delete it; without this nothing is")
    collector.set_defaults(command=_gc)

    sizer = commands.add_parser("du", help="how large what in the store is")
    sizer.add_argument("overrides", **overrides)
    sizer.add_argument("--json", action="store_true", help="as JSON")
    sizer.set_defaults(command=_du)

    exporter = commands.add_parser(
        "export", help="a zoo, or one model of it, from the store into a folder, with a card"
    )
    exporter.add_argument("target", help="an empty or new folder; or hf://USER/REPO, private if it is new")
    exporter.add_argument("overrides", **overrides)
    exporter.add_argument("--model", metavar="NAME", help="of a suspect, such as prune/0.9; default: the whole zoo")
    exporter.set_defaults(command=_export)

    importer = commands.add_parser("import", help="what `export` wrote, checked to the last byte, into the store")
    importer.add_argument("source", help="a folder; or hf://USER/REPO[@REVISION]")
    importer.add_argument("overrides", **overrides)
    importer.set_defaults(command=_import)

    checker = commands.add_parser("check", help="is a method sound? Runs its file: check only what you trust")
    checker.add_argument("file", type=Path, help="methods/NAME.py or conf/method/NAME.yaml")
    checker.add_argument("overrides", **overrides)
    checker.set_defaults(command=_check)


def _list(parsed: argparse.Namespace) -> None:
    rows = _rows(parsed.what, parsed.overrides)
    if parsed.json:
        _out(json.dumps(rows, indent=1))
        return
    if rows and isinstance(rows[0], str):
        _out("\n".join(rows))
        return
    import pandas as pd

    _out(pd.DataFrame(rows).fillna("").to_string(index=False))


def _rows(what: str, overrides: Sequence[str]) -> list[Any]:
    from fingerbench import config

    if what == "zoo":
        return [asdict(suspect) for suspect in fb.open(*overrides).suspects]
    others = config.searched(overrides) != list(overrides)
    require(not others, f"list {what}", "no words but hydra.searchpath=[...]", " ".join(overrides))
    if what == "architectures":
        from fingerbench.nets import NETWORKS

        return list(NETWORKS)
    if what in LIBRARIES:
        from fingerbench.nets.library import names

        return [f"{what}:{name}" for name in names(what)]
    group = what if what in GROUPS else what.removesuffix("s")
    if group not in GROUPS:
        raise unknown("list", what, ["zoo", "architectures", *LIBRARIES, *GROUPS])
    return config.options(group, overrides)


def _show(parsed: argparse.Namespace) -> None:
    from omegaconf import OmegaConf

    from fingerbench import config

    _out(OmegaConf.to_yaml(config.compose(parsed.overrides)))


def _verify(parsed: argparse.Namespace) -> int:
    """Tell what is damaged; returns 0 if nothing is, else 1."""
    from fingerbench.housekeeping import plan
    from fingerbench.store import with_needs

    store = fb.open(*parsed.overrides).store
    stored = [spec for spec in with_needs(plan(parsed.overrides)).values() if store.has(spec)]
    troubles = [trouble for spec in stored if (trouble := store.verify(spec))]
    _out("\n".join([*troubles, f"{len(stored) - len(troubles)} of {len(stored)} artefacts are sound"]))
    return int(bool(troubles))


def _status(parsed: argparse.Namespace) -> int:
    """Tell of each job how it is; returns 0 if all are done, else 1."""
    from fingerbench import status

    jobs = status.read(parsed.folder)
    undone = [job for job in jobs if job.state != "done"]
    if parsed.json:
        _out(json.dumps([asdict(job) | {"folder": str(job.folder), "seconds": job.seconds} for job in jobs], indent=1))
        return int(bool(undone))
    from fingerbench.evaluate import tables

    if jobs:
        tables.show(tables.terminal(status.table(jobs)), width=160)
    lines = [f"{len(jobs) - len(undone)} of {len(jobs)} jobs are done", *status.commands(jobs)]
    _out("\n".join(lines))
    return int(bool(undone))


def _report(parsed: argparse.Namespace) -> None:
    # Path.exists raises where a word is longer than names of files may be.
    of_store = (word for word in parsed.overrides if "=" in word and not os.path.exists(word))  # noqa: PTH110
    if parsed.overrides[0] == "all" or any(of_store):
        _report_experiments(parsed)
        return
    require(parsed.html is None, "--html", "all or experiment=NAME", " ".join(parsed.overrides))
    from fingerbench.evaluate import report, tables

    done = report.report([Path(word) for word in parsed.overrides], parsed.out)
    tables.show(*map(tables.terminal, tables.comparison_tables(done.table)))
    _out("\n".join([*done.notes, f"tables and figures: {parsed.out}"]))


def _report_experiments(parsed: argparse.Namespace) -> None:
    from fingerbench.evaluate import experiment, html

    words = [word for word in parsed.overrides if word != "all"]
    if parsed.overrides[0] == "all":
        pages = experiment.read_all(words, partial=parsed.partial)
    else:
        pages = [experiment.read(experiment.chosen(words), words, partial=parsed.partial)]
    drawn, undrawn = [page for page in pages if page.exhibits], [page for page in pages if not page.exhibits]
    if parsed.html is not None:
        html.write(pages, words, parsed.html)
    elif undrawn and not parsed.partial:
        raise UserError("\n".join(str(experiment.LackingError(page)) for page in undrawn))
    else:
        for page in drawn:
            experiment.write(page, parsed.out / page.name)
            experiment.show(page)
    missing = [f"not drawn: {page.name}, {len(page.missing)} of {page.cells} cells are missing" for page in undrawn]
    _out("\n".join([*missing, f"tables and figures: {parsed.html or parsed.out}"]))


def _queries(parsed: argparse.Namespace) -> None:
    from fingerbench.evaluate.case import ANSWERS, case, write

    found = case(parsed.run, *parsed.overrides)
    write(found, parsed.out)
    _out(f"{len(found.queries)} queries and {ANSWERS}, to be filled in: {parsed.out}")


def _verdict(parsed: argparse.Namespace) -> None:
    from fingerbench import config
    from fingerbench.evaluate.case import case, read_answers

    after = config.searched(parsed.controls)  # which may stand behind the files
    found = case(parsed.run, *parsed.overrides, *after)
    paths = [parsed.answers, *(Path(word) for word in parsed.controls if word not in after)]
    twice = [path for i, path in enumerate(paths) if path.resolve() in [earlier.resolve() for earlier in paths[:i]]]
    expected = "the answers of one model a file, the suspect's not among them"
    require(not twice, "--controls", expected, ", ".join(map(str, twice[:1])))
    answers, *controls = (read_answers(found, path) for path in paths)
    verdict = found.verdict(answers, controls)
    numbers = {"p": verdict.p, "as_high": verdict.as_high, "lower": verdict.lower}
    _out(json.dumps(asdict(verdict) | numbers, indent=1) if parsed.json else str(verdict))


def _gc(parsed: argparse.Namespace) -> None:
    from fingerbench import housekeeping

    store = fb.open(*parsed.overrides).store
    items = housekeeping.collect(store, parsed.keep, parsed.overrides)
    if parsed.delete:
        items = housekeeping.remove(store, items)
    lines = [f"{housekeeping.size(item.bytes):>10}  {item.why}: {item.path}" for item in items if item.bytes]
    rows = housekeeping.totals(items)
    lines += [_row(row["bytes"], row["count"], row["why"]) for row in rows]
    total = f"{len(items)} things, {housekeeping.size(sum(item.bytes for item in items))}, of {store.root}"
    _out("\n".join([*lines, f"deleted {total}" if parsed.delete else f"--delete would delete {total}"]))


def _du(parsed: argparse.Namespace) -> None:
    from fingerbench import housekeeping

    usage = housekeeping.usage(fb.open(*parsed.overrides).store)
    if parsed.json:
        _out(json.dumps(usage, indent=1))
        return
    lines = [_row(row["bytes"], row["count"], f"{row['kind']:<12} {row['family']}") for row in usage["artefacts"]]
    lines += [_row(row["bytes"], row["count"], f"{'temporary':<12} {row['why']}") for row in usage["temporary"]]
    _out("\n".join([*lines, f"{housekeeping.size(usage['bytes'])} in {usage['store']}"]))


def _export(parsed: argparse.Namespace) -> None:
    from fingerbench.exchange import export_to
    from fingerbench.progress import plural

    counts = Counter(spec.kind for spec in export_to(fb.open(*parsed.overrides), parsed.target, parsed.model))
    stock = ", ".join(f"{count} {plural(kind) if count > 1 else kind}" for kind, count in counts.items())
    _out(f"exported {stock}, with a card: {parsed.target}")


def _import(parsed: argparse.Namespace) -> None:
    from fingerbench.exchange import import_from

    store = fb.open(*parsed.overrides).store
    done = import_from(store, parsed.source)
    lines = [f"added {name}" for name in done.added]
    _out("\n".join([*lines, f"added {len(done.added)}, found {done.kept} already there: {store.root}"]))


def _check(parsed: argparse.Namespace) -> None:
    from fingerbench.check import examine

    _out(f"running {parsed.file}, as run.py would: check only what you trust")
    found = examine(parsed.file, parsed.overrides)
    _out("\n".join(f"{name}: {line}" for name, lines in found.items() for line in lines or ["sound"]))
    count = sum(map(len, found.values()))
    if count:
        raise UserError(f"{parsed.file}: not sound, {count} finding{'s' * (count > 1)}; see fingerbench/api.py")


def _row(size: int, count: int, text: str) -> str:
    from fingerbench.housekeeping import size as readable

    return f"{readable(size):>10} {count:>6}  {text}"


def _out(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
