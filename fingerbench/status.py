"""What a job says of itself while it runs and after it, and what that tells of a whole sweep.

The folder of every job has `status.json`, written by the job itself, whichever launcher runs it, and that of a sweep
`sweep.json`, the list of its jobs, written before the first starts. Both are written aside and renamed, so what is read
is complete.

A job that is killed cannot say so. While it lives it touches its status.json every BEAT_S seconds, and one that did not
for LOST_S is lost. How long that is follows from the time of a file which the reader makes in the same folder: both
times come from the clock of the file server, and those of hosts do not matter.
"""

from __future__ import annotations

import atexit
import datetime
import logging
import os
import re
import shlex
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fingerbench import cluster
from fingerbench.errors import UserError, last_raised, require_schema, writing
from fingerbench.files import write_json
from fingerbench.untrusted import content, parse_json

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger(__name__)

SCHEMA = 1
STATUS, SWEEP, TRACEBACK = "status.json", "sweep.json", "traceback.txt"
BEAT_S, LOST_S = 15.0, 60.0

ENDED = ("done", "failed", "interrupted")  # states that a job writes itself, beside "running"
UNQUEUED = ("BasicLauncher", "JoblibLauncher")  # launchers without a queue
PLACING = ("hydra.mode", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")  # overrides that choose a folder
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class Heart:
    """Touches a file every `seconds` until it is stopped, or its process dies."""

    def __init__(self, path: Path, seconds: float = BEAT_S) -> None:
        self._path, self._seconds = path, seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._stopped.wait(self._seconds):
            with suppress(OSError):  # a hiccup of the file server must not end it
                os.utime(self._path)

    def stop(self) -> None:
        """Touch the file no more."""
        self._stopped.set()
        self._thread.join()


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Keep status.json in `folder` while the Hydra job runs in the block; write traceback.txt if it fails.

    A UserError has no traceback, and what is no Exception, as Ctrl-C, is an interruption.
    """
    record = {**_beginning(folder), "state": "running", "ended": None, "error": None}
    _warn_of_another(folder, record)
    with writing(folder, "hydra.run.dir"):
        (folder / TRACEBACK).unlink(missing_ok=True)
        write_json(folder / STATUS, record)
    heart = Heart(folder / STATUS)
    state, error, told = "interrupted", None, ""
    try:
        yield
        state = "done"
    except Exception as raised:
        state, error = "failed", why(raised)
        told = "" if isinstance(raised, UserError) else traceback.format_exc()
        raise
    finally:
        heart.stop()
        _end(folder, {**record, "state": state, "ended": _now(), "error": error}, told)


def _warn_of_another(folder: Path, record: Mapping[str, Any]) -> None:
    """Say so where `folder` is that of a job with other words, of which nothing but the store is left then."""
    try:
        before = parse_json(content(folder / STATUS))
    except (OSError, ValueError):  # none, or damaged
        return
    if isinstance(before, dict) and before.get("words") != record["words"]:
        told = before.get("command"), before.get("state")
        log.warning("%s: the files of another run there are replaced: %s (%s)", folder, *told)


def _beginning(folder: Path) -> dict[str, Any]:
    """Return what the Hydra job that runs here knows of itself when it starts."""
    config = HydraConfig.get()
    many = config.mode == RunMode.MULTIRUN
    subdir = os.path.relpath(folder, config.sweep.dir) if many else ""
    record = _entry(config, overrides(config.overrides.task), subdir) | ({} if many else {"launcher": None})
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return {
        "schema": SCHEMA,
        "command": again(record, folder),
        **record,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "slurm_job_id": f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID"),
        "started": _now(),
    }


def _entry(config: Any, words: Sequence[str], subdir: str) -> dict[str, Any]:
    """Return what it takes to run a job again. config: the node `hydra`."""
    hydra = [word for word in overrides(config.overrides.hydra) if word.partition("=")[0] not in PLACING]
    launcher = str(config.launcher["_target_"]).rpartition(".")[2]
    return {"words": [*words], "hydra": hydra, "launcher": launcher, "subdir": subdir, "cwd": config.runtime.cwd}


def overrides(node: Any) -> list[str]:
    """Return a list of Hydra's overrides as they were typed, references in them still open."""
    words = OmegaConf.to_container(node, resolve=False)
    return [str(word) for word in words] if isinstance(words, list) else []


def _end(folder: Path, record: Mapping[str, Any], told: str) -> None:
    try:
        if told:
            (folder / TRACEBACK).write_text(told, encoding="utf-8")
            log.error("failed: %s; the traceback is in %s", record["error"], folder / TRACEBACK)
        write_json(folder / STATUS, record)
    except OSError as error:  # what the job itself says, and what it made, matter more
        log.warning("%s does not say that the job is %s: %s", folder / STATUS, record["state"], error.strerror)


def why(error: BaseException) -> str:
    """Return the first line of an error; of one that holds the traceback of a worker, the error in there."""
    raised = last_raised(str(error))
    if raised is not None:
        return raised
    first = next(iter(str(error).strip().splitlines()), "")
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}".removesuffix(": ")


