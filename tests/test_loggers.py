"""Loggers: what reaches TensorBoard, Weights & Biases and MLflow, here stand-ins that note it, or those installed."""

import importlib.util
import json
import logging
import sys
import types

import numpy as np
import pandas as pd
import pytest
from conftest import run
from PIL import Image

from fingerbench import config
from fingerbench.errors import UserError
from fingerbench.evaluate import loggers
from fingerbench.evaluate.run import losses, models

LOSSES = {"source": [2.5, 1.25], "distill/timm:vit": [0.5]}
NUMBERS = {"aruc": 0.5, "aruc_interval/0": 0.25, "aruc_interval/1": 0.75, "families/prune/auc": 1.0}


@pytest.fixture
def folder(tmp_path):
    """The files of a run."""
    folder = tmp_path / "a run"
    (folder / "figures").mkdir(parents=True)
    results = {
        "aruc": 0.5,
        "aruc_interval": [0.25, 0.75],
        "auc": None,
        "families": {"prune": {"auc": 1.0}},
        "kind": "x",
    }
    (folder / "metrics.json").write_text(json.dumps(results))
    settings = {"seed": 3, "zoo": {"width": 0.125, "architectures": ["a", "b"]}, "gates": {"spared": []}}
    (folder / "manifest.json").write_text(json.dumps({"config": settings}))
    Image.fromarray(np.zeros((4, 6, 4), np.uint8)).save(folder / "figures" / "aruc.png")
    rows = [(name, epoch, loss) for name, values in LOSSES.items() for epoch, loss in enumerate(values, 1)]
    pd.DataFrame(rows, columns=["name", "epoch", "loss"]).to_csv(folder / "losses.csv", index=False)
    return folder


def test_a_run_is_read_from_its_files(folder, tmp_path):
    record = loggers.read(folder)
    assert record.numbers == NUMBERS and record.losses == LOSSES
    assert record.settings["zoo/architectures"] == ["a", "b"] and record.settings["zoo/width"] == 0.125
    assert record.figures == {"aruc": folder / "figures" / "aruc.png"}
    assert loggers.read(tmp_path / "nowhere") == loggers.Record({}, {}, {}, {})


class Notes(types.SimpleNamespace):
    """Notes every call to it, with its name, and is its own context manager and result."""

    def __init__(self, **known):
        super().__init__(calls=[], **known)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs)) or self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    def of(self, name):
        return [args for called, args, _ in self.calls if called == name]


def log(folder, *words):
    settings = config.compose(words)
    for logger in loggers._chosen(settings).values():
        logger.log(loggers.read(folder), folder)


def test_tensorboard_gets_it_all(folder, monkeypatch):
    notes = Notes()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=lambda _: notes))
    log(folder, "logger=tensorboard")
    curves = [(f"loss/{name}", y, x) for name, values in LOSSES.items() for x, y in enumerate(values, 1)]
    assert notes.of("add_scalar") == [*NUMBERS.items(), *curves]
    ((tag, image),) = notes.of("add_image")
    assert tag == "aruc" and image.shape == (4, 6, 3)
    ((_, text),) = notes.of("add_text")
    assert "    zoo/width: 0.125\n" in text


