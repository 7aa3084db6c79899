"""Modules on a GPU: networks that the host runs row by row, and the decoder's way to pixels."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.backends.base import Array
from sdengine.backends.tensorrt.arena import FLAG, PIXELS, REGISTERS, region_of
from sdengine.backends.tensorrt.engine import GpuContext, piece_shape, row_axis
from sdengine.backends.tensorrt.shared_arena import SharedArena
from sdengine.bundle.controls import is_feature, is_residual
from sdengine.bundle.tensors import TensorSpec
from sdengine.errors import DeviceError
from sdengine.storage.tensor_file import to_bf16_bits, to_float32

NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int64": np.int64}


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
        names = [spec.name for spec in self.inputs]
        self._may_lack = frozenset(n for n in names if is_residual(n) or is_feature(n))
        self._results = {
            spec.name: np.empty(tuple(map(int, spec.shape)), np.float32) for spec in self.outputs
        }

    def zero_unless_given(self) -> frozenset[str]:
        """Name the inputs of controls, which are large to bring over for nothing."""
        return self._may_lack

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute the outputs by name; other inputs must be given at their shapes."""
        context, queue = self._opened(), self._arena.queue
        self._arena.take(self)
        total = int(self.inputs[0].shape[0])
        for first in range(0, total, self._rows):
            count = min(self._rows, total - first)
            self.send_all({name: inputs[name][first : first + count] for name in inputs})
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

    def send_all(self, inputs: Mapping[str, Array], without: Container[str] = ()) -> None:
        """Queue the copies of inputs' rows, which come first of the engine's.

        Args:
            inputs: by name; of `zero_unless_given`, those that are not there are zeros of the GPU.
            without: names of those that are left as they are.
        """
        queue = self._arena.queue
        for spec in self.inputs:
            region = region_of(self.name, spec.name)
            if spec.name in without:
                continue
            if spec.name not in inputs and spec.name in self._may_lack:
                queue.clear(self._set, region)
                continue
            values, host = inputs[spec.name], self._host[spec.name]
            host[: len(values)] = to_engine(values, host.dtype)
            queue.upload(self._set, region, host)


class GpuDecoder(GpuModule):
    """The VAE's decoder, which also makes pixels of latents where they lie."""

    def decode(self, latents: Array, scale: float) -> NDArray[np.uint8]:
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
        return pixels


def to_engine(values: Array, dtype: np.dtype[Any]) -> Array:
    """Round fp32 to fp16, or to bf16 as its upper 16 bits; other types stay as they are.

    Ties go to the even number, as the hardware's conversions do.
    """
    if dtype != np.uint16:
        with np.errstate(over="ignore"):  # the run time finds what is not finite
            return values.astype(dtype, copy=False)
    return to_bf16_bits(values)


def from_engine(values: Array) -> Array:
    """Return fp32 from fp32, fp16 or the upper 16 bits of bf16."""
    return to_float32(values)
