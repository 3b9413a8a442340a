"""The store: the only cache. Whatever took time to make lives here once, under a key of what it was made from.

An artefact is a folder `KIND/KEY` with `payload.safetensors` and `record.json`. It is written elsewhere and renamed
into place, so what exists is complete, and both files carry checksums, so what is damaged is found. A lock per key
keeps two processes from making the same thing twice; it only saves work, nothing breaks without it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

import safetensors.torch
import torch
from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout
from torch import Tensor

from fingerbench.errors import DamagedError, UserError, require_schema, unknown, writing
from fingerbench.files import write, write_json
from fingerbench.untrusted import content, parse_json, parse_tensors

if TYPE_CHECKING:
    from fingerbench.cost import Sizes, Work

SCHEMA = 1
PAYLOAD, RECORD = "payload.safetensors", "record.json"
NOT_KINDS = ("checkpoints", "damaged", "data", "drafts", "locks")  # folders of a store that are no kind of artefact
LOCKS = ("flock", "lease")
NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # what flock says where there is none
LEASE_S = 60.0  # after which a lease that nobody renewed may be taken; its holder renews it three times as often
# Of a record, as far as it is read.
FORM = {"kind": str, "key": str, "label": str, "spec": dict, "facts": dict, "bytes": int, "sha256": str}


@dataclass(frozen=True)
class Spec:
    """What to make: the typed, complete description of one artefact.

    Every field takes part in the key, except those declared with `field(compare=False)`. Fields that are specs
    themselves, or tuples of specs, are what this artefact is made of.
    """

    kind: ClassVar[str]
    version: ClassVar[int]  # bump by hand when the same spec comes to mean something else

    def work(self, sizes: Sizes) -> Work:
        """Return how many images go through which networks to make it, an estimate: for the time left, and the cost.

        What says nothing, as here, counts as nothing.
        """
        return Counter()

    @cached_property
    def key(self) -> str:
        """The sha256 of this description, in which each parent stands as its own key."""
        return key_of(self.identity())

    def identity(self) -> dict[str, Any]:
        """Return the description as plain data."""
        return {"kind": self.kind, "version": self.version, **_fields(self)}

    def needs(self) -> tuple[Spec, ...]:
        """Return the specs of the artefacts this one is made of."""
        values = (getattr(self, f.name) for f in fields(self))
        flat = (item for value in values for item in (value if isinstance(value, tuple) else (value,)))
        return tuple(item for item in flat if isinstance(item, Spec))

    @property
    def label(self) -> str:
        """A short name for people."""
        return f"{self.kind} {self.key[:8]}"

    @property
    def alike(self) -> str:
        """What two of a kind share where the second is cheaper for the worker that made the first; "" = nothing."""
        return ""

    @property
    def warm(self) -> str:
        """What the worker that made it has at hand, such as `alike` of another of its kind; its own, unless told."""
        return self.alike

    def make(self, workshop: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Make the artefact: its tensors, and plain facts for the record."""
        raise NotImplementedError


