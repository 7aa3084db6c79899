"""Lowering: fused nodes become what a target has, standard operators or plugins by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
from onnx import helper

from sdengine.export.fused_functions import DOMAIN

# The first with Attention; GroupNormalization has a scale for each channel from 21 on. Of the
# operators that the exported graphs use, every version between takes more types and nothing else.
STANDARD_OPSET = 23
_STANDARD_IR_VERSION = 11
_SWAP_HEADS = [0, 2, 1, 3]


def to_standard(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph of opset 23 whose fused nodes are Attention and GroupNormalization.

    Args:
        model: as `fuse` returns it; left as it is.
    """
    return _lowered(model, _standard_nodes, STANDARD_OPSET)


def to_plugins(
    model: onnx.ModelProto, supported: Callable[[onnx.NodeProto], bool]
) -> onnx.ModelProto:
    """Return a graph whose fused nodes name TensorRT plugins, ahead-of-time compiled ones.

    Args:
        model: as `fuse` returns it; left as it is.
        supported: says for which nodes there is a plugin; the others become as by `to_standard`.
    """

    def lower(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        return _plugin_node(node) if supported(node) else _standard_nodes(node)

    return _lowered(model, lower, STANDARD_OPSET)


def _lowered(
    model: onnx.ModelProto,
    lower: Callable[[onnx.NodeProto], list[onnx.NodeProto]],
    opset: int,
) -> onnx.ModelProto:
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    for node in lowered.graph.node:
        nodes += lower(node) if node.domain == DOMAIN else [node]
    del lowered.graph.node[:]
    lowered.graph.node.extend(nodes)
    del lowered.functions[:]
    kept = [known for known in lowered.opset_import if known.domain not in ("", DOMAIN)]
    kept.append(helper.make_opsetid("", opset))
    lowered.ir_version = max(lowered.ir_version, _STANDARD_IR_VERSION)
    del lowered.opset_import[:]
    lowered.opset_import.extend(kept)
    # They name the results of nodes that are no more.
    del lowered.graph.value_info[:]
    return lowered


def _standard_nodes(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    if node.op_type in ("attention", "causal_attention"):
        return _attention_nodes(node)
    return _group_norm_nodes(node)


def _attention_nodes(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Attention of [B,heads,S,D] between transpositions from and to [B,S,heads,D]."""
    name = node.output[0]
    made = [
        helper.make_node("Transpose", [source], [f"{name}.{part}"], perm=_SWAP_HEADS)
        for source, part in zip(node.input, ("q", "k", "v"), strict=True)
    ]
    attention = helper.make_node(
        "Attention",
        [f"{name}.{part}" for part in ("q", "k", "v")],
        [f"{name}.heads"],
        name=node.name,
        scale=_attributes(node)["scale"],
        is_causal=int(node.op_type == "causal_attention"),
    )
    closing = helper.make_node("Transpose", [f"{name}.heads"], [name], perm=_SWAP_HEADS)
    return [*made, attention, closing]


def _group_norm_nodes(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    name = node.output[0]
    silu = node.op_type == "group_norm_silu"
    normed = f"{name}.normed" if silu else name
    made = [
        helper.make_node(
            "GroupNormalization", list(node.input), [normed], name=node.name, **_attributes(node)
        )
    ]
    if silu:
        made.append(helper.make_node("Sigmoid", [normed], [f"{name}.gate"]))
        made.append(helper.make_node("Mul", [normed, f"{name}.gate"], [name]))
    return made


def _plugin_node(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Name the plugin of TensorRT that computes a node, see its guide "Adding custom layers"."""
    plugin = helper.make_node(
        node.op_type,
        list(node.input),
        list(node.output),
        name=node.name,
        plugin_namespace=DOMAIN,
        plugin_version="1",
        aot=1,
        **_attributes(node),
    )
    return [plugin]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: a.f if a.type == onnx.AttributeProto.FLOAT else a.i for a in node.attribute}
