"""One worker process: makes what it is told to, one artefact after another. See `fingerbench.pool`.

Argument: the file with the data set. Input: one line with the settings as JSON, then one spec a line, pickled and in
base64. Output: one JSON object a spec, with its `status`: "made", with the seconds that took, None of what went on from
a checkpoint, "found" (another process was faster), "busy" (another process is at it), or "failed", with `broken` where
the process may be in a state to fail at all that follows, and `again` where that is for an error of the GPU, which
another process may not meet. One that lacks memory ends, with exit code OUT_OF_MEMORY.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import queue
import signal
import sys

if __name__ == "__main__":
    # Ctrl-C and schedulers reach the whole group; the parent decides. Before the imports, which take seconds.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)

import threading
import time
import traceback
from contextlib import suppress
from typing import Any

import torch
from omegaconf import OmegaConf

from fingerbench import plugins, replay
from fingerbench.bench import Bench
from fingerbench.errors import BuildError, DamagedError, UserError
from fingerbench.pool import OUT_OF_MEMORY
from fingerbench.seeds import fix_order
from fingerbench.store import Spec
from fingerbench.workshop import Workshop, peak_memory

OF_GPU = ("CUDA error", "cuDNN error", "CUBLAS_STATUS", "CUDNN_STATUS")  # perhaps another process's, under MPS
SETTLE_S = 5.0  # that a GPU has to finish what it computes for a worker that ends


def main() -> None:
    """Serve until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not end up among the replies
    settings = OmegaConf.create(json.loads(sys.stdin.readline()))
    specs = _listen()
    torch.set_num_threads(settings.threads)
    fix_order(settings.deterministic)
    replay.allow(settings.replay)
    # Pickled, too; mapped, so that workers share the memory of its images.
    bench = Bench(settings, data=torch.load(sys.argv[1], mmap=True, weights_only=False))
    while True:
        reply = _attempt(bench, specs.get())
        replies.write(json.dumps(reply) + "\n")


def _listen() -> queue.SimpleQueue[str]:
    specs: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            specs.put(line)
        _leave(0)  # the parent is gone or done; a half-made artefact was never published

    threading.Thread(target=listen, daemon=True).start()
    return specs


def _leave(code: int) -> None:
    """End this process, the GPU first: under MPS what it still computes for one that is gone may hurt the others."""
    if torch.cuda.is_initialized():
        threading.Timer(SETTLE_S, os._exit, [code]).start()  # one that hangs is not waited for
        with suppress(Exception):
            torch.cuda.synchronize()
    os._exit(code)


def _attempt(bench: Bench, line: str) -> dict[str, Any]:
    try:
        spec: Spec = pickle.loads(base64.b64decode(line))  # noqa: S301 - from the parent process, see `Pool`
        reply = _make(bench.workshop, spec)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the parent decides what becomes of it
        if _out_of_memory(error):
            _leave(OUT_OF_MEMORY)  # whatever holds the memory goes with this process
        told = isinstance(error, UserError | BuildError | DamagedError)
        text = str(error) if told else traceback.format_exc()
        reply = {"status": "failed", "user": isinstance(error, UserError), "error": text, "broken": not told}
        reply["again"] = not told and any(sign in text for sign in OF_GPU)
    if not reply.get("broken"):  # after an error of CUDA this would fail, too
        torch.cuda.empty_cache()  # PyTorch keeps what was freed, and the workers share one GPU
    return reply


def _out_of_memory(error: BaseException) -> bool:
    # The allocator of PyTorch's CPU tensors has no exception of its own, nor has what CUDA and its libraries take for
    # themselves, such as a context where other workers have filled the GPU.
    # Where no plan of cuDNN's gets its workspace, PyTorch says that there is no engine. The end of a capture hides it.
    no_plan = "unable to find an engine to execute"
    signs = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "NOT_INITIALIZED", no_plan)
    lacking = isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)
    cause = error.__cause__ or error.__context__
    return lacking or (cause is not None and _out_of_memory(cause))


def _make(workshop: Workshop, spec: Spec) -> dict[str, Any]:
    store = workshop.store
    with store.claim(spec) as mine:
        if not mine:
            return {"status": "busy"}
        if store.has(spec):
            return {"status": "found"}
        code = plugins.code(spec)  # before, since a file may be edited meanwhile
        began, resumed = time.monotonic(), store.checkpoint(spec).is_file()
        with peak_memory(workshop.device) as peak:
            tensors, facts = spec.make(workshop)
        facts = {**facts, "peak_mib": peak()}
        if code:
            facts["code"] = code
        store.save(spec, tensors, facts)
        return {"status": "made", "seconds": None if resumed else time.monotonic() - began}


if __name__ == "__main__":
    main()
