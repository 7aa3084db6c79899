"""Lowering: fused nodes become what a target has, standard operators or plugins by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
from onnx import helper

from sdengine.export.fused_functions import DOMAIN
from sdengine.kernels.group_norm_variants import GroupNormShape, chunk_positions, wants_several

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
    model: onnx.ModelProto,
    supported: Callable[[onnx.NodeProto], bool],
    maps: Mapping[str, Sequence[Sequence[int]]] | None = None,
) -> onnx.ModelProto:
    """Return a graph whose fused nodes name TensorRT plugins, ahead-of-time compiled ones.

    Args:
        model: as `fuse` returns it; left as it is.
        supported: says for which nodes there is a plugin; the others become as by `to_standard`.
        maps: by the name of a normalisation, or what it makes, the shape [B,C,...] of its map in
            each profile. Without, its code is for any number of positions, read one by one.
    """

    def lower(node: onnx.NodeProto) -> list[onnx.NodeProto]:
        if not supported(node):
            return _standard_nodes(node)
        if node.op_type in ("attention", "causal_attention"):
            return [_plugin_node(node, node.op_type, _attributes(node))]
        return _group_norm_plugins(node, (maps or {}).get(node.name or node.output[0], ()))

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


def _group_norm_plugins(
    node: onnx.NodeProto, maps: Sequence[Sequence[int]]
) -> list[onnx.NodeProto]:
    """One plugin; or two where groups are large, so that several programs can share each.

    A plugin's code is one for all profiles, so it is told what their numbers of positions share.
    """
    attributes = _attributes(node)
    sizes = [math.prod(shape[2:]) for shape in maps]
    known = {"divisor": math.gcd(*sizes) or 1, "most_positions": max(sizes, default=0)}
    if maps:
        shape = GroupNormShape(1, maps[0][1], max(sizes), attributes["num_groups"], True)
    if not maps or not wants_several(shape):
        return [_plugin_node(node, node.op_type, attributes | known)]
    known["chunk"] = chunk_positions(shape)
    moments = f"{node.output[0]}.moments"
    groups = {"num_groups": attributes["num_groups"]}
    first = _plugin_node(node, "group_norm_statistics", groups | known)
    del first.input[1:]
    first.output[0] = moments
    first.name = f"{node.name}.statistics"
    second = _plugin_node(node, f"{node.op_type}_apply", attributes | known)
    second.input.append(moments)
    return [first, second]


def _plugin_node(node: onnx.NodeProto, name: str, attributes: dict[str, Any]) -> onnx.NodeProto:
    """Name a plugin of TensorRT, see its guide "Adding custom layers"."""
    return helper.make_node(
        name,
        list(node.input),
        list(node.output),
        name=node.name,
        plugin_namespace=DOMAIN,
        plugin_version="1",
        aot=1,
        **attributes,
    )


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: a.f if a.type == onnx.AttributeProto.FLOAT else a.i for a in node.attribute}
