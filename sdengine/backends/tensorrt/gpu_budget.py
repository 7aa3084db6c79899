"""GPU budget: a memory budget that learns what contexts, kernels and graphs take besides."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from sdengine import _native
from sdengine.backends.memory_budget import MemoryBudget, SizeNeeds
from sdengine.backends.shared_arena import MAX_GRAPHS

_log = logging.getLogger(__name__)


class Measured(Protocol):
    """A context, and what it was measured to take; see `GpuContext`."""

    name: str
    overhead_bytes: int


class GpuBudget(MemoryBudget):
    """The budget of engines on a GPU.

    A plan has weights, scratch and tensors. What TensorRT and the driver take for an execution
    context, for kernels that are compiled or loaded at its first run and for captured graphs is
    told by nobody; it is measured when it happens, and counts from then on.

    Args:
        needs, low_memory: as for `MemoryBudget`.
        device: of the native runtime.
        memory_bytes: the limit that was asked for; None for what the GPU has free.
        contexts: those that live.
    """

    most_shapes = MAX_GRAPHS

    def __init__(
        self,
        needs: Sequence[SizeNeeds],
        low_memory: bool,
        device: _native.Device,
        memory_bytes: int | None,
        contexts: Mapping[Any, Measured],
    ) -> None:
        self._device = device
        self._contexts = contexts
        free_bytes, _ = device.memory_info()
        available = min(free_bytes, memory_bytes or free_bytes)
        self._is_limited = available == memory_bytes
        source = "memory_bytes" if self._is_limited else "free on the GPU"
        super().__init__(needs, available, source, low_memory)

    @property
    def overhead_bytes(self) -> dict[str, int]:
        """What the largest context of each network takes, with its kernels and graphs."""
        found: dict[str, int] = {}
        for context in list(self._contexts.values()):
            found[context.name] = max(found.get(context.name, 0), context.overhead_bytes)
        return found

    def measured(self, set_name: str) -> None:
        """Take the contexts' figures into the plan of every size.

        Where no limit was set, the GPU itself says when there is no more.

        Args:
            set_name: the image size that is being run.

        Raises:
            OutOfMemoryError: it takes more than the limit.
        """
        overheads = self.overhead_bytes
        for network, size_bytes in overheads.items():
            _log.info(
                "%s: context, kernels and graphs take %.1f MB of the GPU's memory",
                network,
                size_bytes / 1e6,
            )
        if not self._is_limited:
            return
        taken = max(overheads.values(), default=0) if self.low_memory else sum(overheads.values())
        self.update([replace(size, overhead_bytes=taken) for size in self.needs])
        for size in self.needs:
            if size.name == set_name:
                self.require(size)

    def has_room(self, network: str, loaded: int) -> bool:
        """Say whether another shape fits beside all that are loaded, by what such ones took."""
        if not super().has_room(network, loaded):
            return False
        wanted = self.overhead_bytes.get(network, 0)
        if self._device.memory_info()[0] < wanted:
            return False
        planned = [size.planned_bytes(self.low_memory) for size in self.fitting()]
        taken = sum(context.overhead_bytes for context in list(self._contexts.values()))
        return (
            not self._is_limited or max(planned, default=0) + taken + wanted <= self.available_bytes
        )
