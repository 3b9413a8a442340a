"""What the launchers of sweeps need beside `conf/launcher/`: refusals before the start, and jobs that were lost."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig

from fingerbench.errors import UserError

log = logging.getLogger(__name__)

PLUGINS = ("joblib", "submitit_local", "submitit_slurm")  # launchers of the extra `cluster`, as Hydra calls them
ANSWER_S = 60  # in which SLURM answers, or does not
FORGOTTEN_S = 30.0  # between two looks for a job in the queue; one that neither finds is gone
INSTALL = "pip install -e '.[cluster]' -c constraints.txt"


class LostJobError(Exception):
    """Jobs of a sweep ended without a result: cancelled, killed, out of memory. The message names them."""


class RefusedError(UserError):
    """SLURM took no job of the sweep."""


def uninstalled(launcher: str) -> UserError:
    """Return the error for a launcher of Hydra whose plug-in is not installed."""
    return UserError(f"hydra/launcher={launcher}: the plug-in for it is not installed here; install it with {INSTALL}")


def check(hydra: DictConfig, many: bool) -> None:
    """Refuse a launcher that could not do its work; `many`: the command line has -m.

    Raises:
        UserError: it is chosen without a sweep, or there is no SLURM here that says what becomes of a job.
    """
    kind = str(hydra.launcher._target_).rpartition(".")[2]
    if kind != "BasicLauncher" and not many:  # Hydra would run it here, without a word
        raise UserError("launcher= is for the jobs of a sweep, and this is a single run: add -m, or leave it out")
    if kind == "SlurmLauncher":
        _require_slurm()
        _end_waiting_for_the_forgotten()


def _require_slurm() -> None:
    lacking = [tool for tool in ("sbatch", "srun", "sacct") if shutil.which(tool) is None]
    if lacking:
        raise UserError(
            f"launcher=slurm: no {' and '.join(lacking)} here; run it where the cluster takes jobs, or with "
            "launcher=joblib on this machine"
        )
    asked = _asked("sacct", "--noheader", "--jobs=1")
    if asked.returncode:  # without it a job that is killed is waited for without end
        said = (asked.stderr.strip() or f"exit code {asked.returncode}").splitlines()[0]
        raise UserError(
            f"launcher=slurm: sacct, which tells what becomes of a job, does not answer ({said}); without accounting "
            "submit single runs with sbatch: they share the store all the same"
        )


def _asked(*command: str) -> subprocess.CompletedProcess[str]:
    """Return how a command of SLURM ended; one that does not within ANSWER_S has failed, and says so."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_S)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {ANSWER_S} s")


def _end_waiting_for_the_forgotten() -> None:
    """Let submitit take a job for cancelled that SLURM knows no more.

    One of an array that is cancelled before it starts leaves no record, and would be waited for without end.
    """
    import submitit
    from submitit.slurm.slurm import SlurmInfoWatcher

    class Watcher(SlurmInfoWatcher):
        def __init__(self, delay_s: int) -> None:
            super().__init__(delay_s)
            self._looks: dict[str, int] = {}  # in a row that did not find the job
            self._next: dict[str, float] = {}  # look at it

        def get_state(self, job_id: str, mode: str = "standard") -> str:
            state = super().get_state(job_id, mode)
            if state.upper() not in ("UNKNOWN", "PENDING"):
                return state
            now = time.monotonic()
            if now >= self._next.get(job_id, 0.0):
                self._next[job_id] = now + FORGOTTEN_S
                self._looks[job_id] = 0 if states(job_id) else self._looks.get(job_id, 0) + 1
            return "CANCELLED before it started" if self._looks[job_id] > 1 else state

    submitit.SlurmJob.watcher = Watcher(submitit.SlurmJob.watcher._delay_s)


