"""Network contract: a network as a function of tensors with names, shapes and dtypes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sdengine.bundle.tensors import TensorSpec, resolve_shapes
from sdengine.models.dtypes import TORCH_DTYPES

SEQUENCE = 77  # of one prompt; the U-Net takes several joined
FLOAT, INT = "float32", "int64"
# Inputs whose numbers have more digits than a shorter type keeps: timesteps up to 999, which bf16
# would make 1000, and sizes up to 4096.
KEPT_IN_FP32 = ("timestep", "time_ids")


@dataclass(frozen=True)
class NetworkContract:
    """Hold a network as a function of positional tensors, and the names and shapes of these.

    Args:
        name: the network's name in a bundle.
        module: takes the inputs in order and returns the outputs in order.
        inputs, outputs: shapes hold the symbols "batch", "sequence", "height/8", ...
        multiple: pixels that height and width must be multiples of.
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    multiple: int

    def example(self, batch: int, height: int, width: int, *, seed: int) -> tuple[Tensor, ...]:
        """Make seeded inputs for an image size in pixels, multiples of `multiple`."""
        generator = torch.Generator().manual_seed(seed)
        shapes = resolve_shapes(self.name, self.inputs, symbol_sizes(batch, height, width))
        made = []
        for spec in self.inputs:
            shape = shapes[spec.name]
            if spec.dtype == INT:
                length = int(self.inputs[0].shape[1])
                made.append(torch.randint(1, length, shape, generator=generator))
            elif spec.name == "timestep":
                made.append(torch.rand(shape, generator=generator) * 999)
            else:
                values = torch.randn(shape, generator=generator)
                made.append(values.to(getattr(torch, spec.dtype)))
        return tuple(made)

    @property
    def dtype(self) -> torch.dtype:
        """What weights are stored and outputs computed in."""
        dtype: torch.dtype = getattr(torch, self.outputs[0].dtype)
        return dtype

    def in_precision(self, precision: str) -> NetworkContract:
        """Return the same network with other floats: "fp32", "bf16" or "fp16"."""
        dtype = str(TORCH_DTYPES[precision]).removeprefix("torch.")

        def changed(spec: TensorSpec) -> TensorSpec:
            kept = spec.dtype == INT or spec.name in KEPT_IN_FP32
            return spec if kept else replace(spec, dtype=dtype)

        return replace(
            self,
            inputs=tuple(changed(spec) for spec in self.inputs),
            outputs=tuple(changed(spec) for spec in self.outputs),
        )

    def at_size(self, batch: int, height: int, width: int) -> NetworkContract:
        """Return the same network with numbers in the place of symbols; sides in pixels."""
        sizes = symbol_sizes(batch, height, width)

        def fixed(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            shapes = resolve_shapes(self.name, specs, sizes)
            return tuple(replace(spec, shape=shapes[spec.name]) for spec in specs)

        return replace(self, inputs=fixed(self.inputs), outputs=fixed(self.outputs))


def symbol_sizes(batch: int, height: int, width: int) -> dict[str, int]:
    """Return the value of every symbol that a contract's shapes hold."""
    return {"batch": batch, "height": height, "width": width, "sequence": SEQUENCE}
