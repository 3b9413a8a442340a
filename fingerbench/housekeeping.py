"""Looking after a store: how large what is, and what may go.

What may go is of two sorts. *Temporary files* are what dead processes left: drafts, half-written checkpoints,
checkpoints of what is finished, locks that nobody holds, artefacts without a record, and what was set aside as damaged.
*Unreferenced* are artefacts, and checkpoints of unfinished ones, that nothing kept needs. Kept is, first, what the
manifests of runs name and what the plans of unfinished runs and of given words hold; then everything that those were
made from, as their records tell; then whatever was measured of kept things alone (answers, agreements, accuracies,
distances), and the evasions that those needed.

Whoever makes something holds its lock, and what is locked is never touched. What a maker reads is not locked, so no
artefact goes while any lock of the store is held.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fingerbench import config, status
from fingerbench.errors import DamagedError, UserError, one_line, require, require_schema, writing
from fingerbench.manifest import MANIFEST, SCHEMA
from fingerbench.status import STATUS
from fingerbench.store import NOT_KINDS, RECORD, Spec, Store, Stored, with_needs
from fingerbench.untrusted import parse_json
from fingerbench.zoo.table import MIRROR

log = logging.getLogger(__name__)

KEY = re.compile(r"[0-9a-f]{64}")
LONGER = 1.2  # times the duration of a lease, after which one that nobody renewed is nobody's
MEASURED = ("accuracy", "agreement", "fid", "response")  # kinds that go with what they were measured of
INCOMPLETE, UNREFERENCED = "artefact without a record", "unreferenced"


@dataclass(frozen=True)
class Entry:
    """An artefact as it lies in the store. record: None where it is damaged."""

    spec: Stored
    path: Path
    bytes: int
    record: Mapping[str, Any] | None

    @property
    def family(self) -> str:
        """The attack of a model or of who answered, the name of a GAN, a method or an evasion."""
        label = str(self.record["label"]) if self.record else "?"
        return label.removeprefix(MIRROR).partition("/")[0].partition(" ")[0]


@dataclass(frozen=True)
class Item:
    """Something that may go: why, and the key whose lock says that somebody is at it, None where nobody can be."""

    why: str
    path: Path
    bytes: int
    key: str | None


def entries(store: Store) -> list[Entry]:
    """Return every artefact of a store.

    Raises:
        UserError: there is no store, or one of another schema.
    """
    return [
        Entry(spec, path, _bytes(path), _record(store, spec))
        for path in _folders(store)
        if (path / RECORD).is_file()
        for spec in [Stored(path.parent.name, path.name)]
    ]


def _folders(store: Store) -> list[Path]:
    require(store.root.is_dir(), "store", "the folder of a store", str(store.root))
    kinds = [path for path in store.root.iterdir() if path.is_dir() and path.name not in NOT_KINDS]
    return sorted(path for kind in kinds for path in kind.iterdir() if KEY.fullmatch(path.name) and path.is_dir())


def _record(store: Store, spec: Stored) -> dict[str, Any] | None:
    try:
        return store.record(spec)
    except (DamagedError, KeyError):  # or removed since
        return None


def usage(store: Store) -> dict[str, Any]:
    """Return what a store holds, as plain data.

    Keys: store, its folder; artefacts and temporary, lists of rows with kind and family, or why, count and bytes, the
    largest first; bytes of these.
    """
    counts: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for entry in entries(store):
        counts[entry.spec.kind, entry.family] += 1
        sizes[entry.spec.kind, entry.family] += entry.bytes
    artefacts = [
        {"kind": kind, "family": family, "count": counts[kind, family], "bytes": size}
        for (kind, family), size in sizes.most_common()
    ]
    started = _unfinished(store)
    if started:
        total = sum(map(_bytes, started))
        artefacts.append({"kind": "checkpoint", "family": "", "count": len(started), "bytes": total})
    spare = totals(temporary(store))
    return {
        "store": str(store.root),
        "artefacts": artefacts,
        "temporary": spare,
        "bytes": sum(row["bytes"] for row in [*artefacts, *spare]),
    }


def totals(items: Iterable[Item]) -> list[dict[str, Any]]:
    """Return a row for each reason to go: why, count, bytes, the largest first."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for item in items:
        counts[item.why] += 1
        sizes[item.why] += item.bytes
    return [{"why": why, "count": counts[why], "bytes": size} for why, size in sizes.most_common()]


