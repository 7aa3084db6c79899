"""Profile of the torch backend: a clock around each operation that torch dispatches on the CPU.

`torch.profiler` knows of an operation neither the types of what it reads nor what it writes, so
that its bytes could not be told. What is dispatched is known whole; on a CPU an operation is done
when its call returns.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode

from sdengine.backends.base import Session
from sdengine.benchmarks.native_networks import make_inputs
from sdengine.benchmarks.suite.profiles.operations import Operation, Timed, first_level, level_of
from sdengine.errors import DeviceError

_KINDS = {
    "conv2d": "conv",
    "convolution": "conv",
    "linear": "linear",
    "matmul": "linear",
    "mm": "linear",
    "bmm": "linear",
    "addmm": "linear",
    "scaled_dot_product_attention": "attention",
    "silu": "activation",
    "gelu": "activation",
    "mul": "add",
    "cat": "copy",
    "_to_copy": "copy",
    "clone": "copy",
}
_VALUES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def load(session: Session, network: str, shapes: Mapping[str, tuple[int, ...]]) -> Timed:
    """Load a network of a session of the torch backend, and run it once to know its operations."""
    module = session.load(network, shapes)
    inputs = make_inputs(module)
    listed = _Clock(network, listing=True)
    with _paths(listed), listed:
        module.run(inputs)

    def run() -> tuple[float, list[float]]:
        started = time.perf_counter()
        module.run(inputs)
        whole = time.perf_counter() - started  # without what the clock costs between operations
        clock = _Clock(network)
        with clock:
            module.run(inputs)
        if len(clock.seconds) != len(listed.operations):
            raise DeviceError(f"{network}: torch does not run the same operations each time.")
        return whole, clock.seconds

    return Timed(listed.operations, run, module.close)


class _Clock(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Time every operation, and list them where asked to."""

    def __init__(self, network: str, *, listing: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds: list[float] = []
        self.operations: list[Operation] = []
        self.path: list[str] = []  # of the modules that are running
        self._listing = listing
        self._level = first_level(network)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        started = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        self.seconds.append(time.perf_counter() - started)
        if self._listing:
            self._list(func.overloadpacket.__name__, args, out)
        return out

    def _list(self, name: str, args: tuple[Any, ...], out: Any) -> None:
        place = self.path[-1] if self.path else "inputs and outputs"
        self._level = level_of(place, self._level)
        read, written = _tensors(args), _tensors(out)
        held = {one.untyped_storage().data_ptr() for one in read}
        is_view = all(one.untyped_storage().data_ptr() in held for one in written)
        flops = _flops(name, args, out)
        self.operations.append(
            Operation(
                name=f"{place}/{name}" if place else name,
                kind="view" if is_view else _KINDS.get(name, name),
                level=self._level,
                flops=flops,
                products=flops,
                values=_VALUES.get(out.dtype, "") if flops else "",
                bytes_read=0 if is_view else sum(map(_bytes, read)),
                bytes_written=0 if is_view else sum(map(_bytes, written)),
            )
        )


@contextmanager
def _paths(clock: _Clock) -> Iterator[None]:
    """Keep in `path` the name of the module that runs; the first one's own name is empty."""
    names: dict[nn.Module, str] = {}

    def enter(module: nn.Module, _: Any) -> None:
        if not names:
            names.update({one: name for name, one in module.named_modules()})
        clock.path.append(names.get(module, ""))

    def leave(*_: Any) -> None:
        clock.path.pop()

    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _flops(name: str, args: tuple[Any, ...], out: Any) -> int:
    """Return multiplications and additions of what multiplies matrices or kernels."""
    kind = _KINDS.get(name)
    if kind == "conv":
        return 2 * int(out.numel()) * int(args[1][0].numel())
    if kind == "attention":
        return 4 * int(args[0].numel()) * int(args[1].shape[-2])
    if kind == "linear":
        left = args[1] if name == "addmm" else args[0]
        return 2 * int(out.numel()) * int(left.shape[-1])
    return 0


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [one for part in value for one in _tensors(part)]
    return []


def _bytes(one: Tensor) -> int:
    return one.numel() * one.element_size()
