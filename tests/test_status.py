"""What jobs say of themselves, and what `python -m fingerbench status` and `report` make of it.

The sweeps are those of run.py and Hydra. Only what a job does is replaced, by what the file says that has its seed for
a name.
"""

import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest
from conftest import TINY, finish, start
from hydra.core.override_parser.overrides_parser import OverridesParser
from test_report import scores, write

from fingerbench import status
from fingerbench.__main__ import main
from fingerbench.errors import UserError
from fingerbench.evaluate import plots
from fingerbench.evaluate.report import report

STAND_IN = """
import runpy, sys, types
from pathlib import Path
from fingerbench.errors import BuildError, UserError

faults = Path(sys.argv.pop(1))

def run(settings, folder):
    fault = faults / str(settings.seed)
    if fault.is_file():
        exec(fault.read_text())
    (folder / "finished").write_text(str(settings.seed))

parts = {"evaluate.run": {"run": run}, "evaluate.experiment": {"perform": run}}
parts["bench"] = {"Bench": lambda given, _words: given}
for room, part in parts.items():
    sys.modules[f"fingerbench.{room}"] = types.SimpleNamespace(**part)
sys.argv[0] = "run.py"
runpy.run_path("run.py", run_name="__main__")
"""
FAULTS = {
    1: 'raise UserError("expected wood\\nor stone")',
    2: """raise BuildError('Traceback (most recent call last):\\n  File "x", line 3\\n    f()\\nValueError: odd\\n')""",
    3: "{}['key']",
    4: "raise SystemExit(3)",
    5: "import time; time.sleep(120)",
}


def job(faults, *words, **kwargs):
    return start(["-c", STAND_IN, str(faults)], *words, **kwargs)


def rerun(faults, command, code=0):
    python, script, *words = shlex.split(command)
    assert (python, script) == ("python", "run.py")
    return finish(job(faults, *words), code)


