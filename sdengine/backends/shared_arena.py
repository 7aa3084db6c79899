"""Shared arena: memory, queue and graphs that a bundle's networks use in turns on a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Container, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from sdengine import _native
from sdengine.backends.base import Array
from sdengine.bundle.controls import is_feature, is_residual
from sdengine.bundle.tensors import TensorSpec
from sdengine.storage.tensor_file import to_bf16_bits

# Of a sampler program; what is longer or wider takes the host's path.
MAX_EVALUATIONS, MAX_REGISTERS = 2048, 8
# Shapes of a network that stay loaded where memory allows; each has a graph.
MAX_GRAPHS = 16
# Regions that the native runtime knows by name: tensors of the U-Net that sampler steps read and
# write, the sampler's registers, and the program's rows.
SAMPLE, TIMESTEP, NOISE_PRED = "sample", "timestep", "noise_pred"
STEP_TENSORS = (SAMPLE, TIMESTEP, NOISE_PRED)
REGISTERS, TABLE = "registers", "table"
NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int64": np.int64}

Region = tuple[str, int, int, int]


def region_of(network: str, tensor: str) -> str:
    """Return the name of a tensor's region."""
    own = network == "unet" and tensor in STEP_TENSORS
    return tensor if own else f"{network}.{tensor}"


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


class StagedInputs:
    """Bring a network's inputs from the host to their regions of an arena.

    Args:
        arena: where the regions are.
        set_name: the set that they belong to.
        network: its name.
        inputs: at the caller's rows.
        host: arrays of the regions' shapes and types, by name of the input.
    """

    def __init__(
        self,
        arena: SharedArena,
        set_name: str,
        network: str,
        inputs: Sequence[TensorSpec],
        host: Mapping[str, Array],
    ) -> None:
        self._arena = arena
        self._set = set_name
        self._network = network
        self._inputs = inputs
        self._host = host
        names = [spec.name for spec in inputs]
        self.may_lack = frozenset(n for n in names if is_residual(n) or is_feature(n))

    def send(self, inputs: Mapping[str, Array], without: Container[str] = ()) -> None:
        """Queue the copies of inputs' rows, which come first of the regions'.

        Args:
            inputs: by name; of `may_lack`, those that are not there are zeros of the GPU.
            without: names of those that are left as they are.
        """
        queue = self._arena.queue
        for spec in self._inputs:
            region = region_of(self._network, spec.name)
            if spec.name in without:
                continue
            if spec.name not in inputs and spec.name in self.may_lack:
                queue.clear(self._set, region)
                continue
            values, host = inputs[spec.name], self._host[spec.name]
            host[: len(values)] = as_stored(values, host.dtype)
            queue.upload(self._set, region, host)


def as_stored(values: Array, dtype: np.dtype[Any]) -> Array:
    """Round fp32 to fp16, or to bf16 as its upper 16 bits; other types stay as they are.

    Ties go to the even number, as the hardware's conversions do.
    """
    if dtype != np.uint16:
        with np.errstate(over="ignore"):  # the run time finds what is not finite
            return values.astype(dtype, copy=False)
    return to_bf16_bits(values)