def announce(config: DictConfig) -> bool:
    """Write sweep.json into the folder of the sweep that starts here, and touch it for as long as this process lives.

    Jobs of earlier sweeps into the same folder stay in the list; the same job, by its words, occurs once. Only Hydra's
    basic sweeper knows its jobs in advance: with another, `jobs` is null, unless earlier sweeps listed some. Returns
    whether all jobs in the list are of this sweep.
    """
    folder = Path(config.hydra.sweep.dir).absolute()
    earlier = _listed(_read(folder / SWEEP) or {})
    coming = {_identity(entry["words"]): entry for entry in _coming(config)}
    _warn_of_overwriting(folder, earlier, coming)
    known = config.hydra.sweeper["_target_"] == BASIC_SWEEPER or bool(earlier)
    record = {
        "schema": SCHEMA,
        "command": shlex.join(["python", *sys.argv]),
        "launcher": str(config.hydra.launcher["_target_"]).rpartition(".")[2],
        "started": _now(),
        "jobs": list((earlier | coming).values()) if known else None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SWEEP, record)
    heart = Heart(folder / SWEEP)
    atexit.register(_fall_silent, heart, folder / SWEEP)
    return known and earlier.keys() <= coming.keys()


def _coming(config: DictConfig) -> list[dict[str, Any]]:
    """Return the jobs of the sweep that starts, as Hydra's basic sweeper will number them; none of another sweeper."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    sweeper = config.hydra.sweeper
    if sweeper["_target_"] != BASIC_SWEEPER:
        return []
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    given = [
        *(f"{key}={value}" for key, value in (sweeper.params or {}).items()),
        *overrides(config.hydra.overrides.task),
    ]
    (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides(given), None)
    place = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    pattern = str(place["subdir"]) if isinstance(place, dict) else ""
    numbered = enumerate(jobs)
    return [_entry(config.hydra, words, pattern.replace("${hydra.job.num}", str(n))) for n, words in numbered]


def _warn_of_overwriting(folder: Path, earlier: Mapping[Any, Any], coming: Mapping[Any, Any]) -> None:
    places = {entry["subdir"] for entry in coming.values()}
    over = [entry for key, entry in earlier.items() if key not in coming and entry["subdir"] in places]
    for entry in over:
        log.warning(
            "%s, of an earlier sweep (%s), is written over", folder / entry["subdir"], shlex.join(entry["words"])
        )


def _fall_silent(heart: Heart, path: Path) -> None:
    """Let a sweep that ends look so at once; another one into the same folder touches the file again."""
    heart.stop()
    with suppress(OSError):  # then it looks so after LOST_S
        past = path.stat().st_mtime - 2 * LOST_S
        os.utime(path, (past, past))


@dataclass(frozen=True)
class Job:
    """One job as its folder, or the list of its sweep, tells.

    state: "done", "running", "failed", "interrupted" (Ctrl-C, SIGTERM), "lost" (killed, out of memory, or its node is
    gone), "waiting" (not started, and its sweep goes on, or queued again by SLURM), "missing" (not started) or
    "damaged" (status.json is). error: its first line, empty if there is none. started, ended: ISO 8601. command: what
    runs it again into its folder, to be typed in `cwd`.
    """

    name: str  # its folder, as seen from that of the sweep
    folder: Path
    state: str
    words: tuple[str, ...]
    command: str
    cwd: str
    error: str = ""
    started: str | None = None
    ended: str | None = None

    @property
    def seconds(self) -> float | None:
        """How long it took, by the clock of its host."""
        if self.started is None or self.ended is None:
            return None
        start, end = map(datetime.datetime.fromisoformat, (self.started, self.ended))
        return (end - start).total_seconds()

    @property
    def stuck(self) -> bool:
        """Whether somebody has to run it again."""
        return self.state not in ("done", "running", "waiting")

    def told(self) -> str:
        """Return in a line which job it is, its state, and why."""
        return f"{self.name} ({shlex.join(self.words)}): {self.state}" + (f", {self.error}" if self.error else "")


def read(folder: Path, lost_s: float = LOST_S) -> list[Job]:
    """Return the jobs of a sweep, those listed first, or the one job of the folder of a single run.

    lost_s: the seconds of silence after which a job that runs is lost.

    Raises:
        UserError: `folder` is neither.
    """
    folder = folder.absolute()
    if not (folder / SWEEP).exists():
        if not (folder / STATUS).exists():
            raise UserError(f"{folder}: no sweep or run ({SWEEP}, {STATUS}) here; give the folder that one printed")
        return [_job(folder, folder, _found(folder / STATUS, lost_s))]
    sweep = _read(folder / SWEEP)
    if sweep is None:
        raise UserError(f"{folder / SWEEP}: not the list of a sweep; the command of the sweep writes it anew")
    there = {path.parent: _found(path, lost_s) for path in sorted(folder.rglob(STATUS))}
    # Once they are submitted jobs need no process of the sweep.
    submitted = any(e["launcher"] == "SlurmLauncher" for e in _listed(sweep).values()) and cluster.queued(folder)
    jobs, silent = [], _silence(folder / SWEEP) > lost_s and not submitted
    numbers = [int(p) for entry in _listed(sweep).values() if (p := entry["subdir"]).isdecimal()]
    spare = max([*numbers, *(int(path.name) for path in there if path.name.isdecimal())], default=-1) + 1
    for key, entry in _listed(sweep).items():
        place = folder / entry["subdir"]
        at = _whereabouts(key, place, there)
        if at is not None:
            jobs.append(_job(folder, at, {**there.pop(at), **entry, "subdir": os.path.relpath(at, folder)}))
            continue
        if place in there:  # by another job
            entry, spare = {**entry, "subdir": str(spare)}, spare + 1
        state = {"state": "missing" if silent else "waiting", "error": "not started"}
        jobs.append(_job(folder, folder / entry["subdir"], {**entry, **state}))
    return jobs + [_job(folder, at, record) for at, record in there.items()]


def _whereabouts(key: tuple[str, ...], place: Path, there: Mapping[Path, Mapping[str, Any]]) -> Path | None:
    """Return which of the folders `there` has the job `key`: `place`, where it should be, or the latest."""
    if place in there and ("words" not in there[place] or _identity(there[place]["words"]) == key):
        return place
    same = [path for path, record in there.items() if "words" in record and _identity(record["words"]) == key]
    return max(same, key=lambda path: str(there[path]["started"]), default=None)


def _job(sweep: Path, folder: Path, record: Mapping[str, Any]) -> Job:
    name = os.path.relpath(folder, sweep) if folder != sweep else folder.name
    return Job(
        name=name,
        folder=folder,
        state=record["state"],
        words=tuple(record.get("words", ())),
        command=again(record, folder) if "words" in record else "",
        cwd=record.get("cwd", ""),
        error=record.get("error") or "",
        started=record.get("started"),
        ended=record.get("ended"),
    )


def table(jobs: Sequence[Job]) -> DataFrame:
    """Return the jobs as they are shown, a row each; words that all of them have are left out."""
    import pandas as pd

    common = set.intersection(*(set(job.words) for job in jobs)) if len(jobs) > 1 else set()
    rows = []
    for job in jobs:
        words = shlex.join(word for word in job.words if word not in common)
        since = f"since {job.started}" if job.started else ""
        took = since if job.seconds is None else f"{job.seconds:.0f} s"
        rows.append({"job": job.name, "state": job.state, "words": words, "time": took, "why": job.error})
    return pd.DataFrame(rows)


def commands(jobs: Sequence[Job]) -> list[str]:
    """Return lines to paste: what runs each job again that is neither done nor under way, and where to type it."""
    lines, here = [], str(Path.cwd())
    for job in jobs:
        if job.stuck and job.command:
            lines += [f"cd {shlex.quote(job.cwd)}"] * (job.cwd != here) + [job.command]
            here = job.cwd
    return lines


def again(record: Mapping[str, Any], folder: Path) -> str:
    """Return the command that runs a job again into its folder: through the queue, if it came through one.

    record: with the keys words, hydra (Hydra's own overrides), launcher (the name of its class; None of a single run)
    and subdir, the end of `folder` below the folder of its sweep.
    """
    words = ["python", "run.py", *record["words"], *record["hydra"]]
    if record["launcher"] in (None, *UNQUEUED):
        alone = [word for word in words if not _launches(word)]
        return shlex.join([*alone, f"hydra.run.dir={_value(folder.absolute())}"])
    sweep = folder.absolute().parents[len(Path(record["subdir"]).parts) - 1]
    place = [f"hydra.sweep.dir={_value(sweep)}", f"hydra.sweep.subdir={_value(record['subdir'])}"]
    return shlex.join([*words[:2], "-m", *words[2:], *place])


def _value(value: Path | str) -> str:
    """Return a value as Hydra's command line takes it: in quotes, if it has signs that mean something there."""
    text = str(value)
    if re.fullmatch(r"[A-Za-z0-9_/.-]+", text):
        return text
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), text) + "'"


