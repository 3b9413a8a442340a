"""Sweeps through Hydra's launchers, and a zoo that several jobs build together."""

import itertools
import os
import signal

import pandas as pd
import pytest
from conftest import TINY, finish, start
from hydra import compose
from hydra.core.config_store import ConfigStore

import fingerbench as fb
from fingerbench import cluster, config
from fingerbench.bench import Bench
from fingerbench.errors import UserError
from fingerbench.evaluate import experiment, sweep

# Hardly trained: the numbers must be equal, and say nothing.
SMALL = [*TINY, "zoo.training.epochs=1", "gan.steps=2", "attack=[source]"]


def composed(*words):
    with config._hydra():
        return compose("config", overrides=list(words), return_hydra_config=True)


@pytest.mark.parametrize(
    ("name", "plugin", "jobs", "carried"),
    [
        ("joblib", "hydra_joblib_launcher", 1, {"n_jobs": -1}),
        ("submitit_local", "hydra_submitit_launcher", 1, {"name": "fingerbench", "gpus_per_node": None}),
        (
            "slurm",
            "hydra_submitit_launcher",
            None,
            {
                "partition": None,
                "gpus_per_node": None,
                "gres": None,
                "cpus_per_task": 4,
                "mem_gb": 16,
                "timeout_min": 1440,
                "additional_parameters": {"requeue": True},
                "array_parallelism": 16,
                "setup": ["export SRUN_CPUS_PER_TASK=4"],
            },
        ),
    ],
)
def test_a_launcher_carries_what_is_documented(name, plugin, jobs, carried):
    pytest.importorskip(f"hydra_plugins.{plugin}")
    settings = composed(f"launcher={name}")
    assert settings.jobs == jobs
    assert {key: settings.hydra.launcher[key] for key in carried} == carried
    assert composed(f"launcher={name}", "jobs=3").jobs == 3


def test_launchers_change_nothing_else():
    assert {"joblib", "slurm", "submitit_local"} <= set(config.options("launcher"))
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    assert config.compose(["launcher=slurm"]) == config.compose()


def test_an_unknown_launcher_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"unknown launcher 'slrum'; did you mean 'slurm'\?"):
        config.check(["-m", "launcher=slrum"])


@pytest.mark.parametrize(("name", "node"), [("joblib", "joblib.yaml"), ("slurm", "submitit_slurm.yaml")])
def test_a_missing_plug_in_is_told_with_its_command(name, node, monkeypatch):
    with config._hydra():  # finds the plug-ins
        pass
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], node, raising=False)
    with pytest.raises(UserError, match=r"not installed here; install it with pip install -e '.\[cluster\]' -c"):
        config.check(["-m", f"launcher={name}"])


