"""Constants in an exported graph: values that follow from them alone, such as padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return a node's attributes as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def evaluate(node: onnx.NodeProto, inputs: list[Array]) -> Array | None:
    """Return what a node makes of constants, or None for an operator that is not needed here."""
    if node.op_type == "Constant":
        return np.asarray(numpy_helper.to_array(attributes(node)["value"]))
    if node.op_type not in _OPERATORS:
        return None
    return np.asarray(_OPERATORS[node.op_type](attributes(node), *inputs))


def _slice(_: dict[str, Any], data: Array, starts: Array, ends: Array, *rest: Array) -> Array:
    axes = rest[0].tolist() if rest else list(range(len(starts)))
    steps = rest[1].tolist() if len(rest) > 1 else [1] * len(starts)
    index: list[slice] = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts.tolist(), ends.tolist(), steps, strict=True):
        # The least number stands for "down to the first".
        stop = None if step < 0 and end < -data.shape[axis] else end
        index[axis] = slice(start, stop, step)
    return data[tuple(index)]


def _unsqueeze(_: dict[str, Any], data: Array, axes: Array) -> Array:
    return np.expand_dims(data, tuple(axes.tolist()))


def _reshape(_: dict[str, Any], data: Array, shape: Array) -> Array:
    sides = [data.shape[i] if side == 0 else side for i, side in enumerate(shape.tolist())]
    return data.reshape(sides)


def _cast(given: dict[str, Any], data: Array) -> Array:
    return data.astype(helper.tensor_dtype_to_np_dtype(given["to"]))


def _constant_of_shape(given: dict[str, Any], shape: Array) -> Array:
    value = numpy_helper.to_array(given["value"]).reshape(()) if "value" in given else np.float32(0)
    return np.full(shape.tolist(), value)


_OPERATORS: dict[str, Callable[..., Any]] = {
    "Shape": lambda _, data: np.asarray(data.shape, np.int64),
    "Gather": lambda given, data, index: np.take(data, index, given.get("axis", 0)),
    "Add": lambda _, a, b: a + b,
    "Sub": lambda _, a, b: a - b,
    "Mul": lambda _, a, b: a * b,
    "Mod": lambda _, a, b: np.mod(a, b),
    "Sqrt": lambda _, a: np.sqrt(a),
    "Concat": lambda given, *parts: np.concatenate(parts, given["axis"]),
    "Transpose": lambda given, data: data.transpose(given.get("perm")),
    "Slice": _slice,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Cast": _cast,
    "ConstantOfShape": _constant_of_shape,
}
