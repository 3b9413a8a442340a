"""The end of a sweep: one comparison of all its runs, beside them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from fingerbench.errors import UserError

log = logging.getLogger(__name__)


class Report(Callback):
    """Hydra calls this after the last job of `python run.py -m`, whichever launcher ran the jobs."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write the comparison of the sweep's runs into its folder REPORT and print the tables."""
        from rich.console import Console

        from fingerbench.evaluate import report, tables

        folder = Path(config.hydra.sweep.dir)
        try:
            done = report.report([folder], folder / "report")
        except UserError as error:  # such as a sweep over data sets, which no one table can hold
            log.warning("no comparison of the whole sweep: %s", error)
            return
        console = Console(width=None if Console().is_terminal else 120)
        for table in tables.comparison_tables(done.table):
            console.print(tables.terminal(table))
        for note in done.notes:
            log.info("%s", note)
        log.info("comparison: %s", folder / "report")
