"""A graph of one node, for what asks a builder for no more than that."""

from __future__ import annotations

from pathlib import Path

import onnx

from sdengine.bundle.tensors import TensorSpec
from sdengine.export.network import ExportedNetwork


def network_of(folder: Path, op_type: str) -> ExportedNetwork:
    """Write a graph of one node, called the_node, as a decoder [batch, 4] fp16."""
    shape: list[str | int | None] = ["batch", 4]
    ports = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, shape)
        for name in ("x", "y")
    ]
    node = onnx.helper.make_node(op_type, ["x"], ["y"], name="the_node")
    graph = onnx.helper.make_graph([node], "graph", ports[:1], ports[1:])
    path = folder / "vae_decoder.onnx"
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset]), path)
    spec = TensorSpec("x", ("batch", 4), "float16")
    return ExportedNetwork("vae_decoder", path, (spec,), (), None, None)
