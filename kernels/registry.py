"""Registry of the operations by name, for whoever chooses kernels node by node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sdengine.errors import ConfigError
from sdengine.kernels import attention, geglu, group_norm, layer_norm, support
from sdengine.kernels.variants import Variant


@dataclass(frozen=True)
class Op:
    """Name an operation's functions; see its module for what they take.

    Args:
        shape: class of its sizes.
        supports: (shape, dtype, cc) -> whether, and why not.
        variants: (shape, dtype, cc) -> variants, the presumably fastest first.
        cost: (shape, dtype) -> bytes that must move, operations.
    """

    shape: type[Any]
    supports: Callable[[Any, str, int | None], tuple[bool, str]]
    variants: Callable[[Any, str, int | None], tuple[Variant, ...]]
    cost: Callable[[Any, str], tuple[int, int]]


OPS = {
    attention.OP: Op(
        attention.AttentionShape, attention.supports, attention.variants, attention.cost
    ),
    group_norm.OP: Op(
        group_norm.GroupNormShape, group_norm.supports, group_norm.variants, group_norm.cost
    ),
    layer_norm.OP: Op(
        layer_norm.LayerNormShape, layer_norm.supports, layer_norm.variants, layer_norm.cost
    ),
    geglu.OP: Op(geglu.GegluShape, geglu.supports, geglu.variants, geglu.cost),
}


def choose(op: str, shape: Any, dtype: str, cc: int | None) -> Variant:
    """Return the variant to use where none was measured; equal arguments give the same one.

    Args:
        op: name of the operation.
        shape: its sizes, of the operation's shape class.
        dtype: float16, bfloat16 or float32.
        cc: compute capability times ten, or None for Triton's interpreter.

    Raises:
        ConfigError: there is no such operation, the shape is another operation's, or the operation
            does not support it; the message says why.
    """
    found = OPS.get(op)
    if found is None:
        raise ConfigError.for_field("op", op, f"one of {', '.join(OPS)}")
    if not isinstance(shape, found.shape):
        raise ConfigError.for_field("shape", shape, f"a {found.shape.__name__}")
    support.require(found.supports(shape, dtype, cc), op)
    return found.variants(shape, dtype, cc)[0]
