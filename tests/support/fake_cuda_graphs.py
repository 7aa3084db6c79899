"""A stand-in for torch.cuda's streams and graphs that works on CPU tensors.

A capture records the operations of torch that run meanwhile; a replay runs them again on the same
tensors and writes the results where they were written first, as a graph of a GPU's work does.
Kernels that Triton interprets are recorded as well. Whatever a captured graph may not do, such as
being captured twice, is an AssertionError.

What a capture allocates lies in its graph's pool. Graphs that are given the same one have their
memory overwritten after every replay of any of them, as the worst sharing would; a pool is refused
once its graphs are gone; and two replays in one pool must not overlap, on streams either.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten

from sdengine import _native
from sdengine.kernels import launching

Recorded = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, work: list[Recorded]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = work

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.work.append((func, args, kwargs or {}, out))
        return out


@contextmanager
def _recorded_launches(work: list[Recorded]) -> Iterator[None]:
    launch = launching.launch

    def launch_and_record(*arguments: Any) -> None:
        with _disable_current_modes():
            launch(*arguments)
        work.append((launch, arguments, {}, None))

    with mock.patch.object(launching, "launch", launch_and_record):
        yield


class FakeStream:
    def __init__(self, log: list[str], name: str) -> None:
        self.log = log
        self.name = name

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> StreamEvent:
        return StreamEvent(self)

    def wait_event(self, event: StreamEvent) -> None:
        self.log.append(f"{self.name} waits for {event.stream.name}")


class StreamEvent:
    """What was queued on a stream up to now."""

    def __init__(self, stream: FakeStream) -> None:
        self.stream = stream


class FakeExternalStream(FakeStream):
    """A stream of the native runtime's CPU device; what is queued on it is counted there."""

    def __init__(self, log: list[str], handle: int, device: _native.CpuDevice) -> None:
        super().__init__(log, "native")
        self.handle = handle
        self.device = device


class FakePool:
    """The memory of graphs that share it."""

    def __init__(self) -> None:
        self.graphs: weakref.WeakSet[FakeGraph] = weakref.WeakSet()
        self.was_used = False
        self.is_running = False
        self.last_stream: FakeStream | None = None
        self.last_replay = 0  # how long the log was

    def begin(self, stream: FakeStream, log: list[str]) -> None:
        assert not self.is_running, "two graphs of a pool run at once"
        self.is_running = True
        if self.last_stream not in (None, stream):
            assert self.last_stream is not None
            waited = f"{stream.name} waits for {self.last_stream.name}"
            assert waited in log[self.last_replay :], "a graph does not wait for the one before"
        self.last_stream, self.last_replay = stream, len(log)

    def end(self) -> None:
        for graph in self.graphs:
            for storage in graph.allocated:
                content = torch.empty(0, dtype=torch.uint8).set_(storage)
                content.fill_(0xFF)  # NaN, or -1
        self.is_running = False


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.log = cuda.log
        self.work: list[Recorded] | None = None
        self.pool: FakePool | None = None
        self.allocated: list[torch.UntypedStorage] = []

    def replay(self) -> None:
        assert self.work is not None, "a graph is replayed that holds nothing"
        assert self.pool is not None
        self.log.append("replay")
        stream = self.cuda.current_stream()
        self.pool.begin(stream, self.log)
        try:
            if isinstance(stream, FakeExternalStream):
                stream.device.enqueue(stream.handle, self._run)
            else:
                self._run()
        finally:
            self.pool.end()

    def hold(self, work: list[Recorded], pool: FakePool) -> None:
        self.work, self.pool = work, pool
        self.cuda.captured.append([func for func, *_ in work])
        pool.graphs.add(self)
        outside: set[int] = set()
        inside: dict[int, torch.UntypedStorage] = {}
        for _, args, kwargs, out in work:
            for storage in storages((args, kwargs)):
                if storage.data_ptr() not in inside:
                    outside.add(storage.data_ptr())
            for storage in storages(out):
                if storage.data_ptr() not in outside:
                    inside[storage.data_ptr()] = storage
        self.allocated = list(inside.values())

    def _run(self) -> None:
        assert self.work is not None
        with torch.inference_mode():
            for func, args, kwargs, out in self.work:
                again, before = (tree_flatten(x)[0] for x in (func(*args, **kwargs), out))
                for new, old in zip(again, before, strict=True):
                    if isinstance(old, torch.Tensor) and new is not old:
                        old.copy_(new)

    def reset(self) -> None:
        assert self.work is not None, "a graph is freed twice"
        assert self.pool is not None
        self.log.append("reset")
        self.work = None
        self.allocated = []
        self.pool.graphs.discard(self)


def storages(tree: Any) -> list[torch.UntypedStorage]:
    found = (leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor))
    return [tensor.untyped_storage() for tensor in found if tensor.untyped_storage().nbytes()]


class FakeEvent:
    """An event at the time that its clock shows: one millisecond later than the last."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.ms: float | None = None

    def record(self) -> None:
        self.cuda.ms += 1.0
        self.ms = self.cuda.ms

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.cuda.is_idle, "an event is read that may not have happened"
        assert self.ms is not None
        assert end.ms is not None
        return end.ms - self.ms


class FakeCuda:
    """Give what is asked of torch.cuda.

    `log` holds what it was asked for, `captured` the operations of each graph.

    Args:
        device: of the native runtime, whose streams may be used.
    """

    def __init__(self, device: _native.CpuDevice | None = None) -> None:
        self.device = device
        self.log: list[str] = []
        self.captured: list[list[Callable[..., Any]]] = []
        self._current = FakeStream(self.log, "main")
        self._capturing = False
        self.ms = 0.0
        self.is_idle = False

    def Event(self, enable_timing: bool = False) -> FakeEvent:
        assert enable_timing
        self.is_idle = False
        return FakeEvent(self)

    def synchronize(self) -> None:
        self.is_idle = True

    def Stream(self) -> FakeStream:
        return FakeStream(self.log, "side")

    def ExternalStream(self, handle: int, device: str) -> FakeExternalStream:
        assert self.device is not None and device == "cpu"
        return FakeExternalStream(self.log, handle, self.device)

    def current_stream(self) -> FakeStream:
        return self._current

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def CUDAGraph(self) -> FakeGraph:
        return FakeGraph(self)

    def graph_pool_handle(self) -> FakePool:
        self.log.append("pool")
        return FakePool()

    @contextmanager
    def graph(
        self, graph: FakeGraph, pool: FakePool | None = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        assert graph.work is None, "a graph is captured twice"
        pool = FakePool() if pool is None else pool
        assert pool.graphs or not pool.was_used, "a pool is used whose graphs are gone"
        pool.was_used = True
        assert not self._capturing, "two captures at a time"
        self.log.append(f"capture {capture_error_mode}")
        self._capturing = True
        work: list[Recorded] = []
        try:
            with _Recorder(work), _recorded_launches(work):
                yield
        finally:
            self._capturing = False
        graph.hold(work, pool)

    def empty_cache(self) -> None:
        self.log.append("empty_cache")
