"""Files that are written to the disk, and JSON that is there whole or not at all."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a file, and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Write plain data aside, then rename: nobody reads half of it. ValueError: it has NaN or infinity."""
    draft = path.with_name(f".{path.name}-{platform.node()}-{os.getpid()}")
    try:
        write(draft, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)  # a full disk needs the room
