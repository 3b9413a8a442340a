"""How far a training is, kept in a file from which the next process goes on after a kill."""

from __future__ import annotations

import io
import logging
import os
import platform
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from fingerbench.errors import UserError, one_line, require_schema, writing
from fingerbench.files import write

log = logging.getLogger(__name__)

SCHEMA = 1  # those of before they had one are the same
EVERY_S = 300.0  # between two writings; what takes less is never written


class Checkpoint:
    """The file in which one training keeps its state; whoever stores what was trained removes it.

    path: None for a training that keeps none. parents: the checksums of what it trains from, by key; a file of others
    is not gone on from. seconds: how long earlier processes trained, up to where this one went on; 0 where it began.
    """

    def __init__(self, path: Path | None = None, parents: Mapping[str, str | None] | None = None) -> None:
        self.path = path
        self.parents = dict(parents or {})
        self.seconds = 0.0
        self._began = self._written = time.monotonic()

    def due(self) -> bool:
        """Tell whether it is time to write."""
        return self.path is not None and time.monotonic() - self._written >= EVERY_S

    def write(self, step: int, parts: Mapping[str, Any], generator: torch.Generator) -> None:
        """Write the state after `step` steps: all of it, or nothing.

        parts: all that changes in a step beside `generator`, each with PyTorch's state_dict and load_state_dict.

        Raises:
            UserError: it cannot be written.
        """
        assert self.path is not None
        content = {name: part.state_dict() for name, part in parts.items()}
        seconds = self.seconds + time.monotonic() - self._began
        facts = {"schema": SCHEMA, "parents": self.parents, "step": step, "seconds": seconds}
        facts["random"] = generator.get_state()
        whole = io.BytesIO()  # in a file, PyTorch hides that the disk is full
        torch.save({**content, **facts}, whole)
        # Of this process alone: another may be at it, too, where a lease was lost.
        draft = self.path.with_name(f"{self.path.stem}-{platform.node()}-{os.getpid()}.part")
        with writing(self.path.parent, "store"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                write(draft, whole.getbuffer())
                draft.replace(self.path)
            finally:
                draft.unlink(missing_ok=True)  # a full disk needs the room
        self._written = time.monotonic()

    def resume(self, parts: Mapping[str, Any], generator: torch.Generator) -> int:
        """Put everything back to where the file left it, and return the number of steps done; 0 without a file.

        So it is with one whose training began from parents that have been made again since: it is deleted.

        Raises:
            UserError: the file cannot be read.
        """
        if self.path is None or not self.path.is_file():
            return 0
        try:
            with zipfile.ZipFile(self.path) as archive:  # PyTorch writes checksums, and does not look at them
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} does not match its checksum")
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            require_schema("it", content.get("schema", SCHEMA), SCHEMA, "finish what it is of with that version")
            if content.get("parents", self.parents) != self.parents:  # files of before had none
                log.warning("begun anew, since what it trains from was made again: %s", self.path)
                self.path.unlink(missing_ok=True)
                return 0
            for name, part in parts.items():
                state = content[name]
                if isinstance(part, torch.optim.Optimizer):  # rates and the like hang on the step and on the device
                    state = {**state, "param_groups": part.state_dict()["param_groups"]}
                part.load_state_dict(state)
            generator.set_state(content["random"])
            step, self.seconds = int(content["step"]), float(content.get("seconds", 0.0))
        except OSError as error:
            why = f"cannot read the checkpoint {self.path}: {error.strerror}; run the same command again"
            raise UserError(why) from error
        except Exception as error:  # whatever is wrong with it, the remedy is one
            # PyTorch's advice would be to load it with pickle.
            why = "it holds more than tensors and numbers" if isinstance(error, UnpicklingError) else one_line(error)
            told = f"cannot go on from the checkpoint {self.path}: {why}; or delete it to start over"
            raise UserError(told) from error
        log.info("going on after step %d, from %s", step, self.path)
        return step
