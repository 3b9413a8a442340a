"""A zoo, or one model of it, taken from one store to another, by way of a folder in which nothing is code.

The folder has the artefacts as a store does, `KIND/KEY/payload.safetensors` and `record.json`; a model card,
`README.md`; and `index.json`, written last: schema, what it is, the words that composed it, data, versions, the key of
each model by its name, and size and sha256 of every other file. What comes in is believed nothing: files are copied to
where no store looks, checked there to the last byte, and only when all are sound does the first become visible.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fingerbench import card
from fingerbench.errors import (
    DamagedError,
    UserError,
    is_whole,
    one_line,
    require,
    require_empty,
    require_schema,
    unknown,
    unwritable,
    writing,
)
from fingerbench.files import write_json
from fingerbench.manifest import versions
from fingerbench.store import NOT_KINDS, PAYLOAD, RECORD, Spec, Store, Stored, key_of, with_needs
from fingerbench.store import SCHEMA as STORE_SCHEMA
from fingerbench.untrusted import parse_json

if TYPE_CHECKING:
    from fingerbench.bench import Bench

SCHEMA = 1
INDEX, CARD = "index.json", "README.md"
HUB = "hf://"
FILE = re.compile(rf"([a-z][a-z0-9_]{{0,63}})/([0-9a-f]{{64}})/({re.escape(PAYLOAD)}|{re.escape(RECORD)})")
LARGEST_INDEX = 2**26  # bytes; an index of 100,000 artefacts has half as many
CHUNK = 2**20

# What the store says to what is damaged, and Python to a record of another form.
MALFORMED = (DamagedError, UserError, ValueError, KeyError, TypeError, RecursionError)


@dataclass(frozen=True)
class Imported:
    """What an import brought, each as "KIND LABEL", and how many artefacts were there already."""

    added: tuple[str, ...]
    kept: int


def chosen(bench: Bench, model: str | None = None) -> list[Spec]:
    """Return what is exported: the suspect called `model`, or else all suspects, the surrogates, the GAN.

    Raises:
        UserError: there is no such suspect, or some of it is not in the store.
    """
    if model is None:
        wanted: list[Spec] = [*bench.models.values(), *bench.fingerprint_spec.needs()]
        specs = list({spec.key: spec for spec in [*wanted, *with_needs(wanted).values()]}.values())
    elif model in bench.models:
        specs = [bench.models[model]]
    else:
        raise unknown("suspect", model, bench.models)
    missing = [spec.label for spec in specs if not bench.store.has(spec)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(specs)} artefacts are not in the store {bench.store.root}, such as {missing[0]}; "
            "run.py with the same words makes them, or choose another with store=DIR"
        )
    return specs


def export_to(bench: Bench, target: str, model: str | None = None) -> list[Spec]:
    """Write what `chosen` returns into the folder `target`, or, where that is hf://USER/REPO, upload it.

    A repository that is made for it is private; one that is there stays what it is.

    Raises:
        UserError: the folder has something in it, or cannot be written; no hub.
        DamagedError: an artefact of the store.
    """
    specs = chosen(bench, model)
    if not target.startswith(HUB):
        _write_folder(bench, specs, Path(target), model)
        return specs
    repository, _ = _repository(target)
    hub = _hub()
    with tempfile.TemporaryDirectory() as folder:
        _write_folder(bench, specs, Path(folder), model)
        with _reached(target):
            api = hub.HfApi()
            api.create_repo(repository, repo_type="model", private=True, exist_ok=True)
            api.upload_folder(repo_id=repository, repo_type="model", folder_path=folder)
    return specs


def _write_folder(bench: Bench, specs: Sequence[Spec], target: Path, model: str | None) -> None:
    require_empty(target, "export")
    made: list[Path] = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        files = {}
        for spec in specs:
            bench.store.load(spec)  # every byte checked
            place = target / spec.kind / spec.key
            made.append(target / spec.kind)
            place.mkdir(parents=True)
            for name in (PAYLOAD, RECORD):
                files[f"{spec.kind}/{spec.key}/{name}"] = _copy(bench.store.path(spec) / name, place / name)
        made += [target / CARD, target / INDEX]
        (target / CARD).write_text(card.text(bench, specs, model), encoding="utf-8")
        files[CARD] = _copy(target / CARD)
        index = _describe(bench, specs, model) | {"files": files}
        write_json(target / INDEX, index)
    except BaseException as error:  # Ctrl-C as well: what is there by then is no export
        for path in made:
            shutil.rmtree(path, ignore_errors=True)
            with suppress(OSError):
                path.unlink(missing_ok=True)
        if not isinstance(error, OSError) or not unwritable(error, target):
            raise
        hint = "make room, grant access, or choose another folder"
        raise UserError(f"cannot write to {error.filename or target}: {error.strerror}; {hint}") from error


def _describe(bench: Bench, specs: Sequence[Spec], model: str | None) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "store_schema": STORE_SCHEMA,
        "what": "zoo" if model is None else f"model {model}",
        "words": card.words(bench),
        "data": {"name": bench.settings.data.name, "sha256": bench.zoo.data, "licence": card.licence(bench)},
        "versions": versions(),
        "models": {spec.label: spec.key for spec in specs if spec.kind == "model"},
    }


def import_from(store: Store, source: str) -> Imported:
    """Put what the folder `source`, or hf://USER/REPO[@REVISION], has into `store`; what is there already stays.

    Raises:
        UserError: something in it is not what its index or its record says, or not what this version reads; nothing
            has become visible then. Or no hub.
    """
    if not source.startswith(HUB):
        return _import_folder(store, Path(source))
    repository, revision = _repository(source)
    hub = _hub()
    with tempfile.TemporaryDirectory() as folder:
        wanted = [INDEX, CARD, f"*/*/{PAYLOAD}", f"*/*/{RECORD}"]
        with _reached(source):
            hub.snapshot_download(repository, revision=revision, local_dir=folder, allow_patterns=wanted)
        return _import_folder(store, Path(folder), source)


def _import_folder(store: Store, source: Path, named: str = "") -> Imported:
    named = named or str(source)
    content = _read_index(source / INDEX, named)
    files = _checked_index(content, named)
    specs = _artefacts(files, named)
    job = hashlib.sha256(content).hexdigest()
    with store.claim(Stored("import", job)) as mine:
        require(mine, f"import {named}", "no other process that imports it into this store", "one; wait for it")
        draft = store.root / "drafts" / f"{job}-{os.getpid()}"
        try:
            with writing(store.root, "store"):
                new = [spec for spec in specs if not store.has(spec)]
                _stage(source, files, draft, new, named)
            labels = {spec.key: _checked(draft, spec, named) for spec in new}
            for spec in new:
                store.adopt(spec, draft / spec.kind / spec.key)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return Imported(tuple(f"{spec.kind} {labels[spec.key]}" for spec in new), len(specs) - len(new))


def _read_index(path: Path, named: str) -> bytes:
    require(path.is_file(), f"import {named}", f"a folder that `export` wrote, with {INDEX} in it", "none")
    require(path.stat().st_size <= LARGEST_INDEX, f"{named}: {INDEX}", f"at most {LARGEST_INDEX} bytes", "more")
    try:
        return path.read_bytes()
    except OSError as error:
        raise _refused(named, f"{INDEX} cannot be read ({error.strerror})") from error


def _checked_index(content: bytes, named: str) -> dict[str, Any]:
    """Return size and sha256 of every file that an index names, by its name; nothing else of it is used."""
    try:
        index = parse_json(content)
    except ValueError as error:
        raise _refused(named, f"{INDEX} is not JSON ({one_line(error)})") from error
    if not isinstance(index, dict):
        raise _refused(named, f"{INDEX} is no object")
    require_schema(f"{named}: {INDEX}", index.get("schema"), SCHEMA, "let the exporter's version and yours be the same")
    files = index.get("files")
    if not isinstance(files, dict):
        raise _refused(named, f"{INDEX} has no files")
    for name, facts in files.items():
        match = FILE.fullmatch(name)
        if name != CARD and (match is None or match[1] in NOT_KINDS):
            raise _refused(named, f"{INDEX} names {name!r}, which no store has")
        sound = isinstance(facts, dict) and is_whole(facts.get("bytes")) and isinstance(facts.get("sha256"), str)
        if not sound:
            raise _refused(named, f"{INDEX} does not give size and sha256 of {name}")
    return files


def _artefacts(files: Mapping[str, Any], named: str) -> list[Stored]:
    parts = sorted({name.rpartition("/")[0] for name in files if name != CARD})
    for part in parts:
        for file in (f"{part}/{PAYLOAD}", f"{part}/{RECORD}"):
            if file not in files:
                raise _refused(named, f"{INDEX} lacks {file}")
    require(bool(parts), f"import {named}", "at least one artefact", "none")
    return [Stored(*part.split("/")) for part in parts]


def _stage(source: Path, files: Mapping[str, Any], draft: Path, new: Sequence[Spec], named: str) -> None:
    """Copy the files of `new` into `draft`, and check size and sha256 of all."""
    folders = {f"{spec.kind}/{spec.key}" for spec in new}
    for name, facts in files.items():
        file = source / name
        if not file.is_file() or not os.access(file, os.R_OK):
            raise _refused(named, f"{name} is missing, or may not be read")
        place = draft / name if name.rpartition("/")[0] in folders else None
        if place:
            place.parent.mkdir(parents=True, exist_ok=True)
        if file.stat().st_size != facts["bytes"] or _copy(file, place) != facts:
            raise _refused(named, f"{name} is not the file that {INDEX} describes")


def _checked(draft: Path, spec: Spec, named: str) -> str:
    """Return the label of a staged artefact, every byte and its key checked."""
    place = f"{spec.kind}/{spec.key[:16]}..."
    try:
        record = Store(draft).load(spec).record
        sound = (record["spec"]["kind"], key_of(record["spec"])) == (spec.kind, spec.key)
    except MALFORMED as error:
        raise _refused(named, f"{place}: {one_line(error)}") from error
    if not sound or not record["label"].isprintable():
        raise _refused(named, f"{place}: the record is that of another artefact, or its label no text to print")
    return str(record["label"])


def _copy(file: Path, place: Path | None = None) -> dict[str, Any]:
    """Copy a file, if there is a place to copy it to; return its size and sha256."""
    total, digest = 0, hashlib.sha256()
    with file.open("rb") as source, (place or Path(os.devnull)).open("wb") as target:
        while piece := source.read(CHUNK):
            total += len(piece)
            digest.update(piece)
            target.write(piece)
        if place:
            target.flush()
            os.fsync(target.fileno())
    return {"bytes": total, "sha256": digest.hexdigest()}


def _refused(named: str, why: str) -> UserError:
    return UserError(f"import {named}: {why}; nothing was imported: fetch it anew, or ask who made it")


def _repository(address: str) -> tuple[str, str | None]:
    name, _, revision = address.removeprefix(HUB).partition("@")
    sound = re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
    require(sound, "the hub", f"{HUB}USER/REPO or {HUB}USER/REPO@REVISION", address)
    return name, revision or None


def _hub() -> Any:
    """Return the client of the Hugging Face Hub, which is optional."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{HUB} needs the package huggingface_hub: pip install -e '.[hub]'") from None
    return huggingface_hub


@contextmanager
def _reached(address: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the client says, the remedies are the same
        hint = "is there a network, does it exist, and are you logged in there?"
        raise UserError(f"cannot reach {address}: {one_line(error)}; {hint}") from error
