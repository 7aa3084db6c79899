"""Operators of exported graphs, each with what it drafts: one function an operator.

To compute another operator, add its function to `OPERATORS`; what the kernels compute stands in
`sdengine.backends.native.operations`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from sdengine.compilers.native.import_state import ImportState

Attributes = Mapping[str, Any]
Handler = Callable[[ImportState, onnx.NodeProto, Attributes], None]


def _elementwise(kind: str) -> Handler:
    """Return what drafts a function of single values."""

    def draft(state: ImportState, node: onnx.NodeProto, _: Attributes) -> None:
        x = node.input[0]
        state.make(kind, node, {"x": x}, state.channels_of(x))

    return draft


def _matmul(state: ImportState, node: onnx.NodeProto, _: Attributes) -> None:
    x, other = node.input
    if other not in state.transposed:
        state.refuse(node, "it multiplies no transposed weight")
    weight = state.transposed[other]
    out_features = state.shapes[weight][0]
    draft = state.make("linear", node, {"x": x}, out_features, channels=out_features)
    draft.weights["weight"] = weight


def _gemm(state: ImportState, node: onnx.NodeProto, given: Attributes) -> None:
    x, weight = node.input[:2]
    plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0
    if weight not in state.shapes or not plain or given.get("transB") != 1:
        state.refuse(node, "it is no linear layer")
    out_features = state.shapes[weight][0]
    draft = state.make("linear", node, {"x": x}, out_features, channels=out_features)
    draft.weights["weight"] = weight
    if len(node.input) > 2:
        draft.weights["bias"] = node.input[2]


def _conv(state: ImportState, node: onnx.NodeProto, given: Attributes) -> None:
    channels, _, kernel, width = state.shapes[node.input[1]]
    strides, paddings = set(given.get("strides", [1])), set(given.get("pads", [0]))
    plain = given.get("group", 1) == 1 and set(given.get("dilations", [1])) == {1}
    if not plain or kernel != width or len(strides) != 1 or len(paddings) != 1:
        state.refuse(node, "it has groups, dilations, or differs in height and width")
    (stride,), (padding,) = strides, paddings
    fields: dict[str, Any] = {"channels": channels}
    kind = "linear"
    if (kernel, stride, padding) != (1, 1, 0):
        kind = "conv"
        fields |= {"kernel": kernel, "stride": stride, "padding": padding}
    draft = state.make(kind, node, {"x": node.input[0]}, channels, **fields)
    draft.weights["weight"] = node.input[1]
    if len(node.input) > 2:
        draft.weights["bias"] = node.input[2]


def _group_norm(state: ImportState, node: onnx.NodeProto, given: Attributes, **more: str) -> None:
    fields = {"groups": given["num_groups"], "epsilon": given["epsilon"], **more}
    draft = state.make("group_norm", node, {"x": node.input[0]}, state.channels_of(node.input[0]))
    draft.fields = fields
    draft.weights = {"weight": node.input[1], "bias": node.input[2]}


def _group_norm_silu(state: ImportState, node: onnx.NodeProto, given: Attributes) -> None:
    _group_norm(state, node, given, activation="silu")


def _layer_norm(state: ImportState, node: onnx.NodeProto, given: Attributes) -> None:
    if given.get("axis", -1) != -1:
        state.refuse(node, "it runs along another axis than the last")
    x = node.input[0]
    draft = state.make("layer_norm", node, {"x": x}, state.channels_of(x), epsilon=given["epsilon"])
    draft.weights = {"weight": node.input[1], "bias": node.input[2]}
    if state.values[x] in state.layers:
        state.layers[draft.output] = state.layers[state.values[x]]


def _attention(state: ImportState, node: onnx.NodeProto, given: Attributes, **more: bool) -> None:
    width = state.channels_of(node.input[0])
    heads = width // state.head_dims[node.name]
    inputs = dict(zip(("q", "k", "v"), node.input, strict=True))
    draft = state.make("attention", node, inputs, width)
    draft.fields = {"heads": heads, "scale": given["scale"], **more}


def _causal_attention(state: ImportState, node: onnx.NodeProto, given: Attributes) -> None:
    _attention(state, node, given, causal=True)


def _add(state: ImportState, node: onnx.NodeProto, _: Attributes) -> None:
    vectors = [name for name in node.input if name in state.shapes]
    maps = [name for name in node.input if name in state.values]
    if vectors and len(maps) == 1:
        draft = state.make("bias", node, {"x": maps[0]}, state.channels_of(maps[0]))
        draft.weights["bias"] = vectors[0]
        return
    if len(maps) != 2:
        state.refuse(node, "it adds a number")
    for name in maps:
        _place_constant(state, state.values[name], node)
    state.make("add", node, {"a": maps[0], "b": maps[1]}, state.channels_of(maps[0]))


def _place_constant(state: ImportState, value: str, node: onnx.NodeProto) -> None:
    """Draft a table of positions before what reads it first, under that one's name."""
    if value in state.pending:
        draft = state.pending.pop(value)
        draft.name = node.name or node.output[0]
        state.drafts.add(draft)


def _mul(state: ImportState, node: onnx.NodeProto, _: Attributes) -> None:
    numbers = [name for name in node.input if name in state.known]
    maps = [name for name in node.input if name in state.values]
    if not numbers:
        state.make("product", node, {"a": maps[0], "b": maps[1]}, state.channels_of(maps[0]))
        return
    factor = state.known[numbers[0]]
    if factor.size == 1:
        factor = factor.reshape(())
        state.make("scale", node, {"x": maps[0]}, state.channels_of(maps[0]), factor=float(factor))
        return
    count = state.channels_of(maps[0]) * factor.size
    state.make("angles", node, {"x": maps[0]}, count, frequencies=factor.reshape(-1))


