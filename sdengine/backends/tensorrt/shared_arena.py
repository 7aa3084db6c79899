"""Shared arena: memory, queue and graphs that a bundle's networks use in turns on a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sdengine import _native
from sdengine.backends.base import Array
from sdengine.backends.tensorrt.arena import MAX_GRAPHS, REGISTERS, Region


class Tenant(Protocol):
    """Who has its tensors in the arena."""

    def leave(self) -> None:
        """Save what is needed later: others write to the arena from now on."""
        ...


class SharedArena:
    """Hold the memory that a bundle's networks use in turns.

    Args:
        device: of the native runtime.
        sets: the regions of each image size, by its name.
        cap_bytes: the most that the arena may take; 0 for what is free.
    """

    def __init__(
        self, device: _native.Device, sets: Mapping[str, Sequence[Region]], cap_bytes: int
    ) -> None:
        self.device = device
        self.pool = _native.MemoryPool(sets, cap_bytes=cap_bytes, device=device)
        self.queue = _native.Queue(self.pool)
        self.graphs = _native.GraphCache(self.pool, MAX_GRAPHS)
        self.sets = {name: {region: size for region, size, _, _ in sets[name]} for name in sets}
        self.planned_bytes = max(_native.plan_regions(regions)[0] for regions in sets.values())
        self._tenant: weakref.ref[Any] | None = None
        self._latents: Array | None = None
        self._latents_set = ""

    def take(self, tenant: Tenant) -> bool:
        """Give the arena to a tenant, and say whether it had it already."""
        current = None if self._tenant is None else self._tenant()
        if current is tenant:
            return True
        if current is not None:
            current.leave()
        self._tenant = weakref.ref(tenant)
        self._latents = None
        return False

    def keep_latents(self, set_name: str, latents: Array) -> None:
        """Remember which array the registers hold."""
        self._latents, self._latents_set = latents, set_name

    def bring_latents(self, tenant: Tenant, set_name: str, latents: Array) -> None:
        """Give the arena to a tenant, with an array in the registers, copied unless it is there."""
        are_there = self._latents is latents and self._latents_set == set_name
        self.take(tenant)  # or a run that goes on would not know that others wrote
        if not are_there:
            self.queue.upload(set_name, REGISTERS, latents)
        self.keep_latents(set_name, latents)
