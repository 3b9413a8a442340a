"""Run one experiment, or with -m a sweep of them: `python run.py method=naturalfinger attack=all`."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fingerbench import cluster, config, status
from fingerbench.errors import BuildError, UserError, writing
from fingerbench.evaluate import loggers, sweep


class TerminatedError(KeyboardInterrupt):
    """A scheduler asked this process to end."""


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def job(settings: DictConfig) -> None:
    """Run one job, here or on a cluster."""
    from fingerbench.bench import Bench
    from fingerbench.evaluate.experiment import perform
    from fingerbench.evaluate.run import run

    cluster.end_when_told()
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        with status.recorded(folder):
            loggers.check(settings)
            if "experiment" in settings:
                perform(settings, _words(), folder)
            else:
                run(Bench(settings, _words()), folder)
            loggers.log_run(settings, folder)
    except UserError as error:
        logging.getLogger("fingerbench").error("error: %s", error)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # the other jobs go on, and Hydra tells at the end
        sys.exit(error.exit_code)


def _words() -> list[str]:
    """Return the overrides of this job that change its configuration."""
    given = HydraConfig.get().overrides
    task, hydra = map(status.overrides, (given.task, given.hydra))
    return [*task, *config.searched(hydra)]


def _terminate(_number: int, _frame: object) -> None:
    raise TerminatedError


def main() -> None:
    """Check the command line, then hand it to Hydra."""
    signal.signal(signal.SIGTERM, _terminate)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to here, instead of Hydra's shortened traceback
    try:
        if not {"--help", "-h", "--hydra-help", "--shell-completion", "-sc"} & set(sys.argv):
            config.check(sys.argv[1:])
        with cluster.settling(lambda: sweep.Sweep.running), writing(Path("runs"), "hydra.run.dir"):
            job()
    except cluster.RefusedError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except UserError as error:
        sweep.finish()
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except BuildError as error:
        sweep.finish()
        sys.stderr.write(f"failed; everything finished is kept, and the same command goes on where it was:\n{error}\n")
        sys.exit(1)
    except KeyboardInterrupt as error:
        sys.stderr.write(f"interrupted; nothing finished is lost, {sweep.way_on()}\n")
        sys.exit(143 if isinstance(error, TerminatedError) else 130)
    except cluster.LostJobError as error:
        sweep.finish()
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    except Exception:
        sweep.finish()
        raise


if __name__ == "__main__":
    main()