def test_wandb_gets_it_all_and_stays_offline(folder, monkeypatch):
    notes = Notes(summary={}, Image=str, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", notes)
    log(folder, "logger=wandb", "logger.wandb.project=mine")
    (call,) = [kwargs for name, _, kwargs in notes.calls if name == "init"]
    assert (call["mode"], call["project"], call["dir"], call["config"]["seed"]) == ("offline", "mine", folder, 3)
    assert notes.of("log") == [
        ({"loss/source": 2.5, "loss/distill/timm:vit": 0.5},),
        ({"loss/source": 1.25},),
        ({"aruc": str(folder / "figures" / "aruc.png")},),
    ]
    assert notes.summary == NUMBERS


def test_mlflow_gets_it_all_in_the_folder_of_the_run(folder, monkeypatch):
    notes, places = Notes(info=types.SimpleNamespace(run_id="1")), []
    notes.get_experiment_by_name = lambda name: None
    tracking = types.SimpleNamespace(MlflowClient=lambda tracking_uri: places.append(tracking_uri) or notes)
    entities = types.SimpleNamespace(Metric=lambda *args: args, Param=lambda *args: args)
    for name, module in (("", notes), (".tracking", tracking), (".entities", entities)):
        monkeypatch.setitem(sys.modules, f"mlflow{name}", module)
    log(folder, "logger=mlflow")
    log(folder, "logger=mlflow", "logger.mlflow.tracking_uri=http://localhost:5000")
    assert places == [f"sqlite:///{folder / 'mlflow.db'}", "http://localhost:5000"]
    assert [args[1] for args in notes.of("create_experiment")] == [(folder / "mlflow").as_uri(), None]
    batches = [kwargs["params"] for name, _, kwargs in notes.calls if name == "log_batch" and kwargs]
    assert ("zoo/width", "0.125") in batches[0]
    metrics = {(name, step): value for name, value, _, step in notes.of("log_batch")[1][1]}
    assert metrics[("aruc", 0)] == 0.5 and metrics[("loss/source", 2)] == 1.25 and len(metrics) == 7
    assert notes.of("log_artifact")[0][1:] == (str(folder / "figures" / "aruc.png"), "figures")


def test_none_is_on_unless_asked_for():
    assert config.compose().logger == {}
    assert list(config.compose(["logger=[tensorboard,mlflow]"]).logger) == ["tensorboard", "mlflow"]
    with pytest.raises(UserError, match="unknown logger 'wanbd'; did you mean 'wandb'"):
        config.compose(["logger=wanbd"])
    with pytest.raises(UserError, match="did you mean 'offline'"):
        loggers.check(config.compose(["logger=wandb", "logger.wandb.mode=ofline"]))


def test_a_package_that_is_not_installed_is_named_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers.Mlflow, "package", "mlflow_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    settings = config.compose(["logger=mlflow"])
    for _ in range(2):
        with pytest.raises(UserError, match=r"logger=mlflow: .* not installed; pip install mlflow_not_there,"):
            loggers.check(settings)
        (tmp_path / "mlflow_not_there").mkdir(exist_ok=True)  # a folder is no package
    monkeypatch.setattr(loggers.Mlflow, "package", "json")
    loggers.check(settings)


def test_a_logger_that_fails_costs_one_line(folder, monkeypatch, caplog):
    def init(**_):
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Settings=dict))
    with caplog.at_level(logging.INFO):
        loggers.log_run(config.compose(["logger=wandb"]), folder)
    (said,) = caplog.records
    assert said.getMessage() == "logger=wandb failed, the run itself is complete: ConnectionError: no route"


def test_losses_of_models_are_a_table_of_their_own():
    facts = {"a": {"name": "source", "losses": [2.0, 1.0], "accuracy": 0.9}, "b": {"name": "old", "accuracy": 0.8}}
    source, old = (types.SimpleNamespace(key=key) for key in facts)
    bench = types.SimpleNamespace(
        models={"source": source},
        fingerprint_spec=types.SimpleNamespace(positives=(source,), negatives=(old,)),
        store=types.SimpleNamespace(facts=lambda spec: facts[spec.key]),
    )
    assert losses(bench).to_numpy().tolist() == [["source", 1, 2.0], ["source", 2, 1.0]]
    assert models(bench).to_dict("records") == [
        {"name": "source", "accuracy": 0.9, "key": "a"}, {"name": "old", "accuracy": 0.8, "key": "b"},
    ]  # fmt: skip


def test_the_real_tensorboard(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # of two attempts the last is kept
        log(folder, "logger=tensorboard")
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/source")] == [(1, 2.5), (2, 1.25)]
    assert [event.value for event in events.Scalars("aruc")] == [0.5] and events.Tags()["images"] == ["aruc"]


def test_the_real_mlflow(folder):
    pytest.importorskip("mlflow")
    log(folder, "logger=mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (logged,) = client.search_runs([client.get_experiment_by_name("fingerbench").experiment_id])
    assert logged.data.metrics["aruc"] == 0.5 and logged.data.params["zoo/width"] == "0.125"
    assert [point.value for point in client.get_metric_history(logged.info.run_id, "loss/source")] == [2.5, 1.25]
    assert [file.path for file in client.list_artifacts(logged.info.run_id, "figures")] == ["figures/aruc.png"]


def test_the_real_wandb(folder):
    pytest.importorskip("wandb")
    log(folder, "logger=wandb")
    (written,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content = written.read_bytes()
    assert all(name.encode() in content for name in ("loss/source", "families/prune/auc", "zoo/width"))


def test_a_run_logs_itself_or_says_at_once_what_to_install(request, tmp_path):
    words = ["method=random", "attack=source", "logger=tensorboard"]
    if importlib.util.find_spec("tensorboard") is None:
        output = run(tmp_path / "store", tmp_path / "run", *words, code=2)
        assert "pip install tensorboard" in output and not (tmp_path / "store").exists()
    else:
        output = run(request.getfixturevalue("built")[0], tmp_path / "run", *words)
        assert f"logger=tensorboard: {tmp_path / 'run' / 'tensorboard'}" in output
        assert list((tmp_path / "run" / "tensorboard").iterdir())
