"""Work that a GPU repeats by itself: captured once as a CUDA graph, then replayed, all its kernels in one launch.

`Replay` is for whole steps, gradients and optimizer included; `Graphed` for a network that gradients flow through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from fingerbench.errors import one_line

allowed = True  # in this process; see `allow`
WARM_UP = 3  # calls of a shape before it is captured, as PyTorch advises: allocations and cuDNN's trials come first


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
    It must not draw from a generator on the CPU, or look at a value; Python in it runs for the first calls alone.
    """

    def __init__(self, act: Callable[..., Any], device: torch.device, enabled: bool = True) -> None:
        self._act = act
        self._stream = torch.cuda.Stream(device) if enabled and allowed and device.type == "cuda" else None
        self._pool = torch.cuda.graph_pool_handle() if self._stream else None
        self._calls: Counter[tuple[Any, ...]] = Counter()
        self._captured: dict[tuple[Any, ...], _Captured] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        """Return what the function returns: tensors that the next call may overwrite.

        Raises RuntimeError where it cannot be captured.
        """
        if self._stream is None:
            return self._act(*inputs)
        key = tuple((tuple(x.shape), x.dtype) for x in inputs)
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
        with torch.cuda.stream(stream):
            output = self._act(*inputs)
        torch.cuda.current_stream(stream.device).wait_stream(stream)
        return output

    def _capture(self, *inputs: Tensor) -> _Captured:
        mine = tuple(x.clone() for x in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                output = self._act(*mine)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                "expected work of the GPU alone, got a network, loss or method that looks at a value, or draws on the "
                f"CPU ({one_line(error)}); run the same command again with replay=false"
            ) from error
        return _Captured(graph, mine, output)


class Graphed(nn.Module):
    """A frozen network that is asked again and again for gradients in its inputs; on a GPU both ways are replayed.

    Without gradients, or on any other device, it is the plain network. So it is where an answer comes before the
    gradients of the last have been taken, since there is but one place for what those need.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self._network = network
        self._enabled = allowed and device.type == "cuda"
        self._captured: dict[tuple[Any, ...], Callable[..., Tensor]] = {}
        self._waiting = False  # for the gradients of its last answer

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return what the network returns, which the next call may overwrite."""
        moved = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        if not (self._enabled and moved) or self._waiting:
            answer: Tensor = self._network(*inputs)
            return answer
        key = tuple((tuple(x.shape), x.dtype) for x in inputs)
        if key not in self._captured:
            examples = tuple(x.detach().clone().requires_grad_(x.requires_grad) for x in inputs)
            # A function of its own: PyTorch would replace the forward of a module, for every shape.
            captured = torch.cuda.make_graphed_callables(lambda *x: self._network(*x), examples)
            self._captured[key] = cast(Callable[..., Tensor], captured)
        output = self._captured[key](*inputs)
        self._waiting = True
        output.register_hook(self._done)
        return output

    def _done(self, _gradient: Tensor) -> None:
        self._waiting = False
