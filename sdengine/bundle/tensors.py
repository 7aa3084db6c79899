"""Tensor specs: names, shapes with symbols, dtypes of a network's inputs and outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from sdengine.errors import BundleError

MAX_ELEMENTS = 1 << 31
# Of each dtype that manifests name.
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}
# Of text encoders that hand over one layer: which one, and its states.
LAYER, CHOSEN_STATES = "layer", "states"


@dataclass(frozen=True)
class TensorSpec:
    """Describe one input or output: its name, shape (ints, or symbols before loading), dtype."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


class Shaped(Protocol):
    """A tensor by its name and shape: a `TensorSpec`, or a manifest's entry."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def shape(self) -> Sequence[int | str]:
        """Numbers, and symbols for what is known when a network is loaded."""
        ...


def resolve_shapes(
    network: str,
    tensors: Sequence[Shaped],
    sizes: Mapping[str, int],
) -> dict[str, tuple[int, ...]]:
    """Put numbers in the place of a network's symbolic dimensions.

    Args:
        network: the network's name, for messages.
        tensors: a network's inputs, as the manifest or a contract lists them.
        sizes: value of each symbol; `name/divisor` is rounded up, as strided convolutions do.

    Returns:
        Shape by input name.
    """

    def number(dimension: int | str) -> int:
        if isinstance(dimension, int):
            return dimension
        symbol, _, divisor = dimension.partition("/")
        if symbol not in sizes:
            raise BundleError(
                f"{network}: dimension {dimension!r} is unknown; known are {', '.join(sizes)}."
            )
        return -(-sizes[symbol] // int(divisor or 1))

    shapes = {tensor.name: tuple(number(size) for size in tensor.shape) for tensor in tensors}
    for name, shape in shapes.items():
        if math.prod(shape) > MAX_ELEMENTS:
            raise BundleError(f"{network}: input {name!r} would be {list(shape)}; too large.")
    return shapes


def size_name(size: tuple[int, int]) -> str:
    """Write width and height in pixels as people do: "512x768"."""
    return f"{size[0]}x{size[1]}"


def symbol_sizes(
    tensors: Sequence[Shaped], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """Read the value of each symbol off the shapes of a network's inputs."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        for dimension, size in zip(tensor.shape, shapes[tensor.name], strict=True):
            if isinstance(dimension, str):
                symbol, _, divisor = dimension.partition("/")
                sizes.setdefault(symbol, size * int(divisor or 1))
    return sizes


def require_tensors(
    network: str,
    specs: Sequence[TensorSpec],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str | None = None,
) -> None:
    """Refuse a loaded network whose tensors are not what its manifest's architecture implies.

    Args:
        network: the network's name, for messages.
        specs: its inputs or outputs.
        shapes: the shape that each tensor named must have; others may exist.
        dtype: what they must hold, or None for anything.
    """
    found = {spec.name: spec for spec in specs}
    for name, shape in shapes.items():
        if name not in found:
            raise BundleError(f"{network}: there is no tensor {name!r}; found {', '.join(found)}.")
        spec = found[name]
        if spec.shape != shape or dtype not in (None, spec.dtype):
            raise BundleError(
                f"{network}: {name!r} is {spec.dtype} {list(spec.shape)}; expected "
                f"{dtype or spec.dtype} {list(shape)}."
            )


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """Return NumPy's dtype for a tensor's dtype as manifests name it."""
    if dtype not in ("float32", "float16", "int64", "int32"):
        raise BundleError(f"an input of dtype {dtype} cannot be fed from NumPy.")
    return np.dtype(dtype)
