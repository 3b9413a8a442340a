"""What a worker does with errors, and with the memory of a GPU that it shares."""

import base64
import pickle
import weakref
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import fingerbench as fb
from fingerbench.pool import OUT_OF_MEMORY
from fingerbench.store import Spec
from fingerbench.worker import _attempt

MADE = []  # weak references


@dataclass(frozen=True)
class Toy(Spec):
    kind: ClassVar[str] = "toy"
    version: ClassVar[int] = 1

    error: str = ""

    def make(self, workshop):
        tensor = torch.zeros(3)
        MADE.append(weakref.ref(tensor))
        if self.error:
            raise RuntimeError(self.error)
        return {"x": tensor}, {}


def attempt(store, spec):
    bench = fb.open("data=digits", "device=cpu", f"store={store}")
    return _attempt(bench, base64.b64encode(pickle.dumps(spec)).decode())


@pytest.mark.parametrize(
    "error",
    [
        "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.",  # a context
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "FIND was unable to find an engine to execute this computation",  # no room for a workspace of cuDNN's
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
    ],
)
def test_who_lacks_memory_ends_to_be_tried_again_elsewhere(tmp_path, monkeypatch, error):
    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", end)
    with pytest.raises(SystemExit) as caught:
        attempt(tmp_path, Toy(error))
    assert caught.value.code == OUT_OF_MEMORY


@pytest.mark.parametrize("error", ["CUDA error: an illegal memory access was encountered", "out of luck"])
def test_any_other_error_of_a_device_is_told_and_the_worker_replaced(tmp_path, error):
    reply = attempt(tmp_path, Toy(error))
    assert (reply["status"], reply["user"], reply["broken"]) == ("failed", False, True) and error in reply["error"]
    assert reply["again"] == ("CUDA" in error)


@pytest.mark.parametrize(("error", "expected"), [("", [0]), ("CUDA error: unspecified launch failure", [])])
def test_what_an_artefact_took_of_a_gpu_is_given_back_before_the_next(tmp_path, monkeypatch, error, expected):
    in_use = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: in_use.append(sum(ref() is not None for ref in MADE)))
    MADE.clear()
    attempt(tmp_path, Toy(error))
    assert len(MADE) == 1 and in_use == expected
