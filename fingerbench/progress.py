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


def plural(kind: str) -> str:
    """Return what many artefacts of a kind are called."""
    return f"{kind.removesuffix('y')}ies" if kind.endswith("y") else f"{kind}s"


class Progress:
    """Done and total of each kind of artefact, what is being made, and the time left.

    totals: kind -> (done before, total).
    """

    def __init__(self, totals: Mapping[str, tuple[int, int]]) -> None:
        self._totals = {kind: total for kind, (_, total) in totals.items()}
        self._began = self._spoke = time.monotonic()
        console = Console(stderr=True)
        self._lines = not console.is_terminal
        self._bars = rich_progress.Progress(
            rich_progress.TextColumn("{task.description:>12}"),
            rich_progress.BarColumn(24),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TextColumn("{task.fields[news]}"),
            console=console,
            disable=self._lines,
        )
        self._tasks = {
            kind: self._bars.add_task(plural(kind), total=total, completed=done, news="")
            for kind, (done, total) in totals.items()
        }

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bars.stop()

    def show(self, done: Mapping[str, int], current: Sequence[str], left: float | None) -> None:
        """Show that `done` of each kind are there, that `current` are being made, and that `left` seconds remain."""
        news = ("" if left is None else f"about {left:.0f} s left, ") + f"making {', '.join(current)}"
        if not current:
            finished = all(done.get(kind, 0) >= total for kind, total in self._totals.items())
            news = "" if finished else "waiting for what other runs make"
        for number, (kind, task) in enumerate(self._tasks.items()):
            self._bars.update(task, completed=done.get(kind, 0), news="" if number else news)
        now = time.monotonic()
        if self._lines and now - self._spoke >= LINE_EVERY_S:
            self._spoke = now
            counts = ", ".join(f"{done.get(kind, 0)}/{total} {plural(kind)}" for kind, total in self._totals.items())
            log.info("%s after %.0f s, %s", counts, now - self._began, news)