def temporary(store: Store) -> list[Item]:
    """Return what dead processes left in a store; nothing that a live one holds, and nothing that may not go."""
    require(store.root.is_dir(), "store", "the folder of a store", str(store.root))
    if not os.access(store.root, os.W_OK):
        return []
    held = set(held_keys(store))
    items = [
        *_left(store, "drafts", lambda path: "draft of a dead process"),
        *_left(store, "checkpoints", lambda path: _checkpoint(store, path)),
        *_left(store, "locks", lambda path: "lock that nobody holds" if path.suffix == ".lock" else None),
        *(Item("damaged, set aside", path, _bytes(path), None) for path in _listed(store.root / "damaged")),
        *(Item(INCOMPLETE, path, _bytes(path), path.name) for path in _folders(store) if not (path / RECORD).is_file()),
    ]
    return [item for item in items if item.key not in held]


def _left(store: Store, folder: str, why: Callable[[Path], str | None]) -> Iterator[Item]:
    for path in _listed(store.root / folder):
        key, reason = KEY.match(path.name), why(path)
        if key and reason:
            yield Item(reason, path, _bytes(path), key[0])


def _checkpoint(store: Store, path: Path) -> str | None:
    if path.suffix == ".part":
        return "half-written checkpoint"
    finished = any(store.root.glob(f"*/{path.stem}/{RECORD}"))
    return "checkpoint of a finished artefact" if finished and path.suffix == ".pt" else None


def _unfinished(store: Store) -> list[Path]:
    """Return the checkpoints of trainings that may go on."""
    there = (path for path in _listed(store.root / "checkpoints") if KEY.fullmatch(path.stem) and path.suffix == ".pt")
    return [path for path in there if _checkpoint(store, path) is None]


def held_keys(store: Store) -> dict[str, Path]:
    """Return the keys whose locks somebody holds, each with the file of the lock, whichever kind of lock it is.

    Whether a lease is renewed shows after a while, which this waits, if there are any.
    """
    files = [path for path in _listed(store.root / "locks") if KEY.match(path.name)]
    held = [path for path in files if path.suffix != ".lease" and not _free(store, path, "flock")]
    leases = Store(store.root, "lease", store.lease_s)  # one, since it remembers what it saw
    doubtful = [path for path in files if path.suffix == ".lease" and not _free(leases, path, "lease")]
    if doubtful:
        log.info("looking for %.0f s which of %d leases are renewed", LONGER * store.lease_s, len(doubtful))
        time.sleep(LONGER * store.lease_s)
        held += [path for path in doubtful if not _free(leases, path, "lease")]
    return {path.name[:64]: path for path in held}


def _free(store: Store, path: Path, locks: str) -> bool:
    looking = store if store.locks == locks else Store(store.root, locks)
    with looking.claim(Stored("", path.name[:64])) as mine:
        return mine


def collect(store: Store, kept: Sequence[str] = (), words: Sequence[str] = ()) -> list[Item]:
    """Return what may go: temporary files and, if anything is named to be kept, what that does not need.

    kept: folders of runs and words of run.py, as for `needed`; words: of the command line, which all of them follow.

    Raises:
        UserError: nothing of what one of `kept` needs is in the store: it is another's, or it needs a look.
    """
    items = temporary(store)
    if not kept:
        return items
    there = {path.name for path in _folders(store)}
    roots: set[str] = set()
    for text in kept:
        keys = needed(text, words)
        hint = "choose the store with store=DIR; nothing was deleted"
        require(bool(keys & there), f"--keep {text!r}", f"something that is in the store {store.root}", f"none; {hint}")
        roots |= keys
    return items + unreferenced(store, roots)


