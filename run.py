"""Run one experiment, or with -m a sweep of them: `python run.py method=naturalfinger attack=all`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fingerbench import config
from fingerbench.errors import UserError


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def job(settings: DictConfig) -> None:
    """Run one job, here or on a cluster."""
    from fingerbench.bench import Bench
    from fingerbench.evaluate.run import run

    try:
        run(Bench(settings), Path(HydraConfig.get().runtime.output_dir))
    except UserError as error:
        logging.getLogger("fingerbench").error("error: %s", error)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise  # the sweep's other jobs go on
        sys.exit(error.exit_code)


def main() -> None:
    """Check the command line, then hand it to Hydra."""
    try:
        if not {"--help", "-h", "--hydra-help"} & set(sys.argv):
            config.check(sys.argv[1:])
        job()
    except UserError as error:
        sys.exit(_complain(error))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing finished is lost, the same command goes on where it was\n")
        sys.exit(130)


def _complain(error: UserError) -> int:
    sys.stderr.write(f"error: {error}\n")
    return error.exit_code


if __name__ == "__main__":
    main()
