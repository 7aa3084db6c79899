"""A function's work on the GPU, captured once as a CUDA graph and replayed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., "Tensor | tuple[Tensor, ...]"]
# The first run compiles kernels and lets libraries load theirs and reserve their workspaces, none
# of which a capture may do; the second shows that nothing of that is left.
WARM_UP_RUNS = 2
# torch allows one capture at a time in a process.
_CAPTURING = threading.Lock()


@dataclass(frozen=True)
class _Captured:
    graph: Any
    inputs: tuple[Tensor, ...]
    outputs: Tensor | tuple[Tensor, ...]


class GraphedFunction:
    """Call a function of tensors by replaying the graph of its work.

    A graph is captured at the first call with arguments of some shapes; it reads and writes the
    same memory at every replay, so what it returned is overwritten by the next call.

    Args:
        function: returns one tensor or several; its work must not depend on tensors' values.
        device: where it computes.
        cuda: torch's interface to streams and graphs; tests pass one that needs no GPU.
    """

    def __init__(self, function: Function, device: str = "cuda", cuda: Any = torch.cuda) -> None:
        self._function: Function | None = function
        self._device = device
        self._cuda = cuda
        self._captured: dict[tuple[Any, ...], _Captured] = {}

    def __call__(self, *arguments: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return what the function computes of arguments on any device."""
        key = tuple((argument.shape, argument.dtype) for argument in arguments)
        captured = self._captured.get(key)
        if captured is None:
            captured = self._captured[key] = self._capture(arguments)
        else:
            for buffer, argument in zip(captured.inputs, arguments, strict=True):
                buffer.copy_(argument)
        captured.graph.replay()
        return captured.outputs

    def close(self) -> None:
        """Free the graphs and their memory; a second call does nothing."""
        self._function = None
        if self._captured:
            for captured in self._captured.values():
                captured.graph.reset()
            self._captured.clear()
            self._cuda.empty_cache()

    def _capture(self, arguments: tuple[Tensor, ...]) -> _Captured:
        assert self._function is not None, "it was closed"
        inputs = tuple(buffer_for(argument, self._device) for argument in arguments)
        with _CAPTURING:
            self._warm_up(inputs)
            graph = self._cuda.CUDAGraph()
            # What other threads ask of the device meanwhile is none of this capture's business.
            with self._cuda.graph(graph, capture_error_mode="thread_local"):
                outputs = self._function(*inputs)
        return _Captured(graph, inputs, outputs)

    def _warm_up(self, inputs: tuple[Tensor, ...]) -> None:
        assert self._function is not None
        stream = self._cuda.Stream()
        stream.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                self._function(*inputs)
        self._cuda.current_stream().wait_stream(stream)


def buffer_for(argument: Tensor, device: str) -> Tensor:
    """Return a copy on the device; feature maps lie in channels-last order, as convolutions like.

    The copy never shares memory with its argument, also where both are on one device.
    """
    layout = torch.channels_last if argument.ndim == 4 else torch.contiguous_format
    return argument.detach().clone(memory_format=layout).to(device)