def unreferenced(store: Store, roots: set[str]) -> list[Item]:
    """Return the artefacts, and checkpoints of unfinished ones, that `roots`, keys of what is kept, do not need.

    Raises:
        UserError: a record that is kept cannot be read, and so not what it needs.
    """
    known = {entry.spec.key: entry for entry in entries(store)}
    kept = _closure(known, roots) | roots
    artefacts = [
        Item(f"{UNREFERENCED} {entry.spec.kind}", entry.path, entry.bytes, key)
        for key, entry in known.items()
        if key not in kept and entry.record is not None
    ]
    checkpoints = (Item(f"{UNREFERENCED} checkpoint", path, _bytes(path), path.stem) for path in _unfinished(store))
    return artefacts + [item for item in checkpoints if item.key not in kept]


def _closure(known: Mapping[str, Entry], roots: set[str]) -> set[str]:
    kept: set[str] = set()
    _add(known, kept, roots)
    for entry in known.values():
        if entry.record is not None and entry.spec.kind in MEASURED:
            fields = entry.record["spec"]
            subjects = [set(_keys(fields[name])) for name in fields if name not in ("data", "evasion")]
            if all(keys <= kept for keys in subjects):
                _add(known, kept, {entry.spec.key})
    return kept


def _add(known: Mapping[str, Entry], kept: set[str], keys: Iterable[str]) -> None:
    todo = [key for key in keys if key in known]
    while todo:
        key = todo.pop()
        if key not in kept:
            kept.add(key)
            record = known[key].record
            if record is None:
                raise UserError(f"{known[key].path} is damaged, and so unknown what it needs; run.py rebuilds it")
            todo += [parent for parent in _keys(record["spec"]) if parent in known]


