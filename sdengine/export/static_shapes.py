"""Static shapes of a symbolic graph, and what follows from them, computed ahead."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from sdengine.bundle.tensors import TensorSpec
from sdengine.errors import ExportError

# Shape arithmetic works on a few numbers, and the mask of a text encoder has 77x77.
_MAX_ELEMENTS = 1 << 14
_MAX_PASSES = 8
# Floats are the scales of resizing.
_FOLDED_TYPES = (
    onnx.TensorProto.INT64,
    onnx.TensorProto.INT32,
    onnx.TensorProto.BOOL,
    onnx.TensorProto.FLOAT,
)


class Ports(Protocol):
    """A network's name, and what it reads and writes, in the graph's order."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """With numbers for shapes."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """With numbers for shapes."""


def fix_shapes(model: onnx.ModelProto, contract: Ports) -> onnx.ModelProto:
    """Return a graph whose every shape is a list of numbers; it reads the same weight file.

    Args:
        model: a graph with symbolic shapes, its weights external; left as it is.
        contract: with numbers for shapes, see `NetworkContract.at_size`.

    Raises:
        ExportError: a shape depends on something else than the inputs' shapes.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    ports = (*fixed.graph.input, *fixed.graph.output)
    for spec, value in zip((*contract.inputs, *contract.outputs), ports, strict=True):
        assert spec.name == value.name
        for size, dim in zip(spec.shape, value.type.tensor_type.shape.dim, strict=True):
            dim.dim_value = int(size)
    for _ in range(_MAX_PASSES):
        del fixed.graph.value_info[:]
        fixed = shape_inference.infer_shapes(fixed, data_prop=True)
        if not _fold(fixed.graph):
            break
    left = sum(node.op_type == "Shape" for node in fixed.graph.node)
    if left:
        raise ExportError(f"{contract.name}: {left} shapes do not follow from the inputs' shapes.")
    return fixed


def largest_tensor_bytes(model: onnx.ModelProto) -> int:
    """Return the size of the largest tensor between two nodes of a graph with fixed shapes."""
    sizes = [0]
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        elements = math.prod(dim.dim_value for dim in kind.shape.dim)
        # In fp32, because onnxruntime computes shorter floats so.
        sizes.append(elements * 4)
    return max(sizes)


def _fold(graph: onnx.GraphProto) -> bool:
    """Replace small nodes whose inputs are known by their results; say whether any was."""
    shapes = _known_shapes(graph)
    known: dict[str, np.ndarray] = {}
    kept = []
    folded = False
    for node in graph.node:
        if node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            if value is not None and _is_foldable(value):
                known[node.output[0]] = numpy_helper.to_array(value)
            kept.append(node)
            continue
        result = _result(node, known, shapes)
        if result is None:
            kept.append(node)
            continue
        folded = True
        known[node.output[0]] = result
        tensor = numpy_helper.from_array(result)
        kept.append(
            helper.make_node("Constant", [], list(node.output), name=node.name, value=tensor)
        )
    del graph.node[:]
    graph.node.extend(_used(kept, {value.name for value in graph.output}))
    return folded


def _is_foldable(value: onnx.TensorProto) -> bool:
    return value.data_type in _FOLDED_TYPES and math.prod(value.dims) <= _MAX_ELEMENTS


def _result(
    node: onnx.NodeProto, known: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]
) -> np.ndarray | None:
    if node.op_type == "Shape":
        shape = shapes.get(node.input[0])
        return None if shape is None or node.attribute else np.array(shape, np.int64)
    if len(node.output) != 1 or not node.input:
        return None
    if not all(name in known for name in node.input if name):
        return None
    if math.prod(shapes.get(node.output[0], (_MAX_ELEMENTS + 1,))) > _MAX_ELEMENTS:
        return None
    given = {name: known[name] for name in node.input if name}
    (result,) = _evaluator(node, given).run(None, given)
    value = np.asarray(result)
    return value if helper.np_dtype_to_tensor_dtype(value.dtype) in _FOLDED_TYPES else None


def _evaluator(node: onnx.NodeProto, given: dict[str, np.ndarray]) -> ReferenceEvaluator:
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in given.items()
    ]
    output = helper.make_empty_tensor_value_info(node.output[0])
    graph = helper.make_graph([node], "node", inputs, [output])
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))


def _known_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return shapes


def _used(nodes: list[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """Leave out nodes whose results nothing reads."""
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted |= set(node.input)
            kept.append(node)
    return kept[::-1]
