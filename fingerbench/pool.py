"""Building in parallel: one process per worker, each told what to make next, none waiting on another's list.

A worker is `python -m fingerbench.worker`: it hears specs on its standard input and answers on its standard output. It
ends when its input does, so no worker outlives the process that started it, however that one ends. The data set, which
this process has read, all of them map from one file into their memory.

What fails is left out, with all that needs it, and the rest goes on. Where a worker dies, often for want of memory,
what it was making is tried once more, with one worker fewer as long as there are others.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from fingerbench import plugins
from fingerbench.cluster import granted_cores
from fingerbench.cost import Effort
from fingerbench.errors import BuildError, UserError, last_raised, one_line, writing
from fingerbench.eta import Eta
from fingerbench.progress import Progress, plural
from fingerbench.records import Dataset
from fingerbench.seeds import CUBLAS
from fingerbench.store import Spec, Store

log = logging.getLogger(__name__)

POLL_S = 0.1  # between looks at whether the workers are done
SHOW_S = 1.0  # between looks at how far they are: of thousands of artefacts, the time left is work
TELL_S = 15.0  # until the time left is told: it takes seconds of a core to learn, and short builds are done by then
RETRY_S = 0.5  # until a model that another process is making is looked at again
OUT_OF_MEMORY = 137  # exit code of a worker that lacks memory, as of one that the system killed for it


class Pool:
    """Worker processes that make what is missing in a store.

    effort: how much there is to do for a spec, for the time left; without it, all count the same.
    """

    def __init__(
        self,
        store: Store,
        data: Dataset,
        settings: dict[str, Any],
        jobs: int,
        effort: Callable[[Spec], Effort] | None = None,
    ) -> None:
        self.store = store
        self.data = data
        self.settings = settings
        self.jobs = jobs
        self._change = threading.Condition()
        self._todo: dict[str, Spec] = {}
        self._running: dict[str, Spec] = {}
        self._began: dict[str, float] = {}
        self._retry: dict[str, float] = {}
        self._made: Counter[str] = Counter()
        self._failed: dict[str, tuple[Spec, str]] = {}
        self._left_out = 0
        self._stopping = False
        self._deaths: Counter[str] = Counter()
        self._effort = effort or (lambda spec: Effort(spec.kind, 1.0))
        self._eta = Eta(self._effort)
        self._error: Exception | None = None
        self._workers: list[subprocess.Popen[str]] = []

    def run(self, wanted: Sequence[Spec]) -> None:
        """Make what is missing of `wanted` and of what that needs, in this order as far as parents allow.

        What was made of a parent that had to be made again, and came out differently, is made again as well.

        Raises:
            UserError: the user's to mend, such as a full disk or a model that no worker survives. The others finish
                what they are at.
            BuildError: some could not be made, at the end of the rest. Either way everything finished is kept.
        """
        there = self._take_stock(wanted)
        found = Counter(spec.kind for spec in there)
        missing = Counter(spec.kind for spec in self._todo.values())
        log.info("store %s: %s", self.store.root, _stock(found, missing))
        for name, labels in plugins.changed(self.store, there).items():
            told = labels[0] + (f" and {len(labels) - 1} more" if labels[1:] else "")
            log.warning(
                "%s: its code is not what made the stored %s; if it does otherwise now, raise `version`", name, told
            )
        if not self._todo:
            return
        specs = list(self._todo.values())
        progress = Progress({kind: (found[kind], found[kind] + missing[kind]) for kind in missing})
        threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(min(self.jobs, len(self._todo)))]
        self._file = _filed(self.data)
        try:
            with progress:
                for thread in threads:
                    thread.start()
                self._watch(threads, progress, found, specs)
        finally:
            self._stop()
            self._file.close()
        if self._error:
            raise self._error
        if self._failed:
            raise BuildError(self._failures())
        made = {spec.key for spec in specs}
        orphans = [spec for spec in there if any(parent.key in made for parent in spec.needs())]
        if not all(self._sound(spec) for spec in orphans):  # the next round sees the rest
            type(self)(self.store, self.data, self.settings, self.jobs, self._effort).run(wanted)

    def _watch(
        self, threads: Sequence[threading.Thread], progress: Progress, found: Counter[str], specs: Sequence[Spec]
    ) -> None:
        """Show how far the workers are until all of `specs` are done."""
        began, shown, alive = time.monotonic(), 0.0, True
        while alive:
            time.sleep(POLL_S)
            alive = any(thread.is_alive() for thread in threads)
            if not alive or time.monotonic() - shown >= SHOW_S:
                left = self._left(specs) if alive and time.monotonic() - began >= TELL_S else None
                with self._change:
                    made, running = found + self._made, [spec.label for spec in self._running.values()]
                progress.show(made, running, left)
                shown = time.monotonic()

    def _failures(self) -> str:
        """Return what failed: the first in full, the others by name."""
        (_, first), *others = self._failed.values()
        named = f"\nfailed as well: {', '.join(spec.label for spec, _ in others)}" if others else ""
        without = f"\nleft out, since they need those: {self._left_out}" if self._left_out else ""
        return f"{first.rstrip()}{named}{without}"

    def _left(self, specs: Sequence[Spec]) -> float | None:
        for spec in specs:
            self._eta.effort(spec)  # the first time this takes seconds, and must not keep the lock of the workers
        with self._change:
            now = time.monotonic()
            running = [(spec, now - self._began[key]) for key, spec in self._running.items()]
            todo = () if self._error else self._todo.values()  # after an error nothing more is begun
            return self._eta.left(todo, running, max(1, len(self._workers)))

    def _take_stock(self, wanted: Sequence[Spec]) -> list[Spec]:
        """Return what is there; what is missing is to do."""
        found: list[Spec] = []
        seen: set[str] = set()
        stack = list(reversed(wanted))
        while stack:
            spec = stack.pop()
            if spec.key in seen:
                continue
            if self._sound(spec):
                seen.add(spec.key)
                found.append(spec)
                continue
            parents = [parent for parent in spec.needs() if parent.key not in seen]
            if parents:
                stack += [spec, *reversed(parents)]
                continue
            seen.add(spec.key)
            self._todo[spec.key] = spec
        return found

    def _sound(self, spec: Spec) -> bool:
        """Tell whether an artefact is there, and what it should be; else it is set aside."""
        if not self.store.has(spec):
            return False
        try:
            trouble = self.store.verify(spec)
        except KeyError:  # another process has just set it aside
            return False
        if trouble:
            log.warning("damaged: %s", trouble)
        return trouble is None

    def _serve(self) -> None:
        try:
            worker = self._start()
            spec: Spec | None = None
            while (spec := self._next(spec)) is not None:
                reply = self._ask(worker, spec)
                if reply is None:
                    if not self._bury(spec, worker):
                        return
                    worker = self._start()
                    continue
                self._handle(spec, reply)
                if reply.get("broken"):
                    self._dismiss(worker)
                    worker = self._start()
        except Exception as error:  # noqa: BLE001 - whatever it is, the main thread raises it
            self._fail(error)

    def _next(self, last: Spec | None) -> Spec | None:
        with self._change:
            while self._todo or self._running:
                if self._error or self._stopping:
                    return None
                spec = self._ready(last)
                if spec:
                    self._running[spec.key] = self._todo.pop(spec.key)
                    self._began[spec.key] = time.monotonic()
                    return spec
                self._change.wait(RETRY_S)
            return None

    def _ready(self, last: Spec | None) -> Spec | None:
        """Return the first that can be made, or one of its kind that is like the `last` of the same worker."""
        now = time.monotonic()
        first: Spec | None = None
        for key, spec in self._todo.items():
            if self._retry.get(key, 0) > now or any(map(self._unfinished, spec.needs())):
                continue
            first = first or spec
            if not (last and first.alike and last.kind == first.kind):
                return first
            if spec.kind == last.kind and spec.alike == last.warm:
                return spec
        return first

    def _unfinished(self, spec: Spec) -> bool:
        return spec.key in self._todo or spec.key in self._running

    def _start(self) -> subprocess.Popen[str]:
        threads = str(self.settings["threads"])
        # A library that spins at barriers for idle threads makes two busy processes many times slower than one.
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        # torch.compile would start a process for each core of the machine, in every worker.
        environment.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, granted_cores() // self.jobs)))
        environment |= CUBLAS if self.settings["deterministic"] else {}
        # What this process imports they import from the same place: -P keeps -m from putting the current folder first.
        environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        file, pipe = self._file.fileno(), subprocess.PIPE
        command = [sys.executable, "-P", "-m", "fingerbench.worker", f"/dev/fd/{file}"]
        worker = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, bufsize=1, env=environment, pass_fds=(file,)
        )
        with self._change:
            self._workers.append(worker)
            if self._stopping:  # whoever stops has not seen this one
                _send_home(worker)
        _say(worker, json.dumps(self.settings))
        return worker

    def _ask(self, worker: subprocess.Popen[str], spec: Spec) -> dict[str, Any] | None:
        """Return the reply of the worker, None if it died."""
        # Pickled, since a spec may hold a user's own method or attack; it goes no further than to our own child.
        _say(worker, base64.b64encode(pickle.dumps(spec)).decode())
        assert worker.stdout is not None
        line = worker.stdout.readline()
        return json.loads(line) if line.endswith("\n") else None

    def _bury(self, spec: Spec, worker: subprocess.Popen[str]) -> bool:
        """Put back what a dead worker was making; returns whether it was the last, so that another must start.

        Raises:
            UserError: it is the second to die of the same.
        """
        code = worker.wait()
        _send_home(worker)
        died = f"a worker died ({_ending(code)}) while making {spec.label}"
        with self._change:
            if self._stopping:
                return False
            self._running.pop(spec.key)
            self._workers.remove(worker)
            self._deaths[spec.key] += 1
            if self._deaths[spec.key] > 1:
                raise UserError(
                    f"{died}, the second; if memory is short, give more or take a smaller batch or fewer jobs=; all "
                    "that is finished is kept, and the same command goes on where it was"
                )
            self._todo = {spec.key: spec, **self._todo}
            self._change.notify_all()
            left = len(self._workers)
        log.warning("%s; tried once more, by %s", died, f"one of {left} left" if left else "a new one")
        return left == 0

    def _handle(self, spec: Spec, reply: dict[str, Any]) -> None:
        with self._change:
            self._running.pop(spec.key)
            if reply["status"] == "busy":
                self._todo[spec.key] = spec
                self._retry[spec.key] = time.monotonic() + RETRY_S
            elif reply["status"] == "failed":
                if reply["user"]:
                    self._end_with(UserError(reply["error"]))
                elif reply.get("again") and not self._deaths[spec.key]:
                    self._deaths[spec.key] += 1
                    self._todo = {spec.key: spec, **self._todo}
                    log.warning("%s: the GPU failed: %s; tried once more", spec.label, last_raised(reply["error"]))
                else:
                    self._leave_out(spec, reply["error"])
            else:
                self._made[spec.kind] += 1
                if reply.get("seconds") is not None:
                    self._eta.learn(spec, reply["seconds"])  # without the start of the worker
                log.debug("%s: %s", spec.label, reply["status"])
            self._change.notify_all()

    def _leave_out(self, spec: Spec, why: str) -> None:
        self._failed[spec.key] = (spec, why)
        log.warning("failed: %s: %s; the others go on", spec.label, last_raised(why) or why.rstrip().splitlines()[-1])
        gone = {spec.key}
        while lost := [key for key, other in self._todo.items() if any(p.key in gone for p in other.needs())]:
            gone.update(lost)
            self._todo = {key: other for key, other in self._todo.items() if key not in gone}
        self._left_out += len(gone) - 1

    def _fail(self, error: Exception) -> None:
        with self._change:
            self._end_with(error)
            self._change.notify_all()

    def _end_with(self, error: Exception) -> None:
        """Begin nothing more; the first error is raised when what is being made, which may take hours, is done."""
        if not self._error and self._running:
            log.warning("ending, once what is being made (%d) is done: %s", len(self._running), one_line(error))
        self._error = self._error or error

    def _stop(self) -> None:
        with self._change:
            self._stopping = True
            self._todo.clear()
            self._change.notify_all()
            workers = list(self._workers)
        for worker in workers:
            _send_home(worker)
        for worker in workers:
            worker.wait()

    def _dismiss(self, worker: subprocess.Popen[str]) -> None:
        with self._change:
            self._workers.remove(worker)
        _send_home(worker)
        worker.wait()


def _filed(data: Dataset) -> IO[bytes]:
    """Return an open file with the data set; it has no name, so that it goes with the last process that has it."""
    option = "the environment variable TMPDIR"
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise UserError(f"{error.strerror}; grant access to one, or choose another with {option}=DIR") from error
    with writing(folder, option):
        file = tempfile.TemporaryFile()  # noqa: SIM115 - whoever asked closes it
        try:
            torch.save(data, file)
            file.flush()
        except RuntimeError as error:
            hidden = error.__context__  # PyTorch hides that the disk is full
            raise hidden if isinstance(hidden, OSError) else error from None
    return file


def _say(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin is not None
    try:
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return  # it died; reading its answer tells


def _send_home(worker: subprocess.Popen[str]) -> None:
    assert worker.stdin is not None
    with suppress(BrokenPipeError):  # it died, and something that it was told is still in the pipe
        worker.stdin.close()


def _ending(code: int) -> str:
    if code in (-signal.SIGKILL, OUT_OF_MEMORY):
        return "out of memory, or killed"
    return f"exit code {code}"


def _stock(found: Counter[str], missing: Counter[str]) -> str:
    total = found + missing
    usual = ("gan", "model", "fingerprint", "fid", "evasion", "response", "accuracy", "agreement")
    kinds = [*(kind for kind in usual if total[kind]), *sorted(total.keys() - set(usual))]
    counts = (f"{found[kind]} of {total[kind]} {plural(kind)}" for kind in kinds)
    return "found " + ", ".join(counts) + (f"; making {missing.total()}" if missing else "; nothing to make")
