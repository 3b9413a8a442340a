"""Work that a GPU repeats by itself: captured once as a CUDA graph, then replayed, all its kernels in one launch.

`Replay` is for whole steps, gradients and optimizer included; `Graphed` for a network that gradients flow through.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from fingerbench.errors import one_line

allowed = True  # in this process; see `allow`
WARM_UP = 3  # calls of a shape before it is captured, as PyTorch advises: allocations and cuDNN's trials come first
ENDED = "previous error during capture"  # in what CUDA says when a capture ends in which something failed
SHARE = 0.25  # of a GPU's memory in the hands of this process, beyond which it captures no further `Graphed` network


def allow(replay: bool) -> None:
    """Let what this process builds from now on be replayed, or not: `replay` of the configuration."""
    global allowed
    allowed = replay


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Any


class Replay:
    """A function of tensors, called again and again; on a GPU its kernels are launched one by one but a few times.

    Launching one takes a core some microseconds, and a step of training has hundreds to thousands of them. Each shape
    of inputs has a graph of its own. On any other device, or with `enabled` False, it is the plain function.

    act: may change tensors in place, such as weights and running statistics, and draw from the GPU's own generator.
    It must not draw on the CPU, keep a count in Python, or look at a value: Python in it runs for the first calls
    alone. What it reads beside its inputs must stay alive and be changed in place only, since a replay reads it where
    it lay. generators: on the CPU, those it could draw from beside the global ones.
    """

    def __init__(
        self,
        act: Callable[..., Any],
        device: torch.device,
        enabled: bool = True,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self._act = act
        self._generators = generators
        self._stream = _stream(device) if enabled and allowed and device.type == "cuda" else None
        self._pool = torch.cuda.graph_pool_handle() if self._stream else None
        self._calls: Counter[tuple[Any, ...]] = Counter()
        self._captured: dict[tuple[Any, ...], _Captured] = {}

    @property
    def replayed(self) -> bool:
        """Whether it is more than the plain function."""
        return self._stream is not None

    def __call__(self, *inputs: Tensor) -> Any:
        """Return what the function returns: tensors that the next call may overwrite.

        Raises RuntimeError where it cannot be captured.
        """
        if self._stream is None:
            return self._act(*inputs)
        key = _shapes(inputs)
        if key not in self._captured:
            self._calls[key] += 1
            if self._calls[key] <= WARM_UP:
                return self._warm(*inputs)
            self._captured[key] = self._capture(*inputs)
        captured = self._captured[key]
        for mine, given in zip(captured.inputs, inputs, strict=True):
            mine.copy_(given)
        captured.graph.replay()
        return captured.output

    def _warm(self, *inputs: Tensor) -> Any:
        # On the stream of the capture, so that autograd's accumulators of gradients belong to it.
        stream = self._stream
        assert stream is not None
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*capturable=True", category=UserWarning)  # it is captured soon
            output = self._act(*inputs)
        torch.cuda.current_stream(stream.device).wait_stream(stream)
        return output

    def _capture(self, *inputs: Tensor) -> _Captured:
        mine = tuple(x.clone() for x in inputs)
        graph = torch.cuda.CUDAGraph()
        with capturing(self._generators), torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            output = self._act(*mine)
        return _Captured(graph, mine, output)


class Graphed(nn.Module):
    """A frozen network that is asked again and again for gradients in its inputs; on a GPU both ways are replayed.

    Without gradients, or on any other device, it is the plain network. So it is where an answer comes before the
    gradients of the last have been taken, since there is but one place for what those need, and where that place would
    take more than its SHARE of the GPU.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self._network = network
        self._enabled = allowed and device.type == "cuda"
        # Its shapes never wait for gradients at once; other networks do, and may not share it.
        self._pool = torch.cuda.graph_pool_handle() if self._enabled else None
        self._captured: dict[tuple[Any, ...], Callable[..., Tensor]] = {}
        self._waiting = False  # for the gradients of its last answer

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return what the network returns, which the next call may overwrite.

        Raises RuntimeError where it cannot be captured.
        """
        moved = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        if self._enabled and moved and not self._waiting and self._ready(inputs):
            output = self._captured[_shapes(inputs)](*inputs)
            self._waiting = True
            output.register_hook(self._done)
            return output
        plain: Tensor = self._network(*inputs)
        return plain

    def _ready(self, inputs: tuple[Tensor, ...]) -> bool:
        """Capture the network for these shapes if it is not yet and may be; return whether it is."""
        key, device = _shapes(inputs), inputs[0].device
        if key not in self._captured:
            most = SHARE * torch.cuda.get_device_properties(device).total_memory
            if torch.cuda.memory_reserved(device) > most:
                return False
            examples = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in inputs)
            # A function of its own: PyTorch would replace the forward of a module, for every shape.
            with capturing(), torch.cuda.device(device):
                captured = torch.cuda.make_graphed_callables(lambda *x: self._network(*x), examples, pool=self._pool)
            self._captured[key] = cast(Callable[..., Tensor], captured)
        return True

    def _done(self, _gradient: Tensor) -> None:
        self._waiting = False


def adam(
    weights: Iterable[Tensor], lr: float, betas: tuple[float, float] = (0.9, 0.999), replayed: bool = True
) -> torch.optim.Adam:
    """Return Adam, on a GPU in a form that `Replay` can capture, if it is to be `replayed`."""
    weights = list(weights)
    return torch.optim.Adam(weights, lr, betas, capturable=replayed and allowed and weights[0].is_cuda)


@contextmanager
def capturing(generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """Refuse what is captured inside the block and would not be the same work when replayed, as far as can be seen.

    Raises RuntimeError, with the way out; torch.OutOfMemoryError as it comes.
    """
    before = _drawn(generators)
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # PyTorch ends the capture all the same, and what that raises hides what was wrong.
        cause = error.__context__ if ENDED in str(error) and error.__context__ else error
        if isinstance(cause, torch.OutOfMemoryError):
            raise cause from error
        raise refusal(one_line(cause)) from error
    if _drawn(generators) != before:
        raise refusal("it draws on the CPU")


def refusal(why: str) -> RuntimeError:
    """Return the error about work that cannot be replayed, and the way out."""
    return RuntimeError(
        f"expected work of the GPU alone, got a network, loss or method that cannot be replayed ({why}); run the same "
        "command again with replay=false"
    )


def _drawn(generators: Sequence[torch.Generator]) -> tuple[Any, ...]:
    """Return the state of every generator on the CPU."""
    _, keys, place, *_ = np.random.get_state(legacy=True)
    states = (one.get_state().numpy().tobytes() for one in (torch.default_generator, *generators))
    return random.getstate(), np.asarray(keys).tobytes(), place, *states


def _shapes(inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return tuple((tuple(x.shape), x.dtype) for x in inputs)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # one for all: cuBLAS keeps memory for each