def _keys(value: Any) -> Iterator[str]:
    """Yield every key of an artefact, or what looks like one, in plain data."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _keys(item)
    elif isinstance(value, str) and KEY.fullmatch(value):
        yield value


def needed(text: str, words: Sequence[str] = ()) -> set[str]:
    """Return the keys of what `text` needs: a folder of runs, or words of run.py, which follow `words`.

    Of a folder, every run at or below it counts: by its manifest.json and, where it did not end, or an earlier run into
    its folder did alone, by the words in its status.json.

    Raises:
        UserError: no run is there, one of these files cannot be read, or words do not compose.
    """
    if os.path.isdir(text) or "=" not in text:  # noqa: PTH112 - Path raises where words are too long for a name
        return _of_folder(Path(text), words)
    return set(with_needs(plan([*words, *shlex.split(text)])))


def plan(words: Sequence[str]) -> list[Spec]:
    """Return everything that run.py with these words would need of the store, of one run or of an experiment."""
    from fingerbench.bench import Bench
    from fingerbench.evaluate import experiment
    from fingerbench.evaluate import run as runs

    settings = config.compose(words)
    if "experiment" in settings:
        return experiment.plan(settings, words)
    return runs.plan(Bench(settings, words))


def _of_folder(folder: Path, words: Sequence[str] = ()) -> set[str]:
    manifests = {path: _manifest(path) for path in sorted(folder.rglob(MANIFEST))}
    told = {path: _job(path) for path in sorted(folder.rglob(STATUS))}
    cut = {path for path, job in told.items() if job.state != "done" and job.command}
    begun = [path for path in told if path in cut or path.with_name(MANIFEST) not in manifests]
    require(bool(manifests or begun), f"--keep {folder}", "a folder of runs, or KEY=VALUE words", "no run in it")
    keys = {key for content in manifests.values() for key in _keys(content.get("store"))}
    parts = {path: content["cells"] for path, content in manifests.items() if content.get("cells")}
    parts |= {path: [_begun(path, told[path])] for path in begun}
    for commands, path in {tuple(_joined(each, words)): path for path, each in parts.items()}.items():
        try:
            keys |= set(with_needs(plan(commands)))
        except UserError as error:
            hint = "mend that with a word, such as data.root=DIR, or leave the folder out"
            if str(error) in (job.error for job in status.read(path.parent)):
                if path.name == STATUS and path.with_name(MANIFEST) in manifests:
                    continue  # refused, so that what is there is an earlier run's
                hint = "so it ended as well: remove the folder, unless it had run before and what it made must stay"
            raise UserError(f"cannot tell what {path} needs: {error}; {hint}") from None
    return keys


def _job(path: Path) -> status.Job:
    """Return the job of a status.json."""
    return next(job for job in status.read(path.parent) if job.folder == path.parent.absolute())


def _begun(path: Path, job: status.Job) -> str:
    """Return the command of a run that did not end, as its status.json tells."""
    if not job.command:
        raise UserError(f"cannot tell what {path} needs: {job.error}; leave its folder out, or give its words instead")
    words = config.without(job.words, config.WHERE)
    found = config.searched(shlex.split(job.command))
    return shlex.join(["python", "run.py", *words, *found])


def _manifest(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({one_line(error)}); leave its folder out, or run its command again"
        ) from error
    require(isinstance(content, dict), str(path), "the manifest of a run", type(content).__name__)
    require_schema(path, content.get("schema"), SCHEMA, "leave its folder out, or give its words instead")
    return content


def _joined(commands: Sequence[str], words: Sequence[str] = ()) -> list[str]:
    """Return the words of the one command of which these, of the cells of an experiment, are the parts.

    Those of `words` that say where things are on this machine take the place of those of another.
    """
    values: dict[str, dict[str, None]] = {}
    for command in commands:
        for word in shlex.split(command)[2:]:
            key, _, value = word.partition("=")
            values.setdefault(key, {})[value] = None
    here = ((word.partition("=")[0], word.partition("=")[2]) for word in words)
    values |= {key: {value: None} for key, value in here if key in config.LOCAL}
    return [
        f"{key}=" + (next(iter(each)) if len(each) == 1 else f"[{','.join(value[1:-1] for value in each)}]")
        for key, each in values.items()
    ]


def remove(store: Store, items: Iterable[Item]) -> list[Item]:
    """Delete what may go and return what went; what somebody holds by now stays.

    Raises:
        UserError: artefacts are among it, and somebody is making something, of which nobody knows what it needs.
    """
    items, gone = list(items), []
    busy = held_keys(store)
    if busy and any(item.why.startswith(UNREFERENCED) for item in items):
        raise UserError(
            f"something is being made, and what that reads must stay: held in the store are {len(busy)} locks, such as "
            f"{next(iter(busy.values()))}; run gc again when it is done, or without --keep; nothing was deleted"
        )
    with writing(store.root, "store"):
        for item in items:
            if item.key is None:
                _delete(item.path)
            else:
                with store.claim(Stored("", item.key)) as mine:
                    if not mine or item.key in busy or (item.why == INCOMPLETE and (item.path / RECORD).is_file()):
                        continue
                    _take_away(store, item)
                    # filelock looks whether the file that it locked still has its name, so no two hold one lock
                    (store.root / "locks" / f"{item.key}.lock").unlink(missing_ok=True)
            gone.append(item)
    return gone


def _take_away(store: Store, item: Item) -> None:
    """Delete an item; an artefact is moved away first, so that nobody ever sees a part of one."""
    if item.path.parent.name in NOT_KINDS:
        _delete(item.path)
        return
    aside = store.root / "drafts" / f"{item.key}-{os.getpid()}-gc"
    aside.parent.mkdir(exist_ok=True)
    with suppress(FileNotFoundError):  # another gc was faster
        item.path.rename(aside)
        _delete(aside)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _bytes(path: Path) -> int:
    total = 0
    for file in path.rglob("*") if path.is_dir() else [path]:
        with suppress(FileNotFoundError):  # others go on with their work
            found = file.lstat()
            total += 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    return total


def size(count: float) -> str:
    """Return a number of bytes for people, such as "1.5 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.1f} TiB"
