"""Optional loggers: what a run wrote, shown by TensorBoard, Weights & Biases or MLflow.

They read the finished files of a run, so one that fails costs nothing. Unless told otherwise none uses a network: each
writes into the run's folder.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from omegaconf import DictConfig

from fingerbench import config
from fingerbench.errors import UserError
from fingerbench.manifest import MANIFEST
from fingerbench.status import why

log = logging.getLogger(__name__)

BATCH = 100  # of parameters that MLflow takes at once


@dataclass(frozen=True)
class Record:
    """A run as its files tell it.

    settings and numbers have flat names such as "zoo/width" and "families/prune/auc"; losses: the mean loss of each
    epoch, by model.
    """

    settings: Mapping[str, Any]
    numbers: Mapping[str, float]
    figures: Mapping[str, Path]
    losses: Mapping[str, list[float]]


class Logger(Protocol):
    """What a file in `conf/logger` describes."""

    package: ClassVar[str]

    def log(self, record: Record, folder: Path) -> str:
        """Log the run in `folder`; return where it went."""


@dataclass(frozen=True)
class TensorBoard:
    """Event files in `tensorboard/`, for `tensorboard --logdir runs`."""

    package: ClassVar[str] = "tensorboard"

    def log(self, record: Record, folder: Path) -> str:
        """See `Logger`."""
        import numpy as np
        from PIL import Image
        from torch.utils.tensorboard import SummaryWriter

        place = folder / "tensorboard"
        shutil.rmtree(place, ignore_errors=True)  # of an earlier attempt; TensorBoard would draw both
        with SummaryWriter(str(place)) as writer:
            settings = "".join(f"    {name}: {value}\n" for name, value in record.settings.items())  # as code
            writer.add_text("settings", settings)
            for name, number in record.numbers.items():
                writer.add_scalar(name, number)
            for name, path in record.figures.items():
                with Image.open(path) as image:
                    writer.add_image(name, np.asarray(image.convert("RGB")), dataformats="HWC")
            for name, losses in record.losses.items():
                for epoch, loss in enumerate(losses, 1):
                    writer.add_scalar(f"loss/{name}", loss, epoch)
        return str(place)


@dataclass(frozen=True)
class Wandb:
    """A run of Weights & Biases, in `wandb/`."""

    package: ClassVar[str] = "wandb"

    mode: Literal["offline", "online"]
    project: str

    def log(self, record: Record, folder: Path) -> str:
        """See `Logger`."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # crash reports would go over the network
        import wandb

        quiet = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True)
        with wandb.init(
            project=self.project,
            name=folder.name,
            dir=folder,
            mode=self.mode,
            config=dict(record.settings),
            settings=quiet,
        ) as run:
            for epoch in range(max(map(len, record.losses.values()), default=0)):
                now = {f"loss/{name}": losses[epoch] for name, losses in record.losses.items() if epoch < len(losses)}
                run.log(now, step=epoch + 1)
            run.log({name: wandb.Image(str(path)) for name, path in record.figures.items()})
            run.summary.update(dict(record.numbers))
        return str(folder / "wandb") if self.mode == "offline" else str(run.url)


@dataclass(frozen=True)
class Mlflow:
    """A run of MLflow, in `mlflow.db` and `mlflow/`, or on a server of yours."""

    package: ClassVar[str] = "mlflow"

    tracking_uri: str
    experiment: str

    def log(self, record: Record, folder: Path) -> str:
        """See `Logger`."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        folder = folder.absolute()
        place = self.tracking_uri or f"sqlite:///{folder / 'mlflow.db'}"
        client = MlflowClient(tracking_uri=place)
        known = client.get_experiment_by_name(self.experiment)
        files = None if self.tracking_uri else (folder / "mlflow").as_uri()
        experiment = known.experiment_id if known else client.create_experiment(self.experiment, files)
        run = client.create_run(experiment, run_name=folder.name).info.run_id
        settings = [Param(name, str(value)) for name, value in record.settings.items()]
        for begin in range(0, len(settings), BATCH):
            client.log_batch(run, params=settings[begin : begin + BATCH])
        points = [(name, number, 0) for name, number in record.numbers.items()]
        points += [(f"loss/{n}", loss, epoch) for n, ls in record.losses.items() for epoch, loss in enumerate(ls, 1)]
        for begin in range(0, len(points), BATCH):
            client.log_batch(run, [Metric(name, y, 0, x) for name, y, x in points[begin : begin + BATCH]])
        for path in record.figures.values():
            client.log_artifact(run, str(path), "figures")
        client.set_terminated(run)
        return place


def check(settings: DictConfig) -> None:
    """Refuse a chosen logger whose package is not installed, before a run makes anything.

    Raises:
        UserError: it is not, with the command that installs it.
    """
    for name, logger in _chosen(settings).items():
        spec = importlib.util.find_spec(logger.package)
        if spec is None or spec.origin is None:  # a mere folder of that name, as wandb makes them, has no origin
            raise UserError(
                f"logger={name}: the package {logger.package} is not installed; pip install {logger.package}, or leave "
                "the logger out: a run writes its csv files anyway"
            )


def log_run(settings: DictConfig, folder: Path) -> None:
    """Log the finished run in `folder` with every chosen logger; one that fails gets one line."""
    for name, logger in _chosen(settings).items():
        try:
            log.info("logger=%s: %s", name, logger.log(read(folder), folder))
        except Exception as error:  # noqa: BLE001 - whatever it is, the run itself is complete
            log.warning("logger=%s failed, the run itself is complete: %s", name, why(error))


def _chosen(settings: DictConfig) -> dict[str, Logger]:
    return {str(name): config.build(node) for name, node in (settings.get("logger") or {}).items()}


def read(folder: Path) -> Record:
    """Read what a run, or an experiment, wrote into `folder`; what it did not write is empty."""
    numbers = _flat(_json(folder / "metrics.json"))
    losses: dict[str, list[float]] = {}
    if (folder / "losses.csv").exists():
        with (folder / "losses.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                losses.setdefault(row["name"], []).append(float(row["loss"]))
    figures = sorted([*folder.glob("*.png"), *folder.glob("figures/*.png")])
    return Record(
        settings=dict(_flat(_json(folder / MANIFEST).get("config", {}))),
        numbers={name: value for name, value in numbers if type(value) in (int, float)},
        figures={path.stem: path for path in figures},
        losses=losses,
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes()) if path.exists() else {}


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings and lists of numbers, such as intervals; another list is a leaf."""
    if isinstance(tree, list) and all(type(item) in (int, float) for item in tree):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        yield path, tree
        return
    for key, value in tree.items():
        yield from _flat(value, f"{path}/{key}".lstrip("/"))
