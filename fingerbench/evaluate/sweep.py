"""The end of a sweep: one comparison of all its runs, beside them."""

from __future__ import annotations

import logging
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fingerbench import status
from fingerbench.errors import UserError

log = logging.getLogger(__name__)

ALL_ENDED = -1.0  # a job that does not say it is done is lost: at the end of the only sweep in its folder


class Sweep(Callback):
    """What Hydra calls around the jobs of `python run.py -m`, whichever launcher runs them."""

    running: ClassVar[Path | None] = None
    """The folder of a sweep without its comparison. Hydra does not call the end of one in which a job failed."""

    lost_s: ClassVar[float] = status.LOST_S
    """See `status.read`: other sweeps into the same folder may have jobs that still run."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note the folder of the sweep, and list its jobs there."""
        Sweep.running = Path(config.hydra.sweep.dir)
        with suppress(OSError):  # Hydra writes there next, and then `run.py` says what is the matter
            Sweep.lost_s = ALL_ENDED if status.announce(config) else status.LOST_S

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Compare the runs."""
        finish()


def finish() -> None:
    """Write the comparison of the runs of the sweep, if there is one, into its folder `report`; print the tables."""
    folder, Sweep.running = Sweep.running, None
    if folder is None:
        return
    try:
        undone = [job for job in status.read(folder, Sweep.lost_s) if job.state != "done"]
    except UserError as error:
        log.warning("%s", error)
        undone = []
    compared = any(folder.rglob("scores.csv")) and _compare(folder)  # experiments have none, and draw their own tables
    if not compared:
        for job in undone:
            log.warning("missing: %s", job.told())
    if not undone and not any(folder.rglob("scores.csv")):
        log.info("tables and figures: in the folder of each job, such as %s", folder / "0")
    if undone:
        log.warning("how to run them again: python -m fingerbench status %s", shlex.quote(str(folder)))


def way_on() -> str:
    """Return what to do after an interruption: jobs that were submitted go on without the process of their sweep."""
    folder = Sweep.running
    if folder is None or not (folder / ".submitit").is_dir():
        return "the same command goes on where it was"
    return f"and jobs that were submitted go on: see python -m fingerbench status {shlex.quote(str(folder))}"


def _compare(folder: Path) -> bool:
    """Tell whether there is a comparison now."""
    from fingerbench.evaluate import report, tables

    try:
        done = report.report([folder], folder / "report", Sweep.lost_s)
    except UserError as error:  # such as a sweep over data sets, which no one table can hold
        log.warning("no comparison of the whole sweep: %s", error)
        return False
    tables.show(*map(tables.terminal, tables.comparison_tables(done.table)))
    for note in done.notes:
        log.info("%s", note)
    log.info("comparison: %s", folder / "report")
    return True
