"""Sweeps through a real SLURM, which tests/slurm/start.sh starts on this machine: make test-slurm."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, TINY, finish, start, told

import fingerbench as fb

pytestmark = pytest.mark.slurm

SCRIPTS = ROOT / "tests" / "slurm"
ZOO = [*(word for word in TINY if not word.startswith("jobs=")), "attack=[source,finetune]"]
SWEEP = ["method=random,akh", "seed=0,1"]
QUEUE = ["launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=3"]
FOLDERS = ["0", "1", "2", "3"]


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory):
    """The cluster: one node, with accounting."""
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([SCRIPTS / "start.sh", folder], capture_output=True, text=True, timeout=300)
    if started.returncode == 3:
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stdout + started.stderr
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    yield
    del os.environ["SLURM_CONF"]
    subprocess.run([SCRIPTS / "stop.sh", folder], check=True, timeout=120)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The scores of the same jobs, one after another in one process and in a store of their own."""
    folder = tmp_path_factory.mktemp("local")
    words = [*ZOO, "jobs=2", f"store={folder / 'store'}", f"hydra.sweep.dir={folder / 'sweep'}"]
    finish(start(["run.py"], "-m", *words, *SWEEP))
    return scores(folder / "sweep")


def scores(sweep):
    """Return scores.csv of every job, by folder."""
    return {path.parent.name: path.read_bytes() for path in sorted(sweep.glob("*/scores.csv"))}


def submit(folder, *words):
    """Start a sweep through the queue."""
    place = [f"store={folder / 'store'}", f"hydra.sweep.dir={folder / 'sweep'}"]
    return start(["run.py"], "-m", *ZOO, *QUEUE, *place, *words)