def _identity(words: Sequence[str]) -> tuple[str, ...]:
    """Return what tells jobs apart: their words, in any order, but for how they are launched."""
    return tuple(sorted(word for word in words if not _launches(word)))


def _launches(word: str) -> bool:
    """Whether an override says how jobs are launched, rather than what they do."""
    return re.match(r"\+*(hydra[./])?launcher[.=]", word) is not None


def _found(path: Path, lost_s: float) -> dict[str, Any]:
    """Return what a status.json says, and whether it still holds."""
    record = _read(path)
    if record is None:
        return {"state": "damaged", "error": f"{path}: not the status of a job"}
    if record["state"] == "running" and _silence(path) > lost_s:
        record = {**record, "state": "lost", "error": "killed, out of memory, or its machine is gone"}
    job = record.get("slurm_job_id")
    if job and record["state"] in ("interrupted", "lost") and cluster.states(str(job)) == ["PENDING"]:
        return {**record, "state": "waiting", "error": "queued again"}
    return record


def _silence(path: Path) -> float:
    """Return the seconds since `path` was touched, by the clock of the file server.

    Where the folder cannot be written it is this host's clock.
    """
    with path.open("rb") as file:  # opening makes a client of a file server ask it for the time of the file
        touched = os.fstat(file.fileno()).st_mtime
    try:
        with tempfile.TemporaryFile(dir=path.parent) as fresh:
            os.utime(fresh.fileno())
            now = os.fstat(fresh.fileno()).st_mtime
    except OSError:
        now = time.time()
    return now - touched


def _listed(sweep: Mapping[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    return {_identity(entry["words"]): entry for entry in sweep.get("jobs") or []}


def _read(path: Path) -> dict[str, Any] | None:
    """Return a status.json or sweep.json; None if it is missing or not what `recorded` or `announce` write.

    Raises:
        UserError: it is of another version.
    """
    try:
        record = parse_json(content(path))
        if not isinstance(record, dict) or not isinstance(record["schema"], int):
            return None
        require_schema(path, record["schema"], SCHEMA, "look at it with that one")
        sound = all(map(_is_entry, record["jobs"] or [])) if path.name == SWEEP else _is_status(record)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if sound else None


def _is_entry(entry: Any) -> bool:
    texts = [*entry["words"], *entry["hydra"], entry["subdir"], entry["cwd"], entry["launcher"] or ""]
    return all(isinstance(text, str) for text in texts)


def _is_status(record: Mapping[str, Any]) -> bool:
    moments = [record["started"], *([record["ended"]] if record["ended"] is not None else [])]
    timed = all(datetime.datetime.fromisoformat(moment).tzinfo for moment in moments)
    told = isinstance(record["error"], str | None)
    return _is_entry(record) and timed and told and record["state"] in ("running", *ENDED)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
