"""Rendition in fp32 of a bf16 graph, for runtimes that lack bf16 operators."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

_FP32 = onnx.TensorProto.FLOAT
_BF16 = onnx.TensorProto.BFLOAT16
_STORED_SUFFIX = ".stored"


def render_in_fp32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same graph with fp32 in the place of every bf16.

    The weights stay bf16 in their file, and each is converted where it is read; so it computes with
    exactly the numbers of the file, without the rounding between operators.

    Args:
        model: a graph whose weights are external data; left as it is.
    """
    rendered = onnx.ModelProto()
    rendered.CopyFrom(model)
    graph = rendered.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == _BF16:
            value.type.tensor_type.elem_type = _FP32
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _BF16:
                attribute.i = _FP32
            elif attribute.HasField("t") and attribute.t.data_type == _BF16:
                values = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(values))
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type == _BF16:
            name, tensor.name = tensor.name, tensor.name + _STORED_SUFFIX
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=_FP32))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return rendered
