"""Liveness: the most memory that tensors between a graph's nodes take, each freed in time."""

from __future__ import annotations

import math
from collections import Counter

import onnx
from onnx import helper

# Their result is their input, seen otherwise.
_VIEWS = {"Reshape", "Unsqueeze", "Squeeze", "Identity", "Flatten"}
# Computed element by element: the result may lie where an input was that nobody reads any more.
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Sigmoid", "Erf", "Gelu", "Tanh", "Sqrt", "Neg", "Exp"}


def peak_activation_bytes(model: onnx.ModelProto) -> int:
    """Return the most that tensors take at once while a graph runs node by node.

    Inputs, outputs and weights do not count. What a node's kernel needs for itself is not known
    here, so attention should be one node; else its scores count.

    Args:
        model: with fixed shapes, see `fix_shapes`; fused nodes may be in it.
    """
    sizes = _sizes(model.graph)
    readers = Counter(name for node in model.graph.node for name in node.input)
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    root: dict[str, str] = {}  # of a view, whose memory it is
    uses: Counter[str] = Counter()
    live: dict[str, int] = {}
    now = peak = 0
    for node in model.graph.node:
        sources = [root.get(name, name) for name in node.input if name]
        for name in node.output:
            uses[root.get(name, name)] += readers[name]
        if node.op_type in _VIEWS and sources and sources[0] in live:
            root[node.output[0]] = sources[0]
            uses[sources[0]] += readers[node.output[0]]
        else:
            for name in node.output:
                if name in kept or name not in sizes or node.op_type == "Constant":
                    continue
                size = sizes[name]
                reused = None
                if node.op_type in _ELEMENTWISE:
                    reused = next(
                        (s for s in sources if s in live and uses[s] == 1 and live[s] == size), None
                    )
                if reused is None:
                    now += size
                else:
                    del live[reused]
                live[name] = size
        peak = max(peak, now)
        for name in sources:
            uses[name] -= 1
            if uses[name] <= 0 and name in live:
                now -= live.pop(name)
    return peak


def _sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the bytes of each tensor with a known shape."""
    found = {}
    for value in graph.value_info:
        kind = value.type.tensor_type
        sizes = [dim.dim_value for dim in kind.shape.dim]
        if kind.elem_type and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            item = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
            found[value.name] = math.prod(sizes) * item
    return found
