"""Modules on a GPU: networks that the host runs row by row, and the decoder's way to pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdengine.backends.base import Array
from sdengine.backends.shared_arena import (
    NUMPY,
    REGISTERS,
    SharedArena,
    StagedInputs,
    region_of,
)
from sdengine.backends.tensorrt.arena import FLAG, PIXELS
from sdengine.backends.tensorrt.engine import GpuContext, piece_shape, row_axis
from sdengine.bundle.tensors import TensorSpec
from sdengine.errors import DeviceError
from sdengine.storage.tensor_file import to_float32


@dataclass(frozen=True)
class Binding:
    """How a module's tensors are bound to the arena and to the caller's arrays.

    Args:
        set_name: the image size whose regions they lie in.
        rows: of the context.
        inputs, outputs: at the caller's rows.
        engine_dtypes: of the engine's tensors, by name.
    """

    set_name: str
    rows: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    engine_dtypes: Mapping[str, str]


class GpuModule:
    """One engine's context at one image size.

    A context computes a fixed number of rows: fewer are filled up, more take several runs. Arrays
    are fp32 on this side; engines of fp16 and bf16 get and give rounded values.

    Args:
        context: bound to the arena.
        arena: of the bundle.
        binding: where the tensors are.
    """

    def __init__(self, context: GpuContext, arena: SharedArena, binding: Binding) -> None:
        self.name = context.name
        self.inputs = binding.inputs
        self.outputs = binding.outputs
        self._context: GpuContext | None = context
        self._arena = arena
        self._set = binding.set_name
        self._rows = binding.rows
        self._dtypes = dict(binding.engine_dtypes)
        self._host = {
            spec.name: np.zeros(piece_shape(spec, self._rows), NUMPY[self._dtypes[spec.name]])
            for spec in (*self.inputs, *self.outputs)
        }
        self.staged = StagedInputs(arena, self._set, self.name, self.inputs, self._host)
        self._results = {
            spec.name: np.empty(tuple(map(int, spec.shape)), np.float32) for spec in self.outputs
        }

    def zero_unless_given(self) -> frozenset[str]:
        """Name the inputs of controls, which are large to bring over for nothing."""
        return self.staged.may_lack

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute the outputs by name; other inputs must be given at their shapes."""
        context, queue = self._opened(), self._arena.queue
        self._arena.take(self)
        total = int(self.inputs[0].shape[0])
        for first in range(0, total, self._rows):
            count = min(self._rows, total - first)
            self.staged.send({name: inputs[name][first : first + count] for name in inputs})
            context.enqueue(queue.stream)
            for spec in self.outputs:
                host = self._host[spec.name]
                queue.download(self._set, region_of(self.name, spec.name), host)
                # Hidden states have their layer before the rows.
                before = (slice(None),) * row_axis(spec)
                source = (*before, slice(count))
                target = (*before, slice(first, first + count))
                self._results[spec.name][target] = from_engine(host[source])
        context.has_run()
        return self._results

    def leave(self) -> None:
        """Keep nothing: each run brings all its inputs."""

    def close(self) -> None:
        """Free the context; a second call does nothing."""
        self._context = None

    def _opened(self) -> GpuContext:
        if self._context is None:
            raise DeviceError(f"{self.name}: the network was closed.")
        return self._context


class GpuDecoder(GpuModule):
    """The VAE's decoder, which also makes pixels of latents where they lie."""

    def decode(self, latents: Array, scale: float) -> tuple[NDArray[np.uint8], int]:
        """Turn latents into pixels, one image after the other; see `DecodesPixels`."""
        context, queue = self._opened(), self._arena.queue
        count = latents[0].size
        self._arena.bring_latents(self, self._set, latents)
        source, images = region_of(self.name, "latents"), region_of(self.name, "images")
        dtypes = self._dtypes["latents"], self._dtypes["images"]
        height, width = (int(size) for size in self.outputs[0].shape[2:])
        batch = queue.pixel_batch(self._set, FLAG, len(latents), height, width)
        for index in range(len(latents)):
            queue.scale(self._set, REGISTERS, index * count, count, scale, source, dtypes[0])
            context.enqueue(queue.stream)
            batch.add(images, dtypes[1], PIXELS)
        pixels = batch.finish()
        context.has_run()
        return pixels, 0


def from_engine(values: Array) -> Array:
    """Return fp32 from fp32, fp16 or the upper 16 bits of bf16."""
    return to_float32(values)