def key_of(identity: Mapping[str, Any]) -> str:
    """Return the key of what `identity` describes, as `Spec.identity` gives it and the record of an artefact has it."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Stored(Spec):
    """An artefact known by its place in a store alone: for who looks after one, whatever made what is in it."""

    def __init__(self, kind: str, key: str) -> None:
        self.__dict__.update(kind=kind, key=key)  # what a spec derives from its fields; this one has none

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stored) and (self.kind, self.key) == (other.kind, other.key)

    def __hash__(self) -> int:
        return hash(self.key)


def with_needs(specs: Iterable[Spec]) -> dict[str, Spec]:
    """Return `specs` and everything they need, by key."""
    known: dict[str, Spec] = {}
    todo = list(specs)
    while todo:
        spec = todo.pop()
        if spec.key not in known:
            known[spec.key] = spec
            todo += spec.needs()
    return known


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)  # evaluates every annotation of the class, and keys ask thousands of times


def _fields(value: Any) -> dict[str, Any]:
    hints = _hints(value.__class__)
    plain = {}
    for f in fields(value):
        if f.compare:
            item = getattr(value, f.name)
            # YAML reads 10 and 10.0 as different types; the annotation decides, so that both give one key.
            plain[f.name] = float(item) if hints[f.name] is float and isinstance(item, int) else _plain(item)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.key
    if is_dataclass(value) and not isinstance(value, type):
        # Of a method, an attack, ...: raised by hand, as that of a Spec.
        version = getattr(type(value), "version", None)
        told = {"version": version} if isinstance(version, int) else {}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", **told, **_fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    expected = "plain values, lists and frozen dataclasses, which the store can tell apart"
    raise UserError(f"expected {expected}; got {kind}; make it a frozen dataclass")


@dataclass(frozen=True)
class Artefact:
    """What the store gives back: tensors and the record written beside them."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """The plain facts its maker noted."""
        return self.record["facts"]


class Store:
    """A folder of artefacts, shared by any number of processes.

    locks: "flock", which the system lets go when its holder dies; or "lease", for file systems without flock or on
    which it does not reach other hosts: a file that its holder touches, and that whoever has seen it untouched for
    `lease_s` seconds of their own monotonic clock may take. What the hosts think the time is does not matter. All
    processes on one store must use the same.

    Raises:
        UserError: there are no such locks.
    """

    def __init__(self, root: Path | str, locks: str = "flock", lease_s: float = LEASE_S) -> None:
        if locks not in LOCKS:
            raise unknown("locks", locks, LOCKS)
        self.root = Path(root).absolute()
        self.locks = locks
        self.lease_s = lease_s
        self._sums: dict[str, tuple[str, tuple[int, int]]] = {}  # of payloads, and when their records were written
        self._loaded: dict[str, str] = {}  # the sum of what was last loaded, which may be another by now
        self._leases: dict[str, BaseFileLock] = {}  # each remembers since when it saw its file untouched

    def path(self, spec: Spec) -> Path:
        """Return the folder where the artefact is, or would be."""
        return self.root / spec.kind / spec.key

    def checkpoint(self, spec: Spec) -> Path:
        """Return the file in which a maker that takes hours may keep how far it is; `save` removes it."""
        return self.root / "checkpoints" / f"{spec.key}.pt"

    def parents(self, spec: Spec) -> dict[str, str | None]:
        """Return the checksum of each parent, by key, as this process loaded it last, or else as it is there."""
        return {parent.key: self._loaded.get(parent.key) or self._sha256(parent) for parent in spec.needs()}

    def has(self, spec: Spec) -> bool:
        """Tell whether the artefact is there; it is not read."""
        with writing(self.root, "store"):
            return (self.path(spec) / RECORD).is_file()

    def current(self, spec: Spec) -> bool:
        """Tell whether the artefact is there, and of its parents as they are now; of files, records alone are read."""
        if not self.has(spec):
            return False
        try:
            self._require_fresh(spec, self.record(spec))
        except (KeyError, DamagedError):
            return False
        return True

    def load(self, spec: Spec, device: torch.device | str = "cpu") -> Artefact:
        """Read an artefact, every byte checked.

        Raises:
            KeyError: it is not there.
            DamagedError: it does not match its checksums, or is something else.
            UserError: it is of another version, or may not be read.
        """
        record, tensors = self._read(spec)
        self._loaded[spec.key] = record["sha256"]
        return Artefact({name: tensor.to(device) for name, tensor in tensors.items()}, record)

    def facts(self, spec: Spec) -> dict[str, Any]:
        """Read the facts noted about an artefact, without its tensors; raises what `load` does."""
        return self.record(spec)["facts"]

    def adopt(self, spec: Spec, folder: Path) -> None:
        """Publish a folder, on the file system of the store, that holds the files of an artefact."""
        with writing(self.root, "store"):
            self._publish(folder, self.path(spec))

    def verify(self, spec: Spec) -> str | None:
        """Check a stored artefact; a damaged or stale one is set aside. Returns what was wrong, or None.

        Raises KeyError and UserError as `load` does.
        """
        try:
            record, _ = self._read(spec)
            self._require_fresh(spec, record)
        except DamagedError as error:
            with writing(self.root, "store"):
                aside = self._set_aside(self.path(spec))
            return f"{error}; set aside in {aside}, to be rebuilt"
        return None

    def _require_fresh(self, spec: Spec, record: Mapping[str, Any]) -> None:
        """Raise DamagedError if a parent is no longer what it was made of, such as one made again on another machine.

        A parent that is gone, or damaged itself, says nothing; nor does a record of before they named their parents.
        """
        for parent in spec.needs():
            was = record.get("parents", {}).get(parent.key)
            if was and self._sha256(parent) not in (was, None):
                raise DamagedError(f"{spec.label}: it was made of another {parent.label} than the store has now")

    def _sha256(self, spec: Spec) -> str | None:
        """Return the checksum in the record of an artefact, None without one; read once, as many may be made of it."""
        try:
            file = (self.path(spec) / RECORD).stat()
            mark = file.st_ino, file.st_mtime_ns
            if self._sums.get(spec.key, ("", None))[1] != mark:
                self._sums[spec.key] = str(self.record(spec)["sha256"]), mark
            return self._sums[spec.key][0]
        except (OSError, KeyError, DamagedError):
            return None

    def _set_aside(self, place: Path) -> Path:
        aside = self.root / "damaged" / f"{place.parent.name}-{place.name[:16]}-{time.time_ns()}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process may have been faster
            place.rename(aside)
        return aside

    def save(self, spec: Spec, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Publish an artefact: all of it, or nothing. The record names its parents as this process loaded them."""
        payload = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
        record = {
            "schema": SCHEMA,
            "kind": spec.kind,
            "key": spec.key,
            "label": spec.label,
            "spec": spec.identity(),
            "parents": self.parents(spec),
            "facts": dict(facts),
            "torch": torch.__version__,
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
        }
        record["record_sha256"] = _checksum(record)
        draft = self.root / "drafts" / f"{spec.key}-{platform.node()}-{os.getpid()}"
        with writing(self.root, "store"):
            try:
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir(parents=True)
                write(draft / PAYLOAD, payload)
                write(draft / RECORD, json.dumps(record, indent=1, allow_nan=False).encode())
                self._publish(draft, self.path(spec))
                self.checkpoint(spec).unlink(missing_ok=True)
            finally:
                shutil.rmtree(draft, ignore_errors=True)  # a full disk needs the room

    def remember(self, name: str, settings: Mapping[str, Any], sha256: str) -> None:
        """Note what the data set called `name` was, under its settings, when this store first made something of it.

        Raises:
            UserError: it was another then.
        """
        text = json.dumps(settings, sort_keys=True)
        place = self.root / "data" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        if not place.exists():
            with writing(self.root, "store"):
                place.parent.mkdir(parents=True, exist_ok=True)
                write_json(place, {"schema": SCHEMA, "name": name, "settings": settings, "sha256": sha256})
            return
        try:
            note = parse_json(self._content(place))
            known, schema = note["sha256"], note["schema"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{place} is damaged; delete it, it is made again") from None
        require_schema(place, schema, SCHEMA, "choose another store with store=DIR")
        if known != sha256:
            raise UserError(
                f"data={name}: its files changed since the store {self.root} was begun: expected sha256 {known}, got "
                f"{sha256}; restore them, or begin another store with store=DIR"
            )

    @contextmanager
    def claim(self, spec: Spec) -> Iterator[bool]:
        """Hold the lock of `spec` inside the block; yields False at once where another process holds it."""
        lock = self._lock(spec.key)
        try:
            with writing(self.root, "store"):
                (self.root / "locks").mkdir(parents=True, exist_ok=True)
                lock.acquire()
        except Timeout:
            yield False
            return
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            raise UserError(
                f"the file system of the store {self.root} has no flock ({error.strerror}); use locks=lease in every "
                "process on it"
            ) from error
        try:
            yield True
        finally:
            lock.release()

    def _lock(self, key: str) -> BaseFileLock:
        if self.locks == "flock":
            return FileLock(self.root / "locks" / f"{key}.lock", timeout=0, fallback_to_soft=False)
        if key not in self._leases:
            path = self.root / "locks" / f"{key}.lease"
            self._leases[key] = SoftFileLease(path, timeout=0, lease_duration=self.lease_s)
        return self._leases[key]

    def _publish(self, draft: Path, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.rename(place)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR} or not os.path.lexists(place):
                raise
            if (place / RECORD).is_file():
                shutil.rmtree(draft)  # another process published the same artefact first
                return
            self._set_aside(place)  # a folder that lost its record, or what is none, would keep it out for ever
            draft.rename(place)

    def record(self, spec: Spec) -> dict[str, Any]:
        """Read the record of an artefact, without its checksum of itself; raises what `load` does."""
        path = self.path(spec) / RECORD
        try:
            record = parse_json(self._content(path))
            sound = isinstance(record, dict) and record.pop("record_sha256", None) == _checksum(record)
        except FileNotFoundError:
            raise KeyError(f"{spec.label} is not in the store {self.root}") from None
        except (ValueError, RecursionError):
            sound = False
        if not sound or not isinstance(record.get("schema"), int):
            raise DamagedError(f"{spec.label}: {path} is damaged")
        require_schema(f"the store {self.root}", record["schema"], SCHEMA, "choose another with store=DIR")
        told = {name: type(record.get(name)) for name in FORM}
        parents = record.get("parents", {})  # files of before they had them are read as ever
        if told != FORM or not isinstance(parents, dict) or (record["kind"], record["key"]) != (spec.kind, spec.key):
            raise DamagedError(f"{spec.label}: {path} is the record of something else")
        return record

    def _content(self, path: Path) -> bytes:
        try:
            return content(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror}; grant access and run the same command again, or choose another "
                "folder with store=DIR"
            ) from error

    def _read(self, spec: Spec) -> tuple[dict[str, Any], dict[str, Tensor]]:
        record = self.record(spec)
        path = self.path(spec) / PAYLOAD
        try:
            payload = self._content(path)
        except (FileNotFoundError, ValueError):
            payload = b""
        if len(payload) != record["bytes"]:
            raise DamagedError(f"{spec.label}: {path} has {len(payload)} of {record['bytes']} bytes")
        if hashlib.sha256(payload).hexdigest() != record["sha256"]:
            raise DamagedError(f"{spec.label}: {path} does not match its checksum")
        try:
            return record, parse_tensors(payload)[0]
        except ValueError as error:
            raise DamagedError(f"{spec.label}: {path} holds {error}") from error


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
