"""A stand-in for torch.cuda's streams and graphs that works on CPU tensors.

A capture records the operations of torch that run meanwhile; a replay runs them again on the same
tensors and writes the results where they were written first, as a graph of a GPU's work does.
Kernels that Triton interprets are recorded as well. Whatever a captured graph may not do, such as
being captured twice, is an AssertionError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten

from sdengine.kernels import attention, geglu, group_norm, layer_norm
from sdengine.kernels.launching import launch

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
    def launch_and_record(*arguments: Any) -> None:
        with _disable_current_modes():
            launch(*arguments)
        work.append((launch, arguments, {}, None))

    with ExitStack() as stack:
        for module in (attention, geglu, group_norm, layer_norm):
            stack.enter_context(mock.patch.object(module, "launch", launch_and_record))
        yield


class FakeStream:
    def __init__(self, log: list[str], name: str) -> None:
        self.log = log
        self.name = name

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


class FakeGraph:
    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.work: list[Recorded] | None = None

    def replay(self) -> None:
        assert self.work is not None, "a graph is replayed that holds nothing"
        self.log.append("replay")
        with torch.inference_mode():
            for func, args, kwargs, out in self.work:
                again, before = (tree_flatten(x)[0] for x in (func(*args, **kwargs), out))
                for new, old in zip(again, before, strict=True):
                    if isinstance(old, torch.Tensor) and new is not old:
                        old.copy_(new)

    def reset(self) -> None:
        assert self.work is not None, "a graph is freed twice"
        self.log.append("reset")
        self.work = None


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
    """Give what is asked of torch.cuda; `log` holds what it was asked for."""

    def __init__(self) -> None:
        self.log: list[str] = []
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
        return FakeGraph(self.log)

    @contextmanager
    def graph(self, graph: FakeGraph, capture_error_mode: str = "global") -> Iterator[None]:
        assert graph.work is None, "a graph is captured twice"
        assert not self._capturing, "two captures at a time"
        self.log.append(f"capture {capture_error_mode}")
        self._capturing = True
        work: list[Recorded] = []
        try:
            with _Recorder(work), _recorded_launches(work):
                yield
        finally:
            self._capturing = False
        graph.work = work

    def empty_cache(self) -> None:
        self.log.append("empty_cache")