def ask(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def states(sweep, *options):
    """Return the states of the jobs that were submitted last, by their number in the array, once accounting has all."""
    fields = ["-nPX", *options, "-j", str(array(sweep)), "-o", "jobid,state,alloccpus"]
    ended = lambda: (lines := ask("sacct", *fields).splitlines()) and "|RUNNING|" not in "".join(lines) and lines  # noqa: E731
    rows = [line.split("|") for line in until(ended, "accounted for")]
    assert {cores for _, _, cores in rows} == {"1"}
    return [(job.partition("_")[2], state.split()[0]) for job, state, _ in rows]


def array(sweep):
    """Return the number of the array that was submitted last."""
    jobs = [path.parent.name for path in (sweep / ".submitit").glob("*_*/*_submitted.pkl")]
    return max((int(job.partition("_")[0]) for job in jobs), default=None)


def until(condition, what, seconds=120):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"still not: {what}"
        time.sleep(0.2)
    return value


def in_the_middle(folder, *numbers):
    """Wait until the jobs with these numbers run and the first model is made; return the number of the array."""
    number = str(until(lambda: array(folder / "sweep"), "submitted"))
    running = lambda: set(ask("squeue", "-hrt", "R", "-j", number, "-o", "%K").split())  # noqa: E731
    until(lambda: running() >= set(numbers), f"{numbers} running")
    until(lambda: list((folder / "store" / "model").glob("*")), "a model")
    assert running() >= set(numbers)
    return number


def processes(job):
    """Return the processes of a job that SLURM has started on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            given = path.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        array, _, task = job.partition("_")
        if {f"SLURM_ARRAY_JOB_ID={array}".encode(), f"SLURM_ARRAY_TASK_ID={task}".encode()} <= set(given):
            found.append(int(path.parent.name))
    return found


def test_four_jobs_through_the_queue_fill_one_table(tmp_path, local):
    output = finish(submit(tmp_path, *SWEEP), timeout=600)
    sweep = tmp_path / "sweep"
    assert states(sweep) == [(number, "COMPLETED") for number in FOLDERS]
    assert scores(sweep) == local and sorted(local) == FOLDERS
    table = pd.read_csv(sweep / "report" / "comparison.csv", dtype=str)
    assert table[["method", "seed"]].to_numpy().tolist() == [
        [method, seed] for method in ("akh", "random") for seed in ("0", "1", "mean")
    ]
    assert f"comparison: {sweep / 'report'}" in output


def test_the_zoo_is_built_by_shards(tmp_path):
    words = ["experiment=zoo", "gan.steps=20", "shard=0,1,2,3"]
    output = finish(submit(tmp_path, *words), timeout=600)
    sweep = tmp_path / "sweep"
    assert states(sweep) == [(number, "COMPLETED") for number in FOLDERS]
    assert "no comparison" not in output
    pages = [(sweep / number / "zoo.csv").read_bytes() for number in FOLDERS]
    assert len(set(pages)) == 1
    bench = fb.open(*ZOO, "gan.steps=20", f"store={tmp_path / 'store'}")
    assert set(pd.read_csv(sweep / "0" / "zoo.csv").key) == {spec.key for spec in bench.trained()}
    stored = [path for kind in ("model", "gan") for path in (tmp_path / "store" / kind).iterdir()]
    assert len(stored) == len({spec.key for spec in bench.trained()})


def test_a_cancelled_and_a_killed_job_are_resubmitted(tmp_path, local):
    sweep = tmp_path / "sweep"
    first = submit(tmp_path, *SWEEP)
    number = in_the_middle(tmp_path, "0", "1")
    ask("scancel", f"{number}_0")
    killed = processes(f"{number}_1")
    assert killed
    for process in killed:
        os.kill(process, signal.SIGKILL)
    output = finish(first, code=1, timeout=600)
    assert "waiting" not in output and ": running" not in output  # all have ended
    ended = dict(states(sweep))
    assert ended.pop("0") == "CANCELLED" and ended.pop("1") in ("FAILED", "CANCELLED")
    assert ended == {"2": "COMPLETED", "3": "COMPLETED"}  # and the table has waited for them
    assert re.search(rf"error: 2 of 4 jobs ended without a result: {number}_0 \(CANCELLED.*, {number}_1 \(", output)
    assert len(pd.read_csv(sweep / "report" / "comparison.csv")) >= 2
    assert sorted(scores(sweep)) == ["2", "3"]
    silent = until(lambda: len(lines := again(sweep)) == 2 and lines, "the killed job is silent")
    resubmitted = [start(shlex.split(line)[1:]) for line in silent]
    for job in resubmitted:
        finish(job, timeout=600)
    assert scores(sweep) == local
    assert not again(sweep)


def again(sweep):
    """Return the commands that `status` gives for the jobs that have to be run again."""
    said = told(start(["-m", "fingerbench", "status", str(sweep)]))
    return [line for line in said.splitlines() if line.startswith("python run.py -m ")]


def test_a_job_cancelled_before_it_started_is_not_waited_for(tmp_path, local):
    """SLURM keeps no record of one in an array: neither sacct nor squeue has ever heard of it."""
    sweep = tmp_path / "sweep"
    process = submit(tmp_path, *SWEEP)
    number = in_the_middle(tmp_path, "0", "1")
    ask("scancel", f"{number}_3")
    output = finish(process, code=1, timeout=600)
    assert f"error: 1 of 4 jobs ended without a result: {number}_3 (CANCELLED before it started)" in output
    assert "Traceback" not in output and sorted(scores(sweep)) == ["0", "1", "2"]
    (command,) = again(sweep)
    finish(start(shlex.split(command)[1:]), timeout=600)
    assert scores(sweep) == local


def test_what_is_in_the_queue_needs_no_process_of_its_sweep(tmp_path, local):
    sweep = tmp_path / "sweep"
    process = submit(tmp_path, *SWEEP)
    in_the_middle(tmp_path, "0", "1")
    process.terminate()
    assert "jobs that were submitted go on: see python -m fingerbench status" in finish(process, code=143)
    assert not again(sweep), "two run and two are queued"
    until(lambda: len(scores(sweep)) == 4, "all done", seconds=300)
    assert scores(sweep) == local


def test_jobs_that_are_queued_again_go_on(tmp_path, local):
    sweep = tmp_path / "sweep"
    process = submit(tmp_path, *SWEEP)
    number = in_the_middle(tmp_path, "0", "1")
    ask("scontrol", "requeue", f"{number}_0")
    ask("scancel", "--signal=USR2", f"{number}_1")  # what a job hears before its time is up
    finish(process, timeout=600)
    assert scores(sweep) == local
    expected = {*((task, "COMPLETED") for task in FOLDERS), ("0", "REQUEUED"), ("1", "REQUEUED")}
    assert set(states(sweep, "--duplicates")) == expected  # the second may hear the signal, and be queued, twice
    for task in ("0", "1"):  # the second start has found what the first has made
        found = re.findall(r"found (\d+) of 10 models", (sweep / task / "run.log").read_text())
        assert len(found) >= 2 and int(found[0]) < int(found[-1])


def test_a_refused_submission_is_one_line(tmp_path):
    output = finish(submit(tmp_path, *SWEEP, "hydra.launcher.partition=nowhere"), code=2)
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert (
        "missing" not in output
        and "nowhere" in line
        and "hydra.launcher.KEY=VALUE" in line
        and "Traceback" not in output
    )


def test_a_job_builds_with_the_cores_that_it_was_granted(tmp_path):
    code = "from fingerbench.bench import open; print(open('device=cpu').jobs)"
    for cores in range(1, min(2, os.cpu_count()) + 1):
        said = tmp_path / str(cores)
        asked = ["--wait", "--mem=1000", f"--cpus-per-task={cores}", f"--output={said}", f"--chdir={ROOT}"]
        ask("sbatch", *asked, "--wrap", shlex.join([sys.executable, "-c", code]))
        assert said.read_text() == f"{cores}\n"