def states(job: str) -> list[str]:
    """Return the states of a job that SLURM has in its queue, such as 17_3, or 17 for all of an array.

    [] where the job is not there, or SLURM is not installed, and ["UNKNOWN"] where SLURM does not answer.
    """
    if shutil.which("squeue") is None:
        return []
    asked = _asked("squeue", "--noheader", "--array", "--format=%T", f"--jobs={job}")
    silent = asked.returncode != 0 and "Invalid job id" not in asked.stderr
    return ["UNKNOWN"] if silent else asked.stdout.split()


def queued(sweep: Path) -> bool:
    """Tell whether SLURM is going to start a job of the sweep in this folder, which it was given."""
    jobs = {path.parent.name.partition("_")[0] for path in (sweep / ".submitit").glob("*/*_submitted.pkl")}
    return any("PENDING" in states(job) for job in jobs)


def granted_cores() -> int:
    """Return how many cores this process may keep busy.

    That is those that it is bound to, and no more than the quota of a container. SLURM counts the cores of a task, but
    not every cluster binds the task to them; where several say a number, the smallest holds.
    """
    from joblib import cpu_count

    cores = cpu_count()
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(cores, int(granted)) if granted.isdecimal() and int(granted) > 0 else cores


def end_when_told() -> None:
    """End this process on SIGTERM, if it is a job of submitit, which would ignore it, and leave no result behind.

    SLURM sends it to a job that is cancelled, or queued again because its node is needed, and kills what goes on. A
    result, such as the failure of a worker that was told to end as well, would pass for the last word of the job.
    """

    def end(number: int, _: FrameType | None) -> None:
        log.warning("told to end; everything finished is kept, and the job goes on from there if it is queued again")
        sys.exit(128 + number)

    if "SUBMITIT_EXECUTOR" in os.environ:
        signal.signal(signal.SIGTERM, end)


@contextmanager
def settling(sweep: Callable[[], Path | None]) -> Iterator[None]:
    """Turn an error of submitit in the block into what `settle` tells of it. sweep: returns the folder of the sweep."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "submitit":
            raise
        raise settle(error, sweep()) from None


def settle(error: BaseException, sweep: Path | None) -> Exception:
    """Return what to tell of an error of submitit, once all jobs of the sweep in the folder `sweep` have ended.

    submitit gives up on the first job that is lost, while the others are still at work. It is a RefusedError or a
    LostJobError.
    """
    jobs = _submitted(sweep) if sweep else []
    if not jobs:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return RefusedError(f"the sweep was not submitted: {said}; hydra.launcher.KEY=VALUE sets what a job asks for")
    states = [_ended(job) for job in jobs]
    lost = [text for job, text in zip(jobs, states, strict=True) if not list(job.glob("*_result.pkl"))]
    return LostJobError(
        f"{len(lost)} of {len(jobs)} jobs ended without a result: {', '.join(lost)}; what they said is in "
        f"{sweep}/.submitit. Nothing finished is lost, and the same command makes only what is missing"
    )


def _submitted(sweep: Path) -> list[Path]:
    """Return the folders of submitit's jobs, but those of earlier sweeps into the same folder."""
    began = (sweep / "multirun.yaml").stat().st_mtime  # Hydra writes it before it launches anything
    folders = {path.parent for path in (sweep / ".submitit").glob("*/*_submitted.pkl")}
    fresh = [path for path in folders if path.stat().st_mtime >= began]
    return sorted(fresh, key=lambda path: [int(part) for part in path.name.split("_")])


def _ended(folder: Path) -> str:
    """Wait until a job has ended, and return its number, with the state where SLURM knows one."""
    import submitit

    if "_" in folder.name:  # one of an array
        job: Any = submitit.SlurmJob(folder.parent / "%j", folder.name)
        job.wait()
        return f"{folder.name} ({job.state})"
    with suppress(ChildProcessError):  # the only job of a SLURM sweep has ended, a local one is a child of this process
        os.waitpid(int(folder.name), 0)
    return folder.name