def by_state(folder, **kwargs):
    jobs = status.read(folder, **kwargs)
    return {state: [job for job in jobs if job.state == state] for state in {job.state for job in jobs}}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep of five jobs of which three failed; (its folder, the folder of the faults, output)."""
    root = tmp_path_factory.mktemp("sweep")
    faults = root / "faults"
    faults.mkdir()
    for seed in (1, 2, 3):
        (faults / str(seed)).write_text(FAULTS[seed])
    folder = root / "a b, c"
    words = ["-m", "seed=0,1,2,3,6", f"hydra.sweep.dir='{folder}'", "label='x, y'"]
    return folder, faults, finish(job(faults, *words), 2)


def test_no_failure_stops_the_others_or_hides_behind_them(sweep, capsys):
    folder, _, output = sweep
    assert [(folder / str(n) / "finished").exists() for n in range(5)] == [True, False, False, False, True]
    for seed, told in (1, "expected wood"), (2, "ValueError: odd"), (3, "KeyError: 'key'"):
        quoted = f"""seed={seed} 'label='"'"'x, y'"'"''"""
        assert f"({quoted}): failed, {told}" in output
    assert f"python -m fingerbench status {shlex.quote(str(folder))}" in output
    assert main(["status", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert "2 of 5 jobs are done" in shown and shown.count("python run.py") == 3
    table = shown.partition("2 of 5")[0]
    assert "seed=3" in table and "KeyError: 'key'" in table and "label" not in table  # all jobs have that word


def test_what_a_job_writes(sweep):
    folder, _, _ = sweep
    records = [json.loads((folder / str(n) / "status.json").read_text()) for n in range(5)]
    assert [record["state"] for record in records] == ["done", "failed", "failed", "failed", "done"]
    assert [(folder / str(n) / "traceback.txt").exists() for n in range(5)] == [False, False, True, True, False]
    assert "ValueError: odd" in (folder / "2" / "traceback.txt").read_text()
    assert "KeyError: 'key'" in (folder / "3" / "traceback.txt").read_text()
    assert records[1]["error"] == "expected wood"
    assert records[1]["words"] == ["seed=1", "label='x, y'"]
    assert all(record["host"] and record["pid"] and record["started"] <= record["ended"] for record in records)
    assert {path.name for path in (folder / "0").iterdir()} == {".hydra", "run.log", "status.json", "finished"}
    listed = json.loads((folder / "sweep.json").read_text())
    assert listed["command"].startswith("python run.py -m seed=0,1,2,3,6") and listed["launcher"] == "BasicLauncher"
    assert [entry["words"][0] for entry in listed["jobs"]] == [f"seed={seed}" for seed in (0, 1, 2, 3, 6)]


def test_whose_folder_it_was_is_said(tmp_path):
    folder, faults = f"hydra.run.dir={tmp_path / 'run'}", tmp_path / "faults"
    assert "are replaced" not in finish(job(faults, "seed=0", folder)) + finish(job(faults, "seed=0", folder))
    said = finish(job(faults, "seed=7", folder))
    assert "run: the files of another run there are replaced: " in said and "seed=0" in said and "(done)" in said


def test_a_job_without_a_queue_runs_again_as_a_single_run(tmp_path):
    words = {"words": ["seed=1", "launcher=joblib"], "hydra": ["hydra.launcher.n_jobs=2", "hydra.verbose=true"]}
    command = status.again(words | {"launcher": "JoblibLauncher", "subdir": "1"}, tmp_path / "1")
    assert command == f"python run.py seed=1 hydra.verbose=true hydra.run.dir={tmp_path / '1'}"
    queued = status.again(words | {"launcher": "SlurmLauncher", "subdir": "1"}, tmp_path / "1")
    assert "-m seed=1 launcher=joblib hydra.launcher.n_jobs=2" in queued


def test_the_commands_run_a_job_again_into_its_folder(sweep, tmp_path, capsys):
    folder, _, _ = sweep
    (tmp_path / "mended").mkdir()
    local, queued, _ = by_state(folder)["failed"]
    rerun(tmp_path / "mended", local.command)
    listed = json.loads((folder / "sweep.json").read_text())
    for entry in listed["jobs"]:
        entry["launcher"] = "SlurmLauncher"
    (folder / "sweep.json").write_text(json.dumps(listed))
    queued = by_state(folder)["failed"][0]
    assert queued.command.startswith("python run.py -m ")
    rerun(tmp_path / "mended", queued.command)
    assert (folder / "1" / "finished").read_text() == "1" and (folder / "2" / "finished").read_text() == "2"
    assert not (folder / "2" / "traceback.txt").exists()
    states = by_state(folder)
    assert len(states["done"]) == 4 and [job.words[0] for job in states["failed"]] == ["seed=3"]
    assert main(["status", "--json", str(folder / "1")]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["state"] == "done" and told["seconds"] >= 0 and told["folder"] == str(folder / "1")


def test_a_job_that_is_killed_is_lost_and_one_that_is_stopped_says_so(tmp_path):
    (tmp_path / "5").write_text(FAULTS[5])
    (tmp_path / "4").write_text(FAULTS[4])
    words = {name: [f"hydra.run.dir={tmp_path / name}", "seed=5"] for name in ("killed", "stopped")}
    running = {name: job(tmp_path, *given, preexec_fn=heed) for name, given in words.items()}
    swept = job(tmp_path, "-m", "seed=5,4", f"hydra.sweep.dir={tmp_path / 'sweep'}", preexec_fn=heed)
    for folder in (*map(tmp_path.joinpath, words), tmp_path / "sweep" / "0"):
        await_file(folder / "status.json")
    assert list(by_state(tmp_path / "killed")) == ["running"]
    assert [job.state for job in status.read(tmp_path / "sweep")] == ["running", "waiting"]
    assert not status.commands(status.read(tmp_path / "sweep"))
    os.kill(running["killed"].pid, signal.SIGKILL)
    os.kill(running["stopped"].pid, signal.SIGINT)
    os.kill(swept.pid, signal.SIGTERM)
    finish(running["killed"], -signal.SIGKILL)
    finish(running["stopped"], 130)
    finish(swept, 143)
    time.sleep(0.05)
    (lost,) = status.read(tmp_path / "killed", lost_s=0.02)
    assert (lost.state, lost.ended) == ("lost", None) and lost.command.endswith(f"hydra.run.dir={tmp_path / 'killed'}")
    (stopped,) = status.read(tmp_path / "stopped")
    assert stopped.state == "interrupted" and not (stopped.folder / "traceback.txt").exists()
    assert [job.state for job in status.read(tmp_path / "sweep")] == ["interrupted", "missing"]
    finish(job(tmp_path, "seed=4", f"hydra.run.dir={tmp_path / 'exits'}"), 3)
    assert list(by_state(tmp_path / "exits")) == ["interrupted"]


def heed():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests started in the background inherit SIG_IGN


def await_file(path):
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)  # into the job itself


def test_a_heart_beats_until_it_is_stopped(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    os.utime(file, (0, 0))
    heart = status.Heart(file, seconds=0.01)
    deadline = time.monotonic() + 10
    while not file.stat().st_mtime and time.monotonic() < deadline:
        time.sleep(0.01)
    assert status._silence(file) < 10
    heart.stop()
    os.utime(file, (0, 0))
    time.sleep(0.05)
    assert file.stat().st_mtime == 0 and status._silence(file) > 1e9


def test_the_clock_of_this_host_does_not_matter_where_it_can_write(tmp_path, monkeypatch):
    record(tmp_path / "0", "running", "seed=0")
    monkeypatch.setattr(time, "time", lambda: 5e9)
    assert list(by_state(tmp_path / "0")) == ["running"]

    def refuse(**_):
        raise PermissionError

    monkeypatch.setattr(status.tempfile, "TemporaryFile", refuse)
    assert list(by_state(tmp_path / "0")) == ["lost"]


def record(folder, state, *words, started="2026-01-02T03:04:05+00:00", **more):
    """Write a status.json as a job does."""
    folder.mkdir(parents=True, exist_ok=True)
    ended = None if state == "running" else "2026-01-02T03:05:05+00:00"
    given = {"words": [*words], "hydra": [], "launcher": "BasicLauncher", "subdir": folder.name, "cwd": str(Path.cwd())}
    given |= {"schema": 1, "state": state, "started": started, "ended": ended, "error": None}
    (folder / "status.json").write_text(json.dumps(given | more))


def listing(folder, *jobs, age=1e6):
    """Write a sweep.json as a sweep of `jobs` does, `age` seconds ago."""
    folder.mkdir(parents=True, exist_ok=True)
    common = {"hydra": [], "launcher": "BasicLauncher", "cwd": str(Path.cwd())}
    entries = [{"words": word.split(), "subdir": str(n), **common} for n, word in enumerate(jobs)]
    (folder / "sweep.json").write_text(json.dumps({"schema": 1, "jobs": entries if jobs else None}))
    os.utime(folder / "sweep.json", (time.time() - age,) * 2)


def test_jobs_are_told_by_their_words(tmp_path):
    listing(tmp_path, "method=a seed=0", "seed=1 method=a launcher=slurm", "method=a seed=2", "method=a seed=3")
    record(tmp_path / "1", "done", "method=a", "seed=1")
    record(tmp_path / "2", "done", "method=b", "seed=2")  # of a later sweep
    record(tmp_path / "7", "failed", "method=a", "seed=3", error="odd")
    record(tmp_path / "8", "done", "method=a", "seed=3", started="2025-01-02T03:04:05+00:00")  # an earlier attempt
    jobs = status.read(tmp_path)
    assert [(job.name, job.state) for job in jobs[:4]] == [
        ("0", "missing"), ("1", "done"), ("9", "missing"), ("7", "failed"),
    ]  # fmt: skip
    assert jobs[2].command.endswith(f"hydra.run.dir={tmp_path / '9'}")  # its own place is taken
    assert [job.error for job in jobs if job.state == "failed"] == ["odd"]
    assert {job.name for job in jobs[4:]} == {"2", "8"}
    listing(tmp_path, age=1e6)
    assert {job.name for job in status.read(tmp_path)} == {"1", "2", "7", "8"}  # another sweeper lists none


def test_a_later_sweep_adds_its_jobs(tmp_path):
    folder, conf = tmp_path / "sweep", tmp_path / "conf" / "grid"
    conf.mkdir(parents=True)
    (conf / "two.yaml").write_text("# @package _global_\nhydra: {sweeper: {params: {seed: '0,7'}}}\n")
    search = f"hydra.searchpath=[file://{conf.parent}]"
    listing(folder, "+grid=two seed=0", "seed=8", "seed=9")
    words = ["-m", "+grid=two", f"hydra.sweep.dir={folder}", "hydra.sweep.subdir='n-${hydra.job.num}'", search]
    output = finish(job(tmp_path, *words))
    entries = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert [(" ".join(entry["words"]), entry["subdir"], entry["hydra"]) for entry in entries] == [
        ("seed=0 +grid=two", "n-0", [search]),
        ("seed=8", "1", []),
        ("seed=9", "2", []),
        ("seed=7 +grid=two", "n-1", [search]),
    ]
    assert [job.state for job in status.read(folder)] == ["done", "missing", "missing", "done"]
    assert "written over" not in output
    output = finish(job(tmp_path, "-m", f"hydra.sweep.dir={folder}", "seed=0,7"))
    assert f"{folder / '1'}, of an earlier sweep (seed=8), is written over" in output


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"schema": 1}', "\xff", "[" * 100_000, '{"schema": "1"}'])
def test_a_damaged_status_is_said(tmp_path, text, capsys):
    listing(tmp_path, "seed=0")
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "status.json").write_bytes(text.encode("latin-1"))
    (told,) = status.read(tmp_path)
    assert (told.state, told.words) == ("damaged", ("seed=0",)) and told.command
    (tmp_path / "sweep.json").write_bytes(text.encode("latin-1"))
    assert main(["status", str(tmp_path)]) == 2
    assert "not the list of a sweep" in capsys.readouterr().err


def test_moments_without_a_time_zone_are_no_status(tmp_path, capsys):
    record(tmp_path, "done", ended="2026-01-02T03:05:05")
    assert main(["status", str(tmp_path)]) == 1
    assert "damaged" in capsys.readouterr().out


def test_what_is_no_sweep_or_of_another_version_gives_one_line(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == main(["status", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.count("no sweep or run") == 2
    record(tmp_path / "0", "done", schema=2)
    with pytest.raises(UserError, match="schema 2, this version reads 1: a newer fingerbench wrote it"):
        status.read(tmp_path / "0")


@pytest.mark.parametrize("text", ["/a/b-1.x", "/a b", "/a,b", "/a='b'", "/it's", "/a\\", "/a\\'", "/(é)", "a=1,b=[2]"])
def test_folders_survive_hydras_grammar(text):
    (override,) = OverridesParser.create().parse_overrides([f"hydra.run.dir={status._value(text)}"])
    assert override.value() == text and not override.is_sweep_override()


def test_a_report_says_what_is_missing(tmp_path, capsys):
    sweep = tmp_path / "sweep"
    listing(sweep, *(f"method=alpha_1 seed={seed}" for seed in range(4)))
    assert main(["report", str(sweep)]) == 2
    assert capsys.readouterr().err.startswith(
        f"error: {sweep}: none of its 4 runs is done; python -m fingerbench status"
    )
    for seed, state in enumerate(("done", "failed", "done")):
        write(sweep / str(seed), scores(seed=seed))  # that of the failed one is of an earlier attempt
        record(sweep / str(seed), state, "method=alpha_1", f"seed={seed}", error="odd" if state == "failed" else None)
    for what in (sweep, tmp_path):
        done = report([what], tmp_path / "out")
        markdown, latex = (tmp_path / "out" / f"comparison.{suffix}" for suffix in ("md", "tex"))
        missing = 2 if what == sweep else 1  # elsewhere a list of jobs is not looked for
        assert markdown.read_text().count(f"Partial: {missing} of {missing + 2} runs are missing. ") == 3
        assert latex.read_text().count(f"Partial: {missing} of {missing + 2} runs") == 3
        assert done.table["seed"].tolist() == ["0", "2", "mean"]
        (note,) = (note for note in done.notes if "failed" in note)
        assert note.endswith("(method=alpha_1 seed=1): failed, odd") and f"Note: {note}" in markdown.read_text()
    record(sweep / "0", "interrupted", "method=alpha_1", "seed=0")
    assert main(["report", str(sweep / "0")]) == 2
    assert "its run is interrupted" in capsys.readouterr().err


def test_figures_of_a_part_are_marked(tmp_path, monkeypatch):
    marks = []
    monkeypatch.setattr(plots, "stamp", lambda figure, text: marks.append(text))
    listing(tmp_path, "seed=0", "seed=1")
    write(tmp_path / "0", scores())
    record(tmp_path / "0", "done", "seed=0")
    report([tmp_path], tmp_path / "out")
    assert marks == ["Partial: 1 of 2 runs are missing."] * 2


@pytest.mark.slow  # half a minute; the sweep above is told the same by jobs without a zoo
def test_a_failed_run_of_a_real_sweep_is_run_again_from_its_command(built, tmp_path, monkeypatch):
    monkeypatch.setenv("QUERIES_1", "-1")
    words = [
        *TINY,
        f"store={built[0]}",
        f"hydra.sweep.dir={tmp_path}",
        "attack=source",
        "method=random",
        "seed=0,1",
        "jobs=1",
    ]
    output = finish(start(["run.py"], "-m", *words, "queries='${oc.decode:${oc.env:QUERIES_${seed},5}}'"), 2)
    assert "missing: 1" in output
    markdown = (tmp_path / "report" / "comparison.md").read_text()
    assert "Partial: 1 of 2 runs are missing." in markdown and "queries: expected a whole number from 1" in markdown
    (failed,) = by_state(tmp_path)["failed"]
    monkeypatch.delenv("QUERIES_1")
    finish(start(shlex.split(failed.command)[1:]))
    assert main(["status", str(tmp_path)]) == 0
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "again")]) == 0
    assert "Partial" not in (tmp_path / "again" / "comparison.md").read_text()


@pytest.mark.parametrize(("queue", "state"), [("PENDING", "waiting"), ("RUNNING", "interrupted"), ("", "interrupted")])
def test_a_job_that_slurm_queued_again_needs_nobody(tmp_path, monkeypatch, queue, state):
    record(tmp_path / "0", "interrupted", "method=akh", slurm_job_id="17_3")
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(f'#!/bin/sh\ntest "$4" = --jobs=17_3 && echo {queue}\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(squeue.parent), prepend=os.pathsep)
    (job,) = status.read(tmp_path / "0")
    assert job.state == state and job.stuck == (state == "interrupted")