def test_a_single_run_is_not_submitted(tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for name in ("joblib", "submitit_local", "slurm"):
        with pytest.raises(UserError, match="add -m"):
            config.check([f"launcher={name}"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch and srun and sacct here"):
        config.check(["-m", "launcher=slurm"])
    for tool in ("sbatch", "srun", "sacct"):
        (tmp_path / tool).write_text("#!/bin/sh\necho 'accounting is disabled' >&2; exit 1\n")
        (tmp_path / tool).chmod(0o755)
    with pytest.raises(UserError, match=r"sacct.*does not answer \(accounting is disabled\)"):
        config.check(["-m", "launcher=slurm"])


@pytest.mark.parametrize(
    ("answer", "limit_s", "states"),
    [
        ("echo RUNNING; echo PENDING", 60, ["RUNNING", "PENDING"]),
        ("echo 'Invalid job id specified' >&2; exit 1", 60, []),
        ("echo 'no route to the controller' >&2; exit 1", 60, ["UNKNOWN"]),
        ("exec sleep 60", 0.1, ["UNKNOWN"]),
    ],
)
def test_a_queue_that_does_not_answer_is_not_one_without_the_job(answer, limit_s, states, tmp_path, monkeypatch):
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(cluster, "ANSWER_S", limit_s)
    assert cluster.states("17") == states


@pytest.mark.parametrize(("granted", "cores"), [("3", 3), ("64", 8), ("", 8), ("0", 8), ("many", 8)])
def test_a_job_keeps_to_the_cores_that_it_was_granted(granted, cores, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", granted)
    assert cluster.granted_cores() == cores
    assert fb.open("device=cpu").jobs == cores


def test_a_submitted_job_ends_when_told_to(monkeypatch):
    code = "import os, signal; from fingerbench import cluster; {}cluster.end_when_told(); os.kill(os.getpid(), 15)"
    ignoring = "signal.signal(15, signal.SIG_IGN); "  # as submitit does
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    output = finish(start(["-c", code.format(ignoring)]), 128 + signal.SIGTERM)
    assert "everything finished is kept" in output
    monkeypatch.delenv("SUBMITIT_EXECUTOR")
    finish(start(["-c", code.format("")]), -signal.SIGTERM)


def test_lost_jobs_are_counted_and_a_refusal_is_one_line(tmp_path):
    pytest.importorskip("submitit")
    (tmp_path / "multirun.yaml").touch()
    told = cluster.settle(RuntimeError("no such partition\nmore"), tmp_path)
    assert isinstance(told, UserError) and str(told).startswith("the sweep was not submitted: no such partition; ")
    (tmp_path / ".submitit" / "1").mkdir(parents=True)  # SLURM's script of a whole array
    for job, result in (("900001", False), ("900002", True), ("900003", False)):  # no children of this process
        folder = tmp_path / ".submitit" / job
        folder.mkdir()
        (folder / f"{job}_submitted.pkl").touch()
        if result:
            (folder / f"{job}_0_result.pkl").touch()
    os.utime(tmp_path / ".submitit" / "900003", (0, 0))  # of an earlier sweep into this folder
    told = cluster.settle(RuntimeError(), tmp_path)
    assert str(told).startswith("1 of 2 jobs ended without a result: 900001; ")


def test_a_sweep_without_scores_says_where_its_tables_are(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "sweep.json").write_text('{"schema": 1, "jobs": []}')
    sweep.Sweep.running = tmp_path
    sweep.finish()
    assert [record.message for record in caplog.records] == [
        f"tables and figures: in the folder of each job, such as {tmp_path / '0'}"
    ]
    assert len(list(tmp_path.iterdir())) == 1


def test_shards_begin_elsewhere_and_take_the_same(monkeypatch, tmp_path):
    orders = []

    class Recorder:
        def __init__(self, *_):
            pass

        def run(self, wanted):
            orders.append([spec.key for spec in wanted])

    monkeypatch.setattr("fingerbench.bench.Pool", Recorder)
    words = [f"store={tmp_path}", "attack=[source,finetune,prune]"]
    whole = fb.open(*words)
    plan = [spec.key for spec in whole.trained()]
    for shard in range(8):
        bench = Bench(config.compose([*words, f"shard={shard}"]), lenders=[whole])
        bench.build(bench.trained())
    firsts = [plan.index(order[0]) for order in orders]
    assert len(set(plan)) == len(plan) and firsts[:2] == [0, len(plan) // 2]
    assert orders == [[*plan[first:], *plan[:first]] for first in firsts]
    for count in range(2, 9):  # however many there are, no gap is wider than twice the even one
        bounds = [*sorted(firsts[:count]), len(plan)]
        gaps = [after - before for before, after in itertools.pairwise(bounds)]
        assert max(gaps) <= 2 * len(plan) / count + 1, (count, gaps)


def test_a_shard_that_is_no_number_is_refused(tmp_path):
    for wrong in ("-1", "half", "1.5"):
        with pytest.raises(UserError, match="shard: expected a whole number from 0"):
            fb.open(f"store={tmp_path}", f"shard={wrong}", "attack=[source]").build([])


def test_a_cell_is_filled_anywhere():
    chosen = ["experiment=zoo", "shard=2", "attack=[source]"]
    (cell,) = experiment.cells(experiment.composed(config.compose(chosen)), chosen)
    assert cell.command == "python run.py experiment=zoo 'attack=[source]' 'experiment.seeds=[0]'"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The folder of two jobs that have built one zoo at the same time, each with one worker, and its store."""
    folder = tmp_path_factory.mktemp("shards")
    words = [*SMALL, "jobs=1", "experiment=zoo", f"store={folder / 'store'}"]
    jobs = [start(["run.py"], *words, f"shard={n}", f"hydra.run.dir={folder / str(n)}") for n in (0, 1)]
    for job in jobs:
        finish(job)
    return folder


@pytest.mark.slow
def test_what_shards_make_is_the_zoo(shards):
    bench = fb.open(*SMALL, f"store={shards / 'store'}")
    keys = {spec.key for spec in bench.trained()}
    assert {path.name for kind in ("model", "gan") for path in (shards / "store" / kind).iterdir()} == keys
    tables = [(shards / number / "zoo.csv").read_bytes() for number in ("0", "1")]
    assert tables[0] == tables[1]
    models = pd.read_csv(shards / "0" / "zoo.csv")
    assert set(models.key) == keys and len(models) == len(keys)
    facts = {spec.key: bench.store.facts(spec) for spec in bench.trained()}
    assert models.seconds.tolist() == [facts[key]["seconds"] for key in models.key]


@pytest.mark.slow
def test_the_zoo_is_summed_up_by_family(shards):
    page = experiment.read("zoo", [*SMALL, f"store={shards / 'store'}"])
    (exhibit,) = page.exhibits
    table, models = exhibit.table.set_index("family"), exhibit.data
    assert table.index.tolist() == ["source", "gan", "surrogates", "all"]
    assert table.models.tolist() == [2, 1, 4, 7]
    own = models[models.family == "surrogates"]
    assert table.accuracy["surrogates"] == pytest.approx(own.accuracy.mean())
    assert (table.lowest["surrogates"], table.highest["surrogates"]) == (own.accuracy.min(), own.accuracy.max())
    assert table.agreement["surrogates"] == pytest.approx(own.agreement.mean())
    assert table.seconds["all"] == f"{models.seconds.sum():.0f}"
    assert table["peak MiB"]["gan"] == f"{models[models.family == 'gan'].peak_mib.item():.0f}"


@pytest.mark.slow
def test_joblib_gives_the_same_scores(tmp_path, shards):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["-m", *SMALL, "jobs=1", "method=random,akh"]
    place = [f"store={tmp_path / 'store'}", f"hydra.sweep.dir={tmp_path / 'joblib'}"]
    output = finish(start(["run.py"], *words, *place, "launcher=joblib", "hydra.launcher.n_jobs=2"))
    assert "Joblib.Parallel(n_jobs=2" in output
    finish(start(["run.py"], *words, f"store={shards / 'store'}", f"hydra.sweep.dir={tmp_path / 'basic'}"))
    for job in ("0", "1"):
        parallel, single = ((tmp_path / name / job / "scores.csv").read_bytes() for name in ("joblib", "basic"))
        assert parallel == single
    assert (tmp_path / "joblib" / "report" / "comparison.csv").is_file()
