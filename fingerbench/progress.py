"""How far a build is: bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich import progress as rich_progress
from rich.console import Console

log = logging.getLogger(__name__)

LINE_EVERY_S = 15.0  # where the output is no terminal


class Progress:
    """Done, total, what is being made, and the time left, for each kind of artefact."""

    def __init__(self, counts: Mapping[str, tuple[int, int]]) -> None:
        self._counts = dict(counts)  # kind -> (done before, total)
        self._began = self._spoke = time.monotonic()
        self._console = Console(stderr=True)
        self._bars = rich_progress.Progress(
            rich_progress.TextColumn("{task.description:>12}"),
            rich_progress.BarColumn(24),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TextColumn("left"),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.fields[current]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks = {
            kind: self._bars.add_task(f"{kind}s", total=total, completed=done, current="")
            for kind, (done, total) in counts.items()
        }

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bars.stop()

    def show(self, done: Mapping[str, int], current: Sequence[str]) -> None:
        """Show that `done` of each kind are there, and that `current` are being made."""
        for number, (kind, task) in enumerate(self._tasks.items()):
            self._bars.update(task, completed=done.get(kind, 0), current=", ".join(current) if number == 0 else "")
        now = time.monotonic()
        if not self._console.is_terminal and now - self._spoke >= LINE_EVERY_S:
            self._spoke = now
            log.info("%s", self._line(done, current, now - self._began))

    def _line(self, done: Mapping[str, int], current: Sequence[str], elapsed: float) -> str:
        counts = ", ".join(f"{done.get(kind, 0)}/{total} {kind}s" for kind, (_, total) in self._counts.items())
        made = sum(done.get(kind, 0) - before for kind, (before, _) in self._counts.items())
        left = sum(total - done.get(kind, 0) for kind, (_, total) in self._counts.items())
        eta = f", about {elapsed / made * left:.0f} s left" if made else ""
        return f"{counts} after {elapsed:.0f} s{eta}; making {', '.join(current)}"
