"""One worker process: makes what it is told to, one artefact after another. See `fingerbench.pool`.

Input: one line with the settings as JSON, then one spec a line, pickled and in base64. Output: one JSON object a spec,
with its `status`: "made", with the seconds that took, "found" (another process was faster), "busy" (another process is
at it), or "failed".
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from typing import Any

import torch
from omegaconf import OmegaConf

from fingerbench.bench import Bench
from fingerbench.errors import DamagedError, UserError
from fingerbench.seeds import fix_order
from fingerbench.store import Spec
from fingerbench.workshop import Workshop, peak_memory


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not end up among the replies
    settings = OmegaConf.create(json.loads(sys.stdin.readline()))
    specs = _listen()
    torch.set_num_threads(settings.threads)
    fix_order(settings.deterministic)
    bench = Bench(settings)
    while True:
        reply = _attempt(bench, specs.get())
        replies.write(json.dumps(reply) + "\n")


def _listen() -> queue.SimpleQueue[str]:
    specs: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            specs.put(line)
        os._exit(0)  # the parent is gone or done; a half-made artefact was never published

    threading.Thread(target=listen, daemon=True).start()
    return specs


def _attempt(bench: Bench, line: str) -> dict[str, Any]:
    try:
        spec: Spec = pickle.loads(base64.b64decode(line))  # noqa: S301 - from the parent process, see `Pool`
        return _make(bench.workshop, spec)
    except Exception as error:  # noqa: BLE001 - the parent decides what becomes of it
        user = isinstance(error, UserError)
        text = str(error) if user or isinstance(error, DamagedError) else traceback.format_exc()
        return {"status": "failed", "user": user, "error": text}


def _make(workshop: Workshop, spec: Spec) -> dict[str, Any]:
    store = workshop.store
    with store.claim(spec) as mine:
        if not mine:
            return {"status": "busy"}
        if store.has(spec):
            return {"status": "found"}
        began = time.monotonic()
        with peak_memory(workshop.device) as peak:
            tensors, facts = spec.make(workshop)
        store.save(spec, tensors, {**facts, "peak_mib": peak()})
        return {"status": "made", "seconds": time.monotonic() - began}


if __name__ == "__main__":
    main()
