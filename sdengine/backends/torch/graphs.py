"""CUDA graphs: a function's work on the GPU, captured once and replayed."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., "Tensor | tuple[Tensor, ...]"]
# The first run compiles kernels and lets libraries load theirs and reserve their workspaces, none
# of which a capture may do; the second shows that nothing of that is left.
WARM_UP_RUNS = 2
# torch allows one capture at a time in a process.
_CAPTURING = threading.Lock()


class GraphPool:
    """Memory that captured graphs compute in, one after the other.

    torch lets graphs share their memory where none runs while another does, and where nothing that
    one left there is read after another ran. Runs follow each other here, whatever threads and
    streams ask for them; that nothing is left to be read is for the graphs' makers to see to.

    Args:
        cuda: torch's interface to streams and graphs.
    """

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda
        self._handle: Any = None
        self._graphs: weakref.WeakSet[Any] = weakref.WeakSet()
        self._running = threading.Lock()
        self._last_stream: Any = None
        # Streams may be gone that graphs ran on; what was recorded on them is not.
        self._last_end: Any = None

    @contextmanager
    def capture(self) -> Iterator[Any]:
        """Give a graph of what the block does; one capture at a time."""
        if not self._graphs:
            # torch gives up a pool with the last graph in it, and refuses its handle from then on.
            self._handle = self._cuda.graph_pool_handle()
        graph = self._cuda.CUDAGraph()
        try:
            # What other threads ask of the device meanwhile is none of this capture's business.
            with self._cuda.graph(graph, pool=self._handle, capture_error_mode="thread_local"):
                yield graph
        except BaseException:
            self._graphs = weakref.WeakSet()  # others go on; none joins a pool in doubt
            raise
        self._graphs.add(graph)

    def replay(self, graph: Any) -> None:
        """Queue a graph's work behind that of the graph before it."""
        with self._running:
            stream = self._cuda.current_stream()
            if self._last_stream is not None and self._last_stream != stream:
                stream.wait_event(self._last_end)
            graph.replay()
            self._last_end = stream.record_event()
            self._last_stream = stream

    def free(self, graph: Any) -> None:
        """Free a graph; its memory is the pool's, or with the last one torch's again."""
        self._graphs.discard(graph)
        graph.reset()


class GraphedCall:
    """One call of a function of tensors, captured: it reads and writes where its tensors lie.

    Args:
        function: returns one tensor or several; its work must not depend on tensors' values.
        inputs: what it is called with.
        cuda: torch's interface to streams and graphs.
        pool: what the graph computes in, with others; none of them overwrites inputs or outputs.
        outputs: where results go, one for each; None for memory of its own.
    """

    def __init__(
        self,
        function: Function,
        inputs: tuple[Tensor, ...],
        cuda: Any,
        pool: GraphPool,
        outputs: tuple[Tensor, ...] | None = None,
    ) -> None:
        self.inputs = inputs
        self._pool = pool
        with _CAPTURING, _convolutions_measured():
            # Made before the capture, so that they lie outside the pool: graphs that share it
            # write all over it.
            warm = _several(_warm_up(function, inputs, cuda))
            self.outputs = tuple(map(torch.empty_like, warm)) if outputs is None else outputs
            with pool.capture() as graph:
                for buffer, tensor in zip(self.outputs, _several(function(*inputs)), strict=True):
                    buffer.copy_(tensor)
        self._graph = graph

    def replay(self) -> None:
        """Queue the call on the current stream."""
        self._pool.replay(self._graph)

    def close(self) -> None:
        """Free the graph; nothing of it may be queued."""
        self._pool.free(self._graph)


class GraphedFunction:
    """Call a function of tensors by replaying the graph of its work.

    A graph is captured at the first call with arguments of some shapes; it reads and writes the
    same memory at every replay, so what it returned is overwritten by the next call. No other
    function's calls overwrite it, also where they compute in the same pool.

    Args:
        function: returns one tensor or several; its work must not depend on tensors' values.
        device: where it computes.
        cuda: torch's interface to streams and graphs; tests pass one that needs no GPU.
        pool: what the graphs compute in, with those of other functions; None for one of their own.
    """

    def __init__(
        self,
        function: Function,
        device: str = "cuda",
        cuda: Any = torch.cuda,
        pool: GraphPool | None = None,
    ) -> None:
        self._function: Function | None = function
        self._device = device
        self._cuda = cuda
        self._pool = pool or GraphPool(cuda)
        self._calls: dict[tuple[Any, ...], GraphedCall] = {}

    def __call__(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        """Return what the function computes of arguments on any device, as a tuple."""
        key = tuple((argument.shape, argument.dtype) for argument in arguments)
        call = self._calls.get(key)
        if call is None:
            assert self._function is not None, "it was closed"
            inputs = tuple(buffer_for(argument, self._device) for argument in arguments)
            call = self._calls[key] = GraphedCall(self._function, inputs, self._cuda, self._pool)
        else:
            for buffer, argument in zip(call.inputs, arguments, strict=True):
                buffer.copy_(argument)
        call.replay()
        return call.outputs

    def close(self) -> None:
        """Free the graphs and their memory; a second call does nothing."""
        self._function = None
        if self._calls:
            for call in self._calls.values():
                call.close()
            self._calls.clear()
            self._cuda.empty_cache()


def _warm_up(function: Function, inputs: tuple[Tensor, ...], cuda: Any) -> Any:
    """Run a function as often as it takes to be ready, and return what it returned."""
    stream = cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    with cuda.stream(stream):
        for _ in range(WARM_UP_RUNS):
            computed = function(*inputs)
    cuda.current_stream().wait_stream(stream)
    return computed


@contextmanager
def _convolutions_measured() -> Iterator[None]:
    """Let cuDNN time its convolutions at their first run, and a capture take the fastest.

    Shapes are fixed here and come often. The switch is torch's for the whole process, so others'
    convolutions of the moment are measured too.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _several(tensors: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (tensors,) if isinstance(tensors, Tensor) else tensors


def buffer_for(argument: Tensor, device: str) -> Tensor:
    """Return a copy on the device; feature maps lie in channels-last order, as convolutions like.

    The copy never shares memory with its argument, also where both are on one device.
    """
    layout = torch.channels_last if argument.ndim == 4 else torch.contiguous_format
    return argument.detach().clone(memory_format=layout).to(device)