def _gelu(state: ImportState, node: onnx.NodeProto, given: Attributes) -> None:
    if given.get("approximate", b"none") != b"none":
        state.refuse(node, "it is an approximation")
    x = node.input[0]
    state.make("activation", node, {"x": x}, state.channels_of(x), activation="gelu")


def _relu(state: ImportState, node: onnx.NodeProto, _: Attributes) -> None:
    x = node.input[0]
    state.make("activation", node, {"x": x}, state.channels_of(x), activation="relu")


def _split(state: ImportState, node: onnx.NodeProto, given: Attributes) -> None:
    sizes = state.known[node.input[1]].tolist() if len(node.input) > 1 else []
    if given.get("axis", 0) != -1 or len(node.output) != 2 or len(set(sizes)) > 1:
        state.refuse(node, "it does not halve the channels")
    x = node.input[0]
    for index, output in enumerate(node.output):
        half = onnx.NodeProto(op_type="Split", name=node.name, output=[output])
        state.make("half", half, {"x": x}, state.channels_of(x) // 2, index=index)


def _concat(state: ImportState, node: onnx.NodeProto, given: Attributes) -> None:
    inputs = {f"{index:03}": name for index, name in enumerate(node.input)}
    kinds = [state.drafts.maker.get(state.values[name]) for name in node.input]
    if [made and made.kind for made in kinds] == ["cos", "sin"]:
        state.make("sinusoid", node, inputs, 2 * state.channels_of(node.input[0]))
    elif given["axis"] == 0:
        draft = state.make("stack", node, inputs, state.channels_of(node.input[0]))
        state.layers[draft.output] = len(node.input)
    else:
        state.make("concat", node, inputs, sum(state.channels_of(name) for name in node.input))


def _gather(state: ImportState, node: onnx.NodeProto, given: Attributes) -> None:
    x, index = node.input
    parts = state.layers.get(state.values[x])
    if parts is None or given.get("axis", 0) != 0 or state.known[index].size != 1:
        state.refuse(node, "it takes no layer")
    first = int(state.known[index].reshape(())) % (parts or 1)
    state.make("slice", node, {"x": x}, state.channels_of(x), first=first, parts=parts)


def _one_hot(state: ImportState, node: onnx.NodeProto, _: Attributes) -> None:
    if state.known[node.input[2]].tolist() != [0, 1]:
        state.refuse(node, "it makes other numbers than 0 and 1")
    state.make("one_hot", node, {"index": node.input[0]}, 1)


def _reduce_sum(state: ImportState, node: onnx.NodeProto, given: Attributes) -> None:
    axes = state.known[node.input[1]].tolist() if len(node.input) > 1 else []
    if axes != [1] or given.get("keepdims", 1) != 0:
        state.refuse(node, "it adds up along other axes than tokens")
    state.make("select", node, {"x": node.input[0]}, state.channels_of(node.input[0]))


def _resize(state: ImportState, node: onnx.NodeProto, given: Attributes) -> None:
    scales = state.known[node.input[2]].tolist() if len(node.input) > 2 else []
    if given.get("mode") != b"nearest" or scales != [1.0, 1.0, 2.0, 2.0]:
        state.refuse(node, "it does not double pixels")
    state.make("double", node, {"x": node.input[0]}, state.channels_of(node.input[0]))


def _average_pool(state: ImportState, node: onnx.NodeProto, given: Attributes) -> None:
    """Draft a convolution whose every output is the mean of four of the same channel."""
    odd = given.get("ceil_mode", 0) or set(given.get("pads", [0])) != {0}
    if odd or given["kernel_shape"] != [2, 2] or given.get("strides") != [2, 2]:
        state.refuse(node, "it takes means of other squares than 2x2")
    x = node.input[0]
    channels = state.channels_of(x)
    weight = f"means_of_{channels}_channels.weight"
    quarter = np.full((2, 2), 0.25, np.float32)
    state.drafts.constants[weight] = np.eye(channels, dtype=np.float32)[..., None, None] * quarter
    fields = {"channels": channels, "kernel": 2, "stride": 2, "padding": 0}
    state.make("conv", node, {"x": x}, channels, **fields).weights["weight"] = weight


def _pad(state: ImportState, node: onnx.NodeProto, given: Attributes) -> None:
    amounts = state.known[node.input[1]].tolist()
    if given.get("mode", b"constant") != b"constant" or amounts != [0, 0, 0, 0, 0, 0, 1, 1]:
        state.refuse(node, f"it pads by {amounts}")
    state.make("pad", node, {"x": node.input[0]}, state.channels_of(node.input[0]))


OPERATORS: Mapping[str, Handler] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "Concat": _concat,
    "Conv": _conv,
    "Cos": _elementwise("cos"),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "Mul": _mul,
    "OneHot": _one_hot,
    "Pad": _pad,
    "ReduceSum": _reduce_sum,
    "Relu": _relu,
    "Resize": _resize,
    "Sigmoid": _elementwise("sigmoid"),
    "Sin": _elementwise("sin"),
    "Split": _split,
    # What `sdengine.export.fusion` makes of several.
    "attention": _attention,
    "causal_attention": _causal_attention,
    "group_norm": _group_norm,
    "group_norm_silu": _group_norm_silu,
}
