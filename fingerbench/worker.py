"""One worker process: makes what it is told to, one artefact after another. See `fingerbench.pool`.

Input: one line with the settings as JSON, then one key a line. Output: one JSON object a key, with its `status`:
"made", "found" (another process was faster), "busy" (another process is at it), or "failed".
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from typing import Any, TextIO

import torch
from omegaconf import OmegaConf

from fingerbench.bench import Bench
from fingerbench.errors import UserError
from fingerbench.store import DamagedError, Spec
from fingerbench.workshop import peak_memory


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not end up among the replies
    settings = OmegaConf.create(json.loads(sys.stdin.readline()))
    keys = _listen()
    _serve(Bench(settings), keys, replies)


def _listen() -> queue.SimpleQueue[str]:
    keys: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            keys.put(line.strip())
        os._exit(0)  # the parent is gone or done; a half-made artefact was never published

    threading.Thread(target=listen, daemon=True).start()
    return keys


def _serve(bench: Any, keys: queue.SimpleQueue[str], replies: TextIO) -> None:
    torch.set_num_threads(bench.settings.threads)
    known: dict[str, Spec] | None = None
    while True:
        key = keys.get()
        try:
            known = known or family(bench.plan())
            reply = _make(bench, known[key])
        except Exception as error:  # noqa: BLE001 - the parent decides what becomes of it
            user = isinstance(error, UserError)
            text = str(error) if user or isinstance(error, DamagedError) else traceback.format_exc()
            reply = {"status": "failed", "user": user, "error": text}
        replies.write(json.dumps(reply) + "\n")


def _make(bench: Any, spec: Spec) -> dict[str, Any]:
    with bench.store.claim(spec) as mine:
        if not mine:
            return {"status": "busy"}
        if bench.store.has(spec):
            return {"status": "found"}
        with peak_memory(bench.workshop.device) as peak:
            tensors, facts = spec.make(bench.workshop)
        bench.store.save(spec, tensors, {**facts, "peak_mib": peak()})
        return {"status": "made"}


def family(specs: list[Spec]) -> dict[str, Spec]:
    """Return `specs` and everything they need, by key."""
    known: dict[str, Spec] = {}
    todo = list(specs)
    while todo:
        spec = todo.pop()
        if spec.key not in known:
            known[spec.key] = spec
            todo += spec.needs()
    return known


if __name__ == "__main__":
    main()
